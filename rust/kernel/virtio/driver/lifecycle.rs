// SPDX-License-Identifier: GPL-2.0

//! The life of a device that is bound to a driver: what the bus calls, and the order in which a
//! device is put into operation and taken out of it.

use core::{
    any::TypeId,
    cell::UnsafeCell,
    mem::MaybeUninit, //
};

use kernel::{
    device::{
        Bound,
        CoreInternal, //
    },
    error::from_result,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        Arc,
        Mutex,
        SetOnce, //
    },
    types::ScopeGuard, //
};

use super::{
    resets,
    Adapter,
    Driver, //
};
use crate::{
    bindings,
    compat::raw_try_init,
    device::Exemption,
    queue::RawQueue,
    suspend::{
        self,
        ConfigChanges,
        Failure,
        Later,
        Patience,
        Support as _,
        Switch, //
    },
    sync::lock_class,
    Device,
    Feature, //
};

/// What the rest of the crate calls of a driver whose type it doesn't know.
pub(crate) struct Ops {
    pub(crate) callback: unsafe extern "C" fn(*mut bindings::virtqueue),
    /// Has the driver take back what the device has used in a virtqueue. Any context.
    pub(crate) used: fn(&Device<Bound>, usize),
    pub(crate) gate: fn(&Device<Bound>, &Patience<'_>) -> Result<(), Failure>,
    pub(crate) ungate: fn(&Device<Bound>),
    /// Takes the device out of operation and resets it.
    ///
    /// # Safety
    ///
    /// The device lock must be held, by the caller or by somebody who waits for the caller.
    pub(crate) stop: unsafe fn(&Device<Bound>),
    /// Puts the device back into operation, after a reset and with FEATURES_OK set.
    ///
    /// # Safety
    ///
    /// The device lock must be held.
    pub(crate) restart: unsafe fn(&Device<Bound>) -> Result,
    /// Tells the driver that the device is out of operation for good.
    pub(crate) give_up: fn(&Device<Bound>),
}

/// How far the probe of a driver has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// The driver's `start` has not been called.
    Early,
    /// It is being called, and may wait for the device.
    Starting,
    /// It has returned.
    Done,
    /// The device has failed during the call, and has been given up.
    Failed,
}

/// The part of a device's private data that doesn't depend on the driver.
#[pin_data]
pub(crate) struct Common {
    /// The type of the driver, by which an adapter knows its own.
    pub(super) driver: TypeId,
    pub(crate) ops: Ops,
    /// The virtqueues, once the driver's probe has set them up.
    #[pin]
    pub(crate) queues: Mutex<KVec<Arc<dyn RawQueue>>>,
    /// Whether their interrupts are spread over the processors.
    pub(crate) spread_queues: Atomic<bool>,
    #[pin]
    pub(crate) controller: suspend::Controller,
    pub(crate) config_changes: ConfigChanges,
    /// The test bench that the device is on, if it is on one.
    pub(crate) bench: SetOnce<Arc<crate::bench::Bench>>,
    /// Tells the driver of a change of the configuration.
    #[pin]
    pub(crate) config_work: Later,
    /// Has the driver look at its virtqueues.
    #[pin]
    pub(crate) poll_work: Later,
    /// Looks what became of a device whose function is reset.
    #[pin]
    pub(super) reset_work: Later,
    /// Whether callbacks reach the driver: its data is there, and the device works for it.
    pub(super) live: Atomic<bool>,
    /// Whether the driver's data is there: from the end of its probe until it is torn down.
    populated: Atomic<bool>,
    #[pin]
    probe: Mutex<Probe>,
    /// Whether the device has been stopped because the system sleeps, or its function is reset.
    pub(super) frozen: Atomic<bool>,
    /// Whether the function has been left out of the sleep of the system, in which the device keeps
    /// its state.
    pub(super) exemption: Exemption,
    /// Whether the driver has been told that the device is out of operation for good.
    pub(super) given_up: Atomic<bool>,
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

    /// Gives a device up that has failed while the driver's `start` is called by its probe, which
    /// may wait for the device, and then fails. May sleep.
    ///
    /// Returns whether it was so.
    pub(crate) fn fail_probe(&self, dev: &Device<Bound>) -> bool {
        // Who probes goes on when the driver has been told, but not past the end of this.
        let mut probe = self.probe.lock();
        if *probe != Probe::Starting {
            return false;
        }
        *probe = Probe::Failed;
        // SAFETY: Who probes holds the device lock, and waits for the lock of `probe` before it
        // goes on.
        unsafe { (self.ops.stop)(dev) };
        (self.ops.give_up)(dev);
        true
    }

    /// Cancels all work for the device, and waits for what runs. May sleep.
    pub(super) fn cancel(&self) {
        self.controller.cancel();
        self.config_work.cancel();
        self.poll_work.cancel();
        self.reset_work.cancel();
    }

    /// As above, for good: no work is done any more. May sleep.
    fn close(&self) {
        self.controller.close();
        self.config_work.close();
        self.poll_work.close();
        self.reset_work.close();
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
    /// By what the driver knows its virtqueues, in their order.
    pub(super) keys: SetOnce<KVec<T::Queue>>,
    /// Initialised while `common.populated` is set.
    #[pin]
    data: UnsafeCell<MaybeUninit<T::Data<'bound>>>,
}

impl<T: Driver> PrivateData<'_, T> {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    /// Calls into the driver, see [`Adapter::with_data`].
    ///
    /// # Safety
    ///
    /// Either the driver's data must be known to be initialised, or the caller is a callback that
    /// `tear_down` waits for after it has cleared `live`.
    pub(super) unsafe fn with_data<R>(
        &self,
        f: impl for<'a> FnOnce(Pin<&'a T::Data<'a>>) -> R,
    ) -> R {
        // SAFETY: By the safety requirements the data is initialised, and not about to be dropped:
        // all references to it are shared. It is pinned together with the private data.
        f(unsafe { Pin::new_unchecked((*self.data.get()).assume_init_ref()) })
    }
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
    pub(super) unsafe fn core<'a>(
        vdev: *mut bindings::virtio_device,
    ) -> &'a Device<CoreInternal<'a>> {
        // SAFETY: By the safety requirements; `Device` is transparent.
        // INVARIANT: The device is bound, or about to be, to the driver with this callback.
        unsafe { &*vdev.cast() }
    }

    /// # Safety
    ///
    /// The drvdata of `dev` must have been set by `probe_callback` of this very adapter.
    pub(super) unsafe fn private<'a>(dev: &'a Device<Bound>) -> &'a PrivateData<'a, T> {
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
    pub(super) unsafe fn with_data<R>(
        dev: &Device<Bound>,
        f: impl for<'a> FnOnce(Pin<&'a T::Data<'a>>) -> R,
    ) -> R {
        // SAFETY: By the safety requirements.
        unsafe { Self::private(dev).with_data(f) }
    }

    /// Whether the driver knows a feature bit 42 of its device type.
    pub(super) const HAS_42: bool = {
        let mut found = false;
        let mut i = 0;
        while i < T::FEATURES.len() {
            found |= T::FEATURES[i].bit() == Feature::SUSPEND_DRAFT.bit();
            i += 1;
        }
        found
    };

    pub(super) extern "C" fn probe_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with the valid device that it probes.
        let dev = unsafe { Self::core(vdev) };

        from_result(|| {
            let revision = if T::Suspend::SUPPORTED {
                suspend::revision(dev, Self::HAS_42)
            } else {
                None
            };
            let class = lock_class!(c"virtio::Common::queues");
            let probe = lock_class!(c"virtio::Common::probe");
            dev.as_ref().set_drvdata(try_pin_init!(PrivateData::<T> {
                common <- try_pin_init!(Common {
                    driver: TypeId::of::<T>(),
                    ops: Self::OPS,
                    queues <- Mutex::new(KVec::new(), class.0, class.1),
                    spread_queues: Atomic::new(false),
                    controller <- suspend::Controller::new(
                        revision,
                        Self::look,
                        Self::run_errand,
                    ),
                    config_work <- Later::new(Self::config_work),
                    poll_work <- Later::new(Self::poll_work),
                    reset_work <- Later::new(Self::reset_work),
                    config_changes: ConfigChanges::new(Switch::Driver),
                    bench: SetOnce::new(),
                    live: Atomic::new(false),
                    populated: Atomic::new(false),
                    probe <- Mutex::new(Probe::Early, probe.0, probe.1),
                    frozen: Atomic::new(false),
                    exemption: Exemption::new(),
                    given_up: Atomic::new(false),
                }),
                keys: SetOnce::new(),
                data: MaybeUninit::<T::Data<'_>>::uninit().into(),
            }))?;
            // SAFETY: The drvdata has been set right above.
            let private = unsafe { Self::private(dev) };
            dev.open_resources()?;
            dev.set_config_listener(Some(&private.common));

            // The virtio core neither resets a device nor deletes its queues when a probe fails.
            let tear_down = ScopeGuard::new(|| Self::tear_down(dev));

            let init = T::probe(dev);
            // SAFETY: The slot is valid for writing, pinned together with the private data, and
            // nobody else accesses it: `populated` and `live` are false.
            unsafe { raw_try_init((*private.data.get()).as_mut_ptr(), init)? };
            private.common.populated.store(true, Release);

            Self::first_start(dev)?;
            let queues = private.common.queues.lock().len();
            private.common.controller.publish(dev, queues)?;
            tear_down.dismiss();
            Ok(0)
        })
    }

    /// Puts the device into operation for the first time.
    ///
    /// The driver may wait for the device in `start`, with the device lock held, so that nobody
    /// else can recover it: it is watched, and given up if it fails.
    fn first_start(dev: &Device<CoreInternal<'_>>) -> Result {
        let common = dev.common();
        *common.probe.lock() = Probe::Starting;
        let result = Self::go_live(dev, || common.controller.watch_start(dev));

        let mut probe = common.probe.lock();
        let failed = *probe == Probe::Failed;
        *probe = Probe::Done;
        drop(probe);
        common.controller.end_watch();
        if failed || !common.controller.is_running() {
            return Err(EIO);
        }
        result
    }

    /// Lets callbacks through to the driver, sets DRIVER_OK, opens the queues, starts the driver.
    ///
    /// `operates` is called when the device is in operation.
    fn go_live(dev: &Device<CoreInternal<'_>>, operates: impl FnOnce()) -> Result {
        let common = dev.common();
        // Before a callback can come: the driver's data is complete.
        common.live.store(true, Release);

        // SAFETY: The device is valid. Its queues have been set up, and DRIVER_OK is not set: it
        // has just gone through the feature negotiation.
        unsafe { bindings::virtio_device_ready(dev.as_raw()) };
        common.for_each_queue(|_, queue| queue.set_open(true));
        operates();

        // SAFETY: The data is initialised, and dropped by `tear_down` only, which needs the device
        // lock, too.
        unsafe { Self::with_data(dev, |data| T::start(dev, data)) }
            .inspect(|()| common.open_bench(dev))
    }

    /// Puts a device into operation that has been reset, and leaves it stopped if that fails.
    pub(super) fn restart(dev: &Device<CoreInternal<'_>>) -> Result {
        dev.common()
            .find_queues(dev)
            .and_then(|()| Self::go_live(dev, || {}))
            .inspect_err(|_| Self::stop(dev))
    }

    /// Takes the device out of operation, in the only order that is sound, and leaves it reset.
    ///
    /// May sleep; the device lock is held.
    pub(super) fn stop(dev: &Device<CoreInternal<'_>>) {
        // SAFETY: All callers come after `set_drvdata`.
        let private = unsafe { Self::private(dev) };

        // 1. Wake whoever waits for the device, and keep others from it.
        private.common.close_bench();
        if private.common.is_populated() {
            // SAFETY: The data is initialised, and not dropped before this function returns.
            unsafe { Self::with_data(dev, |data| T::stop(dev, data)) };
        }
        private.common.controller.stop();
        private.common.config_changes.release(dev);
        private
            .common
            .for_each_queue(|_, queue| queue.set_open(false));

        // 2. Reset. From here on the device neither accesses memory nor sends interrupts. One that
        //    is gone does neither anyway, and never presents that it has been reset: the transport
        //    would wait for that for ever. That it is gone is made sure of, because one that is
        //    there goes on to use what is freed below.
        private.common.live.store(false, Release);
        if !dev.stays_gone() {
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
        // For good: a callback may ask for it again, and a look at a device that is being stopped
        // would find that it has failed, and stop it, too.
        dev.common().close();
        dev.common().exemption.end(dev);
        Self::stop(dev);
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
        // 6. Release what the driver has registered with the device and not given up with its data,
        //    or has forgotten.
        dev.release_resources();
        // 7. From here on no callback of the virtio core finds what is about to be freed.
        dev.set_config_listener(None);
    }

    pub(super) extern "C" fn remove_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio core calls this with the valid device whose probe succeeded.
        let dev = unsafe { Self::core(vdev) };

        // Whoever resets the function goes on to initialise the device, until it needs the lock
        // that is held here: the reset below has to come after that.
        resets::wait(dev);
        dev.common().controller.watch_unbind(dev);
        // SAFETY: The probe succeeded, so the data is initialised.
        unsafe { Self::with_data(dev, |data| T::unbind(dev, data)) };
        Self::tear_down(dev);
    }

    pub(super) extern "C" fn shutdown_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio core calls this with a valid device that is bound to this driver, and
        // with its lock held.
        let dev = unsafe { Self::core(vdev) };

        dev.common().close_bench();
        // The virtqueues are broken below, of which a callback that is running may take note.
        dev.common().controller.shut_down();
        dev.common().cancel();
        dev.common()
            .for_each_queue(|_, queue| queue.set_open(false));
        if dev.stays_gone() {
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
}
