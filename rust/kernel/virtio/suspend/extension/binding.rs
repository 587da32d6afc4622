// SPDX-License-Identifier: GPL-2.0

//! A device that is bound to a driver which knows nothing of SUSPEND.

#[path = "binding/system_sleep.rs"]
mod system_sleep;

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
    time::{
        msecs_to_jiffies,
        Delta, //
    },
};

use self::system_sleep::Bed;
use super::{
    bus::as_bound,
    Foreign,
    Gate,
    Quiescer,
    SystemSleep,
    Virtqueues, //
};
use crate::{
    bindings,
    compat::EOPNOTSUPP,
    device::ParentLock,
    queue::Record,
    suspend::{
        config::{
            ConfigChanges,
            Switch,
            Turnstile, //
        },
        controller::Controller,
        failure::Failure,
        fate::Fate,
        later::Later,
        operations::{
            Operations,
            Remedy, //
        },
        patience::Patience,
        protocol::Revision,
        state_machine::Outcome,
        sysfs::Files, //
    },
    Device, //
};

/// How long the driver of a device that needs a reset may take to stop, in milliseconds.
const RECOVERY_MS: u32 = 1_000;

/// How often it is tried to take the lock of a device's parent, in milliseconds.
const PARENT_STEP_MS: i64 = 2;

/// How often it is looked what became of a device that others have reset, in milliseconds.
const RESET_STEP_MS: u32 = 1_000;

/// Why SUSPEND has not been negotiated, if it has not.
#[derive(Clone, Copy)]
pub(super) enum Obstacle {
    /// The device does not offer it.
    NotNegotiated,
    /// The driver was bound before there was an extension.
    Rebind,
    /// No quiescer is for the driver, for that reason.
    NoQuiescer(&'static str),
}

/// Why a device could not be initialised again.
enum Unrecovered {
    /// Its driver can't be stopped, and has its virtqueues.
    NotStopped(Error),
    /// Its driver is stopped, and has no virtqueues any more.
    Stopped(Error),
}

/// Returns whether the system goes down: the virtio core has reset the device, for good.
fn is_going_down() -> bool {
    // SAFETY: Any context.
    unsafe { bindings::system_is_going_down() }
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
    config_changes: ConfigChanges,
    /// Where writes to the configuration space pass.
    #[pin]
    config_writes: Turnstile,
    /// Set while the controller itself resets the device.
    recovering: Atomic<bool>,
    /// Looks what became of a device that others have reset.
    #[pin]
    reset_work: Later,
    bed: Bed,
}

impl Binding {
    /// `in_domain` says whether the PM core calls for the device when the system sleeps.
    pub(super) fn new(
        module: &'static ThisModule,
        quiescer: Option<&'static dyn Quiescer>,
        obstacle: Obstacle,
        revision: Option<Revision>,
        in_domain: bool,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                module,
                quiescer,
                obstacle,
                controller <- Controller::new(revision, look, run_errand),
                files <- new_mutex!(None),
                is_gated: Atomic::new(false),
                gated <- new_mutex!(None),
                config_changes: ConfigChanges::new(Switch::Core),
                config_writes <- Turnstile::new(),
                recovering: Atomic::new(false),
                reset_work <- Later::new(look_after_reset),
                bed: Bed::new(in_domain),
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
        self.end_exemption(dev);
        // The files are waited for: who waits in a request has to be told before.
        self.controller.leave_group();
        let files = self.files.lock().take();
        drop(files);
        self.reset_work.close();
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
    pub(super) fn reset(&self, dev: &Device) {
        if !self.recovering.load(Acquire) && self.controller.fate().reset() {
            // SAFETY: There is a binding, so the device is bound. It is not unbound while its
            // driver or the virtio core uses it, and work that is asked for later is not done.
            self.look_after_reset(unsafe { as_bound(dev) });
        }
    }

    /// Has it looked, in a while, what became of a device that has been reset.
    fn look_after_reset(&self, dev: &Device<Bound>) {
        self.reset_work
            .schedule(dev, msecs_to_jiffies(RESET_STEP_MS));
    }

    /// Looks whether those who have reset the device have gone, and left it so. Then the virtio
    /// core could not initialise it. Or the transport could not enable the function, or has not
    /// disabled it, because user space has enabled it, too.
    fn reset_work(&self, dev: &Device<Bound>) {
        let fate = self.controller.fate();
        if fate.get() != Fate::Reset || is_going_down() {
            return;
        }
        if self.controller.is_sleeping() || dev.try_lock_parent().is_none() {
            self.look_after_reset(dev);
        } else if fate.change(Fate::Reset, Fate::LeftReset) {
            self.controller.look_soon(dev);
        }
    }

    /// Somebody has put the device into operation.
    pub(super) fn driver_ok(&self, dev: &Device) {
        if self.controller.fate().operate() {
            if self.controller.is_sleeping() {
                self.controller.count_reset_by_sleep();
            }
            // SAFETY: As in `reset`.
            self.controller.look_soon(unsafe { as_bound(dev) });
        }
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
        self.check_gate(dev, self.may_keep_state(dev))
    }

    /// Looks whether the system can sleep while the driver of a suspended device is stopped, and
    /// the device keeps its state, or the transport resets it.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it can't.
    fn check_gate(&self, dev: &Device, keeps_state: bool) -> Result {
        let can_sleep = match &*self.gated.lock() {
            None => true,
            Some(gated) => match gated.gate.system_sleep() {
                SystemSleep::Allowed => true,
                SystemSleep::IfKept => keeps_state,
                SystemSleep::Barred => false,
            },
        };
        if can_sleep {
            return Ok(());
        }
        dev_err!(
            dev,
            "the system can't sleep while this is suspended: resume it\n"
        );
        Err(EBUSY)
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
    pub(super) fn write_config(&self, write: impl FnMut()) {
        self.config_writes.pass_killable(write);
    }

    /// Calls `read`, which reads the configuration space, when the device has answered what it is
    /// asked. May sleep, also if the task is killed: what is read is used.
    pub(super) fn read_config<R>(&self, read: impl FnMut() -> R) -> R {
        self.controller.config_reads().pass(read)
    }

    fn hold_config(&self, dev: &Device<Bound>) {
        self.config_changes.hold(dev);
        self.config_writes.close();
    }

    fn release_config(&self, dev: &Device<Bound>) {
        self.config_writes.open();
        self.config_changes.release(dev);
    }

    /// Lets the driver go on with a device that can't be used: it gets errors. One that others have
    /// stopped does not go on, but whoever waits for it gets errors, too.
    fn leave_broken(&self, dev: &Device<Bound>) {
        Virtqueues::of(dev).close();
        let fate = self.controller.fate();
        let mut gated = self.gated.lock().take();
        if let (Some(gated), Fate::Reset | Fate::LeftReset) = (&mut gated, fate.get()) {
            gated.gate.abandon();
            fate.set(Fate::Abandoned);
        }
        if self.is_gated.xchg(false, Full) {
            self.release_config(dev);
        }
        drop(gated);
    }

    /// Resets the device and has its driver initialise it again, as for a reset of the function.
    /// One that has been left reset has only the second half of that to come.
    ///
    /// A driver that has nothing of that kind can't: what it has for a sleep of the system relies
    /// on there being no user space meanwhile.
    fn reinitialise(dev: &Device<Bound>, is_left_reset: bool) -> Result<(), Unrecovered> {
        let vdev = dev.as_raw();

        if !is_left_reset {
            // SAFETY: The device is valid and bound, its lock is held, and the context may sleep.
            to_result(unsafe { bindings::virtio_device_reset_prepare(vdev) })
                .map_err(Unrecovered::NotStopped)?;
        }
        // SAFETY: As above.
        to_result(unsafe { bindings::virtio_device_reset_done(vdev) }).map_err(Unrecovered::Stopped)
    }

    /// Waits for the lock of the device's parent, which whoever resets the function holds. Who
    /// removes it waits for the device lock, which the caller holds.
    fn lock_parent<'a>(&self, dev: &'a Device<Bound>) -> Result<ParentLock<'a>> {
        let patience = self.controller.patience(RECOVERY_MS);
        loop {
            if let Some(lock) = dev.try_lock_parent() {
                return Ok(lock);
            }
            patience
                .pause(Delta::from_millis(PARENT_STEP_MS))
                .map_err(|failure| failure.error)?;
        }
    }
}

/// Has it looked what became of a device, see [`Binding::reset_work`].
fn look_after_reset(dev: &Device<Bound>) {
    if let Some(binding) = super::find(dev.as_raw()).and_then(|entry| entry.binding()) {
        binding.reset_work(dev);
    }
}

/// Has the controller look at a device, see [`Controller::look`].
fn look(dev: &Device<Bound>) {
    if let Some(binding) = super::find(dev.as_raw()).and_then(|entry| entry.binding()) {
        binding.controller.look(&*binding, dev);
    }
}

/// Has the controller do what is asked of all devices, see [`Controller::run_errand`].
fn run_errand(dev: &Device<Bound>) {
    if let Some(binding) = super::find(dev.as_raw()).and_then(|entry| entry.binding()) {
        binding.controller.run_errand(&*binding, dev);
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
            Obstacle::NoQuiescer(why) => ("no-quiescer", why),
        }
    }

    fn can_keep_state(&self) -> bool {
        self.bed.is_made()
    }

    fn gate(&self, dev: &Device<Bound>, patience: &Patience<'_>) -> Result<(), Failure> {
        let quiescer = self
            .quiescer
            .ok_or(Failure::new(EOPNOTSUPP, self.obstacle().1))?;
        let module = ModuleRef::get(self.module)
            .ok_or(Failure::new(ENODEV, "virtio_suspend is being unloaded"))?;
        let queues = Virtqueues::of(dev);
        queues.check()?;

        let fate = self.controller.fate();
        fate.take_operating();
        // Until it operates again it can't be told from one that has reset itself.
        if fate.get() != Fate::Untouched {
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

    fn recover(&self, dev: &Device<Bound>, remedy: Remedy) -> Result<Outcome> {
        // Nobody resets it meanwhile.
        let parent = self.lock_parent(dev);
        let fate = self.controller.fate().get();
        // Somebody else is at it.
        if !matches!(fate, Fate::Untouched | Fate::LeftReset) {
            return Ok(Outcome::LeftToOthers);
        }
        let is_left_reset = fate == Fate::LeftReset;
        // It may be that nobody has enabled the function again.
        if remedy != Remedy::Reset || is_left_reset && !dev.is_parent_enabled() {
            self.leave_broken(dev);
            return Ok(Outcome::GivenUp);
        }
        let _parent = parent.inspect_err(|_| self.leave_broken(dev))?;
        // A driver that is not gated may wait for the device when it is to stop, for ever.
        if !is_left_reset && !self.is_gated() {
            self.gate(dev, &self.controller.patience(RECOVERY_MS))
                .map_err(|failure| failure.error)?;
        }

        self.recovering.store(true, Release);
        let result = Self::reinitialise(dev, is_left_reset);
        self.recovering.store(false, Release);

        match result {
            Ok(()) => {
                self.controller.fate().set(Fate::Untouched);
                self.reopen(dev);
                Ok(Outcome::Operates)
            }
            Err(Unrecovered::NotStopped(error)) => {
                self.leave_broken(dev);
                Err(error)
            }
            Err(Unrecovered::Stopped(error)) => {
                self.controller.fate().set(Fate::LeftReset);
                self.leave_broken(dev);
                Err(error)
            }
        }
    }

    /// [`Binding::end`] does, which waits for the watch.
    fn give_up(&self, _dev: &Device<Bound>) {}
}
