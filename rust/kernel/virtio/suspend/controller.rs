// SPDX-License-Identifier: GPL-2.0

//! The controller: one for each device, it does what is asked through sysfs.

use kernel::{
    device::Bound,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        MutexGuard, //
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
    debugfs::{
        Directory,
        Records, //
    },
    failure::{
        Failure,
        Refusal, //
    },
    later::Later,
    operations::Operations,
    protocol::{
        self,
        Action,
        Goal,
        Reason,
        Revision,
        State,
        Transition, //
    },
    sysfs,
    trace, //
};
use crate::{
    device::DeviceLock,
    sync::{
        lock_class,
        Completion,
        NoIo, //
    },
    Device,
    Feature,
    Status, //
};

/// The deadline of a transition unless it is set through sysfs, in milliseconds.
const DEFAULT_TIMEOUT_MS: u32 = 10_000;

/// The deadlines that can be set through sysfs, in milliseconds.
const TIMEOUT_MS: core::ops::RangeInclusive<u32> = 1..=600_000;

/// How long a device that did not suspend in time is watched, in milliseconds: there are devices
/// that do not listen to the driver's change of mind, and suspend nevertheless.
const WATCH_MS: u32 = 60_000;

/// The shortest and the longest time between two looks at such a device, in milliseconds.
const WATCH_STEP_MS: core::ops::RangeInclusive<u32> = 10..=1_000;

/// A device that breaks by itself so shortly after it was recovered is not recovered again.
const RECOVERY_INTERVAL: Delta = Delta::from_secs(10);

/// How long a device may take to resume when it is unbound, in milliseconds.
const UNBIND_MS: u32 = 1_000;

/// How often, with a millisecond between, the device lock is tried to be taken.
const LOCK_TRIES: usize = 1000;

/// Up to this many nanoseconds a wait is so short that it need not be interrupted.
const SHORT_WAIT_NS: u64 = 1_000_000;

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
    let draft = *crate::module_parameters::draft.value_ref();
    protocol::negotiate(
        dev.offers(Feature::SUSPEND),
        draft && dev.offers(Feature::SUSPEND_DRAFT),
        dev.device_type(),
        driver_has_42,
    )
}

/// How it was found out that a device has failed.
#[derive(Clone, Copy)]
enum Cause {
    /// By a request.
    Request,
    /// By the watch, which may have recovered it right before.
    Watch { hopeless: bool },
}

/// What sysfs shows.
#[derive(Clone, Copy)]
pub(super) struct Stats {
    pub(super) state: State,
    pub(super) timeout_ms: u32,
    pub(super) suspends: u64,
    pub(super) resumes: u64,
    pub(super) failures: u64,
    pub(super) recoveries: u64,
    pub(super) quirks: u64,
    pub(super) last_suspend_ns: i64,
    pub(super) last_resume_ns: i64,
    pub(super) last_error: Option<Failure>,
}

struct Inner {
    stats: Stats,
    /// Whether the system sleeps: the device is not there to be asked.
    frozen: bool,
    /// When the device was last recovered.
    recovered: Option<Instant<Monotonic>>,
    /// Whether the device has been asked to resume, and has not done so yet.
    resume_asked: bool,
    /// For how many milliseconds the device is still to be watched, and until the next look.
    watch: (u32, u32),
    /// Whether there was a reason to look at the device while it was not running.
    look_due: bool,
    directory: Option<Directory>,
}

/// The controller of a device.
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
    /// Done when the device is about to be unbound.
    #[pin]
    unbinding: Completion,
    /// Looks at a device, see [`Controller::look`].
    #[pin]
    watch: Later,
    records: Arc<Records>,
}

impl Controller {
    /// `look` is to call [`Controller::look`].
    pub(crate) fn new(
        revision: Option<Revision>,
        look: fn(&Device<Bound>),
    ) -> impl PinInit<Self, Error> {
        let inner = lock_class!(c"suspend::Controller::inner");
        let order = lock_class!(c"suspend::Controller::order");
        try_pin_init!(Self {
            revision,
            inner <- Mutex::new(Inner {
                stats: Stats {
                    state: State::Running,
                    timeout_ms: DEFAULT_TIMEOUT_MS,
                    suspends: 0,
                    resumes: 0,
                    failures: 0,
                    recoveries: 0,
                    quirks: 0,
                    last_suspend_ns: 0,
                    last_resume_ns: 0,
                    last_error: None,
                },
                frozen: false,
                recovered: None,
                resume_asked: false,
                watch: (0, 0),
                look_due: false,
                directory: None,
            }, inner.0, inner.1),
            order <- Mutex::new((), order.0, order.1),
            unbinding <- Completion::new(),
            watch <- Later::new(look),
            records: Arc::pin_init(Records::new(), GFP_KERNEL)?,
        })
    }

    /// Calls `f` unless the device is suspended, with no request to suspend it before the end of
    /// that. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device is suspended, or a request is under way.
    pub(crate) fn while_running(&self, f: impl FnOnce()) -> Result {
        let _order = self.order.lock();
        let inner = self.inner.lock();
        // A device that is initialised again after the sleep of the system is not suspended.
        let busy = !inner.frozen && !matches!(inner.stats.state, State::Running | State::Failed);
        drop(inner);
        if busy {
            return Err(EBUSY);
        }
        f();
        Ok(())
    }

    /// Returns whether the device has been neither suspended nor given up, nor is about to be.
    pub(crate) fn is_running(&self) -> bool {
        let inner = self.inner.lock();
        inner.stats.state == State::Running && !inner.frozen
    }

    /// Returns whether the device is watched, and recovered when it fails.
    pub(crate) fn can_recover(&self) -> bool {
        self.revision.is_some() && *crate::module_parameters::recover.value_ref()
    }

    /// The device is in operation: makes room for its records, and shows them.
    pub(crate) fn publish(&self, dev: &Device<Bound>, queues: usize) -> Result {
        if self.revision.is_none() {
            return Ok(());
        }
        self.records.queues.lock().reserve(queues, GFP_KERNEL)?;

        let directory = Directory::new(dev.index(), self.records.clone())?;
        self.inner.lock().directory = Some(directory);
        Ok(())
    }

    /// The device is about to be unbound: requests that wait for it end.
    pub(crate) fn unbind(&self) {
        self.unbinding.complete_all();
    }

    /// Watches a device while it is unbound: the virtio core passes no configuration changes on any
    /// more, by which it could say that it needs a reset.
    ///
    /// The device lock must be held, and `cancel` called before the device is stopped.
    pub(crate) fn watch_unbind(&self, dev: &Device<Bound>) {
        if self.revision.is_some() {
            self.watch(dev);
        }
    }

    /// The device is about to be reset. Whatever was asked of it is void.
    pub(crate) fn stop(&self) {
        self.inner.lock().resume_asked = false;
    }

    /// The system is about to sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a request is under way.
    pub(crate) fn freeze(&self) -> Result {
        let mut inner = self.inner.lock();
        if matches!(inner.stats.state, State::Suspending | State::Resuming) {
            return Err(EBUSY);
        }
        inner.frozen = true;
        Ok(())
    }

    /// The system is about to go down: nothing that is under way puts the device into operation
    /// again.
    pub(crate) fn shut_down(&self) {
        self.inner.lock().frozen = true;
    }

    /// The system is awake, and the device has been initialised again: it runs, if that succeeded.
    pub(crate) fn thaw(&self, dev: &Device<Bound>, result: Result) {
        let to = if result.is_ok() {
            State::Running
        } else {
            State::Failed
        };
        self.inner.lock().frozen = false;
        self.enter(dev, to, result);
    }

    /// The system is awake. What has become of the device is yet to be seen.
    pub(crate) fn wake_up(&self) {
        self.inner.lock().frozen = false;
    }

    /// The device is about to be unbound, and nobody but the caller uses the controller: nothing is
    /// done later any more, and nothing shown. May sleep.
    pub(crate) fn close(&self) {
        self.watch.close();
        let directory = self.inner.lock().directory.take();
        drop(directory);
    }

    /// Resumes a device that is suspended, after [`Controller::close`]. May sleep, for a second.
    ///
    /// Returns whether it runs.
    pub(crate) fn resume_to_unbind(&self, dev: &Device<Bound>) -> bool {
        let (Some(revision), State::Suspended) = (self.revision, self.stats().state) else {
            return false;
        };
        // Else waiting for the device would end at once.
        self.unbinding.reinit();
        let timeout_ms = self.stats().timeout_ms.min(UNBIND_MS);
        let result = self.drive(dev, revision, Goal::Resume, timeout_ms);
        self.unbinding.complete_all();
        result.is_ok()
    }

    /// The device is about to be stopped by somebody else than the controller itself.
    pub(crate) fn cancel(&self) {
        self.watch.cancel();
    }

    /// Returns the revision of the feature, if it has been negotiated.
    pub(super) fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// Returns a copy of what sysfs shows.
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

    /// Suspends or resumes the device; returns when it is done. May sleep.
    ///
    /// # Errors
    ///
    /// As in Documentation/ABI/testing/sysfs-bus-virtio-suspend.
    pub(super) fn request(&self, ops: &dyn Operations, dev: &Device<Bound>, goal: Goal) -> Result {
        // What is suspended may be what memory is written back to.
        let _no_io = NoIo::enter();
        let started = Instant::<Monotonic>::now();
        let (from, via, to) = match goal {
            Goal::Suspend => (State::Running, State::Suspending, State::Suspended),
            Goal::Resume => (State::Suspended, State::Resuming, State::Running),
        };

        let Some(revision) = self.revision else {
            return self.refuse(EOPNOTSUPP, ops.obstacle().1);
        };
        // D14: the transport of Linux 7.3 issues admin commands whenever DRIVER_OK is in a value
        // that is written to the status, and that for SUSPEND contains it.
        if dev.has_feature(Feature::ADMIN_VQ) {
            return self.refuse(EOPNOTSUPP, "device has an administration virtqueue");
        }

        let order = self.order.lock();
        let mut inner = self.inner.lock();
        match inner.stats.state {
            state if state == to => return Err(EALREADY),
            State::Suspending | State::Resuming => return Err(EBUSY),
            State::Failed => return Err(EIO),
            _ if inner.frozen => return Err(EBUSY),
            _ if self.unbinding.is_done() => return Err(ENODEV),
            _ => inner.stats.state = via,
        }
        let timeout_ms = inner.stats.timeout_ms;
        drop(inner);
        self.announce(dev, from, via, Ok(()));
        drop(order);

        let verdict = match goal {
            Goal::Suspend => self.suspend(ops, dev, revision, timeout_ms),
            Goal::Resume => self.resume(ops, dev, revision, timeout_ms),
        };
        let ns = started.elapsed().as_nanos();

        let Err(refusal) = verdict else {
            let mut inner = self.inner.lock();
            let stats = &mut inner.stats;
            match goal {
                Goal::Suspend => {
                    stats.suspends += 1;
                    stats.last_suspend_ns = ns;
                }
                Goal::Resume => {
                    stats.resumes += 1;
                    stats.last_resume_ns = ns;
                }
            }
            drop(inner);
            self.enter(dev, to, Ok(()));
            return Ok(());
        };

        let failure = refusal.failure;
        if refusal.usable {
            self.record(failure);
            let name = match goal {
                Goal::Suspend => "suspend",
                Goal::Resume => "resume",
            };
            dev_warn!(dev, "{name} failed: {}\n", failure.reason);
            if goal == Goal::Suspend {
                self.watch(dev);
            }
            self.enter(dev, from, Err(failure.error));
        } else {
            self.fail(self.order.lock(), ops, dev, refusal, Cause::Request);
        }
        Err(failure.error)
    }

    /// Counts a failure.
    fn record(&self, failure: Failure) {
        let stats = &mut self.inner.lock().stats;
        stats.failures += 1;
        stats.last_error = Some(failure);
    }

    /// The device has failed: only a reset helps, if anything does (rule D9).
    ///
    /// `order` is locked, so that no request begins in between.
    fn fail(
        &self,
        order: MutexGuard<'_, ()>,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        refusal: Refusal,
        cause: Cause,
    ) {
        let failure = refusal.failure;
        self.record(failure);
        let from = core::mem::replace(&mut self.inner.lock().stats.state, State::Failed);
        self.announce(dev, from, State::Failed, Err(failure.error));
        drop(order);

        dev_err!(dev, "{}; the device is out of operation\n", failure.reason);
        self.recover(ops, dev, refusal.lost, cause);
        // Maybe somebody else has put it into operation meanwhile.
        if core::mem::take(&mut self.inner.lock().look_due) {
            self.look_soon(dev);
        }
    }

    /// Begins to watch a device that did not suspend in time.
    fn watch(&self, dev: &Device<Bound>) {
        let step = *WATCH_STEP_MS.start();
        self.inner.lock().watch = (WATCH_MS, step);
        self.watch.schedule(dev, msecs_to_jiffies(step));
    }

    /// The device says that something has changed, or has put something into a virtqueue that can't
    /// be: it may be that it needs a reset.
    ///
    /// Any context.
    pub(crate) fn look_soon(&self, dev: &Device<Bound>) {
        if self.revision.is_some() {
            self.watch.schedule(dev, 0);
        }
    }

    /// Looks at a device that should be running. Resumes it if it has suspended itself, which one
    /// does that did not suspend in time, and recovers it if it needs a reset (rule D9).
    ///
    /// A device that has been reset and initialised by somebody else runs, whatever it was before.
    pub(crate) fn look(&self, ops: &dyn Operations, dev: &Device<Bound>) {
        let Some(revision) = self.revision else {
            return;
        };
        // As in `request`.
        let _no_io = NoIo::enter();

        // While `order` is locked no request can begin. One that is under way looks at the device,
        // too, but maybe not late enough: it is looked at once more when that has ended.
        let order = self.order.lock();
        let mut inner = self.inner.lock();
        let state = inner.stats.state;
        let frozen = inner.frozen;
        // Configuration changes are let through again before a resume has ended, but after it has
        // read the status for the last time.
        inner.look_due = state != State::Running;
        drop(inner);
        // One that is being reset is looked at when it operates again.
        if matches!(state, State::Suspending | State::Resuming) || frozen || ops.is_being_reset() {
            return;
        }
        let operates = ops.take_foreign_reset();
        if state != State::Running {
            if operates {
                self.inner.lock().stats.state = State::Running;
                ops.reopen(dev);
                self.announce(dev, state, State::Running, Ok(()));
            }
            return;
        }
        let mut condition = protocol::Condition::of(revision, Self::read_status(dev));
        if condition == protocol::Condition::Running && ops.is_broken(dev) {
            condition = protocol::Condition::Broken(Reason::NeedsReset);
        }

        let mut inner = self.inner.lock();
        // One that breaks again and again is given up: what it is reset for is its own doing.
        let hopeless = inner
            .recovered
            .as_ref()
            .is_some_and(|recovered| recovered.elapsed() < RECOVERY_INTERVAL);
        let cause = Cause::Watch { hopeless };
        match condition {
            protocol::Condition::Running => {
                let (left, step) = inner.watch;
                if left > 0 {
                    self.watch.schedule(dev, msecs_to_jiffies(step));
                    let next = (step * 2).min(*WATCH_STEP_MS.end());
                    inner.watch = (left.saturating_sub(step), next);
                }
            }
            protocol::Condition::Broken(why) => {
                drop(inner);
                self.fail(order, ops, dev, Refusal::new(why, false), cause);
            }
            protocol::Condition::Suspended | protocol::Condition::Between => {
                let timeout_ms = inner.stats.timeout_ms;
                inner.stats.state = State::Resuming;
                drop(inner);
                self.announce(dev, State::Running, State::Resuming, Ok(()));
                drop(order);

                dev_warn!(dev, "suspended after all, too late: resuming it\n");
                match self.drive(dev, revision, Goal::Resume, timeout_ms) {
                    Ok(()) => {
                        // Notifications that were sent meanwhile may have been ignored.
                        ops.notify(dev);
                        self.enter(dev, State::Running, Ok(()));
                    }
                    Err(refusal) => self.fail(self.order.lock(), ops, dev, refusal, cause),
                }
            }
        }
    }

    /// Changes the state, and announces it.
    fn enter(&self, dev: &Device<Bound>, to: State, result: Result) {
        let _order = self.order.lock();
        let mut inner = self.inner.lock();
        let from = core::mem::replace(&mut inner.stats.state, to);
        let look = to == State::Running && core::mem::take(&mut inner.look_due);
        drop(inner);
        if from != to {
            self.announce(dev, from, to, result);
        }
        if look {
            self.look_soon(dev);
        }
    }

    /// Resets a device that has failed and initialises it again (rule D9), unless that is switched
    /// off, the device is gone, or it is hopeless. In that case those who wait for the device are
    /// told.
    ///
    /// All buffers that were with the device are dropped: nothing that was in process can be relied
    /// on.
    fn recover(&self, ops: &dyn Operations, dev: &Device<Bound>, lost: bool, cause: Cause) {
        let Some(_lock) = self.lock_device(dev) else {
            if matches!(cause, Cause::Watch { .. }) && self.unbinding.is_done() {
                // The driver may wait for the device in its `unbind`. Who unbinds it holds the
                // lock, and goes no further than that before the watch has been cancelled.
                ops.give_up(dev);
            }
            return;
        };
        let hopeless = matches!(cause, Cause::Watch { hopeless: true });
        let reset = !lost && !hopeless && *crate::module_parameters::recover.value_ref();

        match ops.recover(dev, lost, reset) {
            Ok(true) => {
                let mut inner = self.inner.lock();
                inner.stats.recoveries += 1;
                inner.recovered = Some(Instant::now());
                drop(inner);
                dev_info!(dev, "recovered by a reset\n");
                self.enter(dev, State::Running, Ok(()));
            }
            Ok(false) => {}
            Err(error) => dev_err!(dev, "can't be recovered: {error:?}\n"),
        }
    }

    /// Takes the device lock, unless the device is about to be unbound, or the system to sleep or
    /// to go down: whoever does that holds the lock, and waits for this request or the watch to
    /// end.
    fn lock_device<'a>(&self, dev: &'a Device<Bound>) -> Option<DeviceLock<'a>> {
        for _ in 0..LOCK_TRIES {
            if let Some(lock) = dev.try_lock() {
                return (!self.inner.lock().frozen).then_some(lock);
            }
            if self.unbinding.is_done() {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        None
    }

    /// Refuses a request for good.
    fn refuse(&self, error: Error, reason: &'static str) -> Result {
        self.record(Failure { error, reason });
        Err(error)
    }

    /// Suspends the device, in the order of Documentation/virtio/suspend.rst.
    fn suspend(
        &self,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        revision: Revision,
        timeout_ms: u32,
    ) -> Result<(), Refusal> {
        // 1. Gate: the driver, its virtqueues, and configuration changes.
        ops.gate(dev, timeout_ms).map_err(Refusal::usable)?;

        // 2. and 3. Set SUSPEND, and re-read the status.
        self.drive(dev, revision, Goal::Suspend, timeout_ms)
            .inspect_err(|refusal| {
                if refusal.usable {
                    ops.reopen(dev);
                }
            })?;

        // 4. Quiesce: no callback runs, and what the device used is the driver's again.
        ops.quiesce(dev, &mut self.records.queues.lock());
        Ok(())
    }

    /// Resumes the device.
    fn resume(
        &self,
        ops: &dyn Operations,
        dev: &Device<Bound>,
        revision: Revision,
        timeout_ms: u32,
    ) -> Result<(), Refusal> {
        self.drive(dev, revision, Goal::Resume, timeout_ms)?;
        ops.reopen(dev);
        Ok(())
    }

    fn read_status(dev: &Device<Bound>) -> Status {
        let status = dev.status();
        trace::status(dev, false, status);
        status
    }

    /// Takes the device to `goal`, as [`Transition`] says.
    fn drive(
        &self,
        dev: &Device<Bound>,
        revision: Revision,
        goal: Goal,
        timeout_ms: u32,
    ) -> Result<(), Refusal> {
        let timeout_ns = u64::from(timeout_ms) * 1_000_000;
        let started = Instant::<Monotonic>::now();
        // CAST: Time doesn't run backwards.
        let elapsed_ns = || started.elapsed().as_nanos() as u64;

        let asked = core::mem::replace(&mut self.inner.lock().resume_asked, goal == Goal::Resume);
        let status = Self::read_status(dev);
        let (mut transition, mut action) =
            Transition::begin(revision, goal, status, timeout_ns, asked).map_err(
                // Nothing has been asked of the device: it is as it was, or was broken already.
                |why| Refusal::new(why, matches!(why, Reason::NotReady(_))),
            )?;

        let mut quirk = false;
        loop {
            if transition.quirk() && !quirk {
                quirk = true;
                self.report_quirk(dev);
            }
            action = match action {
                Action::Write(status) => {
                    trace::status(dev, true, status);
                    dev.set_status(status);
                    transition.observe(Self::read_status(dev), elapsed_ns())
                }
                Action::Wait(ns) => match self.wait(ns) {
                    Ok(()) => transition.observe(Self::read_status(dev), elapsed_ns()),
                    Err(why) => {
                        let status = Self::read_status(dev);
                        let action = transition.abort(status, elapsed_ns(), why);
                        if let Action::Wait(ns) = action {
                            // The rollback is under way, and can't be aborted: it is bounded by
                            // itself. The wait ended at once, so it is made up for here.
                            fsleep(Delta::from_nanos(ns as i64));
                            transition.observe(Self::read_status(dev), elapsed_ns())
                        } else {
                            action
                        }
                    }
                },
                Action::Done => {
                    self.inner.lock().resume_asked = false;
                    return Ok(());
                }
                Action::RolledBack(why) => return Err(Refusal::new(why, true)),
                Action::Failed(why) => return Err(Refusal::new(why, false)),
            };
        }
    }

    /// A device resumes only when SUSPEND is written as clear: says so the first time, and counts.
    fn report_quirk(&self, dev: &Device<Bound>) {
        let mut inner = self.inner.lock();
        inner.stats.quirks += 1;
        let first = inner.stats.quirks == 1;
        drop(inner);
        if first {
            dev_warn!(dev, "does not resume unless SUSPEND is written as clear\n");
        }
    }

    /// Waits for `ns` nanoseconds, or until there is a reason not to.
    fn wait(&self, ns: u64) -> Result<(), Reason> {
        if ns <= SHORT_WAIT_NS {
            // CAST: It is at most a million.
            fsleep(Delta::from_nanos(ns as i64));
            return Ok(());
        }
        // CAST: `protocol::BACKOFF_MAX_NS` is some milliseconds.
        let jiffies = msecs_to_jiffies(ns.div_ceil(1_000_000) as u32);
        match self.unbinding.wait_killable_timeout(jiffies) {
            Ok(false) => Ok(()),
            Ok(true) => Err(Reason::Unbinding),
            Err(_) => Err(Reason::Killed),
        }
    }

    /// Tells the world of a change of state: who polls `state`, who listens to uevents, and the
    /// trace.
    fn announce(&self, dev: &Device<Bound>, from: State, to: State, result: Result) {
        trace::transition(dev, from, to, result);
        sysfs::notify(dev);
        // A request that was refused changed nothing for those who listen.
        let refused = matches!(
            (from, to),
            (State::Suspending, State::Running) | (State::Resuming, State::Suspended)
        );
        if !refused {
            sysfs::uevent(dev, to);
        }
    }
}
