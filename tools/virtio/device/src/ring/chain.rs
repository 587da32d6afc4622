// SPDX-License-Identifier: GPL-2.0

//! Descriptors, and what a chain of them may look like in either layout.

use virtio::virtq::DescF;
use vm_memory::{Bytes, GuestAddress};

use super::{Buffer, Head, RingError, Segment, Segments};
use crate::memory::Memory;

/// Size of a descriptor in both layouts.
pub const DESC_SIZE: u64 = std::mem::size_of::<virtio::virtq::Desc>() as u64;

/// The chain continues.
pub const NEXT: u16 = DescF::NEXT.bits().to_ne();
/// The device may write.
pub const WRITE: u16 = DescF::WRITE.bits().to_ne();
/// The descriptor names a table of descriptors.
pub const INDIRECT: u16 = DescF::INDIRECT.bits().to_ne();
/// Packed: AVAIL.
pub const AVAIL: u16 = DescF::AVAIL.bits().to_ne();
/// Packed: USED.
pub const USED: u16 = DescF::USED.bits().to_ne();

/// A descriptor as it is in memory. The last two fields are in the other order in the two layouts.
#[derive(Clone, Copy, Debug)]
pub struct RawDesc {
    pub addr: u64,
    pub len: u32,
    /// Split: flags. Packed: buffer ID.
    third: u16,
    /// Split: next. Packed: flags.
    fourth: u16,
}

impl RawDesc {
    /// Reads descriptor `index` of `table`.
    pub fn read(mem: &Memory, table: u64, index: u32) -> Result<Self, RingError> {
        let addr = table.wrapping_add(u64::from(index) * DESC_SIZE);
        let bytes: [u8; DESC_SIZE as usize] = mem.read_obj(GuestAddress(addr))?;
        let raw = u128::from_le_bytes(bytes);
        Ok(Self {
            addr: raw as u64,
            len: (raw >> 64) as u32,
            third: (raw >> 96) as u16,
            fourth: (raw >> 112) as u16,
        })
    }

    pub fn split_flags(&self) -> u16 {
        self.third
    }

    pub fn split_next(&self) -> u16 {
        self.fourth
    }

    pub fn packed_id(&self) -> u16 {
        self.third
    }

    pub fn packed_flags(&self) -> u16 {
        self.fourth
    }

    /// How many descriptors the indirect table has that this one names.
    pub fn table_len(&self) -> Result<u32, RingError> {
        if self.len == 0 || !u64::from(self.len).is_multiple_of(DESC_SIZE) {
            return Err(RingError::IndirectLength(self.len));
        }
        Ok(self.len / DESC_SIZE as u32)
    }
}

/// A chain while it is walked.
pub struct Chain {
    readable: Segments,
    writable: Segments,
    total: u64,
    writable_len: u64,
    limit: u16,
}

impl Chain {
    /// A chain of a queue of `size` descriptors, which also bounds an indirect table's chain.
    pub fn new(size: u16) -> Self {
        Self {
            readable: Segments::new(),
            writable: Segments::new(),
            total: 0,
            writable_len: 0,
            limit: size,
        }
    }

    /// The next descriptor of the chain.
    pub fn push(&mut self, addr: u64, len: u32, flags: u16) -> Result<(), RingError> {
        if self.readable.len() + self.writable.len() >= usize::from(self.limit) {
            return Err(RingError::TooLong(self.limit));
        }
        self.total += u64::from(len);
        if self.total > 1 << 32 {
            return Err(RingError::TooBig);
        }
        let segment = Segment { addr, len };
        if flags & WRITE != 0 {
            self.writable_len += u64::from(len);
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(RingError::Order);
        }
        Ok(())
    }

    /// The whole chain.
    pub fn finish(self, id: u16, descriptors: u16) -> Buffer {
        Buffer {
            head: Head {
                id,
                descriptors,
                writable_len: self.writable_len,
            },
            readable: self.readable,
            writable: self.writable,
        }
    }
}
