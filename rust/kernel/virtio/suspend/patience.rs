// SPDX-License-Identifier: GPL-2.0

//! How long a request waits, and what ends that early.

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Release, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    },
};

use super::{
    failure::Failure,
    protocol::{
        Reason,
        ROLLBACK_NS, //
    }, //
};
use crate::{
    bindings,
    compat::as_millis_ceil,
    sync::Completion, //
};

/// Up to this many nanoseconds a wait is so short that it need not be interrupted.
const SHORT_WAIT_NS: i64 = 1_000_000;

/// How long a wait is that nothing but a fatal signal interrupts before it is looked for one, in
/// nanoseconds.
const SLICE_NS: i64 = 20_000_000;

/// How long a wait is that is not woken before it is looked whether it is to be ended, in
/// milliseconds.
const SLICE_MS: u32 = 20;

/// Why nobody is to wait for a device any more: its driver is about to be unbound, or the system
/// to go down.
#[pin_data]
pub(super) struct Interruption {
    #[pin]
    raised: Completion,
    going_down: Atomic<bool>,
}

impl Interruption {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            raised <- Completion::new(),
            going_down: Atomic::new(false),
        })
    }

    /// The driver is about to be unbound. Any context.
    pub(super) fn unbinding(&self) {
        self.raised.complete_all();
    }

    /// The system is about to go down. Any context.
    pub(super) fn going_down(&self) {
        self.going_down.store(true, Release);
        self.raised.complete_all();
    }

    /// Returns what has happened, if something has. Any context.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.raised.is_done().then(|| self.why())
    }

    fn why(&self) -> Reason {
        if self.going_down.load(Acquire) {
            Reason::GoingDown
        } else {
            Reason::Unbinding
        }
    }
}

/// The deadline of a request to several devices.
pub(super) struct Limit<'a> {
    started: Instant<Monotonic>,
    timeout_ms: u32,
    /// Whether nobody is to wait any more.
    called_off: &'a Atomic<bool>,
}

impl<'a> Limit<'a> {
    pub(super) fn new(
        started: Instant<Monotonic>,
        timeout_ms: u32,
        called_off: &'a Atomic<bool>,
    ) -> Self {
        Self {
            started,
            timeout_ms,
            called_off,
        }
    }
}

/// How long a request is to wait for a device, whatever it waits for: it has one deadline.
///
/// Whoever waits for something that can take its time asks in between, by
/// [`check`](Patience::check) or [`pause`](Patience::pause), and gives up when that fails. Whatever
/// a request has begun must then be taken back, for which there is no more time than about a
/// second.
pub struct Patience<'a> {
    started: Instant<Monotonic>,
    timeout: Delta,
    interruption: Option<&'a Interruption>,
    called_off: Option<&'a Atomic<bool>>,
}

impl<'a> Patience<'a> {
    /// One that lasts for `timeout_ms` milliseconds from now on, if nothing interrupts it.
    pub(super) fn new(timeout_ms: u32, interruption: &'a Interruption) -> Self {
        Self {
            started: Instant::now(),
            timeout: Delta::from_millis(timeout_ms.into()),
            interruption: Some(interruption),
            called_off: None,
        }
    }

    /// One that lasts as long as that of a request to several devices, of which this is one.
    pub(super) fn within(limit: &Limit<'a>, interruption: &'a Interruption) -> Self {
        Self {
            started: limit.started,
            timeout: Delta::from_millis(limit.timeout_ms.into()),
            interruption: Some(interruption),
            called_off: Some(limit.called_off),
        }
    }

    /// One that ends after `timeout_ms` milliseconds, or when the task is killed, but not because
    /// the device is about to be unbound: for the task that does it.
    pub(super) fn of_unbinder(timeout_ms: u32) -> Self {
        Self {
            started: Instant::now(),
            timeout: Delta::from_millis(timeout_ms.into()),
            interruption: None,
            called_off: None,
        }
    }

    /// Returns how much time is left, which may be none.
    pub fn left(&self) -> Delta {
        let left = self.timeout - self.started.elapsed();
        if left.is_negative() {
            Delta::ZERO
        } else {
            left
        }
    }

    /// Returns whether it is worth to wait any longer. Process context; does not sleep.
    ///
    /// # Errors
    ///
    /// [`ETIMEDOUT`] after the deadline, [`EINTR`] if the task has been killed, [`ENODEV`] if the
    /// driver is about to be unbound, [`EBUSY`] if the system is about to go down.
    pub fn check(&self) -> Result<(), Failure> {
        self.interrupted()?;
        if self.left().is_zero() {
            return Err(Reason::Timeout.into());
        }
        Ok(())
    }

    /// Sleeps for about `delta`, but neither past the deadline nor when there is nothing to wait
    /// for any more. May sleep.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Patience::check), after the pause.
    pub fn pause(&self, delta: Delta) -> Result<(), Failure> {
        let left = self.left().as_nanos();
        self.sleep(delta.as_nanos().min(left))?;
        self.check()
    }

    /// Waits until `done`, in the second after the deadline, too, in which what a request has begun
    /// is taken back, but not when there is another reason not to. May sleep.
    pub(super) fn wait_to_the_end(&self, done: &Completion) {
        // CAST: A second.
        let end = self.timeout + Delta::from_nanos(ROLLBACK_NS as i64);
        while self.started.elapsed() < end && self.interrupted().is_ok() {
            let slice = msecs_to_jiffies(SLICE_MS);
            if !matches!(done.wait_killable_timeout(slice), Ok(false)) {
                return;
            }
        }
    }

    /// Why the wait is over, but for the deadline.
    fn interrupted(&self) -> Result<(), Reason> {
        if let Some(why) = self.interruption.and_then(Interruption::reason) {
            return Err(why);
        }
        let called_off = self.called_off.is_some_and(|called| called.load(Acquire));
        // SAFETY: Any context.
        if called_off || unsafe { bindings::fatal_signal_pending() } {
            return Err(Reason::Killed);
        }
        Ok(())
    }

    /// Sleeps for about `ns` nanoseconds, whether the deadline is over or not, or until there is
    /// another reason not to. May sleep.
    pub(super) fn sleep(&self, ns: i64) -> Result<(), Reason> {
        // What is called off is not woken.
        let (Some(interruption), None) = (self.interruption, self.called_off) else {
            let mut left = ns;
            while left > 0 {
                self.interrupted()?;
                fsleep(Delta::from_nanos(left.min(SLICE_NS)));
                left -= SLICE_NS;
            }
            return Ok(());
        };
        if ns <= SHORT_WAIT_NS {
            fsleep(Delta::from_nanos(ns.max(0)));
            return Ok(());
        }
        // CAST: Less than the range of `timeout_ms`.
        let ms = as_millis_ceil(Delta::from_nanos(ns)) as u32;
        match interruption
            .raised
            .wait_killable_timeout(msecs_to_jiffies(ms))
        {
            Ok(false) => Ok(()),
            Ok(true) => Err(interruption.why()),
            Err(_) => Err(Reason::Killed),
        }
    }
}
