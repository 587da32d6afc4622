// SPDX-License-Identifier: GPL-2.0

//! What interrupts the operation of a device: the sleep of the system, and a reset of its function.
//!
//! The transports call without the device lock.

use core::any::TypeId;

use kernel::{
    device::{
        Bound,
        CoreInternal, //
    },
    error::from_result,
    prelude::*,
    sync::atomic::Relaxed,
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    },
};

use super::{
    lifecycle::{
        common_of,
        Common, //
    },
    registration::is_native,
    resets,
    Adapter,
    Driver, //
};
use crate::{
    bindings,
    device::DeviceLock,
    suspend::Fate,
    sync::NoIo,
    Device, //
};

/// How often it is looked what became of a device whose function is reset, in milliseconds.
const RESET_STEP_MS: u32 = 1000;

/// How often, with [`REQUEST_STEP`] between, it is looked whether a request has ended whose device
/// has been reset. It does when it looks at the status again, some milliseconds later.
const REQUEST_TRIES: usize = 1000;

/// See [`REQUEST_TRIES`].
const REQUEST_STEP: Delta = Delta::from_millis(1);

impl Common {
    /// Has the device looked at after a while, if it has not been put into operation by then.
    fn look_after_reset(&self, dev: &Device<Bound>) {
        self.reset_work
            .schedule(dev, msecs_to_jiffies(RESET_STEP_MS));
    }
}

impl<T: Driver + 'static> Adapter<T> {
    /// Returns what this adapter keeps for a device, if the device is bound to its driver.
    ///
    /// For callbacks that the bus makes without the device lock: `_lock` tells that it has been
    /// taken since. The device may have been unbound in between, and bound to whatever driver.
    fn own<'a>(dev: &'a Device<Bound>, _lock: &'a DeviceLock<'_>) -> Option<&'a Common> {
        // SAFETY: The pointer is valid, and the driver of a device changes under its lock.
        let driver = unsafe { (*dev.as_raw_device()).driver };
        if driver.is_null() || !is_native(driver) {
            return None;
        }
        // SAFETY: The driver was registered through some adapter. Its probe is over, or else the
        // device lock would be held for it, and has succeeded, or there would be no driver.
        let common = unsafe { common_of(dev) };
        (common.driver == TypeId::of::<T>()).then_some(common)
    }

    /// Gives a device up whose function has been reset, if `reset_done` does not come. The virtio
    /// core could not initialise the device then, and sets FAILED. Or the transport could not
    /// enable the function, or has not disabled it, because user space has enabled it, too: who
    /// resets the function has let go of its lock by then.
    pub(super) fn reset_work(dev: &Device<Bound>) {
        // As in `freeze_callback`.
        let _no_io = NoIo::enter();
        let common = dev.common();
        match dev.try_lock() {
            Some(_) if !common.frozen.load(Relaxed) => {}
            Some(_) if dev.has_failed() || !dev.is_parent_locked() => {
                resets::end(dev.as_raw());
                // SAFETY: The device is bound, and its lock is held.
                let dev = unsafe { Self::core(dev.as_raw()) };
                let _ = Self::thaw(dev, Err(EIO));
            }
            _ => common.look_after_reset(dev),
        }
    }

    /// Has the driver finish what the device has, before the system sleeps. The device lock is
    /// held, and the controller frozen.
    pub(super) fn prepare_sleep(dev: &Device<CoreInternal<'_>>) -> Result {
        let common = dev.common();
        // SAFETY: The device is bound, so that its data is there while its lock is held.
        unsafe { Self::with_data(dev, |data| T::prepare_sleep(dev, data, &common.patience())) }
            .map_err(|failure| {
                dev_err!(dev, "the system can't sleep: {}\n", failure.reason);
                failure.error
            })
    }

    /// Stops the device until `thaw`. The device lock is held.
    fn freeze(dev: &Device<CoreInternal<'_>>) -> Result {
        let common = dev.common();
        common.controller.freeze()?;
        Self::halt(dev);
        Ok(())
    }

    /// As above, when the controller has been frozen.
    pub(super) fn halt(dev: &Device<CoreInternal<'_>>) {
        dev.common().cancel();
        Self::halt_during_request(dev);
    }

    /// As above, when a request may be under way. It finds the device reset.
    fn halt_during_request(dev: &Device<CoreInternal<'_>>) {
        let common = dev.common();
        Self::stop(dev);
        // As in `tear_down`.
        common.cancel();
        common.frozen.store(true, Relaxed);
    }

    /// Puts a device into operation again that has been initialised up to FEATURES_OK, or tells
    /// those who wait for it that this is over. The device lock is held.
    pub(super) fn thaw(dev: &Device<CoreInternal<'_>>, initialised: Result) -> Result {
        let common = dev.common();
        let result = match initialised {
            // It stays what it is: its driver does not count on it any more.
            Ok(()) if common.given_up.load(Relaxed) => Err(EIO),
            Ok(()) => Self::restart(dev),
            Err(error) => Err(error),
        };
        if result.is_err() {
            Self::give_up(dev);
        }
        common.frozen.store(false, Relaxed);
        common.controller.fate().set(Fate::Untouched);
        common.controller.thaw(dev, result);
        result
    }

    pub(super) extern "C" fn freeze_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with a valid device.
        let dev = unsafe { Self::core(vdev) };

        // What is stopped may be what memory is written back to, here and below.
        let _no_io = NoIo::enter();
        // Of the parent, the transport holds the lock, but not of this device.
        let lock = dev.lock();
        let Some(common) = Self::own(dev, &lock) else {
            return 0;
        };
        from_result(|| Self::freeze_for_sleep(dev, common).map(|()| 0))
    }

    /// Stops the device until the system is awake. The device lock is held.
    pub(super) fn freeze_for_sleep(dev: &Device<CoreInternal<'_>>, common: &Common) -> Result {
        let running = common.controller.is_running();
        common.controller.freeze()?;
        if running {
            // It runs on, if it must not be stopped.
            Self::prepare_sleep(dev).inspect_err(|_| common.controller.thaw(dev, Ok(())))?;
        }
        Self::halt(dev);
        Ok(())
    }

    pub(super) extern "C" fn restore_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with a valid device.
        let dev = unsafe { Self::core(vdev) };

        let _no_io = NoIo::enter();
        let lock = dev.lock();
        from_result(|| {
            let common = Self::own(dev, &lock)
                .filter(|common| common.frozen.load(Relaxed))
                .ok_or(ENODEV)?;
            common.controller.count_reset_by_sleep();
            Self::thaw(dev, Ok(())).map(|()| 0)
        })
    }

    /// The function is about to be reset.
    ///
    /// The transport calls this with the lock of the function held, but not with that of the
    /// device, which may be about to be unbound or bound: what is there once the lock has been
    /// taken counts. An error would keep `reset_done` from being called, and the device would
    /// forget its driver without a word.
    pub(super) extern "C" fn reset_prepare_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with a valid device.
        let dev = unsafe { Self::core(vdev) };

        let _no_io = NoIo::enter();
        let lock = dev.lock();
        // One that is not bound any more is nobody's, and `reset_done` may not be called for it.
        if let Some(common) = Self::own(dev, &lock) {
            // While there is a device to which memory can be written back.
            resets::begin(vdev);
            common.controller.fate().set(Fate::Reset);
            if Self::freeze(dev).is_err() {
                // A request is under way. It leaves the device to `reset_done`.
                Self::halt_during_request(dev);
                for _ in 0..REQUEST_TRIES {
                    if common.controller.freeze().is_ok() {
                        break;
                    }
                    fsleep(REQUEST_STEP);
                }
                // It may have held them back since.
                common.config_changes.release(dev);
            }
            common.look_after_reset(dev);
        }
        0
    }

    /// The function has been reset, and the device been initialised up to FEATURES_OK.
    ///
    /// As for `reset_prepare`, this may be another binding than the one that was frozen. It has
    /// been reset while it was probed or later, and knows nothing of it.
    pub(super) extern "C" fn reset_done_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with a valid device.
        let dev = unsafe { Self::core(vdev) };

        let _no_io = NoIo::enter();
        resets::end(vdev);
        let lock = dev.lock();
        from_result(|| {
            let common = Self::own(dev, &lock).ok_or(ENODEV)?;
            let initialised = if common.frozen.load(Relaxed) {
                Ok(())
            } else {
                Self::freeze(dev)?;
                dev.initialise()
            };
            Self::thaw(dev, initialised).map(|()| 0)
        })
    }
}
