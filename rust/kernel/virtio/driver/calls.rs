// SPDX-License-Identifier: GPL-2.0

//! What the rest of the crate, which doesn't know the driver's type, and transports call of a
//! driver.

use kernel::{
    device::Bound,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Relaxed, //
        },
        rcu, //
    }, //
};

use super::{
    lifecycle::{
        common_of,
        Ops,
        PrivateData, //
    },
    Adapter,
    Driver, //
};
use crate::{
    bindings,
    compat::{
        local_interrupt_disable,
        BoundInternal, //
    },
    suspend::{
        Failure,
        Patience,
        Support as _, //
    },
    Device, //
};

impl<T: Driver + 'static> Adapter<T> {
    pub(super) const OPS: Ops = Ops {
        callback: Self::used_callback,
        used: Self::used,
        gate: Self::gate,
        ungate: Self::ungate,
        stop: Self::stop_locked,
        restart: Self::restart_locked,
        give_up: Self::give_up,
    };

    /// Has the controller look at a device, see [`suspend::Controller::look`].
    pub(super) fn look(dev: &Device<Bound>) {
        // SAFETY: Called by the controller in the `Common` of a device that this adapter has
        // probed, before `tear_down` is over.
        let common = unsafe { common_of(dev) };
        common.controller.look(common, dev);
    }

    /// Has the controller do what is asked of all devices, see [`suspend::Controller::run_errand`].
    pub(super) fn run_errand(dev: &Device<Bound>) {
        // SAFETY: As in `look`.
        let common = unsafe { common_of(dev) };
        common.controller.run_errand(common, dev);
    }

    fn used(dev: &Device<Bound>, index: usize) {
        // SAFETY: `Ops` is only reached through the `Common` of a device that this adapter has
        // probed, and this only while that is live or its controller gated.
        unsafe { Self::used_of(dev, Self::private(dev), index) };
    }

    /// Has the driver take back what the device has used in a virtqueue.
    ///
    /// # Safety
    ///
    /// `private` must be that of `dev`, and for the rest as for [`PrivateData::with_data`].
    #[inline]
    unsafe fn used_of(dev: &Device<Bound>, private: &PrivateData<'_, T>, index: usize) {
        // Interrupts are not disabled if the controller calls, nor in the handlers of transports
        // that are not interrupted themselves.
        let irq = local_interrupt_disable();
        let keys = private.keys.as_ref();
        if let Some(key) = keys.and_then(|keys| keys.get(index)) {
            // SAFETY: By the safety requirements.
            unsafe { private.with_data(|data| T::used(dev, data, *key, &irq)) };
        }
    }

    fn gate(dev: &Device<Bound>, patience: &Patience<'_>) -> Result<(), Failure> {
        // SAFETY: As in `used`.
        unsafe { Self::with_data(dev, |data| T::Suspend::gate(dev, data, patience)) }
    }

    fn ungate(dev: &Device<Bound>) {
        // SAFETY: As in `used`.
        unsafe { Self::with_data(dev, |data| T::Suspend::ungate(dev, data)) };
    }

    pub(super) fn give_up(dev: &Device<Bound>) {
        dev.common().given_up.store(true, Relaxed);
        // SAFETY: As in `used`; the device lock is held, so that the data stays.
        unsafe { Self::with_data(dev, |data| T::give_up(dev, data)) };
    }

    /// The device has changed its configuration.
    pub(super) fn config_work(dev: &Device<Bound>) {
        if dev.common().live.load(Acquire) {
            // SAFETY: The data is initialised, since the device is live. It is not dropped before
            // the work has been cancelled, after `live` is cleared.
            unsafe { Self::with_data(dev, |data| T::config_changed(dev, data)) };
        }
    }

    /// The driver has asked for it.
    pub(super) fn poll_work(dev: &Device<Bound>) {
        if dev.common().live.load(Acquire) {
            // SAFETY: As in `config_work`.
            unsafe { Self::with_data(dev, |data| T::poll(dev, data)) };
        }
    }

    /// # Safety
    ///
    /// As for `Ops::stop`.
    unsafe fn stop_locked(dev: &Device<Bound>) {
        // SAFETY: The device is bound, and by the safety requirements its lock is held for as long
        // as this runs.
        Self::stop(unsafe { Self::core(dev.as_raw()) });
    }

    /// # Safety
    ///
    /// As for `Ops::restart`.
    unsafe fn restart_locked(dev: &Device<Bound>) -> Result {
        // SAFETY: As in `stop_locked`.
        Self::restart(unsafe { Self::core(dev.as_raw()) })
    }

    extern "C" fn used_callback(vq: *mut bindings::virtqueue) {
        // SAFETY: The transport calls this with a valid virtqueue, of a valid device.
        let (vdev, index) = unsafe { ((*vq).vdev, (*vq).index) };
        // SAFETY: As above. The device is bound: `stop` waits for this callback.
        // INVARIANT: The reference stays within the callback.
        let dev = unsafe { &*vdev.cast::<Device<BoundInternal>>() };

        let _rcu = rcu::read_lock();
        // SAFETY: As above, and the virtqueue has been set up by the probe of a driver of this
        // adapter, whose callback this is. The drvdata is looked up once: this is a hot path.
        let private = unsafe { Self::private(dev) };
        let common = private.common();
        if common.live.load(Acquire) {
            // SAFETY: It is live, and `tear_down` waits for this.
            // CAST: From 32 bits to at least as many.
            unsafe { Self::used_of(dev, private, index as usize) };
            // SAFETY: The virtqueue is valid, see above.
            if unsafe { bindings::virtqueue_is_broken(vq) } {
                common.controller.look_soon(dev);
            }
        }
    }

    pub(super) extern "C" fn config_changed_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio core calls this with a valid device.
        // INVARIANT: The reference stays within the callback, and is not used but for a listener,
        // which only a bound device has.
        let dev = unsafe { &*vdev.cast::<Device<BoundInternal>>() };

        // Not before the probe has succeeded and not after `remove` began: nearly so. After a reset
        // of the function the virtio core lets callbacks through again without the device lock, to
        // a device that may be about to be probed, or unbound.
        //
        // SAFETY: `tear_down` takes the listener away, and waits for this, before it is freed.
        let Some(common) = (unsafe { dev.config_listener() }) else {
            return;
        };
        if common.live.load(Acquire) {
            // What is scheduled after the work has been closed is not done.
            common.config_work.schedule_now(dev);
            // It may be that the device needs a reset.
            common.controller.look_soon(dev);
        }
    }
}
