// SPDX-License-Identifier: GPL-2.0

//! The virtio device.

use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr::{
        null_mut,
        NonNull, //
    },
};

use kernel::{
    device,
    error::to_result,
    prelude::*,
    sync::{
        aref::AlwaysRefCounted,
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

use crate::{
    bindings,
    compat::smp_mb,
    config::Config,
    driver::{
        common_of,
        Common, //
    },
    queue::VirtQueues,
    Driver,
    Feature,
    Status, //
};

/// How often a device that seems to be gone is looked at again, and when.
const GONE_READS: usize = 20;
const GONE_STEP: Delta = Delta::from_millis(10);

/// The virtio device representation.
///
/// This structure represents the Rust abstraction for a C `struct virtio_device`. As for any bus
/// device, `Ctx` tells in which context the reference is valid, see [`device::DeviceContext`].
///
/// # Invariants
///
/// A [`Device`] instance represents a valid `struct virtio_device` created by the C portion of the
/// kernel. Unless `Ctx` is [`device::Normal`], it is bound to a driver that was registered through
/// [`Adapter`](crate::Adapter), and the driver data has been set.
///
/// There are exceptions, all inside the crate, and none of them is given to what calls
/// [`Device::common`]:
///
/// - `suspend::extension` has a `Device<Bound>` for devices of other drivers, which it gives to the
///   controller.
/// - The callbacks of an [`Adapter`](crate::Adapter) have a `Device<CoreInternal>` before the
///   driver data is set, and where they have yet to find out to what driver the device is bound.
#[repr(transparent)]
pub struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::virtio_device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    pub(crate) fn as_raw(&self) -> *mut bindings::virtio_device {
        self.0.get()
    }

    /// The `struct device` in it, as C functions want it.
    pub(crate) fn as_raw_device(&self) -> *mut bindings::device {
        // SAFETY: By the type invariant the pointer is valid, so that of a field is, too.
        unsafe { &raw mut (*self.as_raw()).dev }
    }

    /// Returns the device type, VIRTIO 1.4, "Device Types": 1 is a network device, and so on.
    pub fn device_type(&self) -> u32 {
        // SAFETY: By the type invariant the pointer is valid; the id is set before the device is
        // added to the bus and never changed.
        unsafe { (*self.as_raw()).id.device }
    }

    /// Returns the number in the device's name: 0 for `virtio0`.
    pub fn index(&self) -> u32 {
        // SAFETY: As above.
        let index = unsafe { (*self.as_raw()).index };
        // CAST: It comes from an IDA, and is not negative.
        index as u32
    }
}

impl Device {
    /// Returns whether `feature` is among those negotiated so far.
    pub(crate) fn test_feature(&self, feature: Feature) -> bool {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_has_feature(self.as_raw(), feature.bit()) }
    }

    /// Takes the device lock, which excludes binding and unbinding.
    pub(crate) fn lock(&self) -> DeviceLock<'_> {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::device_lock(self.as_raw_device()) };
        DeviceLock(self)
    }

    /// Takes the device lock if nobody has it.
    pub(crate) fn try_lock(&self) -> Option<DeviceLock<'_>> {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::device_trylock(self.as_raw_device()) }.then(|| DeviceLock(self))
    }

    /// Takes the lock of the device's parent, if there is one and nobody has it, such as whoever
    /// resets the function.
    pub(crate) fn try_lock_parent(&self) -> Option<ParentLock<'_>> {
        // SAFETY: By the type invariant the pointer is valid.
        let parent = unsafe { (*self.as_raw_device()).parent };
        // SAFETY: A device holds a reference to its parent.
        if !parent.is_null() && !unsafe { bindings::device_trylock(parent) } {
            return None;
        }
        Some(ParentLock(parent, PhantomData))
    }

    /// Returns whether somebody has the lock of the device's parent.
    pub(crate) fn is_parent_locked(&self) -> bool {
        self.try_lock_parent().is_none()
    }

    /// Returns whether the device's parent is enabled, if it is a function of PCI.
    pub(crate) fn is_parent_enabled(&self) -> bool {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_is_parent_enabled(self.as_raw()) }
    }

    /// Waits until no callback of a virtqueue runs that began before the call. May sleep.
    pub(crate) fn synchronize_callbacks(&self) {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_synchronize_cbs(self.as_raw()) };
    }

    /// Returns whether the device offers `feature`. May sleep.
    pub(crate) fn offers(&self, feature: Feature) -> bool {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_offers_feature(self.as_raw(), feature.bit()) }
    }

    /// Adds a feature to those negotiated so far, before FEATURES_OK.
    pub(crate) fn set_feature(&self, feature: Feature) {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_set_feature(self.as_raw(), feature.bit()) };
    }

    /// Returns the operations of the device's transport, or what is in front of them.
    pub(crate) fn config_ops(&self) -> *const bindings::virtio_config_ops {
        // SAFETY: By the type invariant the pointer is valid, and a device has operations from
        // before it is registered on. Whoever replaces them at this moment writes the pointer in
        // one piece, see `set_config_ops`, and keeps the old ones until nobody can use them.
        unsafe { (&raw const (*self.as_raw()).config).read_volatile() }
    }

    /// Replaces the operations.
    ///
    /// # Safety
    ///
    /// `ops` must be able to stand in for those of the device's transport, and be valid until other
    /// operations have been set and nobody can use these any more.
    pub(crate) unsafe fn set_config_ops(&self, ops: *const bindings::virtio_config_ops) {
        // SAFETY: By the type invariant the pointer is valid. A pointer is written in one piece,
        // and what it points to has been visible since before.
        unsafe {
            smp_mb();
            (&raw mut (*self.as_raw()).config).write_volatile(ops);
        }
    }

    /// Takes a feature back that has been negotiated so far, before FEATURES_OK.
    pub(crate) fn clear_feature(&self, feature: Feature) {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_clear_feature(self.as_raw(), feature.bit()) };
    }
}

/// What the transport of a device does when the system sleeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransportSleep {
    /// Nothing: the function keeps its state.
    Nothing,
    /// It would reset the device, but the function can be left out of this sleep, as it is.
    CanBeExempt,
    /// It resets the device.
    Resets,
}

/// Whether the function of a device has been left out of a sleep of the system, in which the device
/// keeps its state.
pub(crate) struct Exemption(Atomic<bool>);

impl Exemption {
    /// It takes part.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(false))
    }

    /// Has it left out of the suspend that is under way. May sleep; to be called when the PM core
    /// suspends the device, and the function can be left out.
    pub(crate) fn begin(&self, dev: &Device<device::Bound>) {
        // SAFETY: By the type invariant the pointer is valid; what can be left out is there.
        unsafe { bindings::virtio_pm_exempt(dev.as_raw(), true) };
        self.0.store(true, Relaxed);
    }

    /// It takes part again, if it was left out. May sleep; the device lock is held.
    pub(crate) fn end(&self, dev: &Device<device::Bound>) {
        if self.0.xchg(false, Full) {
            // SAFETY: As in `begin`.
            unsafe { bindings::virtio_pm_exempt(dev.as_raw(), false) };
        }
    }
}

impl Device {
    /// Returns whether the transport can leave the device as it is in some sleep of the system. May
    /// sleep.
    pub(crate) fn transport_may_keep_state(&self) -> bool {
        let vdev = self.as_raw();
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_pm_keeps_state(vdev) || bindings::virtio_pm_can_exempt(vdev) }
    }
}

impl Device<device::Bound> {
    /// Returns what the transport does in the suspend of the system that is under way. May sleep;
    /// to be called when the PM core suspends the device.
    pub(crate) fn transport_sleep(&self) -> TransportSleep {
        let vdev = self.as_raw();
        // SAFETY: By the type invariant the pointer is valid.
        unsafe {
            if bindings::virtio_pm_keeps_state(vdev) {
                TransportSleep::Nothing
            } else if bindings::virtio_pm_is_suspend_to_idle()
                && bindings::virtio_pm_can_exempt(vdev)
            {
                TransportSleep::CanBeExempt
            } else {
                TransportSleep::Resets
            }
        }
    }

    /// Returns whether `feature` has been negotiated.
    pub fn has_feature(&self, feature: Feature) -> bool {
        self.test_feature(feature)
    }

    /// Returns the device configuration space.
    pub fn config(&self) -> Config<'_> {
        Config::new(self)
    }

    /// Returns the size in bytes of the largest segment that the device can be given.
    pub fn max_dma_size(&self) -> usize {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_max_dma_size(self.as_raw()) }
    }

    /// Returns whether the device can be expected to answer: as for [`Device::is_whole`], and it
    /// has not been suspended, nor is about to be. May sleep.
    pub fn is_operational(&self) -> bool {
        self.is_whole() && self.common().controller.is_running()
    }

    /// Returns whether the device is in operation, does not need a reset, is not gone, and its
    /// virtqueues are not broken. May sleep.
    pub fn is_whole(&self) -> bool {
        let status = self.status();
        !self.common().has_broken_queue()
            && status.contains(Status::DRIVER_OK)
            && !status.contains(Status::DEVICE_NEEDS_RESET)
    }

    /// Has [`Driver::poll`] called soon, if it is not about to be. Any context.
    ///
    /// [`Driver::poll`]: crate::Driver::poll
    pub fn schedule_poll(&self) {
        self.common().poll_work.schedule(self, 0);
    }

    /// Returns whether a device that fails is reset and initialised again, so that it is worth
    /// waiting for.
    pub fn can_recover(&self) -> bool {
        self.common().controller.can_recover()
    }

    /// Returns whether the device is not there any more, and made sure of it: one that is reset, or
    /// whose VMM exchanges its process, reads as all ones for a while. May sleep, for as long as
    /// that.
    pub(crate) fn stays_gone(&self) -> bool {
        for _ in 0..GONE_READS {
            if !self.is_gone() {
                return false;
            }
            fsleep(GONE_STEP);
        }
        true
    }

    /// Returns whether the device is not there any more: its registers read as all ones. May sleep.
    pub(crate) fn is_gone(&self) -> bool {
        self.status() == Status::ALL_ONES
    }

    /// Returns whether the virtio core has given the device up. May sleep.
    pub(crate) fn has_failed(&self) -> bool {
        let status = self.status();
        status.contains(Status::FAILED) && status != Status::ALL_ONES
    }

    /// Returns whether the device's bus says that it has been taken away for good. Any context.
    pub(crate) fn is_disconnected(&self) -> bool {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_is_disconnected(self.as_raw()) }
    }

    /// Tells the driver that the configuration may have changed. Any context.
    pub(crate) fn config_changed(&self) {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_config_changed(self.as_raw()) };
    }

    /// Reads the device status field. May sleep.
    pub fn status(&self) -> Status {
        // SAFETY: By the type invariant the pointer is valid, and a bound device has the
        // operations of its transport.
        match unsafe { (*(*self.as_raw()).config).get_status } {
            // SAFETY: The operation takes the device that it belongs to. It may sleep, as the
            // caller was told.
            Some(get_status) => Status::from_bits(unsafe { get_status(self.as_raw()) }),
            None => Status::RESET,
        }
    }

    /// Writes the device status field. May sleep.
    ///
    /// Only the suspend engine and a [`Session`](crate::bench::Session) do that themselves: all
    /// other changes are made by the virtio core.
    /// `status` must not be 0, which would be a reset.
    pub(crate) fn set_status(&self, status: Status) {
        debug_assert!(status != Status::RESET);

        // SAFETY: As in `status`.
        if let Some(set_status) = unsafe { (*(*self.as_raw()).config).set_status } {
            // SAFETY: As in `status`. The status is not 0, which the transports rule out.
            unsafe { set_status(self.as_raw(), status.bits()) };
        }
    }

    fn add_status(&self, status: Status) {
        // SAFETY: By the type invariant the pointer is valid; the context may sleep.
        unsafe { bindings::virtio_add_status(self.as_raw(), status.bits().into()) };
    }

    /// Takes the device from reset to the end of the negotiation, as far as the driver is
    /// concerned.
    pub(crate) fn acknowledge(&self) -> Result {
        self.add_status(Status::ACKNOWLEDGE);
        self.add_status(Status::DRIVER);
        // SAFETY: By the type invariant the pointer is valid, and a bound device has the operations
        // of its transport.
        if let Some(finalize) = unsafe { (*(*self.as_raw()).config).finalize_features } {
            // SAFETY: The operation takes the device that it belongs to.
            to_result(unsafe { finalize(self.as_raw()) })?;
        }
        Ok(())
    }

    /// Resets the device if the virtio core has given it up, and begins anew: what that does when a
    /// driver is bound again does not clear FAILED. May sleep.
    ///
    /// # Errors
    ///
    /// Those of the transport.
    pub(crate) fn revive(&self) -> Result {
        if !self.has_failed() {
            return Ok(());
        }
        // SAFETY: By the type invariant the pointer is valid. The device has no virtqueues yet.
        unsafe { bindings::virtio_reset_device(self.as_raw()) };
        self.acknowledge()
    }

    /// Takes the device from reset to FEATURES_OK, as the virtio core does before it probes.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device does not accept the features any more, or what the transport finds.
    pub(crate) fn initialise(&self) -> Result {
        self.acknowledge()?;
        if !self.has_feature(Feature::VERSION_1) {
            // There is no FEATURES_OK.
            return Ok(());
        }
        self.add_status(Status::FEATURES_OK);
        let status = self.status();
        // Of a device that is gone all bits read as set.
        if status.contains(Status::FEATURES_OK) && status != Status::ALL_ONES {
            Ok(())
        } else {
            Err(ENODEV)
        }
    }

    /// Marks all virtqueues as broken: operations on them fail from now on.
    pub(crate) fn break_queues(&self) {
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::virtio_break_device(self.as_raw()) };
    }

    /// Sets who hears of configuration changes. If it is nobody, whoever heard of one hears no more
    /// when this returns. May sleep.
    pub(crate) fn set_config_listener(&self, listener: Option<&Common>) {
        let listener = listener.map_or(null_mut(), |common| core::ptr::from_ref(common).cast_mut());
        // SAFETY: By the type invariant the pointer is valid, and the field is the driver's. The
        // virtio core calls back with the lock held that is taken here.
        unsafe { bindings::virtio_set_priv(self.as_raw(), listener.cast()) };
    }

    /// Returns who is to hear of a configuration change, if there is somebody.
    ///
    /// # Safety
    ///
    /// To be called by the virtio core's callback, and not to be used any more when that returns.
    pub(crate) unsafe fn config_listener(&self) -> Option<&Common> {
        // SAFETY: By the type invariant the pointer is valid. The field is changed with the lock
        // held that the virtio core holds when it calls back. Who has set it takes it away before
        // the listener is freed.
        unsafe { (*self.as_raw()).priv_.cast::<Common>().as_ref() }
    }

    /// Begins the group of all resources that the driver registers with the device. May sleep.
    ///
    /// The driver core releases them when the driver's private data is gone, which those who use
    /// them may need: a `Device<Bound>` does.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn open_resources(&self) -> Result {
        let id = core::ptr::from_ref(self.common()).cast_mut().cast();
        // SAFETY: By the type invariant the pointer is valid. `id` is only compared.
        let group =
            unsafe { bindings::devres_open_group(self.as_raw_device(), id, bindings::GFP_KERNEL) };
        if group.is_null() {
            return Err(ENOMEM);
        }
        Ok(())
    }

    /// Releases what has been registered since [`Device::open_resources`]. May sleep.
    pub(crate) fn release_resources(&self) {
        let id = core::ptr::from_ref(self.common()).cast_mut().cast();
        // SAFETY: By the type invariant the pointer is valid.
        unsafe { bindings::devres_release_group(self.as_raw_device(), id) };
    }

    /// What the bus abstraction keeps for this device.
    pub(crate) fn common(&self) -> &Common {
        // SAFETY: By the type invariant.
        unsafe { common_of(self) }
    }
}

/// The device lock is held.
pub(crate) struct DeviceLock<'a>(&'a Device);

impl Drop for DeviceLock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant of `Device` the pointer is valid, and the lock is held.
        unsafe { bindings::device_unlock(self.0.as_raw_device()) };
    }
}

/// The lock of a device's parent is held, if there is a parent.
pub(crate) struct ParentLock<'a>(*mut bindings::device, PhantomData<&'a Device>);

impl Drop for ParentLock<'_> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: The device holds a reference to its parent, and the lock is held.
            unsafe { bindings::device_unlock(self.0) };
        }
    }
}

impl<'a> Device<device::Core<'a>> {
    /// Begins to set up the virtqueues of a device that is bound to the driver `T`; to be called by
    /// [`Driver::probe`].
    ///
    /// [`Driver::probe`]: crate::Driver::probe
    pub fn virtqueues<T: Driver + 'static>(&self) -> VirtQueues<'_, T> {
        VirtQueues::new(self)
    }
}

// SAFETY: `Device` is a transparent wrapper of `struct virtio_device`, and the offset is that of
// the `struct device` in it.
unsafe impl<Ctx: device::DeviceContext> device::AsBusDevice<Ctx> for Device<Ctx> {
    const OFFSET: usize = offset_of!(bindings::virtio_device, dev);
}

// SAFETY: `Device` is a transparent wrapper of a type that doesn't depend on `Device`'s generic
// argument.
kernel::impl_device_context_deref!(unsafe { Device });
kernel::impl_device_context_into_aref!(Device);

// SAFETY: Instances of `Device` are always reference-counted.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        // SAFETY: The existence of a shared reference guarantees that the refcount is non-zero.
        unsafe { bindings::get_device(self.as_raw_device()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The safety requirements guarantee that the refcount is non-zero, so the device
        // is still there.
        let dev = unsafe { obj.as_ref() }.as_raw_device();

        // SAFETY: As above.
        unsafe { bindings::put_device(dev) }
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type invariant the pointer is valid, and so is that of the `struct
        // device` in it, for as long as `self`. The context is the same, because both are the same
        // device.
        unsafe { device::Device::from_raw(self.as_raw_device()) }
    }
}

// SAFETY: A `Device` is always reference-counted and can be released from any thread.
unsafe impl Send for Device {}

// SAFETY: `Device` can be shared among threads: what the public methods of `Device<Normal>` read
// never changes. Those of the crate lock the device, synchronise themselves, or are called where
// the virtio core has the device to itself, as it does when features are negotiated.
unsafe impl Sync for Device {}

// SAFETY: Same as `Device<Normal>`: the transports' operations behind the methods of
// `Device<Bound>` can be called from any thread, the negotiated features don't change while the
// device is bound, and `Common` is `Sync`.
unsafe impl Sync for Device<device::Bound> {}
