// SPDX-License-Identifier: GPL-2.0

//! Keeping the state of a device over the sleep of the system.
//!
//! The PM core calls with the device lock held, when all tasks have been frozen: before the
//! transport has its turn, and after that when the system is awake again.

use kernel::{
    device::Bound,
    prelude::*, //
};

use super::{
    super::{
        failure::{
            Failure,
            Refusal, //
        },
        operations::Operations,
        protocol::{
            Condition,
            Reason,
            Revision,
            State, //
        },
        state_machine::Denial, //
    },
    Controller, //
};
use crate::{
    sync::NoIo,
    Device,
    Feature, //
};

/// What has become of a device that was to keep its state while the system sleeps.
pub(crate) enum Bedtime {
    /// It is suspended, and nothing is done with it until [`Controller::wake`].
    Kept,
    /// It is as it was before, and may be reset for the sleep: it can't be suspended, would not be,
    /// or has failed.
    Awake,
    /// The same: its driver could not be gated in time.
    NotGated(Failure),
    /// It needs a reset, or is gone: its driver is gated. As for one that is kept, nothing is done
    /// with it until [`Controller::wake`], unless others take it by [`Controller::freeze`].
    Broken,
}

impl Controller {
    /// Sets whether the device is to keep its state when the system sleeps.
    pub(in super::super) fn set_keep(&self, keep: bool) {
        self.inner.lock().stats.keep = keep;
    }

    /// Returns whether the device is to keep its state when the system sleeps, if it can.
    pub(crate) fn keeps_state(&self) -> bool {
        self.revision.is_some() && self.inner.lock().stats.keep
    }

    /// Suspends a device because the system is about to sleep, in the time that a request has. One
    /// that is suspended stays so. May sleep; the device lock is held.
    ///
    /// The state does not change: there is no user space that could see it.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if something is under way.
    pub(crate) fn put_to_sleep(
        &self,
        ops: &dyn Operations,
        dev: &Device<Bound>,
    ) -> Result<Bedtime> {
        // D14, as for a request.
        let Some(revision) = self
            .revision
            .filter(|_| !dev.has_feature(Feature::ADMIN_VQ))
        else {
            return Ok(Bedtime::Awake);
        };
        // As in `request`.
        let _no_io = NoIo::enter();

        // Who looks at the device has it.
        let order = self.order.lock();
        let asleep = self.inner.lock().machine.fall_asleep();
        drop(order);
        match asleep {
            Ok(State::Suspended) => return Ok(Bedtime::Kept),
            Ok(_) => {}
            Err(Denial::Failed) => return Ok(Bedtime::Awake),
            Err(denial) => return Err(denial.into()),
        }

        let patience = self.patience(self.stats().timeout_ms);
        if let Err(failure) = ops.gate(dev, &patience) {
            self.refuse_to_sleep(dev, failure);
            return Ok(Bedtime::NotGated(failure));
        }
        match self.suspend_gated(ops, dev, revision, &patience) {
            Ok(()) => Ok(Bedtime::Kept),
            Err(refusal) if refusal.is_usable() => {
                self.refuse_to_sleep(dev, refusal.failure);
                Ok(Bedtime::Awake)
            }
            Err(refusal) => {
                self.record(refusal.failure);
                self.report_lost_state(dev, refusal.failure);
                Ok(Bedtime::Broken)
            }
        }
    }

    /// The device runs on: it is not suspended for the sleep.
    fn refuse_to_sleep(&self, dev: &Device<Bound>, failure: Failure) {
        self.record(failure);
        dev_warn!(
            dev,
            "is not suspended for the sleep of the system: {}\n",
            failure.reason
        );
        self.leave_bed(dev);
    }

    /// Returns the state of a device that has been put to sleep, and is not awake yet.
    fn asleep(&self) -> Option<State> {
        self.inner.lock().machine.asleep()
    }

    /// The device is as it was before.
    fn leave_bed(&self, dev: &Device<Bound>) {
        let order = self.order.lock();
        let next = self.inner.lock().machine.wake_up();
        self.follow(order, dev, next, Ok(()));
    }

    fn report_lost_state(&self, dev: &Device<Bound>, failure: Failure) {
        dev_warn!(dev, "loses its state by the sleep: {}\n", failure.reason);
    }

    /// The system is awake, and the transport has done its part: resumes a device that has been
    /// suspended by [`Controller::put_to_sleep`]. One that was suspended before stays so. May
    /// sleep; the device lock is held.
    ///
    /// # Errors
    ///
    /// The device has lost its state, or does not resume in the time that a request has: its driver
    /// is gated. Others have the device until [`Controller::thaw`], and are to reset it.
    pub(crate) fn wake(&self, ops: &dyn Operations, dev: &Device<Bound>) -> Result {
        let _no_io = NoIo::enter();
        let (Some(state), Some(revision)) = (self.asleep(), self.revision) else {
            return Ok(());
        };
        let woken = match state {
            State::Suspended => Self::stays_suspended(dev, revision),
            _ => {
                let patience = self.patience(self.stats().timeout_ms);
                self.resume(ops, dev, revision, &patience)
            }
        };
        self.report_quirk(dev);
        match woken {
            Ok(()) => {
                self.inner.lock().stats.sleeps_kept += 1;
                self.leave_bed(dev);
                Ok(())
            }
            Err(refusal) => {
                self.record(refusal.failure);
                self.report_lost_state(dev, refusal.failure);
                self.freeze()?;
                Err(refusal.failure.error)
            }
        }
    }

    /// Looks whether a device that was suspended before is so still. One that is out of reach may
    /// be: who resumes it will see.
    fn stays_suspended(dev: &Device<Bound>, revision: Revision) -> Result<(), Refusal> {
        match Condition::of(revision, Self::read_status(dev)) {
            Condition::Broken(Reason::Lost) if !dev.is_disconnected() => Ok(()),
            Condition::Broken(why) => Err(Refusal::unusable(why)),
            _ => Ok(()),
        }
    }

    /// The device has been reset for a sleep of the system, and initialised again, or not.
    pub(crate) fn count_reset_by_sleep(&self) {
        self.inner.lock().stats.sleeps_reset += 1;
    }
}
