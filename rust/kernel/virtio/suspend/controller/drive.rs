// SPDX-License-Identifier: GPL-2.0

//! Taking a device to where it is to go: the kernel's side of [`Transition`].

use kernel::{
    device::Bound,
    prelude::*,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

use super::{
    super::{
        failure::Refusal,
        patience::Patience,
        protocol::{
            Action,
            Goal,
            Reason,
            Revision,
            Transition, //
        },
        trace, //
    },
    Controller, //
};
use crate::{
    Device,
    Status, //
};

impl Controller {
    pub(super) fn read_status(dev: &Device<Bound>) -> Status {
        let status = dev.status();
        trace::status(dev, false, status);
        status
    }

    /// Takes the device to `goal`, as [`Transition`] says, in the time that is left.
    pub(super) fn drive(
        &self,
        dev: &Device<Bound>,
        revision: Revision,
        goal: Goal,
        patience: &Patience<'_>,
    ) -> Result<(), Refusal> {
        self.config_reads.close();
        let result = self.drive_alone(dev, revision, goal, patience);
        self.config_reads.open();
        result
    }

    /// As above, while nobody reads the configuration.
    fn drive_alone(
        &self,
        dev: &Device<Bound>,
        revision: Revision,
        goal: Goal,
        patience: &Patience<'_>,
    ) -> Result<(), Refusal> {
        // CAST: It is not negative.
        let timeout_ns = patience.left().as_nanos() as u64;
        let started = Instant::<Monotonic>::now();
        // CAST: Time doesn't run backwards.
        let elapsed_ns = || started.elapsed().as_nanos() as u64;

        let asked = self.inner.lock().machine.ask(goal);
        let status = Self::read_status(dev);
        let (mut transition, mut action) =
            Transition::begin(revision, goal, status, timeout_ns, asked).map_err(
                // Nothing has been asked of the device: it is as it was, or was broken already.
                |why| match why {
                    Reason::NotReady(_) => Refusal::usable(why),
                    _ => Refusal::unusable(why),
                },
            )?;

        let mut quirk = false;
        loop {
            if transition.quirk() && !quirk {
                quirk = true;
                self.inner.lock().stats.quirks += 1;
            }
            action = match action {
                Action::Write(status) => {
                    trace::status(dev, true, status);
                    dev.set_status(status);
                    transition.observe(Self::read_status(dev), elapsed_ns())
                }
                // CAST: `protocol::BACKOFF_MAX_NS` is some milliseconds.
                Action::Wait(ns) => match patience.sleep(ns as i64) {
                    Ok(()) => transition.observe(Self::read_status(dev), elapsed_ns()),
                    Err(why) => {
                        let status = Self::read_status(dev);
                        let action = transition.abort(status, elapsed_ns(), why);
                        if let Action::Wait(ns) = action {
                            // The rollback is under way, and can't be aborted: it is bounded by
                            // itself. The wait ended at once, so it is made up for here.
                            fsleep(Delta::from_nanos(ns as i64));
                            transition.observe(Self::read_status(dev), elapsed_ns())
                        } else {
                            action
                        }
                    }
                },
                Action::Done => {
                    self.inner.lock().machine.forget_asked();
                    return Ok(());
                }
                Action::RolledBack(Reason::Lost) => {
                    // The request may not have reached it.
                    self.inner.lock().machine.forget_asked();
                    return Err(if dev.is_disconnected() {
                        Refusal::unusable(Reason::Lost)
                    } else {
                        Refusal::out_of_reach()
                    });
                }
                Action::RolledBack(why) => return Err(Refusal::usable(why)),
                Action::Failed(why) => return Err(Refusal::unusable(why)),
            };
        }
    }

    /// Says, once, that a device resumes only when SUSPEND is written as clear. To be called when
    /// the driver goes on, or can't: it may be this device by which the kernel's log leaves.
    pub(super) fn report_quirk(&self, dev: &Device<Bound>) {
        let mut inner = self.inner.lock();
        let first = inner.stats.quirks != 0 && !inner.quirk_reported;
        inner.quirk_reported |= first;
        drop(inner);
        if first {
            dev_warn!(dev, "does not resume unless SUSPEND is written as clear\n");
        }
    }
}
