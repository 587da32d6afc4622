// SPDX-License-Identifier: GPL-2.0

//! What the controller does with a device through its driver.

use kernel::{
    device::Bound,
    prelude::*, //
};

use super::{
    controller::Controller,
    failure::Failure,
    patience::Patience,
    state_machine::Outcome, //
};
use crate::{
    queue::Record,
    Device, //
};

/// What is to be done about a device that has failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// It is to be reset, and initialised again.
    Reset,
    /// It is to be taken out of operation.
    GiveUp,
    /// The same; it is gone, and can't be reset.
    GiveUpLost,
}

/// What the controller needs of a device's driver.
///
/// There are two of them: that of the drivers of this crate, which take part in it, and that of the
/// kernel's other drivers, which know nothing of it. Both have a [`Controller`] for what can be
/// said of any device: its state, what others do to it by a reset
/// ([`Fate`](super::fate::Fate)), the sleep of the system, what is due.
/// [`ConfigChanges`](super::config::ConfigChanges) holds configuration changes back for both.
///
/// What is done to the device remains two things, because the virtio core is on different sides of
/// it. A driver of the crate is called by the core for a sleep or a reset, and is stopped and
/// started by the crate itself, with the device lock held, which keeps its virtqueues and buffers.
/// A foreign driver is called by the core without the crate, so that the crate hears of it only
/// from the transport's operations; its virtqueues can be closed and read, but not made anew, its
/// configuration writes have to be held back at the transport, too, and recovering it means to have
/// the core do to it what a reset of the function does.
pub(crate) trait Operations {
    fn controller(&self) -> &Controller;

    /// Why the device can't be suspended if SUSPEND has not been negotiated: what the file
    /// `revision` shows, and the reason in words.
    fn obstacle(&self) -> (&'static str, &'static str) {
        ("none", "SUSPEND has not been negotiated")
    }

    /// Returns whether the device can keep its state when the system sleeps, see
    /// [`Controller::put_to_sleep`].
    fn can_keep_state(&self) -> bool {
        false
    }

    /// Gates the driver: from here on it makes no buffer available and sends no notification
    /// (rules D4 and D5), and configuration changes are held back (D12). May sleep, for
    /// as long as `patience` lasts.
    ///
    /// # Errors
    ///
    /// Everything is as it was before.
    fn gate(&self, dev: &Device<Bound>, patience: &Patience<'_>) -> Result<(), Failure>;

    /// The device is suspended: excludes callbacks, takes back what the device used (D10), and
    /// records the state of the virtqueues. May sleep.
    fn quiesce(&self, dev: &Device<Bound>, records: &mut KVec<Record>);

    /// Lets the driver use the device again, the mirror image of `gate` and `quiesce`. May sleep.
    fn reopen(&self, dev: &Device<Bound>);

    /// Has the driver look at the configuration, which may have changed without a notification.
    fn look_at_config(&self, dev: &Device<Bound>);

    /// Notifies the device of every virtqueue that has buffers.
    fn notify(&self, dev: &Device<Bound>);

    /// Returns whether some virtqueue can't be used any more, because of what the device has put
    /// into it.
    fn is_broken(&self, dev: &Device<Bound>) -> bool;

    /// Takes a device that has failed out of operation, so that whoever waits for it is told, or
    /// puts it back into operation. The device lock must be held.
    ///
    /// Returns what has become of the device.
    ///
    /// # Errors
    ///
    /// Those of the transport and of the driver; the device is out of operation.
    fn recover(&self, dev: &Device<Bound>, remedy: Remedy) -> Result<Outcome>;

    /// Takes a device that has failed out of operation for good, while it is about to be unbound:
    /// the driver may wait for it.
    fn give_up(&self, dev: &Device<Bound>);

    /// Takes a device that has failed out of operation for good, if it is started by the probe of
    /// its driver, which may wait for it.
    fn fail_probe(&self, dev: &Device<Bound>) {
        let _ = dev;
    }
}
