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
        failure::{
            Failure,
            Refusal, //
        },
        operations::{
            Operations,
            Remedy, //
        },
        patience::Patience,
        protocol::{
            Condition,
            Goal,
            Reason,
            Revision,
            State, //
        },
        state_machine::{
            Change,
            Diagnosis,
            Look,
            Looked,
            Outcome,
            Postponed,
            Watch, //
        },
    },
    Controller, //
};
use crate::{
    device::DeviceLock,
    sync::NoIo,
    Device, //
};

/// How long a device that did not suspend in time is watched, in milliseconds: there are devices
/// that do not listen to the driver's change of mind, and suspend nevertheless.
pub(super) const WATCH_MS: u32 = 60_000;

/// A device that breaks by itself so shortly after it was recovered is not recovered again.
const RECOVERY_INTERVAL: Delta = Delta::from_secs(10);

/// How often, with a millisecond between, the device lock is tried to be taken.
const LOCK_TRIES: usize = 1000;

/// When it is tried again after that, in milliseconds.
const RETRY_MS: u32 = 1_000;

impl Controller {
    /// A device has failed: only a reset helps, if anything does (rule D9).
    fn fail(&self, dev: &Device<Bound>, refusal: Refusal, hopeless: bool) {
        let order = self.order.lock();
        let diagnosis = refusal.diagnosis(hopeless);
        let change = self.inner.lock().machine.fail(diagnosis);
        self.announce_failure(order, dev, change, refusal.failure);
    }

    /// As above, found out by a request. It is the watch that recovers the device: who waits for a
    /// reset can neither be killed nor give up, and so can't be somebody who has a deadline. The
    /// request waits for the watch, as long as it may.
    pub(super) fn fail_request(
        &self,
        dev: &Device<Bound>,
        refusal: Refusal,
        patience: &Patience<'_>,
    ) {
        self.attended.reinit();
        self.fail(dev, refusal, false);
        self.watch.schedule_now(dev);
        patience.wait_to_the_end(&self.attended);
    }

    /// `order` has been locked since before the device was found to have failed.
    pub(super) fn announce_failure(
        &self,
        order: MutexGuard<'_, ()>,
        dev: &Device<Bound>,
        change: Change,
        failure: Failure,
    ) {
        self.record(failure);
        self.announce(dev, change, Err(failure.error));
        drop(order);
        dev_err!(dev, "{}; the device is out of operation\n", failure.reason);
    }

    /// Looks at a device again and again, for so many milliseconds.
    pub(super) fn watch(&self, dev: &Device<Bound>, ms: u32) {
        self.inner.lock().watch = Watch::new(ms);
        self.watch_on(dev);
    }

    /// Has a device that is watched looked at again in a while.
    fn watch_on(&self, dev: &Device<Bound>) {
        let step = self.inner.lock().watch.step();
        if let Some(ms) = step {
            self.watch.schedule(dev, msecs_to_jiffies(ms));
        }
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
    /// does that did not suspend in time, and recovers it if it needs a reset (rule D9), or if that
    /// is still due.
    ///
    /// A device that has been reset and initialised by somebody else runs, whatever it was before.
    pub(crate) fn look(&self, ops: &dyn Operations, dev: &Device<Bound>) {
        let Some(revision) = self.revision else {
            return;
        };
        // As in `request`.
        let _no_io = NoIo::enter();

        // While `order` is locked no request can begin.
        let order = self.order.lock();
        let mut inner = self.inner.lock();
        let had_failed = inner.machine.state() == State::Failed;
        let look = inner.machine.look(&self.others());
        drop(inner);
        match look {
            Look::Later => drop(order),
            Look::Failed(change) => {
                let why = "device was reset by others, and left so";
                self.announce_failure(order, dev, change, Failure::new(EIO, why));
                self.recover(ops, dev);
            }
            Look::Standing { failed } => {
                if self.fate.take_operating() {
                    let next = self.inner.lock().machine.adopt();
                    ops.reopen(dev);
                    self.follow(order, dev, next, Ok(()));
                } else if failed {
                    drop(order);
                    self.recover(ops, dev);
                }
            }
            Look::Status => {
                let _ = self.fate.take_operating();
                self.look_at_status(order, ops, dev, revision);
            }
        }
        if had_failed {
            self.attended.complete_all();
        }
    }

    /// Reads the status of a device that should be running. `order` has been locked since that was
    /// known.
    fn look_at_status(
        &self,
        order: MutexGuard<'_, ()>,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        revision: Revision,
    ) {
        let mut condition = Condition::of(revision, Self::read_status(dev));
        if condition == Condition::Running && ops.is_broken(dev) {
            condition = Condition::Broken(Reason::NeedsReset);
        }

        let mut inner = self.inner.lock();
        // One that breaks again and again is given up: what it is reset for is its own doing.
        let hopeless = inner
            .recovered
            .as_ref()
            .is_some_and(|recovered| recovered.elapsed() < RECOVERY_INTERVAL);
        let looked = inner.machine.looked(condition, hopeless, &self.others());
        let timeout_ms = inner.stats.timeout_ms;
        drop(inner);

        match looked {
            Looked::Later => {}
            Looked::Running => self.watch_on(dev),
            Looked::Failed(change, why) => {
                self.announce_failure(order, dev, change, why.into());
                self.recover(ops, dev);
            }
            Looked::Resume(change) => {
                let patience = Patience::new(timeout_ms, &self.interruption);
                self.announce(dev, change, Ok(()));
                drop(order);
                self.resume_late(ops, dev, revision, hopeless, &patience);
            }
        }
    }

    /// Resumes a device that has suspended too late.
    fn resume_late(
        &self,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        revision: Revision,
        hopeless: bool,
        patience: &Patience<'_>,
    ) {
        let resumed = self.drive(dev, revision, Goal::Resume, patience);
        // Not before: the kernel's log may leave by this device.
        dev_warn!(dev, "suspended after all, too late\n");
        self.report_quirk(dev);
        match resumed {
            Ok(()) => {
                // Notifications that were sent meanwhile may have been ignored.
                ops.notify(dev);
                let order = self.order.lock();
                let next = self.inner.lock().machine.complete(Goal::Resume);
                self.follow(order, dev, next, Ok(()));
                // Who watches it for something else goes on to do so.
                self.watch_on(dev);
            }
            Err(refusal) => {
                self.fail(dev, refusal, hopeless);
                self.recover(ops, dev);
            }
        }
    }

    /// Resets a device that has failed and initialises it again (rule D9), unless that is switched
    /// off, the device is gone, or it is hopeless. In that case those who wait for the device are
    /// told.
    ///
    /// All buffers that were with the device are dropped: nothing that was in process can be relied
    /// on.
    fn recover(&self, ops: &dyn Operations, dev: &Device<Bound>) {
        let lock = self.lock_device(dev);
        // Whether it is still to be recovered: somebody else may have done it, or have the device.
        let diagnosis = lock
            .as_ref()
            .and_then(|_| self.inner.lock().machine.begin_recovery(&self.others()));
        let Some(diagnosis) = diagnosis else {
            drop(lock);
            self.postpone(ops, dev);
            return;
        };
        let remedy = match diagnosis {
            Diagnosis::Lost => Remedy::GiveUpLost,
            Diagnosis::Curable if *crate::parameters::recover.value_ref() => Remedy::Reset,
            Diagnosis::Curable | Diagnosis::Hopeless => Remedy::GiveUp,
        };

        let outcome = match ops.recover(dev, remedy) {
            Ok(outcome) => {
                if outcome == Outcome::Operates {
                    dev_info!(dev, "recovered by a reset\n");
                }
                outcome
            }
            Err(error) => {
                dev_err!(dev, "can't be recovered: {error:?}\n");
                Outcome::GivenUp
            }
        };
        let order = self.order.lock();
        let mut inner = self.inner.lock();
        if outcome == Outcome::Operates {
            inner.stats.recoveries += 1;
            inner.recovered = Some(Instant::now());
        }
        let next = inner.machine.recovered(outcome);
        drop(inner);
        self.follow(order, dev, next, Ok(()));
        if outcome == Outcome::Operates {
            ops.look_at_config(dev);
        }
    }

    /// The device lock could not be had, or others have the device.
    fn postpone(&self, ops: &dyn Operations, dev: &Device<Bound>) {
        let postponed = self.inner.lock().machine.postpone(&self.others());
        match postponed {
            Postponed::Leave => {}
            // The driver may wait for the device in its `unbind`. Who unbinds it holds the lock,
            // and goes no further than that before the watch has been cancelled.
            Postponed::GiveUp => ops.give_up(dev),
            Postponed::Retry => {
                // The same when it is started by its probe.
                ops.fail_probe(dev);
                self.watch.schedule(dev, msecs_to_jiffies(RETRY_MS));
            }
        }
    }

    /// Takes the device lock, unless the device is about to be unbound, or the system to go down:
    /// whoever does that holds the lock, and waits for the watch to end. So does who puts the
    /// system to sleep or resets the function, which is why it is not waited for.
    fn lock_device<'a>(&self, dev: &'a Device<Bound>) -> Option<DeviceLock<'a>> {
        for _ in 0..LOCK_TRIES {
            if let Some(lock) = dev.try_lock() {
                return Some(lock);
            }
            if self.interruption.reason().is_some() {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        None
    }
}
