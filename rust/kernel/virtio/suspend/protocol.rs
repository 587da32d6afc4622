// SPDX-License-Identifier: GPL-2.0

//! The protocol of SUSPEND, as pure logic.
//!
//! This module knows the device status field and nothing else: no kernel types, no time source, no
//! memory. It is given what was read from the device and how long ago the transition began, and
//! answers what to do next. The kernel's side of it is [`super::controller`]; the host builds this
//! file too and tests it exhaustively (`tools/virtio/protocol`).
//!
//! The rules D2, D3, D7, D8 and D9 and the revisions of the feature are kept here, see
//! Documentation/virtio/suspend.rst. VIRTIO 1.4, "Device Status Field" and "Device Suspend".

use crate::status::Status;

/// The least time in nanoseconds before the status is read again.
pub const BACKOFF_MIN_NS: u64 = 10_000;

/// The most time in nanoseconds that passes until the status is read again.
pub const BACKOFF_MAX_NS: u64 = 20_000_000;

/// The least time in nanoseconds before a device is resumed in a way that VIRTIO 1.4 does not have.
pub const QUIRK_MIN_NS: u64 = 100_000_000;

/// The time in nanoseconds, after the deadline, in which a suspend that failed is rolled back.
pub const ROLLBACK_NS: u64 = 1_000_000_000;

/// A revision of the feature.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub enum Revision {
    /// VIRTIO 1.4, feature bit 43: a suspended device presents SUSPEND without DRIVER_OK.
    V1_4,
    /// The proposal of September 2023, feature bit 42: a suspended device presents SUSPEND, and
    /// DRIVER_OK stays.
    Draft,
}

/// The state of a device, as far as suspending it goes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
#[repr(u8)]
pub enum State {
    /// The device operates.
    Running = 0,
    /// The driver has been asked to suspend the device, which has not presented it yet.
    Suspending = 1,
    /// The device has presented SUSPEND, and the driver's queues are quiescent.
    Suspended = 2,
    /// The driver has been asked to resume the device, which has not presented it yet.
    Resuming = 3,
    /// The device can't be used before it is reset.
    Failed = 4,
}

impl State {
    /// The name of the state in sysfs and in uevents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Resuming => "resuming",
            Self::Failed => "failed",
        }
    }
}

/// Why a transition did not end where it was to end.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Reason {
    /// The status does not allow to begin, see rule D2: it was this.
    NotReady(Status),
    /// The device did not present the condition before the deadline.
    Timeout,
    /// The device presents DEVICE_NEEDS_RESET: it refused, or it broke.
    NeedsReset,
    /// The device presents status 0: it has reset itself.
    Reset,
    /// Every bit reads as one: the device is gone, for now at least.
    Lost,
    /// The device dropped a bit that only a reset may clear: it presents this.
    Inconsistent(Status),
    /// The task that waited was killed.
    Killed,
    /// The driver is about to be unbound.
    Unbinding,
    /// The system is about to go down.
    GoingDown,
}

impl Reason {
    /// Says it in words, for `last_error` and the kernel log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotReady(_) => "device is not in operation",
            Self::Timeout => "device did not answer before the deadline",
            Self::NeedsReset => "device needs a reset",
            Self::Reset => "device has reset itself",
            Self::Lost => "device is gone",
            Self::Inconsistent(_) => "device dropped a status bit",
            Self::Killed => "the request was killed",
            Self::Unbinding => "the driver is being unbound",
            Self::GoingDown => "the system is going down",
        }
    }
}

/// What a status says about a device.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Condition {
    /// The device operates.
    Running,
    /// The device is suspended.
    Suspended,
    /// Neither, but it can still become either.
    Between,
    /// Only a reset helps, if anything does.
    Broken(Reason),
}

impl Condition {
    /// Tells the condition that a device with `revision` of the feature presents by `status`.
    pub const fn of(revision: Revision, status: Status) -> Self {
        const SET_UP: Status = Status::ACKNOWLEDGE
            .with(Status::DRIVER)
            .with(Status::FEATURES_OK);

        // The order matters: a device that is gone has every bit set.
        if status.bits() == Status::ALL_ONES.bits() {
            return Self::Broken(Reason::Lost);
        }
        if status.bits() == Status::RESET.bits() {
            return Self::Broken(Reason::Reset);
        }
        if status.contains(Status::DEVICE_NEEDS_RESET) {
            return Self::Broken(Reason::NeedsReset);
        }
        if !status.contains(SET_UP) || status.contains(Status::FAILED) {
            return Self::Broken(Reason::Inconsistent(status));
        }

        let suspend = status.contains(Status::SUSPEND);
        let driver_ok = status.contains(Status::DRIVER_OK);
        match (revision, suspend, driver_ok) {
            (Revision::V1_4, true, false) | (Revision::Draft, true, _) => Self::Suspended,
            (_, false, true) => Self::Running,
            (Revision::V1_4, true, true) | (_, false, false) => Self::Between,
        }
    }
}

/// Where a transition leads.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Goal {
    /// From running to suspended.
    Suspend,
    /// From suspended to running.
    Resume,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub enum Action {
    /// Write this status, read it back at once and [observe](Transition::observe) it.
    Write(Status),
    /// Wait for this many nanoseconds, then read the status and [observe](Transition::observe) it.
    Wait(u64),
    /// The device is where it was to go.
    Done,
    /// The device is where it was before, and works as before.
    RolledBack(Reason),
    /// The device is in neither state: it can't be used before it is reset.
    Failed(Reason),
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
enum Phase {
    /// Waiting for the goal.
    Forward,
    /// A suspend is being taken back; whether the device, suspended too late, has been resumed.
    Rollback { why: Reason, resumed: bool },
}

/// A transition under way.
///
/// The caller reads the status, begins with [`Transition::begin`], and then does what each
/// [`Action`] says until one of them ends the transition.
///
/// A suspend that a device does not follow in time is taken back by writing the status that the
/// device presents, with SUSPEND clear. That tells a device that still works on the request to drop
/// it, and clears no bit that such a device presents (rule D7), unless it presents SUSPEND together
/// with DRIVER_OK, which no revision has. A device that presents that it is suspended after all may
/// have taken that write for the resume, and is waited for; if it stays suspended, it is resumed.
///
/// A resume follows rule D7 to the letter first: in revision 1.4 SUSPEND is kept in the value
/// written. To a device that makes no progress for half of the time, and not less than
/// [`QUIRK_MIN_NS`], SUSPEND is then written as clear, once: there are devices that wait for it.
/// [`Transition::quirk`] tells that it happened.
///
/// A resume that fails leaves the device suspended as far as the driver is concerned: nothing has
/// been lost, and it can be tried again. That holds for a device that can't be reached, too, whose
/// every bit reads as one: that is what a suspended device looks like while what is behind it is
/// exchanged, or its function is being reset, and it can come back as it was. Whether it has gone
/// for good is known to its bus alone.
///
/// # Invariants
///
/// Time only bounds a transition: at or after the deadline [`Transition::observe`] never answers
/// [`Action::Wait`] in the forward direction, and never at all [`ROLLBACK_NS`] later.
pub struct Transition {
    revision: Revision,
    goal: Goal,
    timeout_ns: u64,
    phase: Phase,
    backoff_ns: u64,
    quirk: bool,
}

impl Transition {
    /// Begins a transition to `goal` of a device that presents `status`, to end `timeout_ns` after
    /// it began.
    ///
    /// `asked` tells that the device has been asked to resume before, and not answered in time: it
    /// is not asked again, but waited for (rule D8). One that could not be reached then may not
    /// have been asked.
    ///
    /// Returns the first action: a write, or [`Action::Done`] if the device is there already, for
    /// example because it followed an earlier request too late.
    ///
    /// # Errors
    ///
    /// The reason why the transition can't begin; nothing has been asked of the device. Rule D2:
    /// SUSPEND is set if and only if FEATURES_OK and DRIVER_OK are set, and that the feature was
    /// negotiated is proven by `revision`.
    pub fn begin(
        revision: Revision,
        goal: Goal,
        status: Status,
        timeout_ns: u64,
        asked: bool,
    ) -> Result<(Self, Action), Reason> {
        let action = match (goal, Condition::of(revision, status)) {
            (Goal::Resume, Condition::Broken(Reason::Lost)) => Action::RolledBack(Reason::Lost),
            (_, Condition::Broken(why)) => return Err(why),
            (Goal::Suspend, Condition::Suspended) | (Goal::Resume, Condition::Running) => {
                Action::Done
            }
            (Goal::Suspend, Condition::Running) => Action::Write(status.with(Status::SUSPEND)),
            (Goal::Suspend, Condition::Between) => return Err(Reason::NotReady(status)),
            (Goal::Resume, _) if asked => Action::Wait(BACKOFF_MIN_NS),
            (Goal::Resume, Condition::Suspended | Condition::Between) => {
                Action::Write(Self::resume_value(revision, status))
            }
        };
        let transition = Self {
            revision,
            goal,
            timeout_ns,
            phase: Phase::Forward,
            backoff_ns: BACKOFF_MIN_NS,
            quirk: false,
        };
        Ok((transition, action))
    }

    /// The value that resumes a device which presents `status`.
    const fn resume_value(revision: Revision, status: Status) -> Status {
        let status = status.with(Status::DRIVER_OK);
        match revision {
            // The device clears SUSPEND, not the driver (D7).
            Revision::V1_4 => status,
            // The draft has no other way.
            Revision::Draft => status.without(Status::SUSPEND),
        }
    }

    /// The moment, after the beginning, at which a device that does not resume is written SUSPEND
    /// as clear.
    fn quirk_ns(&self) -> u64 {
        (self.timeout_ns / 2).max(QUIRK_MIN_NS)
    }

    /// Returns whether the device had to be resumed by a write that clears SUSPEND.
    pub fn quirk(&self) -> bool {
        self.quirk
    }

    /// Waits longer each time, but asks for no wait past `until_ns`.
    fn wait(&mut self, elapsed_ns: u64, until_ns: u64) -> Action {
        let ns = self.backoff_ns.min(until_ns - elapsed_ns).max(1);

        self.backoff_ns = (self.backoff_ns * 2).min(BACKOFF_MAX_NS);
        Action::Wait(ns)
    }

    /// Answers to `status`, read `elapsed_ns` after the transition began.
    pub fn observe(&mut self, status: Status, elapsed_ns: u64) -> Action {
        let condition = Condition::of(self.revision, status);

        match (self.phase, self.goal, condition) {
            (_, Goal::Resume, Condition::Broken(Reason::Lost)) => Action::RolledBack(Reason::Lost),
            (_, _, Condition::Broken(why)) => Action::Failed(why),

            (Phase::Forward, Goal::Suspend, Condition::Suspended)
            | (Phase::Forward, Goal::Resume, Condition::Running) => Action::Done,

            (Phase::Forward, Goal::Suspend, _) => {
                if elapsed_ns < self.timeout_ns {
                    self.wait(elapsed_ns, self.timeout_ns)
                } else {
                    self.take_back(status, Reason::Timeout)
                }
            }

            (Phase::Forward, Goal::Resume, _) => {
                if elapsed_ns >= self.timeout_ns {
                    Action::RolledBack(Reason::Timeout)
                } else if self.revision == Revision::V1_4 && !self.quirk {
                    if elapsed_ns < self.quirk_ns() {
                        self.wait(elapsed_ns, self.quirk_ns().min(self.timeout_ns))
                    } else {
                        self.clear_suspend(status)
                    }
                } else {
                    self.wait(elapsed_ns, self.timeout_ns)
                }
            }

            (Phase::Rollback { why, .. }, _, Condition::Running) => Action::RolledBack(why),

            (Phase::Rollback { why, resumed }, _, _) => {
                let after = |ns| self.timeout_ns.saturating_add(ns);
                let (resume_ns, quirk_ns) = (after(ROLLBACK_NS / 4), after(ROLLBACK_NS / 2));
                let until_ns = after(ROLLBACK_NS);

                if elapsed_ns >= until_ns {
                    Action::Failed(why)
                } else if !resumed && condition == Condition::Suspended {
                    if elapsed_ns < resume_ns {
                        self.wait(elapsed_ns, resume_ns)
                    } else {
                        self.phase = Phase::Rollback { why, resumed: true };
                        Action::Write(Self::resume_value(self.revision, status))
                    }
                } else if resumed && self.revision == Revision::V1_4 && !self.quirk {
                    if elapsed_ns < quirk_ns {
                        self.wait(elapsed_ns, quirk_ns)
                    } else {
                        self.clear_suspend(status)
                    }
                } else {
                    self.wait(elapsed_ns, until_ns)
                }
            }
        }
    }

    /// Ends the transition early, because of `why`; `status` was read after that was known.
    ///
    /// What has been reached is not thrown away: a device that presents the goal has reached it.
    pub fn abort(&mut self, status: Status, elapsed_ns: u64, why: Reason) -> Action {
        let condition = Condition::of(self.revision, status);

        match (self.phase, self.goal, condition) {
            (_, Goal::Resume, Condition::Broken(Reason::Lost)) => Action::RolledBack(Reason::Lost),
            (_, _, Condition::Broken(why)) => Action::Failed(why),
            (Phase::Rollback { .. }, _, _) => self.observe(status, elapsed_ns),
            (Phase::Forward, Goal::Suspend, Condition::Suspended)
            | (Phase::Forward, Goal::Resume, Condition::Running) => Action::Done,
            (Phase::Forward, Goal::Suspend, _) => {
                // The rollback is bounded from now on, not from a deadline that is far away.
                self.timeout_ns = self.timeout_ns.min(elapsed_ns);
                self.take_back(status, why)
            }
            (Phase::Forward, Goal::Resume, _) => Action::RolledBack(why),
        }
    }

    /// Resumes a device that does not follow the specification.
    fn clear_suspend(&mut self, status: Status) -> Action {
        self.quirk = true;
        self.backoff_ns = BACKOFF_MIN_NS;
        Action::Write(status.with(Status::DRIVER_OK).without(Status::SUSPEND))
    }

    /// Takes a suspend back.
    fn take_back(&mut self, status: Status, why: Reason) -> Action {
        self.phase = Phase::Rollback {
            why,
            resumed: false,
        };
        self.backoff_ns = BACKOFF_MIN_NS;
        Action::Write(status.with(Status::DRIVER_OK).without(Status::SUSPEND))
    }
}

/// Decides which revision of the feature is accepted, of those that the device offers and the
/// driver knows.
///
/// If both are there, it is VIRTIO 1.4's. The draft's bit 42 has since been given to the device
/// types: it means SUSPEND only for a type that has no bit 42 of its own, and `driver_has_42` says
/// that the driver knows another meaning. A network device has one (`VIRTIO_NET_F_GUEST_RSC6`).
pub const fn negotiate(
    bit_43: bool,
    bit_42: bool,
    device_type: u32,
    driver_has_42: bool,
) -> Option<Revision> {
    /// The device types that define a feature bit 42, VIRTIO 1.4, "Device Types".
    const NETWORK_DEVICE: u32 = 1;

    if bit_43 {
        Some(Revision::V1_4)
    } else if bit_42 && device_type != NETWORK_DEVICE && !driver_has_42 {
        Some(Revision::Draft)
    } else {
        None
    }
}
