// SPDX-License-Identifier: GPL-2.0

//! What the PM core calls when the system sleeps, to idle or to memory, and when it is awake.
//!
//! It calls for a device before it does for the parent, whose driver is the transport, and after
//! that on the way back. A device that is suspended then keeps its state if the transport does
//! nothing to it: because its function keeps it (No_Soft_Reset), or because the function is left
//! out of the sleep, which a suspend to idle allows. Any other is reset, by the transport or, where
//! that does nothing, here: it must not be left with live virtqueues.

use kernel::{
    container_of,
    device::CoreInternal,
    error::from_result,
    prelude::*,
    sync::atomic::Relaxed, //
};

use super::{
    lifecycle::Common,
    Adapter,
    Driver, //
};
use crate::{
    bindings,
    device::TransportSleep,
    suspend::Bedtime,
    sync::NoIo,
    Device, //
};

impl<T: Driver + 'static> Adapter<T> {
    /// For `driver.pm`. Hibernation has nothing in it: the transport resets all devices for that.
    pub(super) const PM: &'static bindings::dev_pm_ops = &{
        let mut ops: bindings::dev_pm_ops = pin_init::zeroed();
        ops.suspend = Some(Self::suspend_callback);
        ops.resume = Some(Self::resume_callback);
        ops
    };

    /// # Safety
    ///
    /// As for `core`: the PM core calls for a device of the virtio bus, with its lock held.
    unsafe fn of_device<'a>(dev: *mut bindings::device) -> &'a Device<CoreInternal<'a>> {
        // SAFETY: By the safety requirements. A device of the virtio bus is embedded in a `struct
        // virtio_device`; it is bound to the driver with this callback, and stays so while its lock
        // is held.
        unsafe { Self::core(container_of!(dev, bindings::virtio_device, dev)) }
    }

    unsafe extern "C" fn suspend_callback(dev: *mut bindings::device) -> c_int {
        // SAFETY: The PM core calls this with the lock of a device that is bound to this driver.
        let dev = unsafe { Self::of_device(dev) };

        // As in `freeze_callback`.
        let _no_io = NoIo::enter();
        from_result(|| Self::suspend(dev).map(|()| 0))
    }

    unsafe extern "C" fn resume_callback(dev: *mut bindings::device) -> c_int {
        // SAFETY: As in `suspend_callback`.
        let dev = unsafe { Self::of_device(dev) };

        let _no_io = NoIo::enter();
        from_result(|| Self::resume(dev).map(|()| 0))
    }

    fn suspend(dev: &Device<CoreInternal<'_>>) -> Result {
        let common = dev.common();
        let transport = dev.transport_sleep();

        if transport != TransportSleep::Resets && common.controller.keeps_state() {
            match common.controller.put_to_sleep(common, dev)? {
                Bedtime::Kept => {
                    if transport == TransportSleep::CanBeExempt {
                        common.exemption.begin(dev);
                    }
                    return Ok(());
                }
                Bedtime::Broken => {
                    common.controller.freeze()?;
                    Self::halt(dev);
                    return Ok(());
                }
                // What it has waited for it would be waited for once more.
                Bedtime::NotGated(failure) if failure.error == ETIMEDOUT => {
                    dev_err!(dev, "the system can't sleep: {}\n", failure.reason);
                    return Err(failure.error);
                }
                Bedtime::NotGated(_) | Bedtime::Awake => {}
            }
        }
        match transport {
            TransportSleep::Nothing => Self::freeze_for_sleep(dev, common),
            _ => Ok(()),
        }
    }

    fn resume(dev: &Device<CoreInternal<'_>>) -> Result {
        let common = dev.common();

        common.exemption.end(dev);
        if common.frozen.load(Relaxed) {
            // The transport has done nothing, or has not come so far.
            return Self::reinitialise(dev, common);
        }
        if common.controller.wake(common, dev).is_err() {
            Self::halt(dev);
            return Self::reinitialise(dev, common);
        }
        Ok(())
    }

    /// Puts a device into operation again that has been stopped for the sleep.
    fn reinitialise(dev: &Device<CoreInternal<'_>>, common: &Common) -> Result {
        common.controller.count_reset_by_sleep();
        Self::thaw(dev, dev.initialise())
    }
}
