// SPDX-License-Identifier: GPL-2.0

//! Suspending the devices of the drivers of this crate.

use kernel::{
    device::Bound,
    prelude::*, //
};

use super::{
    controller::Controller,
    failure::Failure,
    fate::Fate,
    operations::{
        Operations,
        Remedy, //
    },
    patience::Patience,
    state_machine::Outcome, //
};
use crate::{
    driver::Common,
    queue::Record,
    Device, //
};

impl Operations for Common {
    fn controller(&self) -> &Controller {
        &self.controller
    }

    fn can_keep_state(&self) -> bool {
        true
    }

    fn gate(&self, dev: &Device<Bound>, patience: &Patience<'_>) -> Result<(), Failure> {
        self.check_queues(dev)?;
        (self.ops.gate)(dev, patience)?;
        // Maybe it is what the driver has waited for that has broken it.
        self.check_queues(dev)
            .inspect_err(|_| (self.ops.ungate)(dev))?;
        self.for_each_queue(|_, queue| queue.set_open(false));
        self.config_changes.hold(dev);
        // What the driver has heard of before, it looks at before SUSPEND is written (D3).
        self.config_work.flush();
        Ok(())
    }

    fn quiesce(&self, dev: &Device<Bound>, records: &mut KVec<Record>) {
        self.for_each_queue(|_, queue| queue.disable_callbacks());
        dev.synchronize_callbacks();
        self.for_each_queue(|index, _| (self.ops.used)(dev, index));
        self.record_queues(dev, records);
    }

    fn reopen(&self, dev: &Device<Bound>) {
        self.for_each_queue(|_, queue| queue.set_open(true));
        self.for_each_queue(|index, queue| {
            queue.enable_callbacks();
            // There may be used buffers of which the device has not notified, and will not.
            (self.ops.used)(dev, index);
        });
        (self.ops.ungate)(dev);
        // A device need not look for buffers by itself when it goes on.
        self.notify(dev);

        self.config_changes.release(dev);
        // The transport does not call back any more for a ring that was found to be broken here, or
        // when the device was suspended.
        if self.has_broken_queue() {
            self.controller.look_soon(dev);
        }
    }

    /// Not by the virtio core: nothing says that the device needs a reset.
    fn look_at_config(&self, dev: &Device<Bound>) {
        self.config_work.schedule_now(dev);
    }

    fn notify(&self, _dev: &Device<Bound>) {
        self.for_each_queue(|_, queue| queue.notify_outstanding());
    }

    fn is_broken(&self, _dev: &Device<Bound>) -> bool {
        self.has_broken_queue()
    }

    /// All buffers that were with the device are dropped: nothing that was in process can be relied
    /// on.
    fn recover(&self, dev: &Device<Bound>, remedy: Remedy) -> Result<Outcome> {
        // Somebody else is at it, or has been until the device lock could be had.
        if self.controller.fate().get() == Fate::Reset || self.controller.is_running() {
            return Ok(Outcome::GivenUp);
        }
        if remedy == Remedy::GiveUpLost {
            dev.break_queues();
        }
        // SAFETY: The caller holds the device lock.
        unsafe { (self.ops.stop)(dev) };
        if remedy != Remedy::Reset {
            (self.ops.give_up)(dev);
            return Ok(Outcome::GivenUp);
        }
        dev.initialise()
            // SAFETY: The caller holds the device lock.
            .and_then(|()| unsafe { (self.ops.restart)(dev) })
            .inspect_err(|_| (self.ops.give_up)(dev))?;
        Ok(Outcome::Operates)
    }

    fn give_up(&self, dev: &Device<Bound>) {
        // SAFETY: Who unbinds the device holds the device lock, and waits for the caller.
        unsafe { (self.ops.stop)(dev) };
        (self.ops.give_up)(dev);
    }

    fn fail_probe(&self, dev: &Device<Bound>) {
        Common::fail_probe(self, dev);
    }
}

impl Common {
    /// Returns how long whoever does something with the device waits for it.
    pub(crate) fn patience(&self) -> Patience<'_> {
        self.controller.patience(self.controller.stats().timeout_ms)
    }

    /// Refuses a device that has put something into a virtqueue that can't be, whatever its status
    /// says, and has it looked at.
    fn check_queues(&self, dev: &Device<Bound>) -> Result<(), Failure> {
        if self.has_broken_queue() {
            self.controller.look_soon(dev);
            return Err(Failure::new(EIO, "a virtqueue is broken"));
        }
        Ok(())
    }
}
