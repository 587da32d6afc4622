// SPDX-License-Identifier: GPL-2.0

//! Packed virtqueues (VIRTIO 1.4, "Packed Virtqueues").

use std::mem::offset_of;
use std::sync::atomic::{fence, Ordering};

use virtio::pvirtq::{Desc, EventSuppress};
use virtio::RingEventFlags;
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, RawDesc, AVAIL, DESC_SIZE, INDIRECT, NEXT, USED, WRITE};
use super::{check_area, Buffer, Head, Layout, Position, Ring, RingError, MAX_QUEUE_SIZE};
use crate::memory::Memory;

const EVENT_SIZE: u64 = std::mem::size_of::<EventSuppress>() as u64;
const EVENT_FLAGS: u64 = offset_of!(EventSuppress, flags) as u64;
const WRAP_BIT: u16 = 1 << 15;
const FLAGS: u64 = offset_of!(Desc, flags) as u64;
const ID: u64 = offset_of!(Desc, id) as u64;
const LEN: u64 = offset_of!(Desc, len) as u64;

/// A position in the ring with its wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    index: u16,
    wrap: bool,
}

impl Cursor {
    const START: Self = Self {
        index: 0,
        wrap: true,
    };

    fn advance(&mut self, by: u16, size: u16) {
        let next = u32::from(self.index) + u32::from(by);
        if next >= u32::from(size) {
            self.index = (next - u32::from(size)) as u16;
            self.wrap = !self.wrap;
        } else {
            self.index = next as u16;
        }
    }

    fn retreat(&mut self, by: u16, size: u16) {
        match self.index.checked_sub(by) {
            Some(index) => self.index = index,
            None => {
                self.index = (u32::from(self.index) + u32::from(size) - u32::from(by)) as u16;
                self.wrap = !self.wrap;
            }
        }
    }

    /// As in the event suppression structure.
    fn to_event(self) -> u16 {
        self.index | if self.wrap { WRAP_BIT } else { 0 }
    }
}

/// A packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    layout: Layout,
    avail: Cursor,
    used: Cursor,
    /// Descriptors used since the last [`Ring::needs_notification`].
    used_since: u32,
    /// Descriptors taken so far.
    taken: u32,
}

impl PackedRing {
    /// Checks the layout and starts at the beginning of the ring.
    pub fn new(mem: &Memory, layout: Layout) -> Result<Self, RingError> {
        if layout.size == 0 || layout.size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(layout.size));
        }
        let ring_len = DESC_SIZE * u64::from(layout.size);
        check_area(mem, "the descriptor ring", layout.desc, ring_len, 16)?;
        check_area(
            mem,
            "the driver event structure",
            layout.driver,
            EVENT_SIZE,
            4,
        )?;
        check_area(
            mem,
            "the device event structure",
            layout.device,
            EVENT_SIZE,
            4,
        )?;
        Ok(Self {
            layout,
            avail: Cursor::START,
            used: Cursor::START,
            used_since: 0,
            taken: 0,
        })
    }

    fn slot(&self, index: u16) -> u64 {
        self.layout.desc.wrapping_add(DESC_SIZE * u64::from(index))
    }

    fn flags(&self, mem: &Memory, index: u16) -> Result<u16, RingError> {
        let addr = GuestAddress(self.slot(index).wrapping_add(FLAGS));
        Ok(u16::from_le(mem.load(addr, Ordering::Acquire)?))
    }

    /// "Driver and Device Ring Wrap Counters": available if AVAIL matches the wrap counter and
    /// USED does not.
    fn is_available(&self, mem: &Memory, at: Cursor) -> Result<bool, RingError> {
        let flags = self.flags(mem, at.index)?;
        Ok((flags & AVAIL != 0) == at.wrap && (flags & USED != 0) != at.wrap)
    }

    fn read_event(&self, mem: &Memory) -> Result<(u16, u16), RingError> {
        let addr = self.layout.driver;
        let flags = mem.load(
            GuestAddress(addr.wrapping_add(EVENT_FLAGS)),
            Ordering::Acquire,
        )?;
        let desc = mem.load(GuestAddress(addr), Ordering::Relaxed)?;
        Ok((u16::from_le(flags) & 0b11, u16::from_le(desc)))
    }

    /// The chain that begins at `self.avail`: consecutive slots, the ID in the last one.
    fn chain(&self, mem: &Memory) -> Result<Buffer, RingError> {
        let size = self.layout.size;
        let mut chain = Chain::new(size);
        let mut at = self.avail;
        for descriptors in 1..=size {
            let desc = RawDesc::read(mem, self.layout.desc, at.index.into())?;
            let flags = desc.packed_flags();
            if flags & INDIRECT != 0 {
                if !self.layout.indirect {
                    return Err(RingError::IndirectNotNegotiated);
                }
                if flags & NEXT != 0 || descriptors != 1 {
                    return Err(RingError::IndirectNext);
                }
                self.indirect(mem, &desc, &mut chain)?;
                return Ok(chain.finish(desc.packed_id(), descriptors));
            }
            chain.push(desc.addr, desc.len, flags)?;
            if flags & NEXT == 0 {
                return Ok(chain.finish(desc.packed_id(), descriptors));
            }
            at.advance(1, size);
        }
        Err(RingError::TooLong(size))
    }

    /// "Indirect Flag: Scatter-Gather Support": the whole table is the buffer; of the flags in it
    /// only WRITE counts.
    fn indirect(&self, mem: &Memory, desc: &RawDesc, chain: &mut Chain) -> Result<(), RingError> {
        for index in 0..desc.table_len()? {
            let entry = RawDesc::read(mem, desc.addr, index)?;
            if entry.packed_flags() & INDIRECT != 0 {
                return Err(RingError::IndirectNested);
            }
            chain.push(entry.addr, entry.len, entry.packed_flags())?;
        }
        Ok(())
    }
}

impl Ring for PackedRing {
    fn pop(&mut self, mem: &Memory) -> Result<Option<Buffer>, RingError> {
        if !self.is_available(mem, self.avail)? {
            return Ok(None);
        }
        let buffer = self.chain(mem)?;
        let descriptors = buffer.head.descriptors;
        self.avail.advance(descriptors, self.layout.size);
        self.taken = self.taken.wrapping_add(descriptors.into());
        Ok(Some(buffer))
    }

    fn put_back(&mut self, head: Head) {
        self.avail.retreat(head.descriptors, self.layout.size);
        self.taken = self.taken.wrapping_sub(head.descriptors.into());
    }

    fn push_used(&mut self, mem: &Memory, head: Head, len: u32) -> Result<(), RingError> {
        let slot = self.slot(self.used.index);
        let field = |offset| GuestAddress(slot.wrapping_add(offset));
        mem.write_obj(head.id.to_le_bytes(), field(ID))?;
        mem.write_obj(len.to_le_bytes(), field(LEN))?;
        let mut flags = if self.used.wrap { AVAIL | USED } else { 0 };
        if len != 0 {
            flags |= WRITE;
        }
        // The flags say that the rest is there.
        mem.store(flags.to_le(), field(FLAGS), Ordering::Release)?;
        self.used.advance(head.descriptors, self.layout.size);
        self.used_since = self.used_since.saturating_add(u32::from(head.descriptors));
        Ok(())
    }

    fn needs_notification(&mut self, mem: &Memory) -> Result<bool, RingError> {
        let since = std::mem::take(&mut self.used_since);
        // The used descriptors are visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let (flags, event) = self.read_event(mem)?;
        if flags == RingEventFlags::Disable as u16 {
            return Ok(false);
        }
        if flags != RingEventFlags::Desc as u16 || !self.layout.event_idx {
            return Ok(true);
        }
        // Notify if the descriptor at the event's position was among those just used: how far
        // behind the present position is it?
        let size = i64::from(self.layout.size);
        let mut behind = i64::from(self.used.index) - i64::from(event & !WRAP_BIT);
        if (event & WRAP_BIT != 0) != self.used.wrap {
            behind += size;
        }
        Ok(behind >= 1 && behind <= i64::from(since))
    }

    fn arm(&mut self, mem: &Memory) -> Result<bool, RingError> {
        let addr = self.layout.device;
        let mut flags = RingEventFlags::Enable as u16;
        if self.layout.event_idx {
            let event = self.avail.to_event();
            mem.store(event.to_le(), GuestAddress(addr), Ordering::Relaxed)?;
            flags = RingEventFlags::Desc as u16;
        }
        mem.store(
            flags.to_le(),
            GuestAddress(addr.wrapping_add(EVENT_FLAGS)),
            Ordering::Release,
        )?;
        fence(Ordering::SeqCst);
        self.is_available(mem, self.avail)
    }

    fn disarm(&mut self, mem: &Memory) -> Result<(), RingError> {
        let flags = GuestAddress(self.layout.device.wrapping_add(EVENT_FLAGS));
        let disable = RingEventFlags::Disable as u16;
        mem.store(disable.to_le(), flags, Ordering::Relaxed)?;
        Ok(())
    }

    fn avail_mark(&self, mem: &Memory) -> Result<u32, RingError> {
        let mut at = self.avail;
        for count in 0..self.layout.size {
            if !self.is_available(mem, at)? {
                return Ok(self.taken.wrapping_add(count.into()));
            }
            at.advance(1, self.layout.size);
        }
        Ok(self.taken.wrapping_add(self.layout.size.into()))
    }

    fn position(&self) -> Position {
        Position {
            avail_idx: self.avail.index,
            used_idx: self.used.index,
            avail_wrap: Some(self.avail.wrap),
            used_wrap: Some(self.used.wrap),
        }
    }
}
