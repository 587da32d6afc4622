// SPDX-License-Identifier: GPL-2.0

//! The callbacks of a driver's virtqueues, taken away and called again.
//!
//! A virtqueue that is closed while its driver's callback runs can catch it between taking a buffer
//! out and adding it again, and drivers take no notice of the error: the buffer is lost. So the
//! callbacks are taken away before, and whoever runs one is waited for. What the device uses stays
//! in the used rings, and every callback is called when it is put back.
//!
//! # What keeps this sound
//!
//! - A virtqueue has its driver's callback, or [`held`], and never none: `vring_interrupt()` may
//!   read the pointer twice.
//! - Drivers rely on a callback not being called twice at the same time: some take no lock. An
//!   interrupt that comes while a callback is called here finds [`held`], which has it called once
//!   more by whoever does that already, see [`Replay`].
//! - A [`Detached`] that is never dropped keeps the extension from being unregistered, and so the
//!   code of [`held`] where it is.

use kernel::{
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        global_lock,
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

use super::{
    virtqueues::for_each,
    Gate,
    SystemSleep, //
};
use crate::{
    bindings::{
        self,
        virtqueue, //
    },
    Device, //
};

/// What a driver has called when its device has used buffers of a virtqueue.
type Callback = unsafe extern "C" fn(*mut virtqueue);

/// How many there are whose callbacks have been taken away.
static DETACHED: Atomic<usize> = Atomic::new(0);

global_lock! {
    // SAFETY: `init`, called when the module is loaded, initializes it before anything else in the
    // module can run.
    unsafe(uninit) static REPLAYING: Mutex<()> = ();
}

/// Called by the module's init function.
pub(super) fn init() {
    // SAFETY: A module is loaded once, and this is called from its init function only.
    unsafe { REPLAYING.init() };
}

/// Waits until all callbacks have been put back. May sleep.
pub(super) fn drain() {
    while DETACHED.load(Acquire) != 0 {
        fsleep(Delta::from_millis(1));
    }
}

/// The virtqueue whose callback is called right now, and how that goes; [`Replay::NONE`] if it is
/// none. With `REPLAYING` held, but for [`Replay::AGAIN`].
static REPLAY: Atomic<usize> = Atomic::new(Replay::NONE);

/// What [`REPLAY`] is made of: the address of a virtqueue, a multiple of four, and a phase.
struct Replay(());

impl Replay {
    const NONE: usize = 0;
    /// It is called.
    const BUSY: usize = 1;
    /// It is called, and is to be called once more.
    const AGAIN: usize = 2;
    /// It has been called, and is about to be put back.
    const OVER: usize = 3;
}

const _: () = assert!(align_of::<virtqueue>() >= 4);

/// In place of a callback that has been taken away.
///
/// # Safety
///
/// As for any callback: the virtqueue must be valid, and not be deleted meanwhile.
unsafe extern "C" fn held(vq: *mut virtqueue) {
    let at = vq.addr();
    loop {
        let replay = REPLAY.load(Acquire);
        if replay == at | Replay::AGAIN {
            return;
        }
        if replay == at | Replay::BUSY {
            // Whoever calls it has not had the last look at this before it is told.
            if REPLAY.cmpxchg(replay, at | Replay::AGAIN, Full).is_ok() {
                return;
            }
            continue;
        }
        // SAFETY: By the safety requirements the virtqueue is valid.
        match unsafe { own_callback(vq) } {
            // It has been called and put back since the interrupt began.
            //
            // SAFETY: This is the context of a callback, and nobody calls it here any more.
            Some(callback) => return unsafe { callback(vq) },
            // Some instructions from being put back, with interrupts disabled.
            None if replay == at | Replay::OVER => core::hint::spin_loop(),
            // It will be called, and find what was used before the interrupt.
            None => return,
        }
    }
}

/// What a callback is compared with. One function may have several addresses; this is one of them.
static HELD: Callback = held;

/// Returns the driver's own callback of a virtqueue. [`None`] if it has none, or not now.
///
/// # Safety
///
/// The virtqueue must be valid.
unsafe fn own_callback(vq: *mut virtqueue) -> Option<Callback> {
    // SAFETY: By the safety requirements. It may be changed meanwhile, in one piece.
    unsafe { (&raw const (*vq).callback).read_volatile() }
        .filter(|callback| !core::ptr::fn_addr_eq(*callback, HELD))
}

/// # Safety
///
/// The virtqueue must be valid, and the callback be that of its driver, or `HELD`.
unsafe fn set_callback(vq: *mut virtqueue, callback: Callback) {
    // SAFETY: By the safety requirements. Whoever reads it meanwhile finds the one or the other.
    unsafe { (&raw mut (*vq).callback).write_volatile(Some(callback)) };
}

/// Calls a callback that has been taken away, and puts it back.
///
/// # Safety
///
/// The virtqueue must be valid, have `HELD`, and its driver the callback. The context must be that
/// of an interrupt handler, with `REPLAYING` held.
unsafe fn replay(vq: *mut virtqueue, callback: Callback) {
    let at = vq.addr();
    loop {
        // Whoever has seen something else here came with what was used before: it is found below.
        REPLAY.xchg(at | Replay::BUSY, Full);
        // SAFETY: By the safety requirements; interrupts call `held`, so this is the only call.
        unsafe { callback(vq) };
        if REPLAY
            .cmpxchg(at | Replay::BUSY, at | Replay::OVER, Full)
            .is_ok()
        {
            break;
        }
    }
    // SAFETY: By the safety requirements.
    unsafe { set_callback(vq, callback) };
    // Whoever sees this sees the callback.
    REPLAY.store(Replay::NONE, Release);
}

/// The callbacks of a device's virtqueues, which have been taken away: when this is dropped, they
/// are put back, and each of them is called once.
pub struct Detached {
    dev: ARef<Device>,
    /// By the index of their virtqueue.
    callbacks: KVec<(u32, Callback)>,
}

impl Detached {
    /// Takes the callbacks of those virtqueues away, which are valid when `of` is called, and waits
    /// until none runs. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(dev: &Device, of: impl Fn(*mut virtqueue) -> bool) -> Result<Self> {
        let mut count = 0;
        for_each(dev, |_| count += 1);
        let mut callbacks = KVec::with_capacity(count, GFP_KERNEL)?;
        for_each(dev, |vq| {
            // SAFETY: The virtqueue is valid.
            unsafe {
                if let (true, Some(callback)) = (of(vq), own_callback(vq)) {
                    // There is room: the device has no other virtqueues than above.
                    if callbacks
                        .push_within_capacity(((*vq).index, callback))
                        .is_ok()
                    {
                        set_callback(vq, HELD);
                    }
                }
            }
        });
        DETACHED.fetch_add(1, Full);
        let this = Self {
            dev: dev.into(),
            callbacks,
        };
        dev.synchronize_callbacks();
        Ok(this)
    }
}

impl Gate for Detached {
    /// There are no virtqueues.
    fn abandon(&mut self) {}

    fn system_sleep(&self) -> SystemSleep {
        // The driver deletes the virtqueues, and sets up others, with callbacks.
        SystemSleep::Allowed
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        let replaying = REPLAYING.lock();
        // SAFETY: The pairing call is below.
        unsafe { bindings::local_bh_disable() };
        for_each(&self.dev, |vq| {
            // SAFETY: The virtqueue is valid, here and below.
            let (index, has_own) = unsafe { ((*vq).index, own_callback(vq).is_some()) };
            let taken = self.callbacks.iter().find(|taken| taken.0 == index);
            if let (false, Some((_, callback))) = (has_own, taken) {
                // SAFETY: Without one of its own it has `HELD`, and this is what it had before.
                // The context is that of `for_each`.
                unsafe { replay(vq, *callback) };
            }
        });
        // What was raised above is run now, as after an interrupt.
        //
        // SAFETY: Bottom halves have been disabled above.
        unsafe { bindings::local_bh_enable() };
        drop(replaying);
        DETACHED.fetch_sub(1, Full);
    }
}
