// SPDX-License-Identifier: GPL-2.0

//! Device status: what a write of it starts, and when that is over.

use log::{info, warn};
use serde_json::json;

use super::overlay::Overlay;
use super::{hex, Device};
use crate::fault::{Moment, Name};
use crate::features::{self, FeatureSet, Revision};
use crate::judge::Access;
use crate::queue::Queue;
use crate::settings::RingKind;
use crate::status::{self, Action, State};
use crate::timers::Timer;
use crate::transport::pci_common_config::VirtioPciCommonConfig;

impl Device {
    pub(super) fn status_write(&mut self, value: u8) {
        let now = self.now_us();
        let access = Access::StatusWrite(value);
        let view = self.view();
        self.counters.status_access("write", value, now);
        self.emit("status_write", json!({"value": hex(value)}));

        let resumes = view.state == State::Suspended
            && value != 0
            && status::is_resume_write(view.revision, value);
        if (resumes || value == 0) && self.judge.watches_queues() {
            let marks = self.marks();
            self.judge.check_marks(marks, access, &view, now);
        }
        let features_now = view.state == State::Reset
            && value & status::FEATURES_OK != 0
            && view.status & status::FEATURES_OK == 0;
        if features_now {
            self.judge.features(self.offered, self.accepted, value, now);
            if self.fuzz.is_some() {
                self.judge.excuse();
            }
        }
        self.judge.access(access, &view, now);

        let is_suspending = self.machine.state() == State::Suspending;
        if is_suspending && value != 0 && self.fault(Name::WritesDropped).is_some() {
            self.note(Name::WritesDropped);
            return;
        }
        if value != 0 && self.misunderstands(value) {
            self.counters.present(self.machine.status());
            return;
        }
        let (offered, accepted) = (self.offered, self.accepted);
        let defines_bit_42 = self.device.defines_bit_42();
        let refused = features_now && self.fault(Name::FeaturesOkRefused).is_some();
        let action = self.machine.write(value, || {
            let possible = accepted & !offered == 0 && accepted & features::VERSION_1 != 0;
            (possible && !refused).then(|| Revision::negotiated(accepted, defines_bit_42))
        });
        match action {
            Action::None if refused => self.note(Name::FeaturesOkRefused),
            Action::None if features_now => warn!(
                "features {accepted:#x} refused: {offered:#x} is offered, VERSION_1 is required"
            ),
            Action::None => {}
            Action::Reset => {
                self.reset("driver");
                if view.state == State::Suspended && self.fault(Name::ResetKeepsStopped).is_some() {
                    self.stop(Name::ResetKeepsStopped);
                }
                self.present_reset_late(view.status);
            }
            Action::FeaturesOk => self.features_negotiated(),
            Action::DriverOk => {
                if features_now {
                    self.features_negotiated();
                }
                info!("the driver is live, SUSPEND: {:?}", self.machine.revision());
            }
            Action::Suspend => self.suspend(),
            Action::Cancel => self.cancel(),
            Action::Resume => self.resume(value),
        }
        self.store_suspend(value);
        self.counters.present(self.machine.status());
        self.spurious();
    }

    /// A status was written: presents SUSPEND until the next one, where it should be ignored. A
    /// fault.
    fn store_suspend(&mut self, value: u8) {
        if self.overlay == Overlay::SuspendStored {
            self.overlay = Overlay::None;
        }
        let is_early = match self.machine.state() {
            State::Reset => true,
            State::Running => self.machine.revision() == Revision::None,
            State::Suspending | State::Suspended | State::Resuming => false,
        };
        let stores = is_early && value & status::SUSPEND != 0 && self.overlay == Overlay::None;
        if stores && self.fault(Name::SuspendStored).is_some() {
            self.note(Name::SuspendStored);
            self.overlay = Overlay::SuspendStored;
        }
    }

    fn features_negotiated(&mut self) {
        let fields = json!({
            "offered": format!("{:#x}", self.offered),
            "accepted": format!("{:#x}", self.accepted),
            "revision": self.machine.revision(),
        });
        self.device.negotiated(self.accepted);
        if self.admin_queue().is_some() {
            self.armed.took_effect(Name::AdminVq);
        }
        self.emit("features", fields);
    }

    /// V2 and V5.
    fn suspend(&mut self) {
        let delay_ms = match &mut self.fuzz {
            Some(fuzz) => {
                fuzz.suspend();
                fuzz.delay_ms()
            }
            None => self.settings.delay_suspend_ms,
        };
        let marks = self.marks();
        self.judge.set_marks(marks);
        if self.fault(Name::ConfigChangeBefore).is_some() {
            self.note(Name::ConfigChangeBefore);
            self.config_changed();
        }
        if self.settings.refuse_suspend {
            return self.refuse();
        }
        if let Some(name) = self.why_suspend_is_ignored() {
            return self.note(name);
        }
        if !self.effects_at(Moment::OnSuspend) {
            return;
        }
        self.forget_in_process();
        let ready_us = self.finish_before_suspend();
        self.forget_available();
        if !self.machine.is_live() {
            // Finishing failed, and DEVICE_NEEDS_RESET says so.
            return;
        }
        self.machine.begin_suspend();
        if let Some(ms) = self.fault(Name::DrainLimit) {
            self.start(ms, Timer::DrainLimit);
        }
        if let Some(ms) = self.fault(Name::SuspendLate) {
            self.start(ms, Timer::LateSuspend);
        } else if self.fault(Name::SuspendNever).is_some() {
            self.note(Name::SuspendNever);
        } else {
            self.due_at(ready_us.max(self.in_ms(delay_ms)));
        }
    }

    /// Refuses to suspend, as each revision has it.
    fn refuse(&mut self) {
        self.counters.refusals += 1;
        if self.machine.revision() == Revision::V1_4 {
            self.machine.set_needs_reset();
            self.emit("refused", json!({"by": "DEVICE_NEEDS_RESET"}));
            self.config_changed();
        } else {
            self.emit("refused", json!({"by": "no answer"}));
        }
    }

    /// V2: finishes what is in process, at once or, if that takes its time, by when it says.
    fn finish_before_suspend(&mut self) -> u64 {
        let mut ready_us = 0;
        if self.fault(Name::WorksSuspended).is_some() {
            return ready_us;
        }
        for index in 0..self.queues.len() {
            match self.queues[index].next_due_us() {
                Some(_) => {
                    let last = self.queues[index].in_process.last_due_us();
                    ready_us = ready_us.max(last.unwrap_or(0));
                }
                None if self.fault(Name::UsedAfterSuspend).is_some() => {}
                None => self.begin_all(index),
            }
        }
        self.with_device(|device, cx| device.suspend(cx));
        for index in 0..self.queues.len() {
            self.notify_used(index);
        }
        ready_us
    }

    fn resume(&mut self, value: u8) {
        let delay_ms = match &mut self.fuzz {
            Some(fuzz) => fuzz.delay_ms(),
            None => self.settings.delay_resume_ms,
        };
        if !self.effects_at(Moment::OnResume) {
            return;
        }
        let needs_kept = self.machine.revision() == Revision::V1_4
            && self.fault(Name::ResumeNeedsKept).is_some();
        let needs_clear = self.fault(Name::ResumeNeedsClear).is_some();
        if needs_clear {
            // Whether there is something to ignore is up to the driver.
            self.armed.took_effect(Name::ResumeNeedsClear);
        }
        if needs_clear && value & status::SUSPEND != 0 {
            self.note(Name::ResumeNeedsClear);
            self.machine.ignore_resume();
        } else if needs_kept && value & status::SUSPEND == 0 {
            self.note(Name::ResumeNeedsKept);
            self.machine.ignore_resume();
        } else if self.fault(Name::ResumeNever).is_some() {
            self.note(Name::ResumeNever);
        } else if let Some(ms) = self.fault(Name::ResumeLate) {
            self.note(Name::ResumeLate);
            self.due_in(ms);
        } else {
            self.due_in(delay_ms);
        }
    }

    pub(super) fn cancel(&mut self) {
        self.deadline = None;
        self.timers.stop(Timer::DrainLimit);
        self.counters.cancels += 1;
        self.emit("cancelled", json!({}));
        if self.fault(Name::CancelStops).is_some() {
            self.stop(Name::CancelStops);
        }
        self.make_held_changes();
        self.release_config_change();
        self.scan();
    }

    fn in_ms(&self, ms: u64) -> u64 {
        self.now_us().saturating_add(ms.saturating_mul(1000))
    }

    /// The transition under way is over in `ms` milliseconds; at once if that is 0.
    pub(super) fn due_in(&mut self, ms: u64) {
        self.due_at(self.in_ms(ms));
    }

    fn due_at(&mut self, due_us: u64) {
        self.deadline = Some(due_us);
        self.tick();
    }

    /// When the worker has to call [`Device::tick`].
    pub fn next_deadline_us(&self) -> Option<u64> {
        if self.overlay.is_gone() {
            return None;
        }
        let buffers = self.queues.iter().filter_map(Queue::next_due_us).min();
        let deadline = self.deadline.filter(|_| !self.must_wait());
        [deadline, self.timers.next_us(), buffers]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the suspended condition can't be presented yet, although its time may have come:
    /// the device type works on something (V2).
    pub(super) fn must_wait(&self) -> bool {
        let busy = |queue: &Queue| queue.in_process.begun() != 0;
        self.machine.state() == State::Suspending
            && self.fault(Name::WorksSuspended).is_none()
            && self.queues.iter().any(busy)
    }

    /// Does what is due: buffers, faults, and presenting the suspended or the resumed condition.
    pub fn tick(&mut self) {
        self.collect_done();
        let now = self.now_us();
        if self.next_deadline_us().is_none_or(|due| due > now) {
            return;
        }
        for index in 0..self.queues.len() {
            self.begin_due(index, now);
            self.device.submit();
            self.notify_used(index);
        }
        while let Some(timer) = self.timers.take_due(now) {
            self.fire(timer);
        }
        if self.must_wait() || self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        self.deadline = None;
        match self.machine.state() {
            State::Suspending => self.present_suspended(),
            State::Resuming => {
                self.present_running();
                if self.fault(Name::ConfigChangeAfter).is_some() {
                    self.note(Name::ConfigChangeAfter);
                    self.config_changed();
                }
                self.look_after_resume();
            }
            State::Reset | State::Running | State::Suspended => {}
        }
    }

    /// Presents the suspended condition.
    pub(super) fn present_suspended(&mut self) {
        self.flush_notifications();
        self.deadline = None;
        self.timers.stop(Timer::DrainLimit);
        // Kept it is in either revision, but in the draft that is no fault.
        let kept = self.fault(Name::DriverOkKept).is_some();
        if kept && self.machine.revision() == Revision::V1_4 {
            self.note(Name::DriverOkKept);
            self.machine.present_suspended_with_driver_ok();
        } else {
            self.machine.present_suspended();
            if kept {
                self.armed.took_effect(Name::DriverOkKept);
            }
        }
        self.counters.suspends += 1;
        self.suspended += 1;
        self.counters.present(self.machine.status());
        let fields = json!({
            "status": hex(self.machine.status()),
            "revision": self.machine.revision(),
            "queues": self.queue_report(),
        });
        self.emit("suspended", fields);
        self.faults_while_suspended();
        if self.works() {
            self.scan();
        }
    }

    /// Presents the resumed condition.
    pub(super) fn present_running(&mut self) {
        self.machine.present_running();
        self.counters.resumes += 1;
        self.counters.present(self.machine.status());
        self.emit("resumed", json!({"status": hex(self.machine.status())}));
        self.resumed = true;
        self.stopped = false;
        if self.was_queue_reset && self.fault(Name::QueueResetStops).is_some() {
            self.stop(Name::QueueResetStops);
        }
        self.make_held_changes();
        self.release_config_change();
        // Those that were held back.
        for index in 0..self.queues.len() {
            self.notify_used(index);
        }
    }

    /// Everything that a device reset resets; the status is 0 already.
    pub(super) fn reset(&mut self, reason: &str) {
        self.active = self.settings.clone();
        self.port.revoke(0, self.next_token);
        self.device.reset();
        self.offer();
        self.make_held_changes();
        self.accepted = 0;
        self.common = VirtioPciCommonConfig::default();
        self.isr = 0;
        self.deadline = None;
        self.config_held = false;
        self.config_pending = false;
        self.overlay = Overlay::None;
        self.forged = false;
        self.stopped = false;
        self.suspended = 0;
        self.was_queue_reset = false;
        self.timers.clear();
        self.backlog = false;
        if let Some(fuzz) = &mut self.fuzz {
            fuzz.reset();
        }
        self.irqs.reset();
        self.judge.reset();
        if self.fuzz.is_some() {
            self.judge.excuse();
        }
        self.resumed = false;
        self.counters.resets += 1;
        self.counters.present(0);
        self.emit("reset", json!({"by": reason}));
    }

    /// The driver has reset the device, which presented `before` until then.
    fn present_reset_late(&mut self, before: u8) {
        if let Some(ms) = self.fault(Name::ResetLate).filter(|_| before != 0) {
            self.note(Name::ResetLate);
            self.overlay = Overlay::BeforeReset(before);
            self.start(ms, Timer::LateReset);
        }
    }

    /// Works out the features and the queues that are offered until the next reset.
    ///
    /// Indirect tables are not offered together with an administration virtqueue: virtio_pci, as of
    /// Linux 7.3, may sleep while it allocates one for a command, with a spinlock held.
    pub(super) fn offer(&mut self) {
        let admin = self.admin_queue().is_some();
        let when = |condition: bool, bits: FeatureSet| if condition { bits } else { 0 };
        self.offered = features::VERSION_1
            | features::RING_RESET
            | self.active.offer.bits()
            | when(self.active.ring == RingKind::Packed, features::RING_PACKED)
            | when(self.active.indirect && !admin, features::INDIRECT_DESC)
            | when(self.active.event_idx, features::EVENT_IDX)
            | when(self.active.access_platform, features::ACCESS_PLATFORM)
            | when(admin, features::ADMIN_VQ)
            | self.device.features();
        let count = self.device.queues() + u16::from(admin);
        self.queues = (0..count).map(|_| Queue::new(self.queue_size)).collect();
        self.port.revoke(count.into(), self.next_token);
        self.counters.set_queues(count.into());
    }
}
