// SPDX-License-Identifier: GPL-2.0

//! Queue limits.

use crate::bindings;

/// What a disk can do. What is 0 is left to the block layer's defaults.
///
/// See `struct queue_limits` and Documentation/ABI/stable/sysfs-block. Sizes are in bytes where
/// they are not in sectors, which have 512 bytes.
#[derive(Clone, Copy, Default)]
#[expect(missing_docs)]
pub struct Limits {
    pub rotational: bool,
    pub write_cache: bool,
    pub logical_block_size: u32,
    pub physical_block_size: u32,
    pub alignment_offset: u32,
    pub io_min: u32,
    pub io_opt: u32,
    pub max_hw_sectors: u32,
    pub max_segments: u16,
    pub max_segment_size: u32,
    pub max_hw_discard_sectors: u32,
    pub max_discard_segments: u16,
    pub discard_granularity: u32,
    pub max_secure_erase_sectors: u32,
    pub max_write_zeroes_sectors: u32,
}

impl Limits {
    pub(super) fn to_raw(self) -> bindings::queue_limits {
        let mut features = 0;
        if self.rotational {
            features |= bindings::BLK_FEAT_ROTATIONAL;
        }
        if self.write_cache {
            features |= bindings::BLK_FEAT_WRITE_CACHE;
        }

        bindings::queue_limits {
            features,
            logical_block_size: self.logical_block_size,
            physical_block_size: self.physical_block_size,
            alignment_offset: self.alignment_offset,
            io_min: self.io_min,
            io_opt: self.io_opt,
            max_hw_sectors: self.max_hw_sectors,
            max_segments: self.max_segments,
            max_segment_size: self.max_segment_size,
            max_hw_discard_sectors: self.max_hw_discard_sectors,
            max_discard_segments: self.max_discard_segments,
            discard_granularity: self.discard_granularity,
            max_secure_erase_sectors: self.max_secure_erase_sectors,
            max_write_zeroes_sectors: self.max_write_zeroes_sectors,
            ..pin_init::zeroed()
        }
    }
}
