// SPDX-License-Identifier: GPL-2.0

//! What is asked through sysfs.

use kernel::{
    device::Bound,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    },
};

use super::{
    super::{
        failure::{
            Failure,
            Refusal, //
        },
        operations::Operations,
        patience::{
            Limit,
            Patience, //
        },
        protocol::{
            Goal,
            Revision, //
        },
    },
    recovery::WATCH_MS,
    Controller, //
};
use crate::{
    compat::EOPNOTSUPP,
    sync::NoIo,
    Device,
    Feature, //
};

impl Controller {
    /// Suspends or resumes the device; returns when it is done. `limit` is the deadline, if it is
    /// not the device's own. May sleep.
    ///
    /// # Errors
    ///
    /// As in Documentation/ABI/testing/sysfs-bus-virtio-suspend.
    pub(in super::super) fn request(
        &self,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        goal: Goal,
        limit: Option<&Limit<'_>>,
    ) -> Result {
        // What is suspended may be what memory is written back to.
        let _no_io = NoIo::enter();
        let started = Instant::<Monotonic>::now();

        let Some(revision) = self.revision else {
            return self.refuse(EOPNOTSUPP, ops.obstacle().1);
        };
        // D14: the transport of Linux 7.3 issues admin commands whenever DRIVER_OK is in a value
        // that is written to the status, and that for SUSPEND contains it.
        if dev.has_feature(Feature::ADMIN_VQ) {
            return self.refuse(EOPNOTSUPP, "device has an administration virtqueue");
        }

        let order = self.order.lock();
        let mut inner = self.inner.lock();
        inner.machine.admit(goal, &self.others())?;
        if goal == Goal::Suspend {
            self.member.hold(dev)?;
        }
        let change = inner.machine.begin(goal);
        let patience = match limit {
            Some(limit) => Patience::within(limit, &self.interruption),
            None => Patience::new(inner.stats.timeout_ms, &self.interruption),
        };
        drop(inner);
        self.announce(dev, change, Ok(()));
        drop(order);

        let verdict = match goal {
            Goal::Suspend => self.suspend(ops, dev, revision, &patience),
            Goal::Resume => self.resume(ops, dev, revision, &patience),
        };
        let ns = started.elapsed().as_nanos();
        self.report_quirk(dev);

        let Err(refusal) = verdict else {
            let order = self.order.lock();
            let mut inner = self.inner.lock();
            let stats = &mut inner.stats;
            match goal {
                Goal::Suspend => {
                    stats.suspends += 1;
                    stats.last_suspend_ns = ns;
                }
                Goal::Resume => {
                    stats.resumes += 1;
                    stats.last_resume_ns = ns;
                }
            }
            let next = inner.machine.complete(goal);
            drop(inner);
            self.follow(order, dev, next, Ok(()));
            return Ok(());
        };

        let failure = refusal.failure;
        if refusal.is_usable() {
            self.record(failure);
            let name = match goal {
                Goal::Suspend => "suspend",
                Goal::Resume => "resume",
            };
            dev_warn!(dev, "{name} failed: {}\n", failure.reason);
            if goal == Goal::Suspend {
                self.watch(dev, WATCH_MS);
            }
            let order = self.order.lock();
            let next = self.inner.lock().machine.roll_back(goal);
            self.follow(order, dev, next, Err(failure.error));
        } else {
            self.fail_request(dev, refusal, &patience);
        }
        Err(failure.error)
    }

    /// Refuses a request for good.
    fn refuse(&self, error: Error, reason: &'static str) -> Result {
        self.record(Failure::new(error, reason));
        Err(error)
    }

    /// Suspends the device, in the order of Documentation/virtio/suspend.rst.
    fn suspend(
        &self,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        revision: Revision,
        patience: &Patience<'_>,
    ) -> Result<(), Refusal> {
        // 1. Gate: the driver, its virtqueues, and configuration changes.
        ops.gate(dev, patience).map_err(Refusal::usable)?;
        self.suspend_gated(ops, dev, revision, patience)
    }

    /// As above, when the driver is gated. It is not any more if the device can be used
    /// nevertheless.
    pub(super) fn suspend_gated(
        &self,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        revision: Revision,
        patience: &Patience<'_>,
    ) -> Result<(), Refusal> {
        // 2. and 3. Set SUSPEND, and re-read the status.
        self.drive(dev, revision, Goal::Suspend, patience)
            .inspect_err(|refusal| {
                if refusal.is_usable() {
                    ops.reopen(dev);
                }
            })?;

        // 4. Quiesce: no callback runs, and what the device used is the driver's again.
        ops.quiesce(dev, &mut self.records.queues.lock());
        Ok(())
    }

    /// Resumes the device.
    pub(super) fn resume(
        &self,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        revision: Revision,
        patience: &Patience<'_>,
    ) -> Result<(), Refusal> {
        self.drive(dev, revision, Goal::Resume, patience)?;
        ops.reopen(dev);
        // What the device has said meanwhile may have been lost with what was behind it then.
        ops.look_at_config(dev);
        Ok(())
    }
}
