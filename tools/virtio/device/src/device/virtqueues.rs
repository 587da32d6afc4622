// SPDX-License-Identifier: GPL-2.0

//! The virtqueues: buffers taken, finished and given back.

use log::{debug, error, warn};
use serde_json::json;

use super::Device;
use crate::admin;
use crate::fault::Name;
use crate::fuzz::Mischief;
use crate::judge::{Access, AvailMark};
use crate::queue::{Taken, HELD};
use crate::ring::{Buffer, RingError};

impl Device {
    /// The index of the administration virtqueue, if there is one: the queue after the others.
    pub(super) fn admin_queue(&self) -> Option<u16> {
        let active = self.active.faults.has(Name::AdminVq);
        active.then(|| self.device.queues())
    }

    pub(super) fn is_admin(&self, index: usize) -> bool {
        self.admin_queue().map(usize::from) == Some(index)
    }

    pub(super) fn notified(&mut self, queue: u64) {
        let Some(index) = usize::try_from(queue)
            .ok()
            .filter(|index| *index < self.queues.len())
        else {
            warn!("a notification of queue {queue}, which does not exist; ignored");
            return;
        };
        let now = self.now_us();
        let view = self.view();
        self.counters.notify[index] += 1;
        self.judge.access(Access::Notify(index as u16), &view, now);
        self.emit("notify", json!({"queue": index}));
        if self.machine.is_live() {
            self.run_queue(index);
            self.spurious();
            self.fuzz_incident();
        } else {
            debug!(
                "notification of queue {index} dropped while {:?}",
                self.machine.state()
            );
        }
    }

    /// Looks for available buffers in every queue.
    pub(super) fn scan(&mut self) {
        for index in 0..self.queues.len() {
            self.run_queue(index);
        }
    }

    /// Whether the worker has to call [`Device::work`].
    pub fn has_work(&self) -> bool {
        self.backlog
    }

    /// Goes on where a queue ran out of its share.
    pub fn work(&mut self) {
        if std::mem::take(&mut self.backlog) {
            self.scan();
        }
        self.flush_violations();
    }

    /// Processes a queue's available buffers: as many as the queue has descriptors, then the worker
    /// goes on, so that a driver that never stops can't keep the device from answering.
    fn run_queue(&mut self, index: usize) {
        if !self.machine.is_live() || self.overlay.is_gone() || self.queues[index].ring.is_none() {
            return;
        }
        let mut left = u32::from(self.queues[index].size);
        while self.machine.is_live() {
            if left == 0 {
                self.backlog = true;
                break;
            }
            left -= 1;
            match self.take(index) {
                Ok(Some(buffer)) => {
                    self.begin(index, buffer);
                    let now = self.now_us();
                    self.finish_due(index, now);
                }
                Ok(None) => break,
                Err(error) => self.device_error(index as u16, &error),
            }
        }
        self.notify_used(index);
    }

    /// The next available buffer; none only once the driver has been asked to notify the next.
    fn take(&mut self, index: usize) -> Result<Option<Buffer>, RingError> {
        let mem = self.dma.memory();
        let queue = &mut self.queues[index];
        if let Some(buffer) = queue.pop(mem)? {
            return Ok(Some(buffer));
        }
        let more = match &mut queue.ring {
            Some(ring) => ring.arm(mem)?,
            None => false,
        };
        if more {
            queue.pop(mem)
        } else {
            Ok(None)
        }
    }

    /// Takes a buffer in process.
    fn begin(&mut self, index: usize, buffer: Buffer) {
        let now = self.now_us();
        self.counters.buffers_consumed += 1;
        if self.queues[index].has(buffer.id) && !self.forged {
            self.judge.taken_twice(index as u16, buffer.id, now);
        }
        let admin = self.is_admin(index);
        let size = self.queues[index].size;
        let mischief = match &mut self.fuzz {
            Some(fuzz) if !admin => fuzz.buffer(size),
            _ => Mischief::default(),
        };
        let hold_ms = self.fault(Name::HoldMs).unwrap_or(mischief.hold_ms);
        let held = self.settings.hold || self.fault(Name::UsedAfterSuspend).is_some();
        let due_us = match hold_ms {
            _ if admin => 0,
            _ if held => HELD,
            0 => 0,
            ms => now.saturating_add(ms.saturating_mul(1000)),
        };
        self.queues[index].in_process.push_back(Taken {
            buffer,
            due_us,
            mischief,
        });
    }

    /// Finishes the buffers in process that are due, in order.
    pub(super) fn finish_due(&mut self, index: usize, now_us: u64) {
        while let Some(queue) = self.queues.get_mut(index) {
            match queue.in_process.front() {
                Some(taken) if taken.due_us <= now_us => {}
                _ => return,
            }
            if let Some(taken) = queue.in_process.pop_front() {
                self.finish(index, taken);
            }
        }
    }

    /// Finishes all buffers in process, and puts them into the used ring.
    pub(super) fn finish_in_process(&mut self, index: usize) {
        self.finish_due(index, HELD);
    }

    /// Finishes a buffer.
    fn finish(&mut self, index: usize, taken: Taken) {
        let mem = self.dma.memory();
        let result = if self.is_admin(index) {
            admin::process(&taken.buffer, mem)
        } else {
            self.device
                .process(index as u16, &taken.buffer, mem, &self.settings)
        };
        let len = match result {
            Ok(len) => len,
            Err(error) => return self.device_error(index as u16, &error),
        };
        for (id, len) in self.used_entries(index, &taken, len) {
            let buffer = Buffer {
                id,
                ..taken.buffer.clone()
            };
            let mem = self.dma.memory();
            if let Err(error) = self.queues[index].push_used(mem, &buffer, len) {
                // What was never there can't be put anywhere: that is not the driver's fault.
                if id != taken.buffer.id {
                    debug!("queue {index}: ID {id} can't be used: {error}");
                    continue;
                }
                return self.device_error(index as u16, &error);
            }
        }
        self.counters.buffers_used += 1;
        self.counters.bytes += u64::from(len);
    }

    /// What the driver put there can't be used: DEVICE_NEEDS_RESET ("Device Status Field").
    pub(super) fn device_error(&mut self, queue: u16, error: &dyn std::error::Error) {
        error!("queue {queue}: {error}; the device needs a reset");
        self.counters.device_errors += 1;
        self.emit(
            "device_error",
            json!({"queue": queue, "error": error.to_string()}),
        );
        self.needs_reset();
    }

    /// Sets DEVICE_NEEDS_RESET, and tells the driver.
    pub(super) fn needs_reset(&mut self) {
        self.machine.set_needs_reset();
        self.counters.present(self.machine.status());
        self.config_changed();
    }

    /// The available position of each queue, for the judge.
    pub(super) fn marks(&self) -> Vec<AvailMark> {
        let mem = self.dma.memory();
        self.queues
            .iter()
            .map(|queue| queue.ring.as_ref()?.avail_mark(mem).ok())
            .collect()
    }
}
