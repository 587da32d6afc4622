// SPDX-License-Identifier: GPL-2.0

//! The network interface of a network device.

use kernel::{
    device::Bound,
    prelude::*,
    sync::Arc,
    time::Delta, //
};

use super::{
    bus::as_bound,
    child::Child,
    Foreign,
    Gate,
    SystemSleep,
    Virtqueues, //
};
use crate::{
    bindings::{
        self,
        net_device, //
    },
    suspend::{
        failure::Failure,
        patience::Patience, //
    },
    Device, //
};

#[path = "interface/hold.rs"]
mod hold;
#[path = "interface/operations.rs"]
mod operations;
#[path = "interface/rtnl.rs"]
mod rtnl;

pub(super) use self::hold::drain;
use self::{
    hold::Hold,
    rtnl::Rtnl, //
};

/// How often it is looked whether an interface can be held, in milliseconds.
const LOOK_MS: i64 = 2;

/// How long whoever lets an interface go waits until it can be configured again, in milliseconds.
const SETTLE_MS: u32 = 200;

/// The interface that the driver of a virtio network device has registered.
///
/// # Invariants
///
/// The device is that of a network interface, which is there as long.
#[derive(Clone)]
pub struct Interface(Child);

impl Interface {
    /// Finds the interface of a device. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none.
    pub fn of(dev: &Foreign<'_>) -> Result<Self, Failure> {
        // INVARIANT: Devices of this class are those of network interfaces.
        Child::find(dev.0, Some(c"net"), None)
            .map(Self)
            .ok_or(Failure::new(ENODEV, "the device has no network interface"))
    }

    fn as_raw(&self) -> *mut net_device {
        // SAFETY: By the type invariants.
        unsafe { bindings::to_net_dev(self.0.as_raw()) }
    }

    /// Keeps the interface's driver from its virtqueues until what is returned is dropped. May
    /// sleep.
    ///
    /// `commands` is the name of the virtqueue on which the driver gives commands to the device,
    /// waiting for the answer. The device must have answered all of them: the next answer would be
    /// taken for that to another command.
    ///
    /// - No packet is given to the driver. They wait in the queueing discipline; where there is
    ///   none, whoever sends is told.
    /// - The interface is not present, so that the network stack does not ask its driver for
    ///   anything, with few exceptions.
    /// - What can't be refused is noted, and the driver is told later.
    /// - The interface keeps its flags, addresses, routes, neighbours and its carrier.
    /// - It can be set down, moved to another namespace, and its driver can be unbound.
    ///
    /// # Errors
    ///
    /// Those of [`Patience::check`], if somebody else holds RTNL all the time, or the device does
    /// not answer a command, [`EBUSY`] if the interface is not present, or an AF_XDP socket has its
    /// buffers in the virtqueues, [`ENOMEM`]. All is as before.
    pub fn hold(
        self,
        dev: &Foreign<'_>,
        queues: &Virtqueues<'_>,
        commands: &CStr,
        patience: &Patience<'_>,
    ) -> Result<HeldInterface, Failure> {
        loop {
            let why = match Rtnl::try_lock() {
                None => "the network configuration was locked for too long",
                Some(rtnl) => {
                    if let Some(hold) = self.try_hold(&rtnl, queues, commands)? {
                        // INVARIANT: The interface has just been taken.
                        return Ok(HeldInterface {
                            hold: Some(hold),
                            dev: dev.0.as_raw(),
                        });
                    }
                    "the device did not finish a command"
                }
            };
            patience
                .pause(Delta::from_millis(LOOK_MS))
                .map_err(|failure| failure.because(ETIMEDOUT, why))?;
        }
    }

    /// Returns [`None`] if a command is under way, or about to be given.
    fn try_hold(
        &self,
        rtnl: &Rtnl,
        queues: &Virtqueues<'_>,
        commands: &CStr,
    ) -> Result<Option<Arc<Hold>>, Failure> {
        let netdev = self.as_raw();

        if !Hold::settle_former(self, rtnl) {
            return Ok(None);
        }
        // SAFETY: By the type invariants the interface is valid; RTNL is held.
        unsafe {
            if !bindings::netif_device_present(netdev) {
                return Err(Failure::new(EBUSY, "the interface is not present"));
            }
            // The driver would have to take its buffers back when the socket is closed.
            if bindings::netdev_has_zero_copy(netdev) {
                return Err(Failure::new(EBUSY, "an AF_XDP socket uses the interface"));
            }
        }
        if !queues.is_idle(commands) {
            return Ok(None);
        }
        let hold = Hold::new(self.clone(), rtnl)?;

        hold.take(rtnl);
        // With RTNL held, commands are given by few, so it is most unlikely that this is too late
        // for one. It is looked for once more when those who give one anyway have noticed.
        let idle = queues.close_if_idle(commands);
        if idle {
            queues.close();
            // Whoever has seen an open virtqueue, in a poll or on any other way that does not take
            // a lock that has been taken here, is done with it (rules D4, D5).
            //
            // SAFETY: The context may sleep.
            unsafe { bindings::synchronize_net() };
        }
        if !idle || !queues.is_idle(commands) {
            queues.open();
            hold.release(false);
            hold.settle(rtnl);
            return Ok(None);
        }
        Ok(Some(hold))
    }
}

/// An interface whose driver is kept from its virtqueues, until this is dropped.
///
/// # Invariants
///
/// `dev` is the virtio device that the interface belongs to, which is bound as long as there is a
/// hold. The interface has been taken by it, and not been released.
pub struct HeldInterface {
    hold: Option<Arc<Hold>>,
    dev: *mut bindings::virtio_device,
}

// SAFETY: Neither is tied to a thread.
unsafe impl Send for HeldInterface {}

impl Gate for HeldInterface {
    fn abandon(&mut self) {
        // It stays as it is until it is unregistered.
        if let Some(hold) = self.hold.take() {
            hold.settle_later(0);
        }
    }

    fn system_sleep(&self) -> SystemSleep {
        match self.hold {
            None => SystemSleep::Allowed,
            // When the system is awake the driver makes the interface present before it is let go
            // here.
            Some(_) => SystemSleep::IfKept,
        }
    }
}

impl Drop for HeldInterface {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else {
            return;
        };
        // SAFETY: By the type invariants; `Device` is transparent.
        let dev: &Device<Bound> = unsafe { as_bound(&*self.dev.cast::<Device>()) };
        let queues = Virtqueues::of(dev);
        let broken = queues.is_broken();

        hold.release(broken);
        if !broken {
            // A driver refills a virtqueue when it has taken something out of it. What it has taken
            // out right before it was held it could not replace, and the device can't put anything
            // into a virtqueue that is empty.
            queues.call_back(|index| index % 2 == 0);
            // It may have missed a change when it could not answer, or the device's process was
            // exchanged meanwhile, and the notification is lost.
            //
            // SAFETY: By the type invariants the device is valid.
            unsafe { bindings::virtio_config_changed(self.dev) };
        }

        if let Some(rtnl) = Rtnl::try_lock() {
            if !hold.is_waiting(&rtnl) {
                hold.settle(&rtnl);
                // It is quicker with RTNL held.
                drop(hold);
                return;
            }
        }
        hold.settle_later(SETTLE_MS);
    }
}
