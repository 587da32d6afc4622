// SPDX-License-Identifier: GPL-2.0

//! The smallest driver of either ring layout, for tests: it adds chains and collects used ones.

use std::collections::HashMap;

use vm_memory::{Bytes, GuestAddress};

use super::chain::{AVAIL, DESC_SIZE, INDIRECT, NEXT, USED, WRITE};
use super::packed::PackedRing;
use super::split::SplitRing;
use super::{Layout, Ring, RingError};
use crate::memory::Memory;

/// Where the descriptors are.
pub const DESC: u64 = 0x1000;
/// Where the driver area is.
pub const DRIVER: u64 = 0x6000;
/// Where the device area is.
pub const DEVICE: u64 = 0x7000;
/// Buffers and indirect tables begin here.
pub const BUFFERS: u64 = 0x1_0000;
/// End of memory.
pub const END: u64 = 0x4_0000;

/// One descriptor of a chain: address, length, writable by the device.
pub type Piece = (u64, u32, bool);

/// Memory for one queue and its buffers.
pub fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap()
}

/// The driver of one queue.
pub struct Driver {
    /// Packed layout.
    pub packed: bool,
    /// Queue size.
    pub size: u16,
    next_desc: u16,
    avail: u16,
    avail_wrap: bool,
    used: u16,
    used_wrap: bool,
    /// Packed: how many descriptors each buffer ID takes.
    taken: HashMap<u16, u16>,
    next_table: u64,
}

impl Driver {
    /// A driver of a queue of `size` descriptors.
    pub fn new(packed: bool, size: u16) -> Self {
        Self {
            packed,
            size,
            next_desc: 0,
            avail: 0,
            avail_wrap: true,
            used: 0,
            used_wrap: true,
            taken: HashMap::new(),
            next_table: BUFFERS,
        }
    }

    /// Where it put the queue, with all features.
    pub fn layout(&self) -> Layout {
        Layout {
            size: self.size,
            desc: DESC,
            driver: DRIVER,
            device: DEVICE,
            event_idx: false,
            indirect: true,
        }
    }

    /// The device's side of the queue.
    pub fn ring(&self, mem: &Memory, layout: Layout) -> Result<Box<dyn Ring>, RingError> {
        Ok(if self.packed {
            Box::new(PackedRing::new(mem, layout)?)
        } else {
            Box::new(SplitRing::new(mem, layout)?)
        })
    }

    fn write_desc(&self, mem: &Memory, at: u64, piece: Piece, third: u16, fourth: u16) {
        let (addr, len, _) = piece;
        mem.write_obj(addr, GuestAddress(at)).unwrap();
        mem.write_obj(len, GuestAddress(at + 8)).unwrap();
        mem.write_obj(third, GuestAddress(at + 12)).unwrap();
        mem.write_obj(fourth, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain available, by an indirect table if `indirect`; returns its ID.
    pub fn add(&mut self, mem: &Memory, pieces: &[Piece], indirect: bool) -> u16 {
        if indirect {
            let table = self.next_table;
            self.next_table += DESC_SIZE * pieces.len() as u64;
            for (i, piece) in pieces.iter().enumerate() {
                let last = i + 1 == pieces.len();
                let mut flags = if piece.2 { WRITE } else { 0 };
                let at = table + DESC_SIZE * i as u64;
                if self.packed {
                    self.write_desc(mem, at, *piece, 0, flags);
                } else {
                    flags |= if last { 0 } else { NEXT };
                    self.write_desc(mem, at, *piece, flags, i as u16 + 1);
                }
            }
            let whole = (table, DESC_SIZE as u32 * pieces.len() as u32, false);
            self.add_direct(mem, &[whole], INDIRECT)
        } else {
            self.add_direct(mem, pieces, 0)
        }
    }

    fn add_direct(&mut self, mem: &Memory, pieces: &[Piece], extra: u16) -> u16 {
        if self.packed {
            self.add_packed(mem, pieces, extra)
        } else {
            self.add_split(mem, pieces, extra)
        }
    }

    fn add_split(&mut self, mem: &Memory, pieces: &[Piece], extra: u16) -> u16 {
        let head = self.next_desc;
        for (i, piece) in pieces.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (self.next_desc + 1) % self.size;
            let mut flags = extra | if piece.2 { WRITE } else { 0 };
            if i + 1 != pieces.len() {
                flags |= NEXT;
            }
            let at = DESC + DESC_SIZE * u64::from(index);
            self.write_desc(mem, at, *piece, flags, self.next_desc);
        }
        self.publish(mem, head);
        head
    }

    /// Split: puts a head into the available ring.
    pub fn publish(&mut self, mem: &Memory, head: u16) {
        let slot = DRIVER + 4 + 2 * u64::from(self.avail % self.size);
        mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        mem.write_obj(self.avail, GuestAddress(DRIVER + 2)).unwrap();
    }

    fn add_packed(&mut self, mem: &Memory, pieces: &[Piece], extra: u16) -> u16 {
        let id = self.next_desc;
        self.next_desc = (self.next_desc + 1) % self.size;
        self.taken.insert(id, pieces.len() as u16);
        for (i, piece) in pieces.iter().enumerate() {
            let mut flags = extra | if piece.2 { WRITE } else { 0 };
            if i + 1 != pieces.len() {
                flags |= NEXT;
            }
            flags |= if self.avail_wrap { AVAIL } else { USED };
            let at = DESC + DESC_SIZE * u64::from(self.avail);
            self.write_desc(mem, at, *piece, id, flags);
            self.avail += 1;
            if self.avail == self.size {
                self.avail = 0;
                self.avail_wrap = !self.avail_wrap;
            }
        }
        id
    }

    /// The next used buffer: ID and length.
    pub fn used(&mut self, mem: &Memory) -> Option<(u16, u32)> {
        if self.packed {
            let at = DESC + DESC_SIZE * u64::from(self.used);
            let flags: u16 = mem.read_obj(GuestAddress(at + 14)).unwrap();
            let matches = |flag| (flags & flag != 0) == self.used_wrap;
            if !matches(AVAIL) || !matches(USED) {
                return None;
            }
            let len = mem.read_obj(GuestAddress(at + 8)).unwrap();
            let id: u16 = mem.read_obj(GuestAddress(at + 12)).unwrap();
            self.used += self.taken.remove(&id).unwrap();
            if self.used >= self.size {
                self.used -= self.size;
                self.used_wrap = !self.used_wrap;
            }
            return Some((id, len));
        }
        let index: u16 = mem.read_obj(GuestAddress(DEVICE + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let at = DEVICE + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let id: u32 = mem.read_obj(GuestAddress(at)).unwrap();
        let len = mem.read_obj(GuestAddress(at + 4)).unwrap();
        Some((id as u16, len))
    }

    /// Writes the event suppression for used buffers: notify when the one at the present position
    /// is used (with EVENT_IDX), or always, or never.
    pub fn want(&self, mem: &Memory, want: Want) {
        let (addr, flags, event) = match want {
            Want::Always => (DRIVER, 0u16, 0u16),
            Want::Never => (DRIVER, 1, 0),
            Want::Next => (DRIVER, 2, self.used),
        };
        if self.packed {
            let wrap = if self.used_wrap { 1 << 15 } else { 0 };
            mem.write_obj(event | wrap, GuestAddress(addr)).unwrap();
            mem.write_obj(flags, GuestAddress(addr + 2)).unwrap();
        } else if want == Want::Next {
            let used_event = DRIVER + 4 + 2 * u64::from(self.size);
            mem.write_obj(self.used, GuestAddress(used_event)).unwrap();
        } else {
            mem.write_obj(flags, GuestAddress(addr)).unwrap();
        }
    }
}

/// When a driver wants to be notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Of every used buffer.
    Always,
    /// Of none.
    Never,
    /// Of the next one only.
    Next,
}
