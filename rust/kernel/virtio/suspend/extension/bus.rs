// SPDX-License-Identifier: GPL-2.0

//! Watching the virtio bus.

use kernel::{
    container_of,
    device::Bound,
    error::to_result,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

use super::{
    binding::{
        Binding,
        Obstacle, //
    },
    find,
    find_or_add,
    forget,
    host,
    Entry,
    Known,
    TABLE, //
};
use crate::{
    bindings::{
        self,
        bus_type,
        notifier_block,
        virtio_driver, //
    },
    bus,
    compat::BoundInternal,
    driver::is_native,
    suspend::{
        negotiate_offered,
        revision, //
    },
    Device,
    Feature, //
};

/// The notifier by which the extension hears of the bus.
///
/// # Invariants
///
/// It is registered from the end of [`Watch::new`] until it is dropped.
#[pin_data(PinnedDrop)]
pub(super) struct Watch {
    bus: *const bus_type,
    #[pin]
    drivers: Opaque<notifier_block>,
}

// SAFETY: A notifier is not tied to a thread.
unsafe impl Send for Watch {}

// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for Watch {}

impl Watch {
    /// Begins to watch, and looks at the devices that are there already. May sleep.
    pub(super) fn new(module: &'static ThisModule) -> Result<Pin<KBox<Self>>> {
        let this = KBox::pin(
            Self {
                bus: bus::find(module)?,
                drivers: Opaque::new(notifier_block {
                    notifier_call: Some(drivers_changed),
                    ..Default::default()
                }),
            },
            GFP_KERNEL,
        )?;

        // SAFETY: The bus is valid. The notifier stays where it is until it is unregistered.
        to_result(unsafe { bindings::bus_register_notifier(this.bus, this.drivers.get()) })?;
        // SAFETY: As above; the callback takes any device of the bus.
        to_result(unsafe {
            bindings::bus_for_each_dev(
                this.bus,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                Some(adopt_callback),
            )
        })?;
        Ok(this)
    }
}

#[pinned_drop]
impl PinnedDrop for Watch {
    fn drop(self: Pin<&mut Self>) {
        // A notification that is under way is waited for. A notifier that has not been registered
        // is not found, which does nothing.
        //
        // SAFETY: The bus and the notifier are valid.
        unsafe { bindings::bus_unregister_notifier(self.bus, self.drivers.get()) };
    }
}

/// Returns the virtio driver that the device has. The device lock must be held.
fn driver_of(dev: &Device) -> Option<&virtio_driver> {
    // SAFETY: The device is valid, and the caller holds its lock, so that its driver stays.
    let driver = unsafe { (*dev.as_raw_device()).driver };
    if driver.is_null() {
        return None;
    }
    // SAFETY: A driver of a device of the virtio bus is embedded in a `struct virtio_driver`.
    Some(unsafe { &*container_of!(driver, virtio_driver, driver) })
}

/// Returns whether a device's driver knows a feature bit 42 of its device type.
///
/// To be called when the driver is about to be bound, or with the device lock held.
pub(super) fn driver_has_42(dev: &Device) -> bool {
    driver_of(dev).is_some_and(|driver| {
        let count = driver.feature_table_size as usize;
        if driver.feature_table.is_null() || count == 0 {
            return false;
        }
        // SAFETY: The table has that many entries, and stays as long as the driver.
        let table = unsafe { core::slice::from_raw_parts(driver.feature_table, count) };
        table.contains(&Feature::SUSPEND_DRAFT.bit())
    })
}

/// Returns what the extension, if there is one that has to do with the device's driver, knows of
/// drivers, and its name. The device lock must be held.
fn known_and_driver(dev: &Device) -> Option<(Known, &CStr)> {
    let driver = driver_of(dev)?;
    if is_native(&raw const driver.driver) {
        return None;
    }
    let known = TABLE.lock().known?;
    // SAFETY: A driver has a name, which is a string.
    Some((known, unsafe { CStr::from_char_ptr(driver.driver.name) }))
}

/// A driver is about to be bound: has its probe negotiate SUSPEND, if its quiescer is known.
fn bind(dev: &Device) {
    let quiescer =
        known_and_driver(dev).and_then(|(known, driver)| known.quiescer(dev.device_type(), driver));
    let Some(quiescer) = quiescer else {
        return;
    };
    match find_or_add(dev) {
        Ok(entry) => {
            entry.bound.lock().quiescer = Some(quiescer);
            entry.put_in_front();
            entry.join_domain();
        }
        Err(error) => dev_warn!(dev, "can't be given SUSPEND: {error:?}\n"),
    }
}

/// A driver has been bound: shows what can be done with the device.
fn bound(dev: &Device<Bound>) {
    if let Err(error) = try_bound(dev) {
        dev_warn!(dev, "can't be given SUSPEND: {error:?}\n");
    }
}

fn try_bound(dev: &Device<Bound>) -> Result {
    let Some((known, driver)) = known_and_driver(dev) else {
        return Ok(());
    };
    let quiescer = known.quiescer(dev.device_type(), driver);
    let entry = find_or_add(dev)?;
    let in_front = entry.bound.lock().quiescer.is_some();
    let has_42 = driver_has_42(dev);
    // Without our doing it can only have been negotiated by an extension that was there before.
    let revision = quiescer.and_then(|_| revision(dev, has_42));
    let obstacle = match quiescer {
        None => Obstacle::NoQuiescer(known.why_none(driver)),
        Some(_) if !in_front && revision.is_none() && negotiate_offered(dev, has_42).is_some() => {
            Obstacle::Rebind
        }
        Some(_) => Obstacle::NotNegotiated,
    };

    let in_domain = entry.is_in_domain();
    let binding = Binding::new(known.module, quiescer, obstacle, revision, in_domain)?;
    let take_over = revision.is_some() && !in_front;
    {
        let mut state = entry.bound.lock();
        state.binding = Some(binding.clone());
        if take_over {
            state.quiescer = quiescer;
        }
    }
    // The others have been told already. Now that it is one of them, it is told of the end of it.
    binding.join_sleep();
    if take_over {
        entry.put_in_front();
    }
    // SAFETY: `unbind` is called before the device is unbound.
    unsafe { binding.publish(dev) }.inspect_err(|_| unbind(&entry))
}

/// A driver is about to be unbound: whoever waits is told, a device that is suspended goes on, and
/// when this returns nothing runs any more for the binding. The device lock must be held.
pub(super) fn unbind(entry: &Entry) {
    let binding = entry.binding();
    if let Some(binding) = binding {
        // SAFETY: There is a binding, so the device is bound, and stays so while its lock is held.
        let dev = unsafe { as_bound(&entry.dev) };
        binding.end(dev);
        host::wait_scanned(dev);
    }
    entry.bound.lock().binding = None;
}

/// A driver has been unbound, or has not been bound after all.
fn unbound(entry: &Entry) {
    entry.bound.lock().quiescer = None;
    entry.leave_domain();
    entry.put_back();
}

/// # Safety
///
/// The device must be bound, and stay so as long as the reference is used.
pub(super) unsafe fn as_bound(dev: &Device) -> &Device<Bound> {
    // INVARIANT: By the safety requirements.
    //
    // SAFETY: `Device` is transparent and the pointer is that of a valid device.
    unsafe { &*dev.as_raw().cast::<Device<BoundInternal>>() }
}

/// Called for each device that is there when the extension is registered.
unsafe extern "C" fn adopt_callback(dev: *mut bindings::device, _data: *mut c_void) -> c_int {
    // SAFETY: `bus_for_each_dev` passes a valid device of the virtio bus, which is embedded in a
    // `struct virtio_device`.
    let dev = unsafe { &*container_of!(dev, bindings::virtio_device, dev).cast::<Device>() };

    let _lock = dev.lock();
    // One that is bound by now, after the notifier has been registered, is known already.
    let known = find(dev.as_raw()).is_some_and(|entry| entry.binding().is_some());
    if driver_of(dev).is_some() && !known {
        // SAFETY: The device has a driver, and with its lock held that means that it is bound.
        bound(unsafe { as_bound(dev) });
    }
    0
}

unsafe extern "C" fn drivers_changed(
    _nb: *mut notifier_block,
    action: usize,
    data: *mut c_void,
) -> c_int {
    let raw = data.cast::<bindings::device>();
    // SAFETY: The notifier chain of the virtio bus passes a valid device of that bus, which is
    // embedded in a `struct virtio_device`.
    let dev = unsafe { &*container_of!(raw, bindings::virtio_device, dev).cast::<Device>() };
    let entry = || find(dev.as_raw());

    // All but the last come with the device lock held.
    //
    // CAST: The number of an event.
    match action as bindings::bus_notifier_event {
        bindings::bus_notifier_event_BUS_NOTIFY_BIND_DRIVER => bind(dev),
        bindings::bus_notifier_event_BUS_NOTIFY_BOUND_DRIVER => {
            // SAFETY: The device is bound, and its lock is held.
            bound(unsafe { as_bound(dev) });
        }
        bindings::bus_notifier_event_BUS_NOTIFY_UNBIND_DRIVER => {
            entry().inspect(|entry| unbind(entry));
        }
        bindings::bus_notifier_event_BUS_NOTIFY_UNBOUND_DRIVER
        | bindings::bus_notifier_event_BUS_NOTIFY_DRIVER_NOT_BOUND => {
            entry().inspect(|entry| unbound(entry));
        }
        // The files in sysfs are gone, and there is no driver: nobody uses the operations.
        bindings::bus_notifier_event_BUS_NOTIFY_REMOVED_DEVICE => forget(dev.as_raw()),
        _ => {}
    }
    // CAST: 0.
    bindings::NOTIFY_DONE as c_int
}

/// Does something for each binding, maybe twice for one; stops when that fails.
fn for_each_binding(mut f: impl FnMut(&Device, &Arc<Binding>) -> Result) -> Result {
    // From the end, so that none is left out if a device goes meanwhile.
    let count = TABLE.lock().entries.len();
    for index in (0..count).rev() {
        let Some(entry) = TABLE.lock().entries.get(index).cloned() else {
            continue;
        };
        if let Some(binding) = entry.binding() {
            f(&entry.dev, &binding)?;
        }
    }
    Ok(())
}

/// The system is about to sleep. May sleep.
///
/// # Errors
///
/// [`EBUSY`] if a binding refuses, after which the system is awake.
pub(in super::super) fn prepare_to_sleep() -> Result {
    for_each_binding(|dev, binding| binding.freeze(dev)).inspect_err(|_| wake_up())
}

/// The system is awake. May sleep.
pub(in super::super) fn wake_up() {
    let _ = for_each_binding(|dev, binding| {
        binding.thaw(dev);
        Ok(())
    });
}
