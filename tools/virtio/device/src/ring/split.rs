// SPDX-License-Identifier: GPL-2.0

//! Split virtqueues (VIRTIO 1.4, "Split Virtqueues"), on rust-vmm's `virtio-queue`.
//!
//! `virtio-queue` keeps the indices, the used ring and the notification rules. Its chain iterator
//! ends silently at a broken descriptor; a device that judges wants to know, so chains are walked
//! here.

use std::sync::atomic::Ordering;

use virtio::virtq::AvailF;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, RawDesc, DESC_SIZE, INDIRECT, NEXT};
use super::{check_area, Buffer, Head, Layout, Position, Ring, RingError};
use crate::memory::Memory;

const NO_INTERRUPT: u16 = AvailF::NO_INTERRUPT.bits().to_ne();

/// A split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    queue: Queue,
    layout: Layout,
    /// An entry was put into the used ring of which `virtio-queue` does not know.
    forged: bool,
}

impl SplitRing {
    /// Checks the layout and starts at index 0.
    pub fn new(mem: &Memory, layout: Layout) -> Result<Self, RingError> {
        let size = u64::from(layout.size);
        let mut queue = Queue::new(layout.size).map_err(|_| RingError::Size(layout.size))?;
        check_area(
            mem,
            "the descriptor table",
            layout.desc,
            DESC_SIZE * size,
            16,
        )?;
        check_area(mem, "the available ring", layout.driver, 6 + 2 * size, 2)?;
        check_area(mem, "the used ring", layout.device, 6 + 8 * size, 4)?;
        let half = |addr: u64| (Some(addr as u32), Some((addr >> 32) as u32));
        let (low, high) = half(layout.desc);
        queue.set_desc_table_address(low, high);
        let (low, high) = half(layout.driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = half(layout.device);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(layout.event_idx);
        queue.set_ready(true);
        Ok(Self {
            queue,
            layout,
            forged: false,
        })
    }

    fn chain(&self, mem: &Memory, head: u16) -> Result<Buffer, RingError> {
        let mut chain = Chain::new(self.layout.size);
        let mut table = self.layout.desc;
        let mut entries = u32::from(self.layout.size);
        let mut in_table = false;
        let mut descriptors = 0;
        let mut index = u32::from(head);
        // Bounded: `push` refuses more than the queue size, and a table is entered once.
        loop {
            if index >= entries {
                return Err(RingError::Index(index, entries));
            }
            let desc = RawDesc::read(mem, table, index)?;
            let flags = desc.split_flags();
            if !in_table {
                descriptors += 1;
            }
            if flags & INDIRECT != 0 {
                if in_table {
                    return Err(RingError::IndirectNested);
                }
                if !self.layout.indirect {
                    return Err(RingError::IndirectNotNegotiated);
                }
                if flags & NEXT != 0 {
                    return Err(RingError::IndirectNext);
                }
                entries = desc.table_len()?;
                table = desc.addr;
                index = 0;
                in_table = true;
                continue;
            }
            chain.push(desc.addr, desc.len, flags)?;
            if flags & NEXT == 0 {
                return Ok(chain.finish(head, descriptors));
            }
            index = u32::from(desc.split_next());
        }
    }
}

impl Ring for SplitRing {
    fn pop(&mut self, mem: &Memory) -> Result<Option<Buffer>, RingError> {
        let next = self.queue.next_avail();
        let avail = self.queue.avail_idx(mem, Ordering::Acquire)?.0;
        let ready = avail.wrapping_sub(next);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.layout.size {
            return Err(RingError::AvailIndex(ready, self.layout.size));
        }
        let slot = u64::from(next % self.layout.size);
        let addr = GuestAddress(self.layout.driver.wrapping_add(4 + 2 * slot));
        let head = u16::from_le_bytes(mem.read_obj(addr)?);
        let buffer = self.chain(mem, head)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(buffer))
    }

    fn put_back(&mut self, _head: Head) {
        // Its entry is still there: the driver can't reuse it before the buffer is used.
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_sub(1));
    }

    fn push_used(&mut self, mem: &Memory, head: Head, len: u32) -> Result<(), RingError> {
        let size = self.queue.size();
        if head.id < size {
            return Ok(self.queue.add_used(mem, head.id, len)?);
        }
        // Only on request: an ID that can't be, which virtio-queue does not put into a ring.
        let next = self.queue.next_used();
        let ring = self.layout.device + 4;
        let element = GuestAddress(ring + 8 * u64::from(next % size));
        mem.store(u32::from(head.id).to_le(), element, Ordering::Relaxed)?;
        mem.store(len.to_le(), GuestAddress(element.0 + 4), Ordering::Relaxed)?;
        let next = next.wrapping_add(1);
        mem.store(
            next.to_le(),
            GuestAddress(self.layout.device + 2),
            Ordering::Release,
        )?;
        self.queue.set_next_used(next);
        self.forged = true;
        Ok(())
    }

    fn needs_notification(&mut self, mem: &Memory) -> Result<bool, RingError> {
        if std::mem::take(&mut self.forged) {
            return Ok(true);
        }
        if !self.layout.event_idx {
            // Not in virtio-queue: without EVENT_IDX the driver asks by a flag.
            let addr = GuestAddress(self.layout.driver);
            std::sync::atomic::fence(Ordering::SeqCst);
            let flags = u16::from_le(mem.load(addr, Ordering::Relaxed)?);
            return Ok(flags & NO_INTERRUPT == 0);
        }
        Ok(self.queue.needs_notification(mem)?)
    }

    fn wanted_after(&self, mem: &Memory) -> Result<Option<u16>, RingError> {
        if !self.layout.event_idx {
            return Ok(None);
        }
        let event = self.layout.driver + 4 + 2 * u64::from(self.layout.size);
        let event = u16::from_le(mem.load(GuestAddress(event), Ordering::Relaxed)?);
        Ok(Some(event.wrapping_sub(self.queue.next_used())))
    }

    fn arm(&mut self, mem: &Memory) -> Result<bool, RingError> {
        Ok(self.queue.enable_notification(mem)?)
    }

    fn disarm(&mut self, mem: &Memory) -> Result<(), RingError> {
        Ok(self.queue.disable_notification(mem)?)
    }

    fn avail_mark(&self, mem: &Memory) -> Result<u32, RingError> {
        Ok(self.queue.avail_idx(mem, Ordering::Acquire)?.0.into())
    }

    fn position(&self) -> Position {
        Position {
            avail_idx: self.queue.next_avail(),
            used_idx: self.queue.next_used(),
            avail_wrap: None,
            used_wrap: None,
        }
    }
}
