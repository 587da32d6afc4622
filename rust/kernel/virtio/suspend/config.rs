// SPDX-License-Identifier: GPL-2.0

//! Holding back configuration changes while a device is suspended (rule D12), and accesses to the
//! configuration space.

use kernel::{
    device::Bound,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full, //
        },
        Mutex, //
    },
    time::msecs_to_jiffies,
};

use crate::{
    bindings,
    sync::{
        lock_class,
        Completion, //
    },
    Device, //
};

/// How long whoever waits for a [`Turnstile`] goes without looking at it, in milliseconds.
const LOOK_MS: u32 = 1_000;

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

/// Where accesses to the configuration space pass, unless they are held back.
#[pin_data]
pub(crate) struct Turnstile {
    /// Locked by whoever passes, so that nobody is half way when it is closed.
    #[pin]
    closed: Mutex<bool>,
    /// Done when it is open.
    #[pin]
    opened: Completion,
}

impl Turnstile {
    pub(crate) fn new() -> impl PinInit<Self> {
        let closed = lock_class!(c"suspend::Turnstile::closed");
        pin_init!(Self {
            closed <- Mutex::new(false, closed.0, closed.1),
            opened <- Completion::new(),
        })
    }

    /// Holds back whoever comes from now on, and waits for those who are passing. May sleep.
    pub(crate) fn close(&self) {
        let mut closed = self.closed.lock();
        self.opened.reinit();
        *closed = true;
    }

    /// Lets all pass again. May sleep.
    pub(crate) fn open(&self) {
        *self.closed.lock() = false;
        self.opened.complete_all();
    }

    /// Calls `access` if it is open.
    fn try_pass<R>(&self, access: impl FnOnce() -> R) -> Option<R> {
        let closed = self.closed.lock();
        if *closed {
            return None;
        }
        Some(access())
    }

    /// Calls `access` as soon as it is open. May sleep.
    ///
    /// In the middle of that it is not closed. It must not pass the turnstile again.
    pub(crate) fn pass<R>(&self, mut access: impl FnMut() -> R) -> R {
        loop {
            if let Some(result) = self.try_pass(&mut access) {
                return result;
            }
            // Never for long at a time: who waits here has not hung.
            self.opened.wait_timeout(msecs_to_jiffies(LOOK_MS));
        }
    }

    /// As above, unless the task is killed while it waits: then nothing is called.
    pub(crate) fn pass_killable(&self, mut access: impl FnMut()) {
        while self.try_pass(&mut access).is_none() {
            if self
                .opened
                .wait_killable_timeout(msecs_to_jiffies(LOOK_MS))
                .is_err()
            {
                return;
            }
        }
    }
}
