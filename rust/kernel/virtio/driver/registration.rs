// SPDX-License-Identifier: GPL-2.0

//! The registration of virtio drivers.

use core::mem::offset_of;

use kernel::{
    container_of,
    driver,
    error::to_result,
    prelude::*,
    sync::global_lock,
    types::Opaque, //
};

use super::{
    lifecycle::{
        common_of,
        PrivateData, //
    },
    Driver, //
};
use crate::{
    bindings,
    compat::BoundInternal,
    suspend::Support as _,
    Device, //
};

/// How many feature bits a driver can have in its table.
const MAX_FEATURES: usize = 64;

/// A table without a device.
struct NoDevice([bindings::virtio_device_id; 1]);

// SAFETY: It is never changed.
unsafe impl Sync for NoDevice {}

static NO_DEVICE: NoDevice = NoDevice([bindings::virtio_device_id {
    device: 0,
    vendor: 0,
}]);

/// An adapter for the registration of virtio drivers.
pub struct Adapter<T: Driver>(T);

/// A `struct virtio_driver` and what belongs to its registration.
#[repr(C)]
pub struct RawDriver {
    driver: bindings::virtio_driver,
    /// Called before a device is unbound, see [`Adapter::unbind_notifier`].
    notifier: bindings::notifier_block,
    /// The driver's feature table; `driver.feature_table` points to it.
    features: [u32; MAX_FEATURES],
}

impl Default for RawDriver {
    fn default() -> Self {
        Self {
            driver: Default::default(),
            notifier: Default::default(),
            features: [0; MAX_FEATURES],
        }
    }
}

// SAFETY:
// - `RawDriver` is `repr(C)`.
// - `PrivateData<'bound, T>` is the type of the driver's device private data.
// - `RawDriver` embeds a `struct device_driver`, in its `struct virtio_driver`.
// - `DEVICE_DRIVER_OFFSET` is the correct byte offset to it.
unsafe impl<T: Driver + 'static> driver::DriverLayout for Adapter<T> {
    type DriverType = RawDriver;
    type DriverData<'bound> = PrivateData<'bound, T>;
    const DEVICE_DRIVER_OFFSET: usize =
        offset_of!(RawDriver, driver) + offset_of!(bindings::virtio_driver, driver);
}

// SAFETY: A call to `unregister` for a given instance of `DriverType` is guaranteed to be valid if
// a preceding call to `register` has been successful.
unsafe impl<T: Driver + 'static> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        reg: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        let raw = reg.get();

        const { assert!(T::FEATURES.len() + 2 <= MAX_FEATURES, "too many features") };
        // SAFETY: `raw` is valid, and nobody else knows it before it is registered.
        let table = unsafe { &mut (*raw).features };
        let features = Iterator::chain(T::FEATURES.iter(), T::Suspend::features());
        let mut count = 0;
        for (slot, feature) in table.iter_mut().zip(features) {
            *slot = feature.bit();
            count += 1;
        }

        // SAFETY: It's safe to set the fields of `struct virtio_driver` on initialization. The
        // tables are 'static, or, that of the features, pinned together with the driver.
        unsafe {
            let drv = &mut (*raw).driver;
            drv.driver.name = name.as_char_ptr();
            drv.driver.dev_groups = T::Suspend::groups();
            drv.driver.pm = Self::PM;
            drv.id_table = if T::BINDS_BY_ITSELF {
                T::ID_TABLE.as_ptr()
            } else {
                NO_DEVICE.0.as_ptr()
            };
            drv.feature_table = (&raw const (*raw).features).cast();
            drv.feature_table_size = count;
            drv.validate = Some(Self::validate_callback);
            drv.probe = Some(Self::probe_callback);
            drv.remove = Some(Self::remove_callback);
            drv.shutdown = Some(Self::shutdown_callback);
            drv.config_changed = Some(Self::config_changed_callback);
            drv.freeze = Some(Self::freeze_callback);
            drv.restore = Some(Self::restore_callback);
            // For a reset of the function, which the transport announces.
            drv.reset_prepare = Some(Self::reset_prepare_callback);
            drv.reset_done = Some(Self::reset_done_callback);
            (*raw).notifier.notifier_call = Some(Self::unbind_notifier);
        }

        // SAFETY: `raw` is valid.
        let driver = unsafe { &raw const (*raw).driver.driver };
        NATIVE.lock().push(driver.addr(), GFP_KERNEL)?;
        // SAFETY: `reg` is a valid and pinned `DriverType`, initialised above.
        to_result(unsafe {
            bindings::__register_virtio_driver(&raw mut (*raw).driver, module.as_ptr())
        })
        .inspect_err(|_| forget(driver))?;

        // The bus isn't known before. A device that is bound by the registration, asked to suspend
        // and unbound again before the next line is not told: its unbinding then waits until the
        // request has met its deadline.
        //
        // SAFETY: The registration has set the bus. The notifier stays valid until `unregister`.
        let ret = unsafe {
            bindings::bus_register_notifier((*raw).driver.driver.bus, &raw mut (*raw).notifier)
        };
        to_result(ret).inspect_err(|_| {
            // SAFETY: The driver has been registered above.
            unsafe { bindings::unregister_virtio_driver(&raw mut (*raw).driver) };
            forget(driver);
        })?;

        // SAFETY: A pointer is written in one piece, and both tables are 'static.
        unsafe { (&raw mut (*raw).driver.id_table).write_volatile(T::ID_TABLE.as_ptr()) };
        Ok(())
    }

    unsafe fn unregister(reg: &Opaque<Self::DriverType>) {
        let raw = reg.get();

        // The notifier goes last: it is needed when the devices are unbound.
        //
        // SAFETY: By the safety requirements, `reg` has been registered.
        unsafe {
            let bus = (*raw).driver.driver.bus;
            bindings::unregister_virtio_driver(&raw mut (*raw).driver);
            bindings::bus_unregister_notifier(bus, &raw mut (*raw).notifier);
            forget(&raw const (*raw).driver.driver);
        }
    }
}

global_lock! {
    // SAFETY: `init_registry`, called when the module is loaded, initializes it before anything
    // else in the module can run.
    unsafe(uninit) static NATIVE: Mutex<KVec<usize>> = KVec::new();
}

/// Called by the module's init function.
pub(crate) fn init_registry() {
    // SAFETY: A module is loaded once, and this is called from its init function only.
    unsafe { NATIVE.init() };
    super::resets::init();
}

/// Returns whether a driver has been registered through [`Adapter`]. `driver` is only compared.
pub(crate) fn is_native(driver: *const bindings::device_driver) -> bool {
    NATIVE.lock().contains(&driver.addr())
}

/// A driver is no longer registered.
fn forget(driver: *const bindings::device_driver) {
    let mut native = NATIVE.lock();
    native.retain(|addr| *addr != driver.addr());
    // A static is not dropped when its module is unloaded.
    if native.is_empty() {
        *native = KVec::new();
    }
}

impl<T: Driver + 'static> Adapter<T> {
    /// Tells the controller that a device is about to be unbound.
    ///
    /// The sysfs files are removed before `remove` is called, and that waits for the requests
    /// that run: they have to be told before.
    extern "C" fn unbind_notifier(
        nb: *mut bindings::notifier_block,
        action: usize,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: `nb` is the notifier of a registered `RawDriver`.
        let raw = unsafe { container_of!(nb, RawDriver, notifier) };
        let dev = data.cast::<bindings::device>();

        // CAST: The number of an event.
        if action == bindings::bus_notifier_event_BUS_NOTIFY_UNBIND_DRIVER as usize
            // SAFETY: The notifier chain passes a valid device, whose lock is held.
            && core::ptr::eq(unsafe { (*dev).driver }, unsafe { &raw const (*raw).driver.driver })
        {
            // SAFETY: A device of the virtio bus is embedded in a `struct virtio_device`.
            let vdev = unsafe { container_of!(dev, bindings::virtio_device, dev) };
            // SAFETY: The device is bound to this driver, and stays so while its lock is held.
            // INVARIANT: The reference stays within the callback.
            let dev = unsafe { &*vdev.cast::<Device<BoundInternal>>() };
            // SAFETY: As above; the probe succeeded.
            unsafe { common_of(dev) }.controller.unbind();
        }
        // CAST: 0, or a small number.
        bindings::NOTIFY_DONE as c_int
    }
}
