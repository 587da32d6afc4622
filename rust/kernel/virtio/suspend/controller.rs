// SPDX-License-Identifier: GPL-2.0

//! The controller: one for each device, it does what is asked through sysfs.

use kernel::{
    device::Bound,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

use super::{
    config::Turnstile,
    debugfs::{
        Directory,
        Records, //
    },
    failure::Failure,
    fate::FateCell,
    group::{
        self,
        Seat, //
    },
    later::Later,
    operations::Operations,
    patience::{
        Interruption,
        Patience, //
    },
    protocol::{
        self,
        Goal,
        Reason,
        Revision,
        State, //
    },
    sleep::{
        self,
        Member, //
    },
    state_machine::{
        Change,
        Denial,
        Next,
        Outcome,
        StateMachine,
        Surroundings,
        Watch, //
    },
    sysfs,
    trace, //
};
use crate::{
    compat::EALREADY,
    sync::{
        lock_class,
        Completion, //
    },
    Device,
    Feature, //
};

#[path = "controller/drive.rs"]
mod drive;
#[path = "controller/recovery.rs"]
mod recovery;
#[path = "controller/request.rs"]
mod request;
#[path = "controller/system_sleep.rs"]
mod system_sleep;

pub(crate) use self::system_sleep::Bedtime;

/// The deadline of a transition unless it is set through sysfs, in milliseconds.
pub(super) const DEFAULT_TIMEOUT_MS: u32 = 10_000;

/// The deadlines that can be set through sysfs, in milliseconds.
pub(super) const TIMEOUT_MS: core::ops::RangeInclusive<u32> = 1..=600_000;

/// How long a device may take to resume when it is unbound, in milliseconds.
const UNBIND_MS: u32 = 1_000;

/// How long a request can go on when the system goes down, in milliseconds: it is interrupted, and
/// what it has begun is taken back.
// CAST: `protocol::ROLLBACK_NS` is a second.
const SHUT_DOWN_MS: usize = 1_000 + (protocol::ROLLBACK_NS / 1_000_000) as usize;

/// Accepts one of the revisions that are in the negotiated features, and takes back the other.
///
/// Called before FEATURES_OK, by [`Driver`](crate::Driver) registrations that support SUSPEND. The
/// virtio core writes the features again if they were changed.
pub(crate) fn negotiate(dev: &Device, driver_has_42: bool) {
    let accepted = revision(dev, driver_has_42);

    if accepted != Some(Revision::V1_4) {
        dev.clear_feature(Feature::SUSPEND);
    }
    if accepted != Some(Revision::Draft) && !driver_has_42 {
        dev.clear_feature(Feature::SUSPEND_DRAFT);
    }
}

/// Returns the revision of SUSPEND that has been negotiated, after [`negotiate`].
pub(crate) fn revision(dev: &Device, driver_has_42: bool) -> Option<Revision> {
    // A legacy device has no FEATURES_OK, without which SUSPEND must not be set (D2).
    if !dev.test_feature(Feature::VERSION_1) {
        return None;
    }
    protocol::negotiate(
        dev.test_feature(Feature::SUSPEND),
        dev.test_feature(Feature::SUSPEND_DRAFT),
        dev.device_type(),
        driver_has_42,
    )
}

/// Returns the revision of SUSPEND to negotiate with a device for a driver that does not have it in
/// its feature table. VIRTIO_F_VERSION_1 has been negotiated, or has not. May sleep.
pub(crate) fn negotiate_offered(dev: &Device, driver_has_42: bool) -> Option<Revision> {
    if !dev.test_feature(Feature::VERSION_1) {
        return None;
    }
    let draft = *crate::parameters::draft.value_ref();
    protocol::negotiate(
        dev.offers(Feature::SUSPEND),
        draft && dev.offers(Feature::SUSPEND_DRAFT),
        dev.device_type(),
        driver_has_42,
    )
}

/// What sysfs shows, beside the state.
#[derive(Clone, Copy)]
pub(super) struct Stats {
    pub(super) timeout_ms: u32,
    pub(super) suspends: u64,
    pub(super) resumes: u64,
    pub(super) failures: u64,
    pub(super) recoveries: u64,
    pub(super) quirks: u64,
    pub(super) sleeps_kept: u64,
    pub(super) sleeps_reset: u64,
    /// Whether the device is to keep its state when the system sleeps.
    pub(super) keep: bool,
    pub(super) last_suspend_ns: i64,
    pub(super) last_resume_ns: i64,
    pub(super) last_error: Option<Failure>,
}

struct Inner {
    machine: StateMachine,
    stats: Stats,
    /// Whether the log tells of the first of the quirks.
    quirk_reported: bool,
    /// When the device was last recovered.
    recovered: Option<Instant<Monotonic>>,
    /// How long the device is still to be looked at.
    watch: Watch,
    directory: Option<Directory>,
}

/// The controller of a device.
///
/// What it decides is in [`StateMachine`]. The rest is done here: locks, time, and what comes of a
/// decision.
///
/// `inner` is only locked for a moment, never while the device is waited for: a request marks
/// itself in the state, so that another one is told [`EBUSY`]. `order` is taken before `inner`, for
/// a change of the state and its announcement.
#[pin_data]
pub(crate) struct Controller {
    revision: Option<Revision>,
    #[pin]
    inner: Mutex<Inner>,
    /// Makes the world hear of changes in the order in which they happen.
    #[pin]
    order: Mutex<()>,
    /// Ends requests that wait.
    #[pin]
    interruption: Interruption,
    /// Whether the system is about to sleep, sleeps, or is about to be awake, so that nobody but
    /// user space asks the device for anything. Set before it is looked whether something is under
    /// way, and looked at with `inner` locked.
    sleeping: Atomic<bool>,
    member: Member,
    /// What is done when all devices are suspended, or resumed, at once.
    errand: fn(&Device<Bound>),
    #[pin]
    seat: Mutex<Option<Arc<Seat>>>,
    /// Where reads of the configuration space pass.
    #[pin]
    config_reads: Turnstile,
    /// What others have done to the device by a reset.
    fate: FateCell,
    /// Looks at a device, see [`Controller::look`].
    #[pin]
    watch: Later,
    /// Done when something has been done about a device that had failed, or can't be now.
    #[pin]
    attended: Completion,
    records: Arc<Records>,
}

impl Controller {
    /// `look` is to call [`Controller::look`], and `errand` [`Controller::run_errand`].
    pub(crate) fn new(
        revision: Option<Revision>,
        look: fn(&Device<Bound>),
        errand: fn(&Device<Bound>),
    ) -> impl PinInit<Self, Error> {
        let inner = lock_class!(c"suspend::Controller::inner");
        let order = lock_class!(c"suspend::Controller::order");
        let seat = lock_class!(c"suspend::Controller::seat");
        try_pin_init!(Self {
            revision,
            inner <- Mutex::new(Inner {
                machine: StateMachine::running(),
                stats: Stats {
                    timeout_ms: DEFAULT_TIMEOUT_MS,
                    suspends: 0,
                    resumes: 0,
                    failures: 0,
                    recoveries: 0,
                    quirks: 0,
                    sleeps_kept: 0,
                    sleeps_reset: 0,
                    keep: *crate::parameters::sleep_keep.value_ref(),
                    last_suspend_ns: 0,
                    last_resume_ns: 0,
                    last_error: None,
                },
                quirk_reported: false,
                recovered: None,
                watch: Watch::OFF,
                directory: None,
            }, inner.0, inner.1),
            order <- Mutex::new((), order.0, order.1),
            interruption <- Interruption::new(),
            sleeping: Atomic::new(false),
            member: Member::new()?,
            errand,
            seat <- Mutex::new(None, seat.0, seat.1),
            config_reads <- Turnstile::new(),
            fate: FateCell::new(),
            watch <- Later::new(look),
            attended <- Completion::new(),
            records: Arc::pin_init(Records::new(), GFP_KERNEL)?,
        })
    }

    /// Calls `f` unless the device is suspended, with no request to suspend it before the end of
    /// that. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device is suspended, or a request is under way.
    pub(crate) fn while_running<R>(&self, f: impl FnOnce() -> R) -> Result<R> {
        let _order = self.order.lock();
        if self.inner.lock().machine.is_gated() {
            return Err(EBUSY);
        }
        Ok(f())
    }

    /// Returns whether the device has been neither suspended nor given up, nor is about to be.
    pub(crate) fn is_running(&self) -> bool {
        self.inner.lock().machine.is_running()
    }

    /// Returns what others have done to the device by a reset, for whoever hears of that.
    pub(crate) fn fate(&self) -> &FateCell {
        &self.fate
    }

    /// Returns where reads of the configuration space pass: not between a request to the device and
    /// its answer (rules D3 and D8).
    pub(crate) fn config_reads(&self) -> &Turnstile {
        &self.config_reads
    }

    /// Returns whether the device is watched, and recovered when it fails.
    pub(crate) fn can_recover(&self) -> bool {
        self.revision.is_some() && *crate::parameters::recover.value_ref()
    }

    /// Returns whether SUSPEND has been negotiated.
    pub(crate) fn has_revision(&self) -> bool {
        self.revision.is_some()
    }

    /// The device is in operation: makes room for its records, and shows them.
    pub(crate) fn publish(&self, dev: &Device<Bound>, queues: usize) -> Result {
        if self.revision.is_none() {
            return Ok(());
        }
        self.records.queues.lock().reserve(queues, GFP_KERNEL)?;

        let directory = Directory::new(dev.index(), self.records.clone())?;
        self.inner.lock().directory = Some(directory);
        let seat = group::join(dev, self.errand)?;
        *self.seat.lock() = Some(seat);
        Ok(())
    }

    /// The device is about to be unbound: requests that wait for it end.
    pub(crate) fn unbind(&self) {
        self.interruption.unbinding();
    }

    /// The same, and nothing is asked of it any more together with all others; what is under way is
    /// waited for. May sleep.
    pub(crate) fn leave_group(&self) {
        self.unbind();
        let seat = self.seat.lock().take();
        if let Some(seat) = seat {
            group::leave(&seat);
        }
    }

    /// Does what is asked of all devices at once.
    pub(crate) fn run_errand(&self, ops: &dyn Operations, dev: &Device<Bound>) {
        let Some(seat) = self.seat.lock().clone() else {
            return;
        };
        group::carry_out(&seat, |goal, limit| {
            self.request(ops, dev, goal, Some(limit)).map_err(|error| {
                match self.stats().last_error {
                    Some(failure) if failure.error == error => failure,
                    _ => Failure::new(error, "the request was refused"),
                }
            })
        });
    }

    /// Watches a device while it is unbound: the virtio core passes no configuration changes on any
    /// more, by which it could say that it needs a reset.
    ///
    /// The device lock must be held, and `cancel` called before the device is stopped.
    pub(crate) fn watch_unbind(&self, dev: &Device<Bound>) {
        // Of the former it is known already, unless the device was bound before the notifier was
        // registered.
        self.leave_group();
        self.watch_start(dev);
    }

    /// Watches a device while its driver is started, until [`Controller::end_watch`]: as above.
    pub(crate) fn watch_start(&self, dev: &Device<Bound>) {
        if self.revision.is_some() {
            self.watch(dev, u32::MAX);
        }
    }

    /// Ends what [`Controller::watch_start`] began. May sleep.
    pub(crate) fn end_watch(&self) {
        self.inner.lock().watch = Watch::OFF;
        self.watch.cancel();
    }

    /// The device is about to be reset. Whatever was asked of it is void.
    pub(crate) fn stop(&self) {
        self.inner.lock().machine.forget_asked();
    }

    /// The system is about to sleep: from here on nothing is done with the device but what user
    /// space asks for.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a request is under way, or the device is being recovered.
    pub(crate) fn prepare_to_sleep(&self) -> Result {
        // Who looks at the device holds it.
        let _order = self.order.lock();
        self.sleeping.store(true, Release);
        Ok(self.inner.lock().machine.prepare_to_sleep()?)
    }

    /// The driver has been bound: if the system is about to sleep, that is not news for others.
    pub(crate) fn join_sleep(&self) {
        sleep::if_sleeping(|| self.sleeping.store(true, Release));
    }

    /// The device is about to be stopped by others: the system sleeps, or the function is reset.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a request is under way.
    pub(crate) fn freeze(&self) -> Result {
        Ok(self.inner.lock().machine.freeze()?)
    }

    /// The system is about to go down: nothing that is under way puts the device into operation
    /// again, and no request is under way any more when this returns. May sleep.
    pub(crate) fn shut_down(&self) {
        self.inner.lock().machine.shut_down();
        self.interruption.going_down();
        for _ in 0..SHUT_DOWN_MS {
            if !self.inner.lock().machine.in_transition() {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
    }

    /// The system is awake, or the function has been reset, and the device has been initialised
    /// again: it runs, if that succeeded. If not, those who wait for it have been told.
    pub(crate) fn thaw(&self, dev: &Device<Bound>, result: Result) {
        let outcome = if result.is_ok() {
            Outcome::Operates
        } else {
            Outcome::GivenUp
        };
        let order = self.order.lock();
        let next = self.inner.lock().machine.thaw(outcome);
        match (result, next.change) {
            (Err(error), Some(change)) => {
                let why = "device could not be initialised after a sleep or a reset";
                self.announce_failure(order, dev, change, Failure::new(error, why));
            }
            // What has failed before, for whatever reason, has been told then.
            _ => self.follow(order, dev, next, result),
        }
        self.attended.complete_all();
    }

    /// The system is awake. What has become of the device is yet to be seen.
    pub(crate) fn wake_up(&self) {
        self.sleeping.store(false, Release);
    }

    /// Returns whether the system is about to sleep, sleeps, or is about to be awake, of which the
    /// controller has been told.
    pub(super) fn is_sleeping(&self) -> bool {
        self.sleeping.load(Acquire)
    }

    /// Returns what others are about to do with the device.
    fn others(&self) -> Surroundings {
        Surroundings {
            unbinding: self.is_unbinding(),
            sleeping: self.is_sleeping(),
            reset: self.fate.foreign_reset(),
        }
    }

    /// The device is about to be unbound, and nobody but the caller uses the controller: nothing is
    /// done later any more, and nothing shown. May sleep.
    pub(crate) fn close(&self) {
        self.leave_group();
        self.watch.close();
        let directory = self.inner.lock().directory.take();
        drop(directory);
    }

    /// Resumes a device that is suspended, after [`Controller::close`]. May sleep, for a second.
    ///
    /// Returns whether it runs.
    pub(crate) fn resume_to_unbind(&self, dev: &Device<Bound>) -> bool {
        let (Some(revision), State::Suspended) = (self.revision, self.state()) else {
            return false;
        };
        let patience = Patience::of_unbinder(self.stats().timeout_ms.min(UNBIND_MS));
        self.drive(dev, revision, Goal::Resume, &patience).is_ok()
    }

    /// The device is about to be stopped by somebody else than the controller itself.
    pub(crate) fn cancel(&self) {
        self.watch.cancel();
        self.attended.complete_all();
    }

    /// Returns how long whoever does something with the device waits for it: `timeout_ms`
    /// milliseconds at most.
    pub(super) fn patience(&self, timeout_ms: u32) -> Patience<'_> {
        Patience::new(timeout_ms, &self.interruption)
    }

    /// Returns whether the device is about to be unbound.
    fn is_unbinding(&self) -> bool {
        self.interruption.reason() == Some(Reason::Unbinding)
    }

    /// Returns the revision of the feature, if it has been negotiated.
    pub(super) fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// Returns the state of the device.
    pub(super) fn state(&self) -> State {
        self.inner.lock().machine.state()
    }

    /// Returns a copy of what else sysfs shows.
    pub(super) fn stats(&self) -> Stats {
        self.inner.lock().stats
    }

    /// Sets the deadline of transitions.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is out of range.
    pub(super) fn set_timeout_ms(&self, timeout_ms: u32) -> Result {
        if !TIMEOUT_MS.contains(&timeout_ms) {
            return Err(EINVAL);
        }
        self.inner.lock().stats.timeout_ms = timeout_ms;
        Ok(())
    }

    /// Counts a failure.
    fn record(&self, failure: Failure) {
        let stats = &mut self.inner.lock().stats;
        stats.failures += 1;
        stats.last_error = Some(failure);
    }

    /// Does what is to be done when something is over. `order` has been locked since before.
    fn follow(&self, order: MutexGuard<'_, ()>, dev: &Device<Bound>, next: Next, result: Result) {
        if let Some(change) = next.change {
            self.announce(dev, change, result);
        }
        drop(order);
        if next.look {
            self.look_soon(dev);
        }
    }

    /// Tells the world of a change of state: who polls `state`, who listens to uevents, and the
    /// trace.
    fn announce(&self, dev: &Device<Bound>, change: Change, result: Result) {
        if change.lets_go() {
            self.member.let_go();
            if let Some(seat) = &*self.seat.lock() {
                seat.let_go();
            }
        }
        trace::transition(dev, change.from, change.to, result);
        sysfs::notify(dev);
        if let Some(state) = change.event() {
            sysfs::uevent(dev, state);
        }
    }
}

impl From<Denial> for Error {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Already => EALREADY,
            Denial::Busy => EBUSY,
            Denial::Failed => EIO,
            Denial::Unbinding => ENODEV,
        }
    }
}
