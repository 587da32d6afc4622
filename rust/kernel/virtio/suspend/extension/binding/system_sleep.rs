// SPDX-License-Identifier: GPL-2.0

//! What the PM core calls for a device whose driver knows nothing of SUSPEND, when the system
//! sleeps, to idle or to memory, and when it is awake.
//!
//! The virtio bus has no callbacks for that, and its drivers have those of the virtio core alone,
//! which the transport calls, for a reset. So the device is put into a PM domain before its driver
//! is bound. The PM core calls the domain with the device lock held and all tasks frozen: before
//! the parent's driver, the transport, has its turn, and after that on the way back. A device that
//! is suspended then keeps its state if the transport does nothing to it, as with the drivers of
//! the crate.
//!
//! One that does not keep its state is the transport's, which has the driver reset it. Where the
//! transport would do nothing, or the device has lost its state, the driver is had to do that here,
//! by the same means: on neither side of the sleep is there user space that could come in between.

use core::ptr::from_ref;

use kernel::{
    container_of,
    device::Bound,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    },
};

use super::{
    super::{
        bus::as_bound,
        find,
        Entry, //
    },
    Binding, //
};
use crate::{
    bindings::{
        self,
        dev_pm_domain, //
    },
    device::{
        Exemption,
        TransportSleep, //
    },
    suspend::{
        controller::Bedtime,
        fate::Fate,
        operations::Operations as _,
        protocol::State, //
    },
    sync::NoIo,
    Device,
    Status, //
};

/// A `struct dev_pm_domain` that can be a static.
#[repr(transparent)]
struct Domain(dev_pm_domain);

// SAFETY: The kernel only reads a `struct dev_pm_domain`.
unsafe impl Sync for Domain {}

/// The domain of all devices that can keep their state. Hibernation has nothing in it: the
/// transport resets all devices for that.
static DOMAIN: Domain = {
    let mut domain: dev_pm_domain = pin_init::zeroed();
    domain.ops.suspend = Some(suspend_callback);
    domain.ops.resume = Some(resume_callback);
    Domain(domain)
};

impl Domain {
    fn as_raw(&self) -> *mut dev_pm_domain {
        (&raw const self.0).cast_mut()
    }
}

impl Entry {
    /// Has the PM core call for the device. Its lock must be held, and its driver be about to be
    /// bound: the domain of a device does not change while it is bound.
    pub(in super::super) fn join_domain(&self) {
        // SAFETY: The device is valid, and its lock is held. The domain is there until the device
        // leaves it, which it does before the module of the extension goes.
        unsafe { bindings::virtio_pm_join_domain(self.dev.as_raw(), DOMAIN.as_raw()) };
    }

    /// The PM core is not to call for the device any more. Its lock must be held.
    pub(in super::super) fn leave_domain(&self) {
        // SAFETY: The device is valid, and its lock is held.
        unsafe { bindings::virtio_pm_leave_domain(self.dev.as_raw(), DOMAIN.as_raw()) };
    }

    /// Returns whether the PM core calls for the device. Its lock must be held.
    pub(in super::super) fn is_in_domain(&self) -> bool {
        // SAFETY: The device is valid, and its lock is held.
        unsafe { bindings::virtio_pm_is_in_domain(self.dev.as_raw(), DOMAIN.as_raw()) }
    }
}

/// What has been done to a device because the system sleeps.
pub(in super::super) struct Bed {
    /// Whether the PM core calls for the device.
    is_made: bool,
    /// Whether the function has been left out of the sleep.
    exemption: Exemption,
    /// Whether the driver has been stopped, not by the transport.
    stopped: Atomic<bool>,
}

impl Bed {
    pub(in super::super) const fn new(is_made: bool) -> Self {
        Self {
            is_made,
            exemption: Exemption::new(),
            stopped: Atomic::new(false),
        }
    }

    pub(super) fn is_made(&self) -> bool {
        self.is_made
    }
}

impl Binding {
    /// Returns whether the device keeps its state in some sleep, as far as can be said before it is
    /// known in which.
    pub(super) fn may_keep_state(&self, dev: &Device) -> bool {
        self.can_keep_state() && self.controller.keeps_state() && dev.transport_may_keep_state()
    }

    /// The function takes part in the sleep of the system again, if it was left out. The device
    /// lock is held.
    pub(super) fn end_exemption(&self, dev: &Device<Bound>) {
        self.bed.exemption.end(dev);
    }

    /// The transport is about to have its turn.
    fn suspend(&self, dev: &Device<Bound>) -> Result {
        if self.controller.revision().is_none() {
            return Ok(());
        }
        let transport = dev.transport_sleep();
        let bedtime = if transport != TransportSleep::Resets && self.controller.keeps_state() {
            self.controller.put_to_sleep(self, dev)?
        } else {
            Bedtime::Awake
        };
        match bedtime {
            Bedtime::Kept => {}
            // It is seen when the system is awake whether it is still so.
            Bedtime::Broken if Self::is_out_of_reach(dev) => {}
            Bedtime::Broken => self
                .stop(dev)
                .inspect_err(|error| self.fail_to_wake(dev, *error))?,
            // What it has waited for its driver would wait for once more, and for ever.
            Bedtime::NotGated(failure) if failure.error == ETIMEDOUT => {
                dev_err!(dev, "the system can't sleep: {}\n", failure.reason);
                return Err(failure.error);
            }
            Bedtime::NotGated(_) | Bedtime::Awake => {
                self.check_gate(dev, false)?;
                return match transport {
                    TransportSleep::Nothing => self.stop(dev),
                    _ => Ok(()),
                };
            }
        }
        if transport == TransportSleep::CanBeExempt {
            self.bed.exemption.begin(dev);
        }
        Ok(())
    }

    /// The transport has had its turn.
    fn resume(&self, dev: &Device<Bound>) -> Result {
        self.end_exemption(dev);

        let fate = self.controller.fate();
        let result = if self.bed.stopped.load(Relaxed) {
            self.restart(dev)
        } else if fate.get() == Fate::Untouched {
            // The transport has done nothing, or has not come so far.
            match self.controller.wake(self, dev) {
                Ok(()) => return Ok(()),
                Err(error) if Self::is_out_of_reach(dev) => Err(error),
                Err(_) => self.stop(dev).and_then(|()| self.restart(dev)),
            }
        } else {
            Ok(())
        };
        if result.is_ok() && fate.take_operating() {
            // Whatever it was before, it runs.
            if self.controller.freeze().is_ok() {
                self.reopen(dev);
                self.controller.thaw(dev, Ok(()));
            }
        } else if let Err(error) = result {
            self.fail_to_wake(dev, error);
        }
        // What the transport could not put into operation is found by the look that is due.
        result
    }

    /// Returns whether the device reads as all ones. It can't be told whether a reset would help,
    /// which might never end. And a driver that has stopped, and can't initialise its device again,
    /// may not even be fit to be unbound: virtio_net of Linux 7.3 is not.
    fn is_out_of_reach(dev: &Device<Bound>) -> bool {
        dev.status() == Status::ALL_ONES
    }

    /// Has the driver reset its device, as the transport does for a sleep, unless the device is out
    /// of operation already. The device lock is held.
    fn stop(&self, dev: &Device<Bound>) -> Result {
        let is_left = !matches!(
            self.controller.fate().get(),
            Fate::Untouched | Fate::Operating
        );
        if is_left || self.controller.state() == State::Failed {
            return Ok(());
        }
        // SAFETY: The device is valid and bound, its lock is held, and the context may sleep.
        to_result(unsafe { bindings::virtio_pm_freeze(dev.as_raw()) })?;
        self.bed.stopped.store(true, Relaxed);
        Ok(())
    }

    /// Has the driver initialise a device again that it has reset. The device lock is held.
    fn restart(&self, dev: &Device<Bound>) -> Result {
        if !self.bed.stopped.xchg(false, Full) {
            return Err(EIO);
        }
        // SAFETY: As in `stop`.
        to_result(unsafe { bindings::virtio_pm_restore(dev.as_raw()) })
    }

    /// The device can't be put into operation again: whoever waits for it is told.
    fn fail_to_wake(&self, dev: &Device<Bound>, error: Error) {
        let _ = self.controller.fate().change(Fate::Reset, Fate::LeftReset);
        self.leave_broken(dev);
        if self.controller.freeze().is_ok() {
            self.controller.thaw(dev, Err(error));
        }
    }
}

/// Calls `f` for a device that is bound, if it is known.
///
/// # Safety
///
/// To be called by the PM core, for a device in [`DOMAIN`].
unsafe fn with_binding(
    dev: *mut bindings::device,
    f: impl FnOnce(&Binding, &Device<Bound>) -> Result,
) -> c_int {
    // What is stopped may be what memory is written back to.
    let _no_io = NoIo::enter();
    // SAFETY: By the safety requirements the device is valid, and of the virtio bus, so that it is
    // embedded in a `struct virtio_device`.
    let dev = unsafe { &*container_of!(dev, bindings::virtio_device, dev).cast::<Device>() };
    let binding: Option<Arc<Binding>> =
        find(from_ref(dev).cast()).and_then(|entry| entry.binding());
    from_result(|| {
        if let Some(binding) = binding {
            // SAFETY: There is a binding, and the PM core holds the device lock: it stays bound.
            f(&binding, unsafe { as_bound(dev) })?;
        }
        Ok(0)
    })
}

unsafe extern "C" fn suspend_callback(dev: *mut bindings::device) -> c_int {
    // SAFETY: The PM core calls this, for a device that has joined the domain.
    unsafe { with_binding(dev, Binding::suspend) }
}

unsafe extern "C" fn resume_callback(dev: *mut bindings::device) -> c_int {
    // SAFETY: As in `suspend_callback`.
    unsafe { with_binding(dev, Binding::resume) }
}
