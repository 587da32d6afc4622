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
        Mutex, //
    },
    time::{
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
    sysfs,
    trace, //
};
use crate::{
    sync::{
        lock_class,
        NoIo, //
    },
    Device,
    Feature, //
};

#[path = "controller/drive.rs"]
mod drive;
#[path = "controller/recovery.rs"]
mod recovery;

/// The deadline of a transition unless it is set through sysfs, in milliseconds.
const DEFAULT_TIMEOUT_MS: u32 = 10_000;

/// The deadlines that can be set through sysfs, in milliseconds.
const TIMEOUT_MS: core::ops::RangeInclusive<u32> = 1..=600_000;

/// How long a device may take to resume when it is unbound, in milliseconds.
const UNBIND_MS: u32 = 1_000;

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
    /// Whether the device is out of operation for others: the system sleeps, or goes down, or the
    /// function is being reset.
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
    /// Ends requests that wait.
    #[pin]
    interruption: Interruption,
    /// Whether the system is about to sleep, sleeps, or is about to be awake, so that nobody but
    /// user space asks the device for anything. Set before it is looked whether something is under
    /// way, and looked at with `inner` locked.
    sleeping: Atomic<bool>,
    member: Member,
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
            interruption <- Interruption::new(),
            sleeping: Atomic::new(false),
            member: Member::new()?,
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
        self.revision.is_some() && *crate::parameters::recover.value_ref()
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
        self.interruption.unbinding();
    }

    /// Watches a device while it is unbound: the virtio core passes no configuration changes on any
    /// more, by which it could say that it needs a reset.
    ///
    /// The device lock must be held, and `cancel` called before the device is stopped.
    pub(crate) fn watch_unbind(&self, dev: &Device<Bound>) {
        // It is known already, unless the device was bound before the notifier was registered.
        self.unbind();
        self.watch_start(dev);
    }

    /// Watches a device while its driver is started, until [`Controller::end_watch`]: as above.
    pub(crate) fn watch_start(&self, dev: &Device<Bound>) {
        if self.revision.is_some() {
            self.watch(dev);
        }
    }

    /// Ends what [`Controller::watch_start`] began. May sleep.
    pub(crate) fn end_watch(&self) {
        self.inner.lock().watch = (0, 0);
        self.watch.cancel();
    }

    /// The device is about to be reset. Whatever was asked of it is void.
    pub(crate) fn stop(&self) {
        self.inner.lock().resume_asked = false;
    }

    /// The system is about to sleep: from here on nothing is done with the device but what user
    /// space asks for.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a request is under way, or a look at the device.
    pub(crate) fn prepare_to_sleep(&self) -> Result {
        self.sleeping.store(true, Release);
        match self.inner.lock().stats.state {
            State::Suspending | State::Resuming => Err(EBUSY),
            _ => Ok(()),
        }
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
        self.interruption.going_down();
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
        self.sleeping.store(false, Release);
    }

    /// Returns whether somebody else has, or may have, the device.
    fn is_out_of_reach(&self, inner: &Inner) -> bool {
        inner.frozen || self.sleeping.load(Acquire)
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
        let patience = Patience::of_unbinder(self.stats().timeout_ms.min(UNBIND_MS));
        self.drive(dev, revision, Goal::Resume, &patience).is_ok()
    }

    /// The device is about to be stopped by somebody else than the controller itself.
    pub(crate) fn cancel(&self) {
        self.watch.cancel();
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
            _ if inner.frozen || ops.is_being_reset() => return Err(EBUSY),
            _ if self.is_unbinding() => return Err(ENODEV),
            _ => {}
        }
        if goal == Goal::Suspend {
            self.member.hold(dev)?;
        }
        inner.stats.state = via;
        let patience = Patience::new(inner.stats.timeout_ms, &self.interruption);
        drop(inner);
        self.announce(dev, from, via, Ok(()));
        drop(order);

        let verdict = match goal {
            Goal::Suspend => self.suspend(ops, dev, revision, &patience),
            Goal::Resume => self.resume(ops, dev, revision, &patience),
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
        patience: &Patience<'_>,
    ) -> Result<(), Refusal> {
        // 1. Gate: the driver, its virtqueues, and configuration changes.
        ops.gate(dev, patience).map_err(Refusal::usable)?;

        // 2. and 3. Set SUSPEND, and re-read the status.
        self.drive(dev, revision, Goal::Suspend, patience)
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
        patience: &Patience<'_>,
    ) -> Result<(), Refusal> {
        self.drive(dev, revision, Goal::Resume, patience)?;
        ops.reopen(dev);
        // What the device has said meanwhile may have been lost with what was behind it then.
        ops.look_at_config(dev);
        Ok(())
    }

    /// Tells the world of a change of state: who polls `state`, who listens to uevents, and the
    /// trace.
    fn announce(&self, dev: &Device<Bound>, from: State, to: State, result: Result) {
        if matches!(to, State::Running | State::Failed) {
            self.member.let_go();
        }
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
