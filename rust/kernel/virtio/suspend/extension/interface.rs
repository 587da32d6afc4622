// SPDX-License-Identifier: GPL-2.0

//! The network interface of a network device.

use kernel::{
    error::to_result,
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    },
};

use super::{
    Foreign,
    Gate,
    Virtqueues, //
};
use crate::{
    bindings::{
        self,
        net_device, //
    },
    device::Child,
    suspend::failure::Failure, //
};

/// How often a driver that can't start again is asked to, 10 milliseconds apart.
const OPEN_TRIES: usize = 100;

/// RTNL is held.
struct Rtnl(());

impl Rtnl {
    fn lock() -> Self {
        // SAFETY: The context may sleep.
        unsafe { bindings::rtnl_lock() };
        Self(())
    }
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        // SAFETY: It has been locked in `lock`.
        unsafe { bindings::rtnl_unlock() };
    }
}

/// The interface that the driver of a virtio network device has registered.
///
/// # Invariants
///
/// The device is that of a network interface, which is there as long.
pub struct Interface(Child);

impl Interface {
    /// Finds the interface of a device. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none.
    pub fn of(dev: &Foreign<'_>) -> Result<Self, Failure> {
        // INVARIANT: Devices of this class are those of network interfaces.
        Child::find(dev.0, c"net", None)
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
    /// The driver is stopped, the virtqueues closed, and the driver started again: whatever it does
    /// from then on, it does in vain, and whatever it is asked to do, it does as on any other day.
    /// In particular the interface can be set down, and the driver can be unbound.
    ///
    /// - No packet is given to the driver: they wait in the queueing discipline.
    /// - The interface is not present, so that the network stack does not ask its driver for
    ///   anything, with few exceptions.
    /// - It keeps its flags, addresses, routes, neighbours and its carrier.
    ///
    /// # Errors
    ///
    /// Those of the driver, if it can't start again. The interface is down then.
    pub fn hold(
        self,
        dev: &Foreign<'_>,
        queues: &Virtqueues<'_>,
    ) -> Result<HeldInterface, Failure> {
        let netdev = self.as_raw();
        let rtnl = Rtnl::lock();

        // SAFETY: By the type invariants the interface is valid, here and below.
        unsafe {
            bindings::netdev_set_present(netdev, false);
            bindings::netdev_freeze_queues(netdev);
        }
        // SAFETY: As above. RTNL is held, as is needed to start and stop a driver. It has been
        // started if the interface runs, and RTNL has been held since.
        let result = unsafe {
            if bindings::netif_running(netdev) {
                bindings::ndo_stop(netdev);
                queues.close();
                Self::open(netdev)
            } else {
                queues.close();
                Ok(())
            }
        };
        // INVARIANT: The interface is not present, and its queues are frozen.
        let held = HeldInterface {
            interface: Some(self),
            dev: dev.0.as_raw(),
        };
        if let Err(error) = result {
            // SAFETY: The interface is valid, RTNL is held, and the driver is stopped.
            unsafe { bindings::netdev_mark_down(netdev) };
            drop(rtnl);
            queues.open();
            return Err(Failure::new(
                error,
                "the interface could not be started again, and is down",
            ));
        }
        drop(rtnl);
        Ok(held)
    }

    /// Starts the driver of an interface.
    ///
    /// # Safety
    ///
    /// The interface must be valid and its driver stopped. RTNL must be held.
    unsafe fn open(netdev: *mut net_device) -> Result {
        let mut result = Ok(());
        for _ in 0..OPEN_TRIES {
            // SAFETY: By the safety requirements.
            result = to_result(unsafe { bindings::ndo_open(netdev) });
            if result.is_ok() {
                break;
            }
            // It is memory that it lacks.
            fsleep(Delta::from_millis(10));
        }
        result
    }
}

/// An interface whose driver is kept from its virtqueues, until this is dropped.
///
/// # Invariants
///
/// The interface, if there is one, is not present, and its transmit queues are frozen. `dev` is the
/// virtio device that it belongs to, which is there as long as the interface.
pub struct HeldInterface {
    interface: Option<Interface>,
    dev: *mut bindings::virtio_device,
}

// SAFETY: Neither is tied to a thread.
unsafe impl Send for HeldInterface {}

impl Gate for HeldInterface {
    fn abandon(&mut self) {
        // It stays as it is: not present.
        self.interface = None;
    }

    fn outlasts_sleep(&self) -> bool {
        // To take its interface off the network stack the driver freezes the transmit queues, too,
        // and lets them go afterwards: before the virtqueues are deleted.
        self.interface.is_none()
    }
}

impl Drop for HeldInterface {
    fn drop(&mut self) {
        let Some(interface) = &self.interface else {
            return;
        };
        let netdev = interface.as_raw();
        let _rtnl = Rtnl::lock();

        // SAFETY: By the type invariants both are valid; RTNL is held.
        unsafe {
            bindings::netdev_set_present(netdev, true);
            bindings::netdev_unfreeze_queues(netdev);
            if bindings::netif_running(netdev) {
                bindings::netdev_watchdog_up(netdev);
                // What was asked for meanwhile has not reached the driver, or the device.
                bindings::ndo_set_rx_mode(netdev);
            }
            // Stopping the driver has made it forget a change that it was about to look at.
            bindings::virtio_config_changed(self.dev);
        }
    }
}
