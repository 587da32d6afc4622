// SPDX-License-Identifier: GPL-2.0

//! One virtqueue: its registers, its ring once enabled, and the buffers in process.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::features::{self, FeatureSet};
use crate::fuzz::Mischief;
use crate::memory::Memory;
use crate::request::Token;
use crate::ring::packed::PackedRing;
use crate::ring::split::SplitRing;
use crate::ring::{Buffer, Head, Layout, Ring, RingError};
use crate::transport::pci_common_config::{QueueRegisters, NO_VECTOR};

/// A buffer that was taken and waits.
#[derive(Debug)]
pub struct Waiting {
    /// Which.
    pub token: Token,
    /// The buffer.
    pub buffer: Buffer,
    /// When the device type begins with it, in microseconds since the device started; [`HELD`] if
    /// not by time.
    pub due_us: u64,
    /// What is done to it.
    pub mischief: Mischief,
}

/// A buffer that the device type works on.
#[derive(Debug)]
pub struct Begun {
    /// What the ring needs to know of it.
    pub head: Head,
    /// What is done to it.
    pub mischief: Mischief,
}

/// The time at which a buffer is finished that is held until further notice.
pub const HELD: u64 = u64::MAX;

/// The buffers in process: taken, and not given back.
#[derive(Debug, Default)]
pub struct InProcess {
    waiting: VecDeque<Waiting>,
    begun: BTreeMap<Token, Begun>,
    /// How many there are of each ID: more than one if the driver gives a buffer away twice.
    ids: HashMap<u16, u32>,
}

impl InProcess {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.begun.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many the device type works on.
    pub fn begun(&self) -> usize {
        self.begun.len()
    }

    /// Whether one has this ID.
    pub fn has(&self, id: u16) -> bool {
        self.ids.contains_key(&id)
    }

    /// One more.
    pub fn take(&mut self, waiting: Waiting) {
        *self.ids.entry(waiting.buffer.head.id).or_default() += 1;
        self.waiting.push_back(waiting);
    }

    /// When the next is due; [`HELD`] if it waits for something else than time.
    pub fn next_due_us(&self) -> Option<u64> {
        self.waiting.front().map(|waiting| waiting.due_us)
    }

    /// When the last is due.
    pub fn last_due_us(&self) -> Option<u64> {
        self.waiting.iter().map(|waiting| waiting.due_us).max()
    }

    /// Forgets those that wait but the first `count`. Returns how many it forgot.
    pub fn forget_but(&mut self, count: usize) -> usize {
        let forgotten = self.waiting.split_off(count.min(self.waiting.len()));
        for waiting in &forgotten {
            self.release_id(waiting.buffer.head.id);
        }
        forgotten.len()
    }

    /// One fewer has this ID.
    fn release_id(&mut self, id: u16) {
        if let Some(count) = self.ids.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.ids.remove(&id);
            }
        }
    }

    /// Those that are held until further notice are due.
    pub fn release(&mut self) {
        for waiting in &mut self.waiting {
            if waiting.due_us == HELD {
                waiting.due_us = 0;
            }
        }
    }

    /// The device type begins with the next that is due at `now_us`, in order.
    pub fn begin(&mut self, now_us: u64) -> Option<(Token, Buffer, Option<u64>)> {
        self.waiting.front().filter(|next| next.due_us <= now_us)?;
        let waiting = self.waiting.pop_front()?;
        let lie = waiting.mischief.lie;
        let begun = Begun {
            head: waiting.buffer.head,
            mischief: waiting.mischief,
        };
        self.begun.insert(waiting.token, begun);
        Some((waiting.token, waiting.buffer, lie))
    }

    /// The device type is done with one; none if it was dropped.
    pub fn finish(&mut self, token: Token) -> Option<Begun> {
        let begun = self.begun.remove(&token)?;
        self.release_id(begun.head.id);
        Some(begun)
    }
}

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
    /// Buffers taken and not yet given back.
    pub in_process: InProcess,
    /// The driver was asked to notify the next buffer that it makes available.
    pub armed: bool,
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
            in_process: InProcess::default(),
            // A ring comes without suppression.
            armed: true,
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

    /// What the driver reads of it.
    pub fn registers(&self) -> QueueRegisters {
        QueueRegisters {
            size: self.size,
            vector: self.vector,
            enabled: self.ring.is_some(),
            desc: self.desc,
            driver: self.driver,
            device: self.device,
        }
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
            Some(buffer) => {
                self.armed = false;
                Ok(Some(buffer))
            }
            None => Ok(None),
        }
    }

    /// Asks the driver to notify the next buffer that it makes available; true if there is one
    /// already.
    pub fn arm(&mut self, mem: &Memory) -> Result<bool, RingError> {
        match &mut self.ring {
            Some(ring) => {
                let more = ring.arm(mem)?;
                self.armed = !more;
                Ok(more)
            }
            None => Ok(false),
        }
    }

    /// Lets the driver know that it need not notify buffers.
    pub fn disarm(&mut self, mem: &Memory) -> Result<(), RingError> {
        self.armed = false;
        match &mut self.ring {
            Some(ring) => ring.disarm(mem),
            None => Ok(()),
        }
    }

    /// When the device type begins with the next buffer, if a time says so.
    pub fn next_due_us(&self) -> Option<u64> {
        self.in_process.next_due_us().filter(|due| *due != HELD)
    }

    /// Has the last buffer that was taken available again.
    pub fn put_back(&mut self, head: Head) {
        if let Some(ring) = &mut self.ring {
            ring.put_back(head);
        }
    }

    /// Gives a buffer back with `len` bytes written.
    pub fn push_used(&mut self, mem: &Memory, head: Head, len: u32) -> Result<(), RingError> {
        if let Some(ring) = &mut self.ring {
            ring.push_used(mem, head, len)?;
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
