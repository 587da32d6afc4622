// SPDX-License-Identifier: GPL-2.0

//! One virtqueue: its registers, its ring once enabled, and the buffers in process.

use std::collections::VecDeque;

use crate::common::NO_VECTOR;
use crate::features::{self, FeatureSet};
use crate::fuzz::Mischief;
use crate::memory::Memory;
use crate::ring::{Buffer, Layout, PackedRing, Ring, RingError, SplitRing};

/// A buffer in process.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The buffer.
    pub buffer: Buffer,
    /// When it is finished, in microseconds since the device started; [`HELD`] if not by time.
    pub due_us: u64,
    /// What is done to it.
    pub mischief: Mischief,
}

/// The time at which a buffer is finished that is held until further notice.
pub const HELD: u64 = u64::MAX;

/// A virtqueue.
pub struct Queue {
    /// queue_size
    pub size: u16,
    /// The largest possible queue_size.
    pub max_size: u16,
    /// queue_msix_vector
    pub vector: u16,
    /// queue_desc
    pub desc: u64,
    /// queue_driver
    pub driver: u64,
    /// queue_device
    pub device: u64,
    /// The ring, while queue_enable is 1.
    pub ring: Option<Box<dyn Ring>>,
    /// Buffers taken and not yet given back, in order.
    pub in_process: VecDeque<Taken>,
    /// Used buffers have been put there since the driver was last notified of any.
    pub dirty: bool,
}

impl Queue {
    /// A disabled queue.
    pub fn new(max_size: u16) -> Self {
        Self {
            size: max_size,
            max_size,
            vector: NO_VECTOR,
            desc: 0,
            driver: 0,
            device: 0,
            ring: None,
            in_process: VecDeque::new(),
            dirty: false,
        }
    }

    /// Back to the state after a reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Enables the queue with the layout that `negotiated` asks for.
    pub fn enable(&mut self, mem: &Memory, negotiated: FeatureSet) -> Result<(), RingError> {
        let layout = Layout {
            size: self.size,
            desc: self.desc,
            driver: self.driver,
            device: self.device,
            event_idx: negotiated & features::EVENT_IDX != 0,
            indirect: negotiated & features::INDIRECT_DESC != 0,
        };
        self.ring = Some(if negotiated & features::RING_PACKED != 0 {
            Box::new(PackedRing::new(mem, layout)?)
        } else {
            Box::new(SplitRing::new(mem, layout)?)
        });
        Ok(())
    }

    /// Takes the next available buffer.
    pub fn pop(&mut self, mem: &Memory) -> Result<Option<Buffer>, RingError> {
        let Some(ring) = &mut self.ring else {
            return Ok(None);
        };
        match ring.pop(mem)? {
            // A driver has that many descriptors and no more; one that gives the same descriptor
            // twice must not make the device remember without bound.
            Some(_) if self.in_process.len() >= usize::from(self.size) => {
                Err(RingError::Overcommitted(self.size))
            }
            buffer => Ok(buffer),
        }
    }

    /// Whether the device has a buffer of this ID already.
    pub fn has(&self, id: u16) -> bool {
        self.in_process.iter().any(|taken| taken.buffer.id == id)
    }

    /// When the next buffer in process is finished, if a time says so.
    pub fn next_due_us(&self) -> Option<u64> {
        let front = self.in_process.front()?;
        (front.due_us != HELD).then_some(front.due_us)
    }

    /// Gives a buffer back with `len` bytes written.
    pub fn push_used(&mut self, mem: &Memory, buffer: &Buffer, len: u32) -> Result<(), RingError> {
        if let Some(ring) = &mut self.ring {
            ring.push_used(mem, buffer, len)?;
            self.dirty = true;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("size", &self.size)
            .field("enabled", &self.ring.is_some())
            .field("in_process", &self.in_process.len())
            .finish_non_exhaustive()
    }
}
