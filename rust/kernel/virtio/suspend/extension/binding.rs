// SPDX-License-Identifier: GPL-2.0

//! A device that is bound to a driver which knows nothing of SUSPEND.

use kernel::{
    device::Bound,
    error::to_result,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        Arc,
        Mutex, //
    },
    time::msecs_to_jiffies,
};

use super::{
    bus::as_bound,
    Foreign,
    Gate,
    Quiescer,
    Virtqueues, //
};
use crate::{
    bindings,
    queue::Record,
    suspend::{
        controller::Controller,
        failure::Failure,
        operations::Operations,
        patience::Patience,
        protocol::Revision,
        sysfs::Files, //
    },
    sync::Completion,
    Device, //
};

/// How long the driver of a device that needs a reset may take to stop, in milliseconds.
const RECOVERY_MS: u32 = 1_000;

/// How long a killed writer to the configuration space may go unnoticed, in milliseconds.
const WRITER_MS: u32 = 1_000;

/// Why SUSPEND has not been negotiated, if it has not.
#[derive(Clone, Copy)]
pub(super) enum Obstacle {
    /// The device does not offer it.
    NotNegotiated,
    /// The driver was bound before there was an extension.
    Rebind,
    /// No quiescer is for the driver.
    NoQuiescer,
}

/// What others than the controller have done to a device.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Fate {
    Untouched = 0,
    /// Somebody has reset it.
    Reset = 1,
    /// And has put it into operation again, which has not been looked at yet.
    Operating = 2,
}

/// A reference that keeps a module loaded.
struct ModuleRef(&'static ThisModule);

impl ModuleRef {
    /// Returns [`None`] if the module is being unloaded.
    fn get(module: &'static ThisModule) -> Option<Self> {
        // SAFETY: The pointer is that of a module which is there: its code has been called.
        unsafe { bindings::try_module_get(module.as_ptr()) }.then(|| Self(module))
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: The reference was got in `get`.
        unsafe { bindings::module_put(self.0.as_ptr()) };
    }
}

/// A driver that is gated.
struct Gated {
    // The order matters: the code of the gate is in the module.
    gate: KBox<dyn Gate>,
    _module: ModuleRef,
}

/// A device, from the time when its driver has been bound until it is unbound.
#[pin_data]
pub(super) struct Binding {
    module: &'static ThisModule,
    quiescer: Option<&'static dyn Quiescer>,
    obstacle: Obstacle,
    #[pin]
    controller: Controller,
    #[pin]
    files: Mutex<Option<Files>>,
    /// Set from before the driver is gated until it goes on.
    is_gated: Atomic<bool>,
    #[pin]
    gated: Mutex<Option<Gated>>,
    /// Whether writers to the configuration space have to wait.
    #[pin]
    config_held: Mutex<bool>,
    /// Done when they need not.
    #[pin]
    config_released: Completion,
    /// Set while the controller itself resets the device.
    recovering: Atomic<bool>,
    /// A [`Fate`].
    fate: Atomic<u32>,
}

impl Binding {
    pub(super) fn new(
        module: &'static ThisModule,
        quiescer: Option<&'static dyn Quiescer>,
        obstacle: Obstacle,
        revision: Option<Revision>,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                module,
                quiescer,
                obstacle,
                controller <- Controller::new(revision, look),
                files <- new_mutex!(None),
                is_gated: Atomic::new(false),
                gated <- new_mutex!(None),
                config_held <- new_mutex!(false),
                config_released <- Completion::new(),
                recovering: Atomic::new(false),
                fate: Atomic::new(Fate::Untouched as u32),
            }),
            GFP_KERNEL,
        )
    }

    /// Shows the device in sysfs and debugfs. May sleep.
    ///
    /// # Safety
    ///
    /// [`Binding::end`] must be called before the device is unbound.
    pub(super) unsafe fn publish(&self, dev: &Device<Bound>) -> Result {
        self.controller.publish(dev, Virtqueues::of(dev).count())?;
        // SAFETY: `end` drops the files.
        *self.files.lock() = Some(unsafe { Files::new(dev) }?);
        Ok(())
    }

    /// The device is about to be unbound. May sleep; the device lock is held.
    ///
    /// A driver that is gated could not let go of its device, and what is to be written to the
    /// device yet would be lost. So a device that is suspended is resumed. One that can't be has
    /// its virtqueues closed for good: whoever waits for it gets errors.
    pub(super) fn end(&self, dev: &Device<Bound>) {
        // The files are waited for: who waits in a request has to be told before.
        self.controller.unbind();
        let files = self.files.lock().take();
        drop(files);
        self.controller.close();

        if self.is_gated() {
            if self.controller.resume_to_unbind(dev) {
                self.reopen(dev);
            } else {
                self.leave_broken(dev);
            }
        }
    }

    pub(super) fn is_gated(&self) -> bool {
        self.is_gated.load(Acquire)
    }

    /// Somebody resets the device.
    pub(super) fn reset(&self) {
        if !self.recovering.load(Acquire) {
            self.fate.store(Fate::Reset as u32, Release);
        }
    }

    /// Somebody has put the device into operation.
    pub(super) fn driver_ok(&self, dev: &Device) {
        if self.change_fate(Fate::Reset, Fate::Operating) {
            // SAFETY: There is a binding, so the device is bound. It is not unbound while its
            // driver or the virtio core uses it, and work that is asked for later is not done.
            self.controller.look_soon(unsafe { as_bound(dev) });
        }
    }

    fn change_fate(&self, from: Fate, to: Fate) -> bool {
        self.fate.cmpxchg(from as u32, to as u32, Full).is_ok()
    }

    /// The system is about to sleep. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it must not, because a request is under way, or the driver of a suspended
    /// device would go on.
    pub(super) fn freeze(&self, dev: &Device) -> Result {
        self.controller.prepare_to_sleep()?;
        // From here on nobody asks for a suspend.
        match &*self.gated.lock() {
            Some(gated) if !gated.gate.outlasts_sleep() => {
                dev_err!(
                    dev,
                    "the system can't sleep while this is suspended: resume it\n"
                );
                Err(EBUSY)
            }
            _ => Ok(()),
        }
    }

    /// A binding that the others know nothing of yet is like them.
    pub(super) fn join_sleep(&self) {
        self.controller.join_sleep();
    }

    /// The system is awake.
    pub(super) fn thaw(&self, dev: &Device) {
        self.controller.wake_up();
        // SAFETY: As in `driver_ok`.
        self.controller.look_soon(unsafe { as_bound(dev) });
    }

    /// Calls `write`, which writes to the configuration space, when the device is not suspended.
    /// May sleep. If the task is killed while it waits for that, nothing is written.
    pub(super) fn write_config(&self, write: impl FnOnce()) {
        loop {
            let held = self.config_held.lock();
            if !*held {
                // The lock is held, so that the device is not suspended meanwhile.
                write();
                return;
            }
            drop(held);
            if self
                .config_released
                .wait_killable_timeout(msecs_to_jiffies(WRITER_MS))
                .is_err()
            {
                return;
            }
        }
    }

    fn hold_config(&self, dev: &Device<Bound>) {
        dev.disable_config_core();
        let mut held = self.config_held.lock();
        self.config_released.reinit();
        *held = true;
    }

    fn release_config(&self, dev: &Device<Bound>) {
        *self.config_held.lock() = false;
        self.config_released.complete_all();
        dev.enable_config_core();
    }

    /// Lets the driver go on with a device that can't be used: it gets errors.
    fn leave_broken(&self, dev: &Device<Bound>) {
        Virtqueues::of(dev).close();
        let gated = self.gated.lock().take();
        if self.is_gated.xchg(false, Full) {
            self.release_config(dev);
        }
        drop(gated);
    }

    /// Resets the device and has its driver initialise it again, as for a reset of the function.
    ///
    /// A driver that has nothing of that kind can't: what it has for a sleep of the system relies
    /// on there being no user space meanwhile.
    ///
    /// The error comes with whether the driver has no virtqueues any more.
    fn reinitialise(dev: &Device<Bound>) -> Result<(), (Error, bool)> {
        let vdev = dev.as_raw();

        // SAFETY: The device is valid and bound, its lock is held, and the context may sleep.
        to_result(unsafe { bindings::virtio_device_reset_prepare(vdev) })
            .map_err(|error| (error, false))?;
        // SAFETY: As above.
        to_result(unsafe { bindings::virtio_device_reset_done(vdev) })
            .map_err(|error| (error, true))
    }
}

/// Has the controller look at a device, see [`Controller::look`].
fn look(dev: &Device<Bound>) {
    if let Some(binding) = super::find(dev.as_raw()).and_then(|entry| entry.binding()) {
        binding.controller.look(&*binding, dev);
    }
}

impl Operations for Binding {
    fn controller(&self) -> &Controller {
        &self.controller
    }

    fn obstacle(&self) -> (&'static str, &'static str) {
        match self.obstacle {
            Obstacle::NotNegotiated => ("none", "SUSPEND has not been negotiated"),
            Obstacle::Rebind => (
                "rebind",
                "the driver was bound before virtio_suspend was loaded",
            ),
            Obstacle::NoQuiescer => ("no-quiescer", "nothing is known that stops the driver"),
        }
    }

    fn gate(&self, dev: &Device<Bound>, patience: &Patience<'_>) -> Result<(), Failure> {
        let quiescer = self
            .quiescer
            .ok_or(Failure::new(EOPNOTSUPP, self.obstacle().1))?;
        let module = ModuleRef::get(self.module)
            .ok_or(Failure::new(ENODEV, "virtio_suspend is being unloaded"))?;
        let queues = Virtqueues::of(dev);
        if queues.is_broken() {
            return Err(Failure::new(EIO, "a virtqueue is broken"));
        }

        self.change_fate(Fate::Operating, Fate::Untouched);
        // Until it operates again it can't be told from one that has reset itself.
        if self.is_being_reset() {
            return Err(Failure::new(EBUSY, "the device is being reset"));
        }
        self.hold_config(dev);
        self.is_gated.store(true, Release);
        match quiescer.gate(&Foreign(dev), &queues, patience) {
            Ok(gate) => {
                queues.close();
                *self.gated.lock() = Some(Gated {
                    gate,
                    _module: module,
                });
                Ok(())
            }
            Err(failure) => {
                self.is_gated.store(false, Release);
                self.release_config(dev);
                Err(failure)
            }
        }
    }

    /// What the device used stays in the used rings: the driver takes it from there when it goes
    /// on.
    fn quiesce(&self, dev: &Device<Bound>, records: &mut KVec<Record>) {
        dev.synchronize_callbacks();
        Virtqueues::of(dev).record(records);
    }

    fn reopen(&self, dev: &Device<Bound>) {
        let queues = Virtqueues::of(dev);
        let gated = self.gated.lock().take();

        queues.open();
        if let Some(Gated { gate, _module }) = gated {
            drop(gate);
            // A device need not look for buffers by itself when it goes on.
            queues.notify();
            self.is_gated.store(false, Release);
            self.release_config(dev);
        }
    }

    fn look_at_config(&self, dev: &Device<Bound>) {
        dev.config_changed();
    }

    fn notify(&self, dev: &Device<Bound>) {
        Virtqueues::of(dev).notify();
    }

    fn is_broken(&self, dev: &Device<Bound>) -> bool {
        Virtqueues::of(dev).is_broken()
    }

    fn recover(&self, dev: &Device<Bound>, lost: bool, reset: bool) -> Result<bool> {
        // Somebody else is at it.
        if self.fate.load(Acquire) != Fate::Untouched as u32 {
            return Ok(false);
        }
        if lost || !reset {
            self.leave_broken(dev);
            return Ok(false);
        }
        // A driver that is not gated may wait for the device when it is to stop, for ever.
        if !self.is_gated() {
            self.gate(dev, &self.controller.patience(RECOVERY_MS))
                .map_err(|failure| failure.error)?;
        }

        self.recovering.store(true, Release);
        let result = Self::reinitialise(dev);
        self.recovering.store(false, Release);

        match result {
            Ok(()) => {
                self.reopen(dev);
                Ok(true)
            }
            Err((error, stopped)) => {
                if stopped {
                    if let Some(gated) = &mut *self.gated.lock() {
                        gated.gate.abandon();
                    }
                }
                self.leave_broken(dev);
                Err(error)
            }
        }
    }

    /// [`Binding::end`] does, which waits for the watch.
    fn give_up(&self, _dev: &Device<Bound>) {}

    fn is_being_reset(&self) -> bool {
        self.fate.load(Acquire) == Fate::Reset as u32
    }

    fn take_foreign_reset(&self) -> bool {
        self.change_fate(Fate::Operating, Fate::Untouched)
    }
}
