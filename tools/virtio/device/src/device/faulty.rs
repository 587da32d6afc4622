// SPDX-License-Identifier: GPL-2.0

//! What the device does wrong, because it was told to: [`crate::fault`] and [`crate::fuzz`].
//!
//! Each time a fault takes effect it is counted, and a `fault` event says which. None of them is
//! held against the driver, see [`crate::judge`].

use log::{info, warn};
use serde_json::json;
use smallvec::{smallvec, SmallVec};

use super::overlay::{Ending, Overlay};
use super::Device;
use crate::fault::{Effect, Moment, Name, Now};
use crate::features::Revision;
use crate::fuzz::{Fuzz, Incident};
use crate::queue::Begun;
use crate::random::Stream;
use crate::ring::cursor::Cursor;
use crate::status::{is_resume_write, State, StatusMachine, FEATURES_OK, SUSPEND};
use crate::timers::Timer;

impl Device {
    /// The end that a fault asks for.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// The argument of a fault that is set, or that the random stream has drawn.
    pub(super) fn fault(&self, name: Name) -> Option<u64> {
        let drawn = || self.fuzz.as_ref()?.episode().get(name);
        self.settings.faults.get(name).or_else(drawn)
    }

    fn effects(&self, moment: Moment) -> Vec<(Effect, u64)> {
        let mut effects = self.settings.faults.at(moment);
        if let Some(fuzz) = &self.fuzz {
            effects.extend(fuzz.episode().at(moment));
        }
        effects
    }

    /// A fault takes effect.
    pub(super) fn note(&mut self, name: Name) {
        self.armed.took_effect(name);
        self.note_event(name);
    }

    /// Something goes wrong that has no name of its own.
    fn note_event(&mut self, what: impl std::fmt::Display) {
        self.counters.faults += 1;
        self.emit("fault", json!({"fault": what.to_string()}));
    }

    /// Starts a timer.
    pub(super) fn start(&mut self, ms: u64, timer: Timer) {
        let due = self.now_us().saturating_add(ms.saturating_mul(1000));
        self.timers.start(due, timer);
    }

    /// Whether status reads may not be what they seem.
    pub(super) fn lies(&self) -> bool {
        self.fuzz.is_some()
            || self.overlay != Overlay::None
            || self.fault(Name::DriverOkKept).is_some()
    }

    /// Whether the device resumes in a way of its own.
    pub(super) fn has_resume_fault(&self) -> bool {
        let names = [
            Name::ResumeNeedsClear,
            Name::ResumeNeedsKept,
            Name::ResumeNever,
            Name::ResumeLate,
        ];
        names.into_iter().any(|name| self.fault(name).is_some())
    }

    /// What a status read answers.
    pub(super) fn answer(&mut self) -> u8 {
        let truth = self.machine.status();
        match &mut self.overlay {
            Overlay::None => match &mut self.fuzz {
                Some(fuzz) if self.machine.state() != State::Reset => fuzz.status(truth),
                _ => truth,
            },
            Overlay::Ones | Overlay::Gone | Overlay::Away => 0xff,
            Overlay::Random(stream) => stream.draw() as u8,
            Overlay::NoFeaturesOk => truth & !FEATURES_OK,
            Overlay::SuspendStored => truth | SUSPEND,
            Overlay::BeforeReset(status) => *status,
        }
    }

    /// What a read of another register answers.
    pub(super) fn fuzz_registers(&mut self, data: &mut [u8]) {
        match &mut self.fuzz {
            Some(fuzz) if self.machine.state() != State::Reset => fuzz.registers(data),
            _ => {}
        }
    }

    /// Begins the random stream, or ends it, as the settings say.
    ///
    /// Who is lied to can't be judged, before everything begins anew with a device that does not.
    pub(super) fn start_fuzz(&mut self) {
        if self.fuzz.is_some() || self.settings.fuzz.is_some() {
            self.judge.excuse();
        }
        self.fuzz = self.settings.fuzz.map(Fuzz::new);
        if let Some(seed) = self.settings.fuzz {
            info!("answers out of the random stream of seed {seed}");
            self.emit("fuzz", json!({"seed": seed}));
        }
    }

    /// What the random stream has for a notification of the driver's.
    pub(super) fn fuzz_incident(&mut self) {
        let incident = match &mut self.fuzz {
            Some(fuzz) if self.machine.is_live() => fuzz.incident(),
            _ => return,
        };
        match incident {
            Incident::None => {}
            Incident::ConfigChange => {
                self.note_event("config-change");
                self.config_changed();
            }
            Incident::Spurious => {
                self.note(Name::UsedIrqSpurious);
                self.send_used_for_nothing();
            }
            Incident::NeedsReset => self.apply(Effect::NeedsReset, 0),
            Incident::Reset => self.apply(Effect::StatusZero, 0),
        }
    }

    /// The entries that go into the used ring for a buffer of which `len` bytes were written: an ID
    /// and a length each. One, if nothing is wrong.
    pub(super) fn used_entries(
        &mut self,
        index: usize,
        begun: &Begun,
        len: u32,
    ) -> SmallVec<[(u16, u32); 1]> {
        let mut entry = (begun.head.id, len);
        if self.is_admin(index) {
            return smallvec![entry];
        }
        let mischief = &begun.mischief;
        entry.0 = mischief.id.unwrap_or(entry.0);
        entry.1 = mischief.len.unwrap_or(entry.1);
        if let Some(id) = self.fault(Name::UsedBadId) {
            self.note(Name::UsedBadId);
            entry.0 = u16::try_from(id).unwrap_or(self.queues[index].size);
        }
        if let Some(more) = self.fault(Name::UsedLong) {
            self.note(Name::UsedLong);
            let whole = begun.head.writable_len.saturating_add(more);
            entry.1 = u32::try_from(whole).unwrap_or(u32::MAX);
        }
        if self.fault(Name::UsedZero).is_some() {
            self.note(Name::UsedZero);
            entry.1 = 0;
        }
        let mut entries: SmallVec<[(u16, u32); 1]> = smallvec![entry];
        if self.fault(Name::UsedTwice).is_some() {
            self.note(Name::UsedTwice);
            entries.push(entry);
        }
        entries.extend_from_slice(&mischief.extra);
        if entries[..] != [(begun.head.id, len)] && *mischief != Default::default() {
            self.note_event(format_args!("used entries {entries:?}"));
        }
        self.forged |= entries.len() > 1 || entry.0 != begun.head.id;
        entries
    }

    /// No buffer is consumed any more, although the device runs.
    pub(super) fn stop(&mut self, name: Name) {
        self.note(name);
        self.stopped = true;
    }

    /// A status was written that is no reset: whether it comes to something that it does not mean.
    pub(super) fn misunderstands(&mut self, value: u8) -> bool {
        let resumes = is_resume_write(self.machine.revision(), value);
        match self.machine.state() {
            State::Suspending
                if value & SUSPEND != 0 && self.fault(Name::SuspendTwiceCancels).is_some() =>
            {
                self.note(Name::SuspendTwiceCancels);
                self.machine.forget_suspend();
                self.cancel();
            }
            State::Suspended if !resumes && self.fault(Name::StatusWriteResumes).is_some() => {
                self.note(Name::StatusWriteResumes);
                self.present_running();
                self.scan();
            }
            _ => return false,
        }
        true
    }

    /// The fault by which a SUSPEND that was written has no effect.
    pub(super) fn why_suspend_is_ignored(&self) -> Option<Name> {
        let enabled = self.queues.iter().filter(|queue| queue.ring.is_some());
        let enabled = enabled.count() as u64;
        let is_set = |name, is_due: &dyn Fn(u64) -> bool| self.fault(name).is_some_and(is_due);
        if is_set(Name::SuspendIgnored, &|_| true) {
            Some(Name::SuspendIgnored)
        } else if is_set(Name::SuspendNeedsQueues, &|count| enabled < count) {
            Some(Name::SuspendNeedsQueues)
        } else if is_set(Name::SuspendWearsOut, &|count| self.suspended >= count) {
            Some(Name::SuspendWearsOut)
        } else {
            None
        }
    }

    /// SUSPEND was written: forgets what is in process.
    pub(super) fn forget_in_process(&mut self) {
        let Some(count) = self.fault(Name::InProcessLost) else {
            return;
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let queues = self.queues.iter_mut();
        let forgotten: usize = queues.map(|queue| queue.in_process.forget_but(count)).sum();
        if forgotten != 0 {
            self.note(Name::InProcessLost);
        }
    }

    /// SUSPEND was written: forgets what is available.
    pub(super) fn forget_available(&mut self) {
        if self.fault(Name::AvailLost).is_none() {
            return;
        }
        let mem = self.memory.memory();
        let mut forgotten = false;
        for queue in &mut self.queues {
            while let Ok(Some(_)) = queue.pop(mem) {
                forgotten = true;
            }
        }
        if forgotten {
            self.note(Name::AvailLost);
        }
    }

    /// Writes to the buffers that are available, and leaves them there.
    fn write_to_available(&mut self) {
        let mem = self.memory.memory();
        let mut written = false;
        for queue in &mut self.queues {
            let armed = queue.armed;
            let mut heads = Vec::new();
            while let Ok(Some(buffer)) = queue.pop(mem) {
                written |= matches!(Cursor::new(&buffer.writable).write(mem, &[0]), Ok(1));
                heads.push(buffer.head);
            }
            for head in heads.into_iter().rev() {
                queue.put_back(head);
            }
            queue.armed = armed;
        }
        if written {
            self.note(Name::BuffersWritten);
        }
    }

    /// What goes wrong at a moment. Returns whether the transition goes on.
    pub(super) fn effects_at(&mut self, moment: Moment) -> bool {
        let mut goes_on = true;
        for (effect, arg) in self.effects(moment) {
            if moment == Moment::WhileSuspended {
                let (ms, seed) = match effect {
                    Effect::StatusRandom => (20, arg),
                    _ => (arg, 0),
                };
                self.start(ms, Timer::Effect(effect, seed));
                continue;
            }
            self.armed.took_effect(Name::At(effect, moment));
            self.apply(effect, arg);
            goes_on &= !matches!(
                effect,
                Effect::NeedsReset | Effect::StatusZero | Effect::Gone | Effect::Away
            );
        }
        goes_on
    }

    /// Breaks.
    pub(super) fn apply(&mut self, effect: Effect, seed: u64) {
        self.note_event(effect.name());
        let overlay = match effect {
            Effect::NeedsReset => return self.needs_reset(),
            Effect::StatusZero => return self.reset_itself("itself"),
            Effect::Disconnect => {
                self.ending = Some(Ending::Disconnect);
                return;
            }
            Effect::Exit => {
                self.ending = Some(Ending::Exit);
                return;
            }
            Effect::StatusOnes => Overlay::Ones,
            Effect::Gone => {
                self.timers.clear();
                self.deadline = None;
                self.backlog = false;
                self.port.revoke(self.queues.len(), self.next_token);
                Overlay::Gone
            }
            Effect::Away => Overlay::Away,
            Effect::StatusRandom => Overlay::Random(Stream::new(seed, 0)),
            Effect::FeaturesOkDropped => Overlay::NoFeaturesOk,
        };
        self.overlay = overlay;
        self.judge.excuse();
    }

    /// A reset that the driver did not ask for, and can't know of until it looks.
    fn reset_itself(&mut self, reason: &str) {
        self.machine = StatusMachine::default();
        self.reset(reason);
        self.judge.excuse();
    }

    /// What is wrong from the moment on at which the suspended condition is presented.
    pub(super) fn faults_while_suspended(&mut self) {
        self.effects_at(Moment::WhileSuspended);
        for (name, timer) in [
            (Name::SuspendDropped, Timer::Drop),
            (Name::UsedIrqAfterSuspend, Timer::NotifySuspended),
            (Name::UsedAfterSuspend, Timer::UseSuspended),
            (Name::BuffersWritten, Timer::WriteSuspended),
            (Name::ConfigChangeDuring, Timer::ConfigChange),
            (Name::ConfigChangeWhile, Timer::ConfigChangeNow),
        ] {
            if let Some(ms) = self.fault(name) {
                self.start(ms, timer);
            }
        }
    }

    /// A timer is due.
    pub(super) fn fire(&mut self, timer: Timer) {
        let suspended = self.machine.state() == State::Suspended;
        match timer {
            Timer::Effect(effect, seed) if suspended => {
                self.armed
                    .took_effect(Name::At(effect, Moment::WhileSuspended));
                self.apply(effect, seed);
            }
            Timer::LateSuspend => self.suspend_late(),
            Timer::DrainLimit if self.is_still_quiescing() => {
                self.note(Name::DrainLimit);
                self.deadline = None;
                self.machine.set_needs_reset();
                self.counters.present(self.machine.status());
                self.send_config_change();
            }
            Timer::Drop if suspended => {
                self.note(Name::SuspendDropped);
                self.present_running();
                self.scan();
            }
            Timer::LateReset => self.overlay = Overlay::None,
            Timer::LateNotification(index) => self.send_used(index),
            Timer::NotifySuspended if suspended => {
                self.note(Name::UsedIrqAfterSuspend);
                self.send_used_for_nothing();
            }
            Timer::UseSuspended if suspended => {
                for index in 0..self.queues.len() {
                    if !self.queues[index].in_process.is_empty() {
                        self.note(Name::UsedAfterSuspend);
                        self.begin_all(index);
                        self.notify_used(index);
                    }
                }
            }
            Timer::WriteSuspended if suspended => self.write_to_available(),
            Timer::ConfigChange => {
                self.note(Name::ConfigChangeDuring);
                self.config_changed();
            }
            Timer::ConfigChangeNow => {
                self.note(Name::ConfigChangeWhile);
                self.send_config_change();
            }
            // No longer suspended: the moment is over.
            Timer::Effect(..)
            | Timer::Drop
            | Timer::NotifySuspended
            | Timer::UseSuspended
            | Timer::WriteSuspended => {}
            // It has suspended in time, or does not want to any more.
            Timer::DrainLimit => {}
        }
    }

    /// Whether it is to suspend and can't yet; one that is ready is not late if nobody has looked.
    fn is_still_quiescing(&self) -> bool {
        let is_ready =
            || self.deadline.is_some_and(|due| due <= self.now_us()) && !self.must_wait();
        self.machine.state() == State::Suspending && !is_ready()
    }

    /// Presents the suspended condition, whatever was asked for meanwhile.
    fn suspend_late(&mut self) {
        if matches!(self.machine.state(), State::Running | State::Suspending)
            && self.machine.revision() != Revision::None
        {
            if self
                .queues
                .iter()
                .any(|queue| queue.in_process.begun() != 0)
            {
                return self.start(1, Timer::LateSuspend);
            }
            self.note(Name::SuspendLate);
            self.present_suspended();
        }
    }

    /// Does something wrong now.
    pub(super) fn fault_now(&mut self, now: Now) -> Result<(), &'static str> {
        match now {
            Now::Effect(Effect::NeedsReset | Effect::StatusZero, _)
                if self.machine.state() == State::Reset =>
            {
                return Err("the device is not in operation: there is nothing to break");
            }
            Now::Effect(effect, seed) => self.apply(effect, seed),
            Now::ConfigChange => {
                self.config_changed();
            }
            Now::ConfigChangeWhile => {
                self.note(Name::ConfigChangeWhile);
                self.send_config_change();
            }
            Now::UsedIrqSpurious => {
                self.note(Name::UsedIrqSpurious);
                self.send_used_for_nothing();
            }
        }
        Ok(())
    }

    /// The faults were changed: what is over is undone, so that a device whose faults are cleared
    /// is as good as new. One that read as gone comes back as after a power cycle, a driver that
    /// has seen all ones does not reset it any more, unless it was just away.
    pub(super) fn faults_changed(&mut self) {
        if self.overlay.is_ones() && self.overlay != Overlay::Away {
            warn!("the device is back");
            self.reset_itself("power");
            return;
        }
        self.overlay = Overlay::None;
        self.resumed = false;
        if std::mem::take(&mut self.stopped) {
            self.scan();
        }
        self.timers.clear_faults();
        if self.has_stalled() {
            self.due_in(0);
        }
        self.release_held();
    }

    /// Whether a transition is under way that no time and no fault holds up.
    fn has_stalled(&self) -> bool {
        let stalls = match self.machine.state() {
            State::Suspending => [Name::SuspendNever, Name::SuspendLate],
            State::Resuming => [Name::ResumeNever, Name::ResumeLate],
            State::Reset | State::Running | State::Suspended => return false,
        };
        self.deadline.is_none() && !stalls.into_iter().any(|name| self.fault(name).is_some())
    }

    /// Goes on with the buffers that are held until further notice, if there is no more reason to.
    pub(super) fn release_held(&mut self) {
        let held = self.settings.hold || self.fault(Name::UsedAfterSuspend).is_some();
        if held || !self.machine.is_live() || self.overlay.is_gone() {
            return;
        }
        for index in 0..self.queues.len() {
            self.queues[index].in_process.release();
            let now = self.now_us();
            self.begin_due(index, now);
            self.device.submit();
            self.notify_used(index);
        }
    }
}
