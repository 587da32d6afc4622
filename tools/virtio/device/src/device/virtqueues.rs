// SPDX-License-Identifier: GPL-2.0

//! The virtqueues: buffers taken, finished and given back.

use log::{debug, error, warn};
use serde_json::json;

use super::Device;
use crate::admin;
use crate::fault::Name;
use crate::fuzz::Mischief;
use crate::judge::{Access, AvailMark};
use crate::queue::{Waiting, HELD};
use crate::request::{Completion, Request, Token};
use crate::ring::{Buffer, Head, RingError};
use crate::status::State;
use crate::virtio_device::{Context, VirtioDevice};

/// How many notifications of a queue are events of their own; all are counted. A disk under load
/// has thousands a second.
const NOTIFY_EVENTS: u64 = 256;

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
        if self.counters.notify[index] <= NOTIFY_EVENTS {
            self.emit("notify", json!({"queue": index}));
        }
        if self.works() {
            // No fault by the count, as for hold-ms.
            if self.leaves_available() {
                self.armed.took_effect(Name::AvailLeft);
            }
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

    /// Looks where the driver can't be expected to notify: at queues for which it was told not to
    /// when the device was suspended, and at all if it is to.
    pub(super) fn look_after_resume(&mut self) {
        for index in 0..self.queues.len() {
            if self.settings.rescan_on_resume || !self.queues[index].armed {
                self.run_queue(index);
            }
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
        if !self.may_run(index) {
            return;
        }
        let mut left = u32::from(self.queues[index].size);
        while self.works() {
            if left == 0 {
                self.backlog = true;
                break;
            }
            left -= 1;
            match self.take(index) {
                Ok(Some(buffer)) => {
                    self.hold(index, buffer);
                    let now = self.now_us();
                    self.begin_due(index, now);
                }
                Ok(None) => break,
                Err(error) => self.device_error(index as u16, &error),
            }
        }
        self.device.submit();
        self.notify_used(index);
    }

    /// Whether the device may touch its virtqueues, or does so although it may not: a fault.
    pub(super) fn works(&self) -> bool {
        let is_suspended = || self.machine.state() == State::Suspended;
        let is_live = self.machine.is_live() && !self.stopped;
        is_live || (is_suspended() && self.fault(Name::WorksSuspended).is_some())
    }

    fn may_run(&self, index: usize) -> bool {
        self.works()
            && !self.overlay.is_gone()
            && self.queues[index].ring.is_some()
            && !self.leaves_available()
    }

    /// Whether available buffers stay in the rings: a fault.
    fn leaves_available(&self) -> bool {
        !self.resumed && self.fault(Name::AvailLeft).is_some()
    }

    /// The next available buffer that the device has a use for; none only once the driver has been
    /// asked to notify the next, or told not to because the device will look by itself.
    fn take(&mut self, index: usize) -> Result<Option<Buffer>, RingError> {
        let admin = self.is_admin(index);
        let mem = self.memory.memory();
        let queue = &mut self.queues[index];
        if !admin && !self.device.wants(index as u16) {
            queue.disarm(mem)?;
            return Ok(None);
        }
        if let Some(buffer) = queue.pop(mem)? {
            return Ok(Some(buffer));
        }
        if queue.in_process.begun() >= self.device.parallel() {
            queue.disarm(mem)?;
            return Ok(None);
        }
        if queue.arm(mem)? {
            queue.pop(mem)
        } else {
            Ok(None)
        }
    }

    /// Takes a buffer in process.
    fn hold(&mut self, index: usize, buffer: Buffer) {
        let now = self.now_us();
        let id = buffer.head.id;
        self.counters.buffers_consumed += 1;
        if self.queues[index].in_process.has(id) && !self.forged {
            self.judge.taken_twice(index as u16, id, now);
        }
        let admin = self.is_admin(index);
        let size = self.queues[index].size;
        let mischief = match &mut self.fuzz {
            Some(fuzz) if !admin => fuzz.buffer(size),
            _ => Mischief::default(),
        };
        let hold_ms = self.fault(Name::HoldMs).unwrap_or(mischief.hold_ms);
        let held = self.settings.hold || self.fault(Name::UsedAfterSuspend).is_some();
        // No event and no fault by the count: a device may take its time.
        if !admin && !held && hold_ms > 0 {
            self.armed.took_effect(Name::HoldMs);
        }
        let due_us = match hold_ms {
            _ if admin => 0,
            _ if held => HELD,
            0 => 0,
            ms => now.saturating_add(ms.saturating_mul(1000)),
        };
        let token = self.next_token;
        self.next_token += 1;
        self.queues[index].in_process.take(Waiting {
            token,
            buffer,
            due_us,
            mischief,
        });
    }

    /// Begins with the buffers in process that are due, in order.
    pub(super) fn begin_due(&mut self, index: usize, now_us: u64) {
        while let Some(queue) = self.queues.get_mut(index) {
            let Some((token, buffer, lie)) = queue.in_process.begin(now_us) else {
                return;
            };
            if self.is_admin(index) {
                let result = admin::process(&buffer, self.memory.memory());
                self.finish(Completion {
                    queue: index as u16,
                    token,
                    result,
                });
                continue;
            }
            let is_lost =
                self.machine.state() == State::Suspending && self.fault(Name::WritesLost).is_some();
            if is_lost {
                self.note(Name::WritesLost);
            }
            let request = Request {
                queue: index as u16,
                token,
                buffer,
                lie,
                is_lost,
            };
            self.with_device(|device, cx| device.process(request, cx));
        }
    }

    /// Begins with all buffers in process.
    pub(super) fn begin_all(&mut self, index: usize) {
        self.begin_due(index, HELD);
        self.device.submit();
    }

    /// Has the device type do something, and puts what it has finished by then into the used rings.
    pub(super) fn with_device(
        &mut self,
        act: impl FnOnce(&mut dyn VirtioDevice, &mut Context<'_>),
    ) {
        // Putting it there can't finish more.
        let mut done = std::mem::take(&mut self.done);
        let mut back = Vec::new();
        let mut cx = Context {
            mem: self.memory.memory(),
            settings: &self.settings,
            done: &mut done,
            back: &mut back,
        };
        act(&mut *self.device, &mut cx);
        for completion in done.drain(..) {
            self.finish(completion);
        }
        self.done = done;
        // The last one that was taken is the first one to go back.
        for (queue, token) in back.into_iter().rev() {
            self.put_back(queue.into(), token);
        }
    }

    /// The device type has no use for a buffer after all.
    fn put_back(&mut self, index: usize, token: Token) {
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        if let Some(begun) = queue.in_process.finish(token) {
            queue.put_back(begun.head);
            // What the driver was asked to notify is not what comes next any more.
            queue.armed = false;
            self.counters.buffers_consumed -= 1;
        }
    }

    /// Puts what the threads of the device type have finished into the used rings, goes on with
    /// the queues, and presents the suspended condition if it waited for that.
    pub fn collect(&mut self) {
        self.tick();
        self.flush_violations();
    }

    pub(super) fn collect_done(&mut self) {
        self.refresh_config();
        let mut done = std::mem::take(&mut self.done);
        let mut look = Vec::new();
        if self.port.take(&mut done, &mut look) {
            for completion in done.drain(..) {
                if !look.contains(&completion.queue) {
                    look.push(completion.queue);
                }
                self.finish(completion);
            }
        }
        self.done = done;
        for index in look.into_iter().map(usize::from) {
            if index < self.queues.len() {
                // Those that wait for their time stay where they are.
                self.notify_used(index);
                self.run_queue(index);
            }
        }
    }

    /// A request is finished: its buffer goes into the used ring.
    fn finish(&mut self, completion: Completion) {
        let index = usize::from(completion.queue);
        let begun = self
            .queues
            .get_mut(index)
            .and_then(|queue| queue.in_process.finish(completion.token));
        let Some(begun) = begun else {
            // Dropped by a reset.
            return;
        };
        if self.overlay.is_gone() {
            return;
        }
        let len = match completion.result {
            Ok(len) => len,
            Err(error) => return self.device_error(completion.queue, &error),
        };
        for (id, len) in self.used_entries(index, &begun, len) {
            let head = Head { id, ..begun.head };
            let mem = self.memory.memory();
            if let Err(error) = self.queues[index].push_used(mem, head, len) {
                // What was never there can't be put anywhere: that is not the driver's fault.
                if id != begun.head.id {
                    debug!("queue {index}: ID {id} can't be used: {error}");
                    continue;
                }
                return self.device_error(completion.queue, &error);
            }
        }
        if self.machine.state() == State::Suspended && self.works() {
            self.note(Name::WorksSuspended);
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
        let mem = self.memory.memory();
        self.queues
            .iter()
            .map(|queue| queue.ring.as_ref()?.avail_mark(mem).ok())
            .collect()
    }
}
