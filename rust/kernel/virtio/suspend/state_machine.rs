// SPDX-License-Identifier: GPL-2.0

//! What the controller decides, as pure logic.
//!
//! This module knows neither locks, nor time, nor the device: it is told of an event, changes its
//! state, and answers what is to be done. The kernel's side of it is [`super::controller`], which
//! has it behind a lock; the host builds this file, too, and goes through every interleaving of
//! those who use it (`tools/virtio/protocol`). What is done to the status of a device is decided
//! by [`super::protocol`].

use super::protocol::{
    Condition,
    Goal,
    Reason,
    State, //
};

/// A reset of the device by somebody else than the controller.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum ForeignReset {
    /// There is none, or whoever has reset the device has put it into operation again.
    None,
    /// The device has not been put into operation again yet.
    UnderWay,
    /// It is not going to be: whoever has reset it has left it so, with its driver stopped.
    LeftUndone,
}

/// What others are about to do with the device, as it is when the state machine is locked. Others
/// change it without that lock.
#[derive(Clone, Copy)]
pub struct Surroundings {
    /// The driver is about to be unbound.
    pub unbinding: bool,
    /// The system sleeps, is about to, or is about to be awake, and somebody else than the
    /// controller's owner stops the device for that.
    pub sleeping: bool,
    /// What somebody else does to it by a reset.
    pub reset: ForeignReset,
}

/// Whose the device is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
enum Custody {
    /// It is in operation, or the controller brings it back there.
    Controller,
    /// Others have stopped it: the system sleeps, or the function is reset.
    Frozen,
    /// The system sleeps, and it keeps its state: it has been suspended for that, or was before.
    Asleep,
    /// The system goes down.
    ShutDown,
}

/// What a device that has failed is still due.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
enum Recovery {
    /// Nothing: it has been given up, or is somebody else's.
    None,
    /// To be reset, or given up.
    Due(Diagnosis),
    /// That is being done.
    UnderWay,
}

/// What is known of a device that has failed.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Diagnosis {
    /// A reset may help.
    Curable,
    /// It breaks again and again by itself, so that it is not worth a reset.
    Hopeless,
    /// It is gone.
    Lost,
}

/// Why a request can't begin.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Denial {
    /// The device is there already.
    Already,
    /// Something else is under way.
    Busy,
    /// The device has failed.
    Failed,
    /// The driver is about to be unbound.
    Unbinding,
}

/// A change of the state, to be announced before there is another one.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
#[must_use]
pub struct Change {
    /// The state before.
    pub from: State,
    /// The state now.
    pub to: State,
}

impl Change {
    /// Returns whether the device is no longer one that the sleep of the system has to mind.
    pub fn lets_go(&self) -> bool {
        matches!(self.to, State::Running | State::Failed)
    }

    /// Returns the state that a uevent tells of, if this is worth one.
    pub fn event(&self) -> Option<State> {
        match (self.from, self.to) {
            (_, State::Suspending | State::Resuming) => None,
            // A request that was refused changed nothing for those who listen.
            (State::Suspending, State::Running) | (State::Resuming, State::Suspended) => None,
            (_, to) => Some(to),
        }
    }
}

/// What is to be done when something is over.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
#[must_use]
pub struct Next {
    /// What is to be announced, if anything.
    pub change: Option<Change>,
    /// Then the device is to be looked at.
    pub look: bool,
}

/// What becomes of a look at the device.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Look {
    /// There will be another one.
    Later,
    /// The device should be running: its status is to be read, see [`StateMachine::looked`].
    Status,
    /// It does not run. If somebody else has put it into operation, see [`StateMachine::adopt`];
    /// otherwise, if it `failed`, it is to be recovered, see [`StateMachine::begin_recovery`].
    Standing {
        /// It has failed, and nothing has been done about that yet.
        failed: bool,
    },
    /// Somebody else has reset it, and left it so: it has failed. Recover it when that has been
    /// announced.
    Failed(Change),
}

/// What comes of a status that has been read, see [`StateMachine::looked`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Looked {
    /// There will be another look.
    Later,
    /// The device runs.
    Running,
    /// It has failed. Recover it when that has been announced.
    Failed(Change, Reason),
    /// It is to be resumed when that has been announced.
    Resume(Change),
}

/// What becomes of a recovery for which the device lock could not be had.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Postponed {
    /// Whoever has the device sees to it.
    Leave,
    /// The device is to be given up: who holds the lock may wait for it in the driver's `unbind`.
    GiveUp,
    /// To be tried again in a while. Who holds the lock may be the driver's probe, which waits for
    /// the device: it is told.
    Retry,
}

/// How a recovery ended.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
pub enum Outcome {
    /// The device is in operation again.
    Operates,
    /// It is not: those who wait for it have been told.
    GivenUp,
    /// Nothing has been done: somebody else has reset it, and may put it into operation, or not.
    LeftToOthers,
}

/// How long a device is looked at again and again, though nobody says anything of it.
#[derive(Clone, Copy)]
#[cfg_attr(test, derive(PartialEq, Eq, Debug))]
pub struct Watch {
    left_ms: u32,
    step_ms: u32,
}

impl Watch {
    /// The first and the longest time between two looks, in milliseconds.
    pub const STEP_MS: core::ops::RangeInclusive<u32> = 10..=1_000;

    /// The device is not watched.
    pub const OFF: Self = Self {
        left_ms: 0,
        step_ms: 0,
    };

    /// The device is watched for so many milliseconds; [`u32::MAX`] is for ever.
    pub const fn new(ms: u32) -> Self {
        Self {
            left_ms: ms,
            step_ms: *Self::STEP_MS.start(),
        }
    }

    /// Returns in how many milliseconds the next look is due, if any.
    pub fn step(&mut self) -> Option<u32> {
        if self.left_ms == 0 {
            return None;
        }
        let step = self.step_ms;
        if self.left_ms != u32::MAX {
            self.left_ms = self.left_ms.saturating_sub(step);
        }
        self.step_ms = (step * 2).min(*Self::STEP_MS.end());
        Some(step)
    }
}

/// What the controller knows of a device, and decides.
///
/// # Invariants
///
/// While the state is [`State::Suspending`] or [`State::Resuming`], or a recovery is under way,
/// exactly one task drives the device, and only that task changes the state.
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Debug, Hash))]
pub struct StateMachine {
    state: State,
    custody: Custody,
    recovery: Recovery,
    /// Whether the device may have been asked to suspend.
    asked: bool,
    /// Whether the device has been asked to resume, and has not done so yet.
    resume_asked: bool,
    /// Whether there was a reason to look at the device when that could not be done.
    look_due: bool,
}

impl StateMachine {
    /// A device that has been put into operation, or is about to be.
    pub const fn running() -> Self {
        Self {
            state: State::Running,
            custody: Custody::Controller,
            recovery: Recovery::None,
            asked: false,
            resume_asked: false,
            look_due: false,
        }
    }

    /// Returns the state of the device.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Returns whether the device has been neither suspended nor given up, nor is about to be.
    pub fn is_running(&self) -> bool {
        self.state == State::Running && self.custody == Custody::Controller
    }

    /// Returns whether the device is suspended, or is about to be, or to be resumed. One that is
    /// initialised again after the sleep of the system is not suspended.
    pub fn is_gated(&self) -> bool {
        self.custody == Custody::Controller && !matches!(self.state, State::Running | State::Failed)
    }

    /// Returns whether a request is under way, or the resume of a device that suspended too late.
    pub fn in_transition(&self) -> bool {
        matches!(self.state, State::Suspending | State::Resuming)
    }

    /// Returns whether somebody else has, or may have, the device.
    fn is_out_of_reach(&self, others: &Surroundings) -> bool {
        self.custody != Custody::Controller
            || others.sleeping
            || others.reset == ForeignReset::UnderWay
    }

    fn change(&mut self, to: State) -> Change {
        let from = core::mem::replace(&mut self.state, to);
        if matches!(to, State::Running | State::Failed) {
            // Whatever was asked of it is done, or void.
            self.resume_asked = false;
        }
        Change { from, to }
    }

    fn enter(&mut self, to: State) -> Next {
        let change = self.change(to);
        Next {
            change: (change.from != to).then_some(change),
            look: to == State::Running && core::mem::take(&mut self.look_due),
        }
    }

    // Requests.

    /// Asks whether a request may begin.
    ///
    /// # Errors
    ///
    /// Why it may not.
    pub fn admit(&self, goal: Goal, others: &Surroundings) -> Result<(), Denial> {
        let to = match goal {
            Goal::Suspend => State::Suspended,
            Goal::Resume => State::Running,
        };
        match self.state {
            state if state == to => Err(Denial::Already),
            State::Suspending | State::Resuming => Err(Denial::Busy),
            State::Failed => Err(Denial::Failed),
            // The system's sleep is seen to by others, who let a device be resumed.
            _ if self.custody != Custody::Controller => Err(Denial::Busy),
            // Nor one that has been left reset: that is found out by the look which is due.
            _ if others.reset != ForeignReset::None => Err(Denial::Busy),
            _ if others.unbinding => Err(Denial::Unbinding),
            _ => Ok(()),
        }
    }

    /// Begins a request that may begin.
    pub fn begin(&mut self, goal: Goal) -> Change {
        match goal {
            Goal::Suspend => {
                self.asked = true;
                self.change(State::Suspending)
            }
            Goal::Resume => self.change(State::Resuming),
        }
    }

    /// The device is about to be asked for `goal`.
    ///
    /// Returns whether it has been asked to resume before, and has not answered.
    pub fn ask(&mut self, goal: Goal) -> bool {
        core::mem::replace(&mut self.resume_asked, goal == Goal::Resume)
    }

    /// Nothing is left of what the device was asked: it did it, or may not have heard of it.
    pub fn forget_asked(&mut self) {
        self.resume_asked = false;
    }

    /// The device is where it was to go.
    pub fn complete(&mut self, goal: Goal) -> Next {
        self.enter(match goal {
            Goal::Suspend => State::Suspended,
            Goal::Resume => State::Running,
        })
    }

    /// The device is where it was before.
    pub fn roll_back(&mut self, goal: Goal) -> Next {
        self.enter(match goal {
            Goal::Suspend => State::Running,
            Goal::Resume => State::Suspended,
        })
    }

    /// The device has failed: recover it when that has been announced.
    pub fn fail(&mut self, diagnosis: Diagnosis) -> Change {
        self.recovery = Recovery::Due(diagnosis);
        // Whatever it presents from now on may be of that.
        self.asked = true;
        self.change(State::Failed)
    }

    // Looks.

    /// There is a reason to look at the device.
    pub fn look(&mut self, others: &Surroundings) -> Look {
        let look = match (self.state, self.recovery) {
            // Who drives the device looks at it, too, but maybe not late enough: configuration
            // changes are let through again before a resume has ended, but after it has read the
            // status for the last time.
            (State::Suspending | State::Resuming, _) | (_, Recovery::UnderWay) => Look::Later,
            // Whoever has it says so when it is ours again.
            _ if self.is_out_of_reach(others) => Look::Later,
            (State::Running | State::Suspended, _) if others.reset == ForeignReset::LeftUndone => {
                Look::Failed(self.fail(Diagnosis::Curable))
            }
            (State::Running, _) => Look::Status,
            (State::Suspended | State::Failed, recovery) => Look::Standing {
                failed: matches!(recovery, Recovery::Due(_)),
            },
        };
        self.look_due = look != Look::Status;
        look
    }

    /// Somebody else has reset a device that does not run, and put it into operation: it runs,
    /// whatever it was before.
    pub fn adopt(&mut self) -> Next {
        self.recovery = Recovery::None;
        self.enter(State::Running)
    }

    /// A device that should be running was found in `condition`. `hopeless` tells that it has been
    /// recovered not long ago.
    pub fn looked(
        &mut self,
        condition: Condition,
        hopeless: bool,
        others: &Surroundings,
    ) -> Looked {
        let why = match condition {
            Condition::Running => return Looked::Running,
            // What was read may be the doing of who has it. It is looked at again after that.
            _ if self.is_out_of_reach(others) => {
                self.look_due = true;
                return Looked::Later;
            }
            Condition::Suspended | Condition::Between if self.asked => {
                return Looked::Resume(self.change(State::Resuming));
            }
            // One that nobody has asked to suspend has been initialised by somebody else, after a
            // reset.
            Condition::Suspended | Condition::Between => Reason::Reset,
            Condition::Broken(why) => why,
        };
        let change = self.fail(match why {
            Reason::Lost => Diagnosis::Lost,
            _ if hopeless => Diagnosis::Hopeless,
            _ => Diagnosis::Curable,
        });
        Looked::Failed(change, why)
    }

    // Recovery.

    /// The device lock has been taken to recover a device that had failed.
    ///
    /// Returns what is known of it. [`None`] if there is nothing to recover any more, or nothing
    /// that may be touched: see [`StateMachine::postpone`].
    pub fn begin_recovery(&mut self, others: &Surroundings) -> Option<Diagnosis> {
        match self.recovery {
            Recovery::Due(diagnosis) if !self.is_out_of_reach(others) => {
                self.recovery = Recovery::UnderWay;
                Some(diagnosis)
            }
            _ => None,
        }
    }

    /// A recovery did not begin: the device lock was not to be had, or others have the device.
    pub fn postpone(&mut self, others: &Surroundings) -> Postponed {
        if !matches!(self.recovery, Recovery::Due(_)) || self.custody == Custody::ShutDown {
            return Postponed::Leave;
        }
        if others.unbinding {
            self.recovery = Recovery::None;
            return Postponed::GiveUp;
        }
        if self.is_out_of_reach(others) {
            self.look_due = true;
            return Postponed::Leave;
        }
        Postponed::Retry
    }

    /// A recovery is over.
    pub fn recovered(&mut self, outcome: Outcome) -> Next {
        self.recovery = match outcome {
            // It has been reset, so that nothing of what was found counts any more.
            Outcome::LeftToOthers => Recovery::Due(Diagnosis::Curable),
            Outcome::Operates | Outcome::GivenUp => Recovery::None,
        };
        match outcome {
            Outcome::Operates => self.enter(State::Running),
            Outcome::GivenUp | Outcome::LeftToOthers => Next {
                change: None,
                // Maybe somebody else has put it into operation meanwhile.
                look: core::mem::take(&mut self.look_due),
            },
        }
    }

    // What others do with the device.

    /// The system is about to sleep, which [`Surroundings::sleeping`] says already. No look at the
    /// device is under way, but maybe what came of one.
    ///
    /// # Errors
    ///
    /// [`Denial::Busy`] if it must not.
    pub fn prepare_to_sleep(&self) -> Result<(), Denial> {
        if self.in_transition() || self.recovery == Recovery::UnderWay {
            return Err(Denial::Busy);
        }
        Ok(())
    }

    /// Others are about to stop the device, until [`StateMachine::thaw`].
    ///
    /// # Errors
    ///
    /// [`Denial::Busy`] if something is under way.
    pub fn freeze(&mut self) -> Result<(), Denial> {
        if self.in_transition() || self.recovery == Recovery::UnderWay {
            // They may go on without, and leave a device that has forgotten its driver.
            self.look_due = true;
            return Err(Denial::Busy);
        }
        if matches!(self.custody, Custody::Controller | Custody::Asleep) {
            self.custody = Custody::Frozen;
        }
        Ok(())
    }

    /// The system is about to sleep, and the device is to keep its state: it is to be suspended, if
    /// it is not already. Until [`StateMachine::wake_up`], or [`StateMachine::freeze`] if it can't
    /// be used any more, nobody else touches it.
    ///
    /// Returns the state that it has, and has when the system is awake.
    ///
    /// # Errors
    ///
    /// [`Denial::Busy`] if something is under way, [`Denial::Failed`] if there is nothing to keep.
    pub fn fall_asleep(&mut self) -> Result<State, Denial> {
        self.prepare_to_sleep()?;
        if self.custody != Custody::Controller || self.state == State::Failed {
            return Err(Denial::Failed);
        }
        self.custody = Custody::Asleep;
        // It is asked to suspend now, if it has not been before.
        self.asked = true;
        Ok(self.state)
    }

    /// Returns the state of a device that has fallen asleep, if it has.
    pub fn asleep(&self) -> Option<State> {
        (self.custody == Custody::Asleep).then_some(self.state)
    }

    /// The device is as it was before it fell asleep, or has not fallen asleep after all. If
    /// somebody else has had it since, nothing changes.
    pub fn wake_up(&mut self) -> Next {
        if self.custody == Custody::Asleep {
            self.custody = Custody::Controller;
        }
        Next {
            change: None,
            look: self.custody == Custody::Controller && core::mem::take(&mut self.look_due),
        }
    }

    /// Others have put the device into operation again, or given it up.
    pub fn thaw(&mut self, outcome: Outcome) -> Next {
        let frozen = self.custody == Custody::Frozen;
        if frozen {
            self.custody = Custody::Controller;
        }
        if self.in_transition() || !frozen && outcome == Outcome::Operates {
            // They did not wait for a request. Its task alone changes the state, and if that has
            // failed since, it may be because of what has come after them.
            self.look_due = true;
            return Next {
                change: None,
                look: !self.in_transition(),
            };
        }
        self.recovery = Recovery::None;
        self.enter(match outcome {
            Outcome::Operates => State::Running,
            Outcome::GivenUp | Outcome::LeftToOthers => State::Failed,
        })
    }

    /// The system is about to go down: nothing puts the device into operation any more.
    pub fn shut_down(&mut self) {
        self.custody = Custody::ShutDown;
    }
}
