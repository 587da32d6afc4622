// SPDX-License-Identifier: GPL-2.0

//! Drivers of virtio devices, and their registration.

use core::{
    cell::UnsafeCell,
    mem::{
        offset_of,
        MaybeUninit, //
    },
};

use kernel::{
    container_of,
    device::{
        Bound,
        BoundInternal,
        Core,
        CoreInternal, //
    },
    device_id::RawDeviceId,
    driver,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        global_lock,
        rcu,
        Arc,
        Mutex, //
    },
    types::{
        Opaque,
        ScopeGuard, //
    },
};

use crate::{
    bindings,
    queue::RawQueue,
    suspend::{
        self,
        Later,
        Support as _, //
    },
    sync::lock_class,
    Device,
    Feature, //
};

/// How many feature bits a driver can have in its table.
const MAX_FEATURES: usize = 64;

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
            drv.id_table = T::ID_TABLE.as_ptr();
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
            drv.reset_prepare = Some(Self::freeze_callback);
            drv.reset_done = Some(Self::restore_callback);
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
        })
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

/// What the rest of the crate calls of a driver whose type it doesn't know.
pub(crate) struct Ops {
    pub(crate) callback: unsafe extern "C" fn(*mut bindings::virtqueue),
    pub(crate) used: fn(&Device<Bound>, usize),
    pub(crate) gate: fn(&Device<Bound>) -> Result,
    pub(crate) ungate: fn(&Device<Bound>),
    /// Takes the device out of operation and resets it. The device lock must be held.
    pub(crate) stop: fn(&Device<Bound>),
    /// Puts the device back into operation, after a reset and with FEATURES_OK set. The device lock
    /// must be held.
    pub(crate) restart: fn(&Device<Bound>) -> Result,
    /// Tells the driver that the device is out of operation for good.
    pub(crate) give_up: fn(&Device<Bound>),
}

/// The part of a device's private data that doesn't depend on the driver.
#[pin_data]
pub(crate) struct Common {
    pub(crate) ops: Ops,
    /// The virtqueues, once the driver's probe has set them up.
    #[pin]
    pub(crate) queues: Mutex<KVec<Arc<dyn RawQueue>>>,
    /// Whether their interrupts are spread over the processors.
    pub(crate) spread_queues: Atomic<bool>,
    #[pin]
    pub(crate) controller: suspend::Controller,
    /// Whether configuration changes are held back.
    pub(crate) config_held: Atomic<bool>,
    /// Tells the driver of a change of the configuration.
    #[pin]
    config_work: Later,
    /// Whether callbacks reach the driver: its data is there, and the device works for it.
    live: Atomic<bool>,
    /// Whether the driver's data is there: from the end of its probe until it is torn down.
    populated: Atomic<bool>,
}

impl Common {
    /// Returns whether the driver's probe is over, and has not been undone.
    pub(crate) fn is_populated(&self) -> bool {
        self.populated.load(Acquire)
    }

    /// Returns whether the device has put something into a virtqueue that can't be.
    pub(crate) fn has_broken_queue(&self) -> bool {
        let mut broken = false;
        self.for_each_queue(|_, queue| broken |= queue.is_broken());
        broken
    }

    /// Cancels all work for the device, and waits for what runs. May sleep.
    fn cancel(&self) {
        self.controller.cancel();
        self.config_work.cancel();
    }
}

// References to it are handed out in any thread.
const _: () = {
    const fn assert_sync<T: Sync>() {}
    assert_sync::<Common>();
};

/// The device private data: what the bus abstraction needs, then the driver's own.
#[doc(hidden)]
#[pin_data]
#[repr(C)]
pub struct PrivateData<'bound, T: Driver> {
    // The first field, see `common_of`.
    #[pin]
    common: Common,
    /// Initialised while `common.populated` is set.
    #[pin]
    data: UnsafeCell<MaybeUninit<T::Data<'bound>>>,
}

/// Returns what the bus abstraction keeps for a device.
///
/// # Safety
///
/// The device must be bound to a driver that was registered through [`Adapter`], and the driver
/// data must have been set.
pub(crate) unsafe fn common_of(dev: &Device<Bound>) -> &Common {
    // SAFETY: By the safety requirements the drvdata is the `PrivateData` that `probe_callback`
    // set, and stays so while the device is bound. `PrivateData` is `repr(C)` and begins with the
    // `Common`, whatever the driver's type.
    unsafe { &*bindings::dev_get_drvdata(dev.as_raw_device()).cast::<Common>() }
}

impl<T: Driver + 'static> Adapter<T> {
    /// # Safety
    ///
    /// `vdev` must point to a device that is valid for `'a`, and the reference must stay within
    /// the bus callback that got it.
    unsafe fn core<'a>(vdev: *mut bindings::virtio_device) -> &'a Device<CoreInternal<'a>> {
        // SAFETY: By the safety requirements; `Device` is transparent.
        // INVARIANT: The device is bound, or about to be, to the driver with this callback.
        unsafe { &*vdev.cast() }
    }

    /// # Safety
    ///
    /// The drvdata of `dev` must have been set by `probe_callback` of this very adapter.
    unsafe fn private<'a>(dev: &'a Device<Bound>) -> &'a PrivateData<'a, T> {
        // SAFETY: By the safety requirements the drvdata is a `Pin<KBox<PrivateData<T>>>` as a
        // foreign pointer, that is, a pointer to the `PrivateData`, which stays while the device
        // is bound.
        unsafe { &*bindings::dev_get_drvdata(dev.as_raw_device()).cast() }
    }

    /// Calls into the driver, if its data is there.
    ///
    /// # Safety
    ///
    /// As for `private`, and either the data must be known to be initialised, or the caller is a
    /// callback that `tear_down` waits for after it has cleared `live`.
    unsafe fn with_data<R>(
        dev: &Device<Bound>,
        f: impl for<'a> FnOnce(Pin<&'a T::Data<'a>>) -> R,
    ) -> R {
        // SAFETY: By the safety requirements.
        let private = unsafe { Self::private(dev) };
        // SAFETY: By the safety requirements the data is initialised, and not about to be dropped:
        // all references to it are shared. It is pinned together with the private data.
        f(unsafe { Pin::new_unchecked((*private.data.get()).assume_init_ref()) })
    }

    /// Whether the driver knows a feature bit 42 of its device type.
    const HAS_42: bool = {
        let mut found = false;
        let mut i = 0;
        while i < T::FEATURES.len() {
            found |= T::FEATURES[i].bit() == Feature::SUSPEND_DRAFT.bit();
            i += 1;
        }
        found
    };

    const OPS: Ops = Ops {
        callback: Self::used_callback,
        used: Self::used,
        gate: Self::gate,
        ungate: Self::ungate,
        stop: Self::stop_locked,
        restart: Self::restart_locked,
        give_up: Self::give_up,
    };

    /// Has the controller look at a device, see [`suspend::Controller::look`].
    fn look(dev: &Device<Bound>) {
        // SAFETY: Called by the controller in the `Common` of a device that this adapter has
        // probed, before `tear_down` is over.
        let common = unsafe { common_of(dev) };
        common.controller.look(common, dev);
    }

    fn used(dev: &Device<Bound>, index: usize) {
        // SAFETY: `Ops` is only reached through the `Common` of a device that this adapter has
        // probed, and only while that is live or its controller gated.
        unsafe { Self::with_data(dev, |data| T::used(dev, data, index)) };
    }

    fn gate(dev: &Device<Bound>) -> Result {
        // SAFETY: As in `used`.
        unsafe { Self::with_data(dev, |data| T::Suspend::gate(dev, data)) }
    }

    fn ungate(dev: &Device<Bound>) {
        // SAFETY: As in `used`.
        unsafe { Self::with_data(dev, |data| T::Suspend::ungate(dev, data)) };
    }

    fn give_up(dev: &Device<Bound>) {
        // SAFETY: As in `used`; the device lock is held, so that the data stays.
        unsafe { Self::with_data(dev, |data| T::give_up(dev, data)) };
    }

    /// The device has changed its configuration.
    fn config_work(dev: &Device<Bound>) {
        if dev.common().live.load(Acquire) {
            // SAFETY: The data is initialised, since the device is live. It is not dropped before
            // the work has been cancelled, after `live` is cleared.
            unsafe { Self::with_data(dev, |data| T::config_changed(dev, data)) };
        }
    }

    fn stop_locked(dev: &Device<Bound>) {
        // SAFETY: The device is bound, and the caller holds its lock.
        Self::stop(unsafe { Self::core(dev.as_raw()) });
    }

    fn restart_locked(dev: &Device<Bound>) -> Result {
        // SAFETY: The device is bound, and the caller holds its lock.
        Self::restart(unsafe { Self::core(dev.as_raw()) })
    }

    extern "C" fn validate_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with the valid device that it is about to probe.
        let dev = unsafe { &*vdev.cast::<Device>() };

        if T::Suspend::SUPPORTED {
            suspend::negotiate(dev, Self::HAS_42);
        }
        0
    }

    extern "C" fn probe_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with the valid device that it probes.
        let dev = unsafe { Self::core(vdev) };

        from_result(|| {
            let revision = if T::Suspend::SUPPORTED {
                suspend::revision(dev, Self::HAS_42)
            } else {
                None
            };
            let class = lock_class!(c"virtio::Common::queues");
            dev.as_ref().set_drvdata(try_pin_init!(PrivateData::<T> {
                common <- try_pin_init!(Common {
                    ops: Self::OPS,
                    queues <- Mutex::new(KVec::new(), class.0, class.1),
                    spread_queues: Atomic::new(false),
                    controller <- suspend::Controller::new(revision, Self::look),
                    config_work <- Later::new(Self::config_work),
                    config_held: Atomic::new(false),
                    live: Atomic::new(false),
                    populated: Atomic::new(false),
                }),
                data: MaybeUninit::<T::Data<'_>>::uninit().into(),
            }))?;
            // SAFETY: The drvdata has been set right above.
            let private = unsafe { Self::private(dev) };

            // The virtio core neither resets a device nor deletes its queues when a probe fails.
            let tear_down = ScopeGuard::new(|| Self::tear_down(dev));

            let init = T::probe(dev);
            // SAFETY: The slot is valid for writing, pinned together with the private data, and
            // nobody else accesses it: `populated` and `live` are false.
            unsafe { pin_init::raw_try_init((*private.data.get()).as_mut_ptr(), init)? };
            private.common.populated.store(true, Release);

            Self::go_live(dev)?;
            let queues = private.common.queues.lock().len();
            private.common.controller.publish(dev, queues)?;
            tear_down.dismiss();
            Ok(0)
        })
    }

    /// Lets callbacks through to the driver, sets DRIVER_OK, opens the queues, starts the driver.
    fn go_live(dev: &Device<CoreInternal<'_>>) -> Result {
        let common = dev.common();
        // Before a callback can come: the driver's data is complete.
        common.live.store(true, Release);

        // SAFETY: The device is valid. Its queues have been set up, and DRIVER_OK is not set: it
        // has just gone through the feature negotiation.
        unsafe { bindings::virtio_device_ready(dev.as_raw()) };
        common.for_each_queue(|_, queue| queue.set_open(true));

        // SAFETY: The data is initialised, and dropped by `tear_down` only, which needs the device
        // lock, too.
        unsafe { Self::with_data(dev, |data| T::start(dev, data)) }
    }

    /// Puts a device into operation that has been reset, and leaves it stopped if that fails.
    fn restart(dev: &Device<CoreInternal<'_>>) -> Result {
        dev.common()
            .find_queues(dev)
            .and_then(|()| Self::go_live(dev))
            .inspect_err(|_| Self::stop(dev))
    }

    /// Takes the device out of operation, in the only order that is sound, and leaves it reset.
    ///
    /// May sleep; the device lock is held.
    fn stop(dev: &Device<CoreInternal<'_>>) {
        // SAFETY: All callers come after `set_drvdata`.
        let private = unsafe { Self::private(dev) };

        // 1. Wake whoever waits for the device, and keep others from it.
        //
        if private.common.is_populated() {
            // SAFETY: The data is initialised, and not dropped before this function returns.
            unsafe { Self::with_data(dev, |data| T::stop(dev, data)) };
        }
        private.common.controller.stop();
        private.common.release_config_changes(dev);
        private
            .common
            .for_each_queue(|_, queue| queue.set_open(false));

        // 2. Reset. From here on the device neither accesses memory nor sends interrupts. One that
        //    is gone does neither anyway, and never presents that it has been reset: the transport
        //    would wait for that for ever.
        private.common.live.store(false, Release);
        if !dev.is_gone() {
            // SAFETY: The device is valid, this is no callback of its virtqueues, and nobody
            // notifies it: the queues are closed.
            unsafe { bindings::virtio_reset_device(dev.as_raw()) };
        }

        // 3. Exclude callbacks: not every transport does that when it resets. One that begins
        //    after this finds `live` false. The transports that can't wait for an interrupt
        //    handler wait for a grace period, which is why `used_callback` is a read-side critical
        //    section.
        dev.synchronize_callbacks();

        // 4. Take back all buffers, then delete the virtqueues.
        //
        // SAFETY: The device has been reset, and no callback runs.
        unsafe { private.common.delete_queues(dev) };
    }

    /// Undoes a probe, complete or not. The device lock is held.
    fn tear_down(dev: &Device<CoreInternal<'_>>) {
        dev.common().cancel();
        Self::stop(dev);
        // A callback may have asked for it again, before callbacks were excluded.
        dev.common().cancel();
        if dev.common().is_populated() {
            Self::give_up(dev);
        }

        // SAFETY: All callers come after `set_drvdata`.
        let private = unsafe { Self::private(dev) };
        // 5. Drop the driver's data.
        if private.common.populated.xchg(false, Full) {
            // SAFETY: The data is initialised and from here on never touched again: no callback
            // can come, the sysfs files are gone or not there yet, and this was the last bus
            // callback.
            unsafe { (*private.data.get()).assume_init_drop() };
        }
    }

    extern "C" fn remove_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio core calls this with the valid device whose probe succeeded.
        let dev = unsafe { Self::core(vdev) };

        dev.common().controller.watch_unbind(dev);
        // SAFETY: The probe succeeded, so the data is initialised.
        unsafe { Self::with_data(dev, |data| T::unbind(dev, data)) };
        Self::tear_down(dev);
    }

    extern "C" fn shutdown_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio core calls this with a valid device that is bound to this driver, and
        // with its lock held.
        let dev = unsafe { Self::core(vdev) };

        // The virtqueues are broken below, of which a callback that is running may take note.
        dev.common().controller.shut_down();
        dev.common().cancel();
        if dev.is_gone() {
            // As in `stop`: it is gone, and its reset would never end.
            dev.break_queues();
            dev.synchronize_callbacks();
        } else {
            // SAFETY: The device is valid, and the context may sleep.
            unsafe { bindings::virtio_device_shutdown(vdev) };
        }
        // As in `tear_down`.
        dev.common().cancel();
    }

    extern "C" fn used_callback(vq: *mut bindings::virtqueue) {
        // SAFETY: The transport calls this with a valid virtqueue, of a valid device.
        let (vdev, index) = unsafe { ((*vq).vdev, (*vq).index) };
        // SAFETY: As above. The device is bound: `stop` waits for this callback.
        // INVARIANT: The reference stays within the callback.
        let dev = unsafe { &*vdev.cast::<Device<BoundInternal>>() };

        let _rcu = rcu::read_lock();
        // SAFETY: As above, and the virtqueue has been set up by a driver's probe.
        let common = unsafe { common_of(dev) };
        if common.live.load(Acquire) {
            // CAST: From 32 bits to at least as many.
            Self::used(dev, index as usize);
            // SAFETY: The virtqueue is valid, see above.
            if unsafe { bindings::virtqueue_is_broken(vq) } {
                common.controller.look_soon(dev);
            }
        }
    }

    extern "C" fn config_changed_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio core calls this with a valid device, not before its probe succeeded
        // and not after its remove began.
        // INVARIANT: The reference stays within the callback.
        let dev = unsafe { &*vdev.cast::<Device<BoundInternal>>() };

        // SAFETY: As above.
        let common = unsafe { common_of(dev) };
        if common.live.load(Acquire) {
            // `remove` begins only when the virtio core has, under its lock, disabled these
            // callbacks: nothing is scheduled after `cancel`.
            common.config_work.schedule(dev, 0);
            // It may be that the device needs a reset.
            common.controller.look_soon(dev);
        }
    }

    extern "C" fn freeze_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with a valid device whose probe succeeded.
        let dev = unsafe { Self::core(vdev) };

        // Of the parent, the transport holds the lock, but not of this device.
        let _lock = dev.lock();
        from_result(|| {
            dev.common().controller.freeze()?;
            dev.common().cancel();
            Self::stop(dev);
            // As in `tear_down`.
            dev.common().cancel();
            Ok(0)
        })
    }

    extern "C" fn restore_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with a valid device whose probe succeeded.
        let dev = unsafe { Self::core(vdev) };

        let _lock = dev.lock();
        from_result(|| {
            let result = Self::restart(dev);
            dev.common().controller.thaw(dev, result);
            result.map(|()| 0)
        })
    }

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

/// Declares a kernel module that exposes a single virtio driver.
///
/// # Examples
///
/// ```ignore
/// virtio::module_virtio_driver! {
///     type: MyDriver,
///     name: "my_driver",
///     authors: ["Author name"],
///     description: "Description",
///     license: "GPL",
/// }
/// ```
#[macro_export]
macro_rules! module_virtio_driver {
    ($($f:tt)*) => {
        ::kernel::module_driver!(<T>, $crate::Adapter<T>, { $($f)* });
    };
}

/// Abstraction for `struct virtio_device_id`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct DeviceId(bindings::virtio_device_id);

impl DeviceId {
    /// Matches all devices of a type, VIRTIO 1.4, "Device Types".
    pub const fn new(device_type: u32) -> Self {
        Self(bindings::virtio_device_id {
            device: device_type,
            vendor: bindings::VIRTIO_DEV_ANY_ID,
        })
    }

    /// The device type of a network device.
    pub const NETWORK: u32 = bindings::VIRTIO_ID_NET;

    /// The device type of a block device.
    pub const BLOCK: u32 = bindings::VIRTIO_ID_BLOCK;

    /// The device type of an entropy device.
    pub const ENTROPY: u32 = bindings::VIRTIO_ID_RNG;
}

// SAFETY: `DeviceId` is a `#[repr(transparent)]` wrapper of `virtio_device_id` and does not add
// additional invariants, so it's safe to transmute to `RawType`.
unsafe impl RawDeviceId for DeviceId {
    type RawType = bindings::virtio_device_id;
}

/// IdTable type for virtio drivers.
///
/// A `struct virtio_device_id` has no room for driver data.
pub type IdTable = &'static dyn kernel::device_id::IdTable<DeviceId, ()>;

/// Create a virtio `IdTable` with its alias for modpost.
#[macro_export]
macro_rules! virtio_device_table {
    ($name:ident, [$($id:expr),* $(,)?]) => {
        ::kernel::module_device_table!("virtio", $crate::DeviceId, $name, @none, [$($id),*]);
    };
}

/// The virtio driver trait.
///
/// Drivers must implement this trait in order to get a virtio driver registered.
///
/// # Life of a device
///
/// [`probe`](Driver::probe) sets up the virtqueues and the driver's data, then DRIVER_OK is set
/// and [`start`](Driver::start) called. [`stop`](Driver::stop) is called before the device is
/// reset, because it is unbound, the system sleeps, or only a reset helps. `start` follows when
/// the device has been initialised again, unless it is unbound. All buffers that the device had
/// are dropped by the reset.
///
/// # Examples
///
/// A driver that does nothing. One that does something, and can be suspended, is
/// `samples/rust/rust_virtio_suspend.rs`.
///
/// ```
/// use kernel::{
///     device::{Bound, Core},
///     prelude::*,
/// };
/// use virtio::{suspend, Device, DeviceId, Driver, IdTable};
///
/// struct MyDriver;
///
/// virtio::virtio_device_table!(ID_TABLE, [DeviceId::new(DeviceId::ENTROPY)]);
///
/// impl Driver for MyDriver {
///     type Data<'bound> = Self;
///     type Suspend = suspend::Unsupported;
///     const ID_TABLE: IdTable = &ID_TABLE;
///
///     fn probe<'bound>(
///         dev: &'bound Device<Core<'_>>,
///     ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
///         dev_info!(dev, "device of type {}\n", dev.device_type());
///         Ok(MyDriver)
///     }
///
///     fn used(_dev: &Device<Bound>, _this: Pin<&Self>, _queue: usize) {}
/// }
/// # fn main() {}
/// ```
pub trait Driver: Sized {
    /// The type of the driver's bus device private data.
    type Data<'bound>: Send + Sync + 'bound;

    /// Whether the driver's devices can be suspended: [`suspend::Native`] or
    /// [`suspend::Unsupported`].
    type Suspend: suspend::Support<Self>;

    /// The table of device ids supported by the driver.
    const ID_TABLE: IdTable;

    /// The features that the driver knows, apart from those of the transport and SUSPEND.
    const FEATURES: &'static [Feature] = &[];

    /// Driver probe. May sleep.
    ///
    /// Called when a virtio device is added or discovered, and features have been negotiated. What
    /// [`Device::virtqueues`] is for is to be done here.
    ///
    /// # Errors
    ///
    /// Those of the driver; [`ENODEV`] says that it doesn't want the device after all.
    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound;

    /// The device is in operation: DRIVER_OK is set, and the virtqueues are open. May sleep.
    ///
    /// # Errors
    ///
    /// An error fails the probe, or leaves the device out of operation if this is not the first
    /// time; `stop` is called in either case.
    fn start(dev: &Device<Core<'_>>, this: Pin<&Self::Data<'_>>) -> Result {
        let _ = (dev, this);
        Ok(())
    }

    /// The device is about to be reset: wake whoever waits for it. May sleep.
    ///
    /// This can be called more than once for each `start`.
    fn stop(dev: &Device<Core<'_>>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }

    /// Driver unbind. May sleep.
    ///
    /// Called first when a device is unbound; optional, see [`kernel::auxiliary::Driver::unbind`].
    fn unbind(dev: &Device<Core<'_>>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }

    /// Used buffer notification: take back what the device has used in the virtqueue `queue`.
    ///
    /// Called in interrupt context, or in process context when the device has been suspended or
    /// resumed; nothing may sleep. There may be nothing to take back, and two calls for the same
    /// virtqueue can run at a time. Buffers are to be taken back until there is none: the device
    /// may notify again only when the driver has seen all.
    fn used(dev: &Device<Bound>, this: Pin<&Self::Data<'_>>, queue: usize);

    /// The device is out of operation for good: it has been stopped, and [`start`](Driver::start)
    /// will not follow. Whoever still waits for it is to be told. May sleep.
    fn give_up(dev: &Device<Bound>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }

    /// Configuration change notification. May sleep.
    ///
    /// While the device is suspended the notification is held back (rule D12). One call can stand
    /// for several changes.
    fn config_changed(dev: &Device<Bound>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }
}
