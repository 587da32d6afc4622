// SPDX-License-Identifier: GPL-2.0

//! What block devices and their drivers exchange.
//!
//! VIRTIO 1.4, "Block Device".
//!
//! C header: [`include/uapi/linux/virtio_blk.h`](srctree/include/uapi/linux/virtio_blk.h)

use core::mem::offset_of;

use kernel::{
    prelude::*,
    transmute::AsBytes, //
};

use crate::{
    bindings::{
        self,
        virtio_blk_config as Layout, //
    },
    config::Field,
    Feature, //
};

/// Defines the features of the device type.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:ident;)*) => {$(
        $(#[$doc])*
        pub const $name: Feature = Feature::new(bindings::$bit);
    )*};
}

features! {
    /// Field `size_max` is there.
    F_SIZE_MAX = VIRTIO_BLK_F_SIZE_MAX;
    /// Field `seg_max` is there.
    F_SEG_MAX = VIRTIO_BLK_F_SEG_MAX;
    /// The geometry is there.
    F_GEOMETRY = VIRTIO_BLK_F_GEOMETRY;
    /// The device can't be written.
    F_RO = VIRTIO_BLK_F_RO;
    /// Field `blk_size` is there.
    F_BLK_SIZE = VIRTIO_BLK_F_BLK_SIZE;
    /// The device has a cache, and can flush it.
    F_FLUSH = VIRTIO_BLK_F_FLUSH;
    /// The topology is there.
    F_TOPOLOGY = VIRTIO_BLK_F_TOPOLOGY;
    /// The cache can be switched.
    F_CONFIG_WCE = VIRTIO_BLK_F_CONFIG_WCE;
    /// There are several virtqueues.
    F_MQ = VIRTIO_BLK_F_MQ;
    /// The device can discard.
    F_DISCARD = VIRTIO_BLK_F_DISCARD;
    /// The device can write zeroes.
    F_WRITE_ZEROES = VIRTIO_BLK_F_WRITE_ZEROES;
    /// The device can erase.
    F_SECURE_ERASE = VIRTIO_BLK_F_SECURE_ERASE;
    /// The device may be divided into zones.
    F_ZONED = VIRTIO_BLK_F_ZONED;
}

/// Defines fields, each with the feature without which it is not there.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $($member:ident).+ $(, if $feature:ident)?;)*) => {$(
        $(#[$doc])*
        // SAFETY: The offset is that of a field that every block device has, if it has
        // negotiated the feature.
        pub const $name: Field<$ty> = unsafe {
            // CAST: The space is small.
            let offset = offset_of!(Layout, $($member).+) as u32;
            #[allow(unused_mut, unused_assignments)]
            let mut feature = None;
            $(feature = Some($feature);)?
            Field::new(bindings::VIRTIO_ID_BLOCK, offset, feature)
        };
    )*};
}

fields! {
    /// The capacity in sectors of 512 bytes.
    CAPACITY: u64 = capacity;
    /// The maximum size of a segment, in bytes.
    SIZE_MAX: u32 = size_max, if F_SIZE_MAX;
    /// The maximum number of segments of a request.
    SEG_MAX: u32 = seg_max, if F_SEG_MAX;
    /// The number of cylinders.
    CYLINDERS: u16 = geometry.cylinders, if F_GEOMETRY;
    /// The number of heads.
    HEADS: u8 = geometry.heads, if F_GEOMETRY;
    /// The number of sectors of a track.
    SECTORS: u8 = geometry.sectors, if F_GEOMETRY;
    /// The size of a logical block, in bytes.
    BLK_SIZE: u32 = blk_size, if F_BLK_SIZE;
    /// How many logical blocks a physical one has, as a power of two.
    PHYSICAL_BLOCK_EXP: u8 = physical_block_exp, if F_TOPOLOGY;
    /// The offset of the first logical block that is aligned, in logical blocks.
    ALIGNMENT_OFFSET: u8 = alignment_offset, if F_TOPOLOGY;
    /// The minimum size of I/O, in logical blocks.
    MIN_IO_SIZE: u16 = min_io_size, if F_TOPOLOGY;
    /// The best size of I/O, in logical blocks.
    OPT_IO_SIZE: u32 = opt_io_size, if F_TOPOLOGY;
    /// The number of virtqueues.
    NUM_QUEUES: u16 = num_queues, if F_MQ;
    /// The maximum number of sectors of a range to discard.
    MAX_DISCARD_SECTORS: u32 = max_discard_sectors, if F_DISCARD;
    /// The maximum number of ranges to discard.
    MAX_DISCARD_SEG: u32 = max_discard_seg, if F_DISCARD;
    /// The alignment of ranges to discard, in sectors.
    DISCARD_SECTOR_ALIGNMENT: u32 = discard_sector_alignment, if F_DISCARD;
    /// The maximum number of sectors to write zeroes to.
    MAX_WRITE_ZEROES_SECTORS: u32 = max_write_zeroes_sectors, if F_WRITE_ZEROES;
    /// The maximum number of sectors of a range to erase.
    MAX_SECURE_ERASE_SECTORS: u32 = max_secure_erase_sectors, if F_SECURE_ERASE;
    /// The maximum number of ranges to erase.
    MAX_SECURE_ERASE_SEG: u32 = max_secure_erase_seg, if F_SECURE_ERASE;
    /// The alignment of ranges to erase, in sectors.
    SECURE_ERASE_SECTOR_ALIGNMENT: u32 = secure_erase_sector_alignment, if F_SECURE_ERASE;
    /// The zone model: one of `Z_*`.
    ZONED_MODEL: u8 = zoned.model, if F_ZONED;
}

/// Whether the cache is in writeback mode: 0 or 1.
// SAFETY: As above.
pub const WCE: Field<u8> = unsafe {
    // CAST: The space is small.
    let offset = offset_of!(Layout, wce) as u32;
    Field::new(bindings::VIRTIO_ID_BLOCK, offset, Some(F_CONFIG_WCE)).writable()
};

/// Defines numbers of the protocol.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $value:ident;)*) => {$(
        $(#[$doc])*
        // CAST: All of them are small.
        pub const $name: $ty = bindings::$value as $ty;
    )*};
}

numbers! {
    /// Request type: read.
    T_IN: u32 = VIRTIO_BLK_T_IN;
    /// Request type: write.
    T_OUT: u32 = VIRTIO_BLK_T_OUT;
    /// Request type: flush.
    T_FLUSH: u32 = VIRTIO_BLK_T_FLUSH;
    /// Request type: read the identifier, of at most [`ID_BYTES`] bytes.
    T_GET_ID: u32 = VIRTIO_BLK_T_GET_ID;
    /// Request type: discard, with ranges as data.
    T_DISCARD: u32 = VIRTIO_BLK_T_DISCARD;
    /// Request type: write zeroes, with ranges as data.
    T_WRITE_ZEROES: u32 = VIRTIO_BLK_T_WRITE_ZEROES;
    /// Request type: erase, with ranges as data.
    T_SECURE_ERASE: u32 = VIRTIO_BLK_T_SECURE_ERASE;
    /// Status: done.
    S_OK: u8 = VIRTIO_BLK_S_OK;
    /// Status: the device has failed.
    S_IOERR: u8 = VIRTIO_BLK_S_IOERR;
    /// Status: the device doesn't know the request type.
    S_UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP;
    /// The size of the identifier.
    ID_BYTES: usize = VIRTIO_BLK_ID_BYTES;
    /// Zone model: none.
    Z_NONE: u8 = VIRTIO_BLK_Z_NONE;
    /// Zone model: host-managed.
    Z_HM: u8 = VIRTIO_BLK_Z_HM;
    /// Zone model: host-aware, which can be used as if there were no zones.
    Z_HA: u8 = VIRTIO_BLK_Z_HA;
}

/// The header of a request.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
pub struct Header {
    kind: u32,
    ioprio: u32,
    sector: u64,
}

// SAFETY: There is no padding: see the assertion.
unsafe impl AsBytes for Header {}
const _: () = assert!(size_of::<Header>() == 16);

impl Header {
    /// Makes a header. `modern` tells whether the device is one of VIRTIO 1.0 or later, and with it
    /// the byte order. `sector` counts 512 bytes.
    #[inline]
    pub const fn new(modern: bool, kind: u32, ioprio: u32, sector: u64) -> Self {
        if modern {
            Self {
                kind: kind.to_le(),
                ioprio: ioprio.to_le(),
                sector: sector.to_le(),
            }
        } else {
            Self {
                kind,
                ioprio,
                sector,
            }
        }
    }
}

/// A range of sectors, of 512 bytes, in the data of a request to discard, to erase, or to write
/// zeroes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

// SAFETY: There is no padding: see the assertion.
unsafe impl AsBytes for Range {}
const _: () = assert!(size_of::<Range>() == 16);

impl Range {
    /// Makes a range; `unmap` lets the device deallocate what is to be zero.
    pub const fn new(sector: u64, sectors: u32, unmap: bool) -> Self {
        let flags = if unmap {
            bindings::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        } else {
            0
        };
        Self {
            sector: sector.to_le(),
            sectors: sectors.to_le(),
            flags: flags.to_le(),
        }
    }
}
