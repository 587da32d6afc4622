// SPDX-License-Identifier: GPL-2.0

//! Holding back configuration changes while a device is suspended (rule D12).

use kernel::{
    device::Bound,
    sync::atomic::{
        Atomic,
        Full, //
    },
};

use crate::{
    bindings,
    Device, //
};

/// By which of the virtio core's two switches they are held back.
#[derive(Clone, Copy)]
pub(crate) enum Switch {
    /// That of drivers. The core does not touch it: a sleep of the system, or a reset, lets nothing
    /// through before its owner does.
    Driver,
    /// The core's own, which it puts on when the device has been initialised again, gated or not:
    /// for a device whose driver may use the other one.
    Core,
}

/// The configuration changes of a device.
pub(crate) struct ConfigChanges {
    switch: Switch,
    held: Atomic<bool>,
}

impl ConfigChanges {
    pub(crate) const fn new(switch: Switch) -> Self {
        Self {
            switch,
            held: Atomic::new(false),
        }
    }

    /// Holds notifications of changes back. Who has been told of one before may still be busy with
    /// that. Process context.
    pub(crate) fn hold(&self, dev: &Device<Bound>) {
        let vdev = dev.as_raw();
        // SAFETY: The device is valid, and this is process context.
        unsafe {
            match self.switch {
                Switch::Driver => bindings::virtio_config_driver_disable(vdev),
                Switch::Core => bindings::virtio_config_core_disable(vdev),
            }
        };
        self.held.xchg(true, Full);
    }

    /// Lets them through again if they are held back, one that was included. Process
    /// context.
    pub(crate) fn release(&self, dev: &Device<Bound>) {
        if !self.held.xchg(false, Full) {
            return;
        }
        let vdev = dev.as_raw();
        // SAFETY: As in `hold`.
        unsafe {
            match self.switch {
                Switch::Driver => bindings::virtio_config_driver_enable(vdev),
                Switch::Core => bindings::virtio_config_core_enable(vdev),
            }
        };
    }
}
