// SPDX-License-Identifier: GPL-2.0

//! Looking at a device that nobody has asked for anything, and what becomes of one that has failed.

use kernel::{
    device::Bound,
    prelude::*,
    sync::MutexGuard,
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Instant, //
    },
};

use super::{
    super::{
        failure::Refusal,
        operations::Operations,
        patience::Patience,
        protocol::{
            self,
            Goal,
            Reason,
            State, //
        },
    },
    Cause,
    Controller, //
};
use crate::{
    device::DeviceLock,
    sync::NoIo,
    Device, //
};

/// How long a device that did not suspend in time is watched, in milliseconds: there are devices
/// that do not listen to the driver's change of mind, and suspend nevertheless.
const WATCH_MS: u32 = 60_000;

/// The shortest and the longest time between two looks at such a device, in milliseconds.
const WATCH_STEP_MS: core::ops::RangeInclusive<u32> = 10..=1_000;

/// A device that breaks by itself so shortly after it was recovered is not recovered again.
const RECOVERY_INTERVAL: Delta = Delta::from_secs(10);

/// How often, with a millisecond between, the device lock is tried to be taken.
const LOCK_TRIES: usize = 1000;

impl Controller {
    /// The device has failed: only a reset helps, if anything does (rule D9).
    ///
    /// `order` is locked, so that no request begins in between.
    pub(super) fn fail(
        &self,
        order: MutexGuard<'_, ()>,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        refusal: Refusal,
        cause: Cause,
    ) {
        let failure = refusal.failure;
        self.record(failure);
        let from = core::mem::replace(&mut self.inner.lock().stats.state, State::Failed);
        self.announce(dev, from, State::Failed, Err(failure.error));
        drop(order);

        dev_err!(dev, "{}; the device is out of operation\n", failure.reason);
        self.recover(ops, dev, refusal.lost, cause);
        // Maybe somebody else has put it into operation meanwhile.
        if core::mem::take(&mut self.inner.lock().look_due) {
            self.look_soon(dev);
        }
    }

    /// Begins to watch a device that did not suspend in time.
    pub(super) fn watch(&self, dev: &Device<Bound>) {
        let step = *WATCH_STEP_MS.start();
        self.inner.lock().watch = (WATCH_MS, step);
        self.watch.schedule(dev, msecs_to_jiffies(step));
    }

    /// The device says that something has changed, or has put something into a virtqueue that can't
    /// be: it may be that it needs a reset.
    ///
    /// Any context.
    pub(crate) fn look_soon(&self, dev: &Device<Bound>) {
        if self.revision.is_some() {
            self.watch.schedule_now(dev);
        }
    }

    /// Looks at a device that should be running. Resumes it if it has suspended itself, which one
    /// does that did not suspend in time, and recovers it if it needs a reset (rule D9).
    ///
    /// A device that has been reset and initialised by somebody else runs, whatever it was before.
    pub(crate) fn look(&self, ops: &dyn Operations, dev: &Device<Bound>) {
        let Some(revision) = self.revision else {
            return;
        };
        // As in `request`.
        let _no_io = NoIo::enter();

        // While `order` is locked no request can begin. One that is under way looks at the device,
        // too, but maybe not late enough: it is looked at once more when that has ended.
        let order = self.order.lock();
        let mut inner = self.inner.lock();
        let state = inner.stats.state;
        let out_of_reach = self.is_out_of_reach(&inner);
        // Configuration changes are let through again before a resume has ended, but after it has
        // read the status for the last time.
        inner.look_due = state != State::Running;
        drop(inner);
        // One that is being reset is looked at when it operates again.
        if matches!(state, State::Suspending | State::Resuming)
            || out_of_reach
            || ops.is_being_reset()
        {
            return;
        }
        let operates = ops.take_foreign_reset();
        if state != State::Running {
            if operates {
                self.inner.lock().stats.state = State::Running;
                ops.reopen(dev);
                self.announce(dev, state, State::Running, Ok(()));
            }
            return;
        }
        let mut condition = protocol::Condition::of(revision, Self::read_status(dev));
        if condition == protocol::Condition::Running && ops.is_broken(dev) {
            condition = protocol::Condition::Broken(Reason::NeedsReset);
        }

        let mut inner = self.inner.lock();
        // One that breaks again and again is given up: what it is reset for is its own doing.
        let hopeless = inner
            .recovered
            .as_ref()
            .is_some_and(|recovered| recovered.elapsed() < RECOVERY_INTERVAL);
        let cause = Cause::Watch { hopeless };
        // One that nobody has asked to suspend has been initialised by somebody else, after a
        // reset.
        let asked = inner.stats.suspends + inner.stats.failures > 0;
        if !asked
            && matches!(
                condition,
                protocol::Condition::Suspended | protocol::Condition::Between
            )
        {
            condition = protocol::Condition::Broken(Reason::Reset);
        }
        match condition {
            protocol::Condition::Running => {
                let (left, step) = inner.watch;
                if left > 0 {
                    self.watch.schedule(dev, msecs_to_jiffies(step));
                    let next = (step * 2).min(*WATCH_STEP_MS.end());
                    inner.watch = (left.saturating_sub(step), next);
                }
            }
            protocol::Condition::Broken(why) => {
                drop(inner);
                self.fail(order, ops, dev, Refusal::new(why, false), cause);
            }
            protocol::Condition::Suspended | protocol::Condition::Between => {
                if self.is_out_of_reach(&inner) {
                    return;
                }
                let patience = Patience::new(inner.stats.timeout_ms, &self.interruption);
                inner.stats.state = State::Resuming;
                drop(inner);
                self.announce(dev, State::Running, State::Resuming, Ok(()));
                drop(order);

                dev_warn!(dev, "suspended after all, too late: resuming it\n");
                match self.drive(dev, revision, Goal::Resume, &patience) {
                    Ok(()) => {
                        // Notifications that were sent meanwhile may have been ignored.
                        ops.notify(dev);
                        self.enter(dev, State::Running, Ok(()));
                    }
                    Err(refusal) => self.fail(self.order.lock(), ops, dev, refusal, cause),
                }
            }
        }
    }

    /// Resets a device that has failed and initialises it again (rule D9), unless that is switched
    /// off, the device is gone, or it is hopeless. In that case those who wait for the device are
    /// told.
    ///
    /// All buffers that were with the device are dropped: nothing that was in process can be relied
    /// on.
    fn recover(&self, ops: &dyn Operations, dev: &Device<Bound>, lost: bool, cause: Cause) {
        let Some(_lock) = self.lock_device(dev) else {
            if matches!(cause, Cause::Watch { .. }) {
                if self.is_unbinding() {
                    // The driver may wait for the device in its `unbind`. Who unbinds it holds the
                    // lock, and goes no further than that before the watch has been cancelled.
                    ops.give_up(dev);
                } else {
                    // The same when it is started by its probe.
                    ops.fail_probe(dev);
                }
            }
            return;
        };
        let hopeless = matches!(cause, Cause::Watch { hopeless: true });
        let reset = !lost && !hopeless && *crate::parameters::recover.value_ref();

        match ops.recover(dev, lost, reset) {
            Ok(true) => {
                let mut inner = self.inner.lock();
                inner.stats.recoveries += 1;
                inner.recovered = Some(Instant::now());
                drop(inner);
                dev_info!(dev, "recovered by a reset\n");
                self.enter(dev, State::Running, Ok(()));
                ops.look_at_config(dev);
            }
            Ok(false) => {}
            Err(error) => dev_err!(dev, "can't be recovered: {error:?}\n"),
        }
    }

    /// Takes the device lock, unless the device is about to be unbound, or the system to sleep or
    /// to go down: whoever does that holds the lock, and waits for this request or the watch to
    /// end.
    fn lock_device<'a>(&self, dev: &'a Device<Bound>) -> Option<DeviceLock<'a>> {
        for _ in 0..LOCK_TRIES {
            if let Some(lock) = dev.try_lock() {
                return (!self.is_out_of_reach(&self.inner.lock())).then_some(lock);
            }
            if self.interruption.reason().is_some() {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        None
    }
}
