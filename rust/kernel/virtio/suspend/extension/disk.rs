// SPDX-License-Identifier: GPL-2.0

//! The disk of a block device.

use kernel::{
    prelude::*,
    time::msecs_to_jiffies, //
};

use super::{
    child::Child,
    Foreign,
    Gate,
    SystemSleep,
    Virtqueues, //
};
use crate::{
    bindings::{
        self,
        gendisk, //
    },
    suspend::{
        failure::Failure,
        patience::Patience, //
    },
};

/// How often it is looked whether the wait for requests is to end, in milliseconds.
const SLICE_MS: u32 = 20;

/// The disk that the driver of a virtio block device has registered.
///
/// # Invariants
///
/// The device is that of a disk, and so is there as long as the disk and its request queue.
pub struct Disk(Child);

impl Disk {
    /// Finds the disk of a device. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none.
    pub fn of(dev: &Foreign<'_>) -> Result<Self, Failure> {
        // INVARIANT: Devices of this class and type are those of disks.
        Child::find(dev.0, Some(c"block"), Some(c"disk"))
            .map(Self)
            .ok_or(Failure::new(ENODEV, "the device has no disk"))
    }

    fn as_raw(&self) -> *mut gendisk {
        // SAFETY: By the type invariants.
        unsafe { bindings::dev_to_disk(self.0.as_raw()) }
    }

    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariants; a disk has a queue from its allocation on.
        unsafe { (*self.as_raw()).queue }
    }

    /// Freezes the disk's request queue: requests that the driver has are waited for, as
    /// long as `patience` lasts, new ones wait until what is returned is dropped. May sleep.
    ///
    /// `queues` are those of the device, where the requests are.
    ///
    /// # Errors
    ///
    /// Those of [`Patience::check`], if there are requests left then, and [`EIO`] if one of
    /// `queues` is broken, by the device that is waited for. The disk is as it was before.
    pub fn freeze(
        self,
        queues: &Virtqueues<'_>,
        patience: &Patience<'_>,
    ) -> Result<FrozenDisk, Failure> {
        let queue = self.queue();

        // Another task may let it go on.
        //
        // SAFETY: By the type invariants the queue is valid; the pairing call is below, or made by
        // `FrozenDisk`.
        unsafe { bindings::blk_freeze_queue_start_non_owner(queue) };
        self.wait_frozen(queues, patience).inspect_err(|_| {
            // SAFETY: The pairing call is above.
            unsafe { bindings::blk_mq_unfreeze_queue_non_owner(queue) };
        })?;
        // There is nothing to dispatch, but who has dispatched something may still be about to
        // notify the device of it: that is waited for (rule D5). And there are those who freeze the
        // queue, too, and let it go on when they are done: the driver's own preparation for sleep.
        //
        // SAFETY: The queue is valid, and the context may sleep.
        unsafe { bindings::blk_mq_quiesce_queue(queue) };
        // INVARIANT: The queue has been frozen and quiesced.
        Ok(FrozenDisk(Some(self)))
    }

    fn wait_frozen(&self, queues: &Virtqueues<'_>, patience: &Patience<'_>) -> Result<(), Failure> {
        let slice = msecs_to_jiffies(SLICE_MS);
        loop {
            // Of the end of some requests nobody is notified: whoever has made them polls, or not.
            //
            // SAFETY: By the type invariants the queue is valid. The function polls it only as long
            // as its driver can't take down what it needs for that.
            unsafe { bindings::blk_mq_poll_queues(self.queue()) };
            // SAFETY: By the type invariants the queue is valid; the context may sleep.
            let left = unsafe { bindings::blk_mq_freeze_queue_wait_timeout(self.queue(), slice) };
            // What the device has finished last may be what has broken it, which can't be seen any
            // more when the virtqueues are closed.
            queues.check()?;
            if left > 0 {
                return Ok(());
            }
            patience.check().map_err(|failure| {
                failure.because(ETIMEDOUT, "requests were not finished in time")
            })?;
        }
    }
}

/// A disk whose request queue is frozen, until this is dropped.
///
/// # Invariants
///
/// The queue of the disk, if there is one, has been frozen and quiesced once for this.
pub struct FrozenDisk(Option<Disk>);

impl Gate for FrozenDisk {
    fn abandon(&mut self) {
        // The queue stays as it is: nothing is dispatched to the driver. Whoever waits to submit
        // something gets an error.
        if let Some(disk) = self.0.take() {
            // SAFETY: By the type invariants of `Disk`.
            unsafe { bindings::blk_mark_disk_dead(disk.as_raw()) };
        }
    }

    fn system_sleep(&self) -> SystemSleep {
        // The driver freezes and quiesces the queue, too, both of which are counted.
        SystemSleep::Allowed
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        if let Some(disk) = &self.0 {
            // SAFETY: By the type invariants.
            unsafe {
                bindings::blk_mq_unquiesce_queue(disk.queue());
                bindings::blk_mq_unfreeze_queue_non_owner(disk.queue());
            }
        }
    }
}
