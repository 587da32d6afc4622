// SPDX-License-Identifier: GPL-2.0

//! The sleep of the system, and the devices that are suspended when it is to begin.
//!
//! Before the system sleeps, file systems are synced, which may have to wait for a device that
//! somebody has suspended. The order differs:
//!
//! - Hibernation notifies first, syncs then, and writes its image to a disk in the end. It is
//!   refused as long as a device is suspended, or about to be.
//! - Suspending to idle or to memory syncs first. That ends early, with [`EBUSY`], if the system is
//!   told to wake up. So it is told, every few seconds, while a device is suspended and nobody has
//!   been notified yet.
//!
//! Then tasks are frozen. One that waits for a suspended device, and can't be killed, can't be
//! frozen either, for which the system waits for 20 seconds, with all other tasks frozen. That ends
//! early, too, if the system is told to wake up. From then on it is not told any more.
//!
//! From the notification on until the system is awake no device is suspended. One that is can be
//! resumed as long as there is user space to ask for it.

use core::ptr::null_mut;

use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        global_lock, //
    },
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::Opaque, //
};

use super::{
    extension,
    later, //
};
use crate::{
    bindings::{
        self,
        delayed_work,
        notifier_block, //
    },
    sync::NoIo,
    Device, //
};

/// How long a sync, or the freezing of tasks, may go on that waits for a suspended device, in
/// milliseconds: about so long.
///
/// A sync that is just slow is ended, too, when it happens to be under way then.
const WAKE_UP_MS: Msecs = 3_000;

/// What the devices that can be suspended have to do with sleep.
struct State {
    /// Whether the system is about to sleep, sleeps, or is about to be awake.
    sleeping: bool,
    /// How many [`Member`]s there are; `held` has room for as many.
    members: usize,
    /// The devices that are suspended or about to be, and whose member each belongs to.
    held: KVec<(u64, ARef<Device>)>,
    /// The number of the next member.
    next: u64,
}

global_lock! {
    // SAFETY: `Sleep::new`, called when the module is loaded, initializes it before anything else
    // in the module can run.
    unsafe(uninit) static STATE: Mutex<State> = State {
        sleeping: false,
        members: 0,
        held: KVec::new(),
        next: 0,
    };
}

/// Calls `f` if the system is about to sleep, sleeps, or is about to be awake, before the latter is
/// made known. May sleep; `f` must not wait for anything.
pub(super) fn if_sleeping(f: impl FnOnce()) {
    let state = STATE.lock();
    if state.sleeping {
        f();
    }
}

/// A device that can be suspended.
pub(super) struct Member(u64);

impl Member {
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        // What is suspended may be what memory is written back to, and its resume needs the lock.
        let _no_io = NoIo::enter();
        let mut state = STATE.lock();
        let room = state.members + 1 - state.held.len();
        state.held.reserve(room, GFP_KERNEL)?;
        state.members += 1;
        state.next += 1;
        Ok(Self(state.next))
    }

    /// The device is about to be suspended. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the system is about to sleep.
    pub(super) fn hold(&self, dev: &Device) -> Result {
        let mut state = STATE.lock();
        if state.sleeping {
            return Err(EBUSY);
        }
        if !state.held.iter().any(|(member, _)| *member == self.0) {
            // There is room for each member.
            let _ = state.held.push_within_capacity((self.0, dev.into()));
            Sleep::schedule();
        }
        Ok(())
    }

    /// The device is not suspended any more. May sleep.
    pub(super) fn let_go(&self) {
        STATE.lock().held.retain(|(member, _)| *member != self.0);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.let_go();
        let mut state = STATE.lock();
        state.members -= 1;
        // A static is not dropped when its module is unloaded.
        if state.members == 0 {
            state.held = KVec::new();
        }
    }
}

/// Hears of the system's sleep, as long as the module is there.
///
/// # Invariants
///
/// The notifier is registered, and [`SLEEP`] points to this, from the end of [`Sleep::new`] until
/// it is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Sleep {
    #[pin]
    notifier: Opaque<notifier_block>,
    /// Tells the system to wake up.
    #[pin]
    wake_up: Opaque<delayed_work>,
}

// SAFETY: Neither a notifier nor work is tied to a thread.
unsafe impl Send for Sleep {}

// SAFETY: What is done with a shared reference synchronises itself.
unsafe impl Sync for Sleep {}

/// The [`Sleep`] of the module, null while there is none.
static SLEEP: Atomic<*mut c_void> = Atomic::new(null_mut());

impl Sleep {
    /// For the module's init function. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Pin<KBox<Self>>> {
        // SAFETY: A module is loaded once, and this is called from its init function only.
        unsafe { STATE.init() };

        let this = KBox::pin_init(
            pin_init!(Self {
                notifier: Opaque::new(notifier_block {
                    notifier_call: Some(changed),
                    ..Default::default()
                }),
                wake_up <- Opaque::ffi_init(|slot: *mut delayed_work| {
                    // SAFETY: `slot` is valid for writing, and pinned.
                    unsafe { bindings::init_delayed_work(slot, Some(wake_up)) };
                }),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The notifier stays where it is until it is unregistered.
        to_result(unsafe { bindings::register_pm_notifier(this.notifier.get()) })?;
        // INVARIANT: It is registered.
        SLEEP.store(core::ptr::from_ref(&*this).cast_mut().cast(), Release);
        Ok(this)
    }

    /// Has the system told to wake up, in a while. Any context.
    fn schedule() {
        let this = SLEEP.load(Acquire).cast::<Self>();
        if this.is_null() {
            return;
        }
        // SAFETY: By the type invariants it is there; whoever suspends a device is gone before it
        // is, and the work is cancelled.
        unsafe { later::queue((*this).wake_up.get(), msecs_to_jiffies(WAKE_UP_MS)) };
    }

    /// The same, but not from the moment on at which all tasks have been frozen, and not before
    /// they go on.
    ///
    /// What is frozen next are the workqueues that can be, on one of which this is.
    fn schedule_unless_frozen() {
        let this = SLEEP.load(Acquire).cast::<Self>();
        if this.is_null() {
            return;
        }
        // SAFETY: As above; the workqueue is one of the system's.
        unsafe {
            bindings::mod_delayed_work(
                bindings::system_freezable_wq,
                (*this).wake_up.get(),
                msecs_to_jiffies(WAKE_UP_MS),
            )
        };
    }
}

#[pinned_drop]
impl PinnedDrop for Sleep {
    fn drop(self: Pin<&mut Self>) {
        SLEEP.store(null_mut(), Release);
        // SAFETY: Both have been initialised. A notifier that has not been registered is not found,
        // which does nothing. There is no device any more that could be suspended.
        unsafe {
            bindings::unregister_pm_notifier(self.notifier.get());
            bindings::cancel_delayed_work_sync(self.wake_up.get());
        }
    }
}

/// Has a sync end that waits for a device which is suspended, or the freezing of tasks.
///
/// If there is neither, this is undone by the next sync, and by the beginning of the next freezing.
unsafe extern "C" fn wake_up(_work: *mut bindings::work_struct) {
    let state = STATE.lock();
    if state.held.is_empty() {
        return;
    }
    // SAFETY: Any context.
    unsafe { bindings::pm_system_wakeup() };
    if state.sleeping {
        Sleep::schedule_unless_frozen();
    } else {
        Sleep::schedule();
    }
}

/// The system is about to suspend: the devices that are suspended are minded.
fn prepare_to_suspend() {
    let mut state = STATE.lock();
    state.sleeping = true;
    if !state.held.is_empty() {
        Sleep::schedule_unless_frozen();
    }
}

/// The system is about to hibernate, or to restore what it was before that.
///
/// # Errors
///
/// [`EBUSY`] if a device is suspended.
fn prepare_to_hibernate() -> Result {
    let mut state = STATE.lock();
    for (_, dev) in &*state.held {
        dev_err!(
            dev,
            "the system can't hibernate while this is suspended: resume it\n"
        );
    }
    if !state.held.is_empty() {
        return Err(EBUSY);
    }
    state.sleeping = true;
    Ok(())
}

/// The system is awake.
fn awake() {
    let mut state = STATE.lock();
    state.sleeping = false;
    if !state.held.is_empty() {
        Sleep::schedule();
    }
}

/// The system is about to sleep, or awake again.
///
/// The extension is told by this, too, after the state of this file has been changed, whose lock is
/// not held then: whoever suspends a device takes it last.
unsafe extern "C" fn changed(_nb: *mut notifier_block, action: usize, _data: *mut c_void) -> c_int {
    // CAST: The number of an event.
    let prepared = match action as u32 {
        bindings::PM_SUSPEND_PREPARE => {
            prepare_to_suspend();
            extension::prepare_to_sleep().inspect_err(|_| awake())
        }
        bindings::PM_HIBERNATION_PREPARE | bindings::PM_RESTORE_PREPARE => prepare_to_hibernate()
            .and_then(|()| extension::prepare_to_sleep().inspect_err(|_| awake())),
        bindings::PM_POST_SUSPEND | bindings::PM_POST_HIBERNATION | bindings::PM_POST_RESTORE => {
            awake();
            extension::wake_up();
            Ok(())
        }
        _ => Ok(()),
    };
    match prepared {
        // CAST: 0.
        Ok(()) => bindings::NOTIFY_DONE as c_int,
        // As `notifier_from_errno()`, which the writer to /sys/power/state is told.
        Err(error) => {
            (bindings::NOTIFY_STOP_MASK | bindings::NOTIFY_OK) as c_int - error.to_errno()
        }
    }
}
