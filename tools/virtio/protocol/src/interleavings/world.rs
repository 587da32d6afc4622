// SPDX-License-Identifier: GPL-2.0

//! A device, all who have to do with it, and what is between them.

use crate::{
    protocol::{
        Condition,
        Goal,
        Reason,
        State, //
    },
    state_machine::{
        Change,
        Diagnosis,
        ForeignReset,
        Next,
        Outcome,
        StateMachine,
        Surroundings, //
    },
};

/// Whose driver it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// One of the crate.
    Native,
    /// One that knows nothing of SUSPEND, with the module `virtio_suspend`.
    Extension,
}

/// Who takes a lock, or a step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Who {
    /// A task that writes to `request`.
    Writer(u8),
    /// The work that looks at the device.
    Watch,
    /// Who binds and unbinds the driver.
    Bus,
    /// Who has the system sleep or go down, or the function reset.
    Core,
}

/// The writers, then the watch.
pub const TASKS: usize = 3;
pub const WATCH: usize = 2;

/// What a task does when a change has been announced, and `order` released.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum After {
    Request(Goal),
    LateResume,
    Recover,
    Unlock,
    End,
}

/// Where a task is: what it is about to do. Steps are as large as nobody can come in between.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pc {
    Idle,
    /// `order` is held: to announce, and release it.
    Announce(Option<Change>, bool, After),
    Gate,
    /// To read the status, and ask the device for the goal.
    Ask(Goal),
    /// Waits for the device.
    Wait(Goal),
    /// Waits for a device whose suspend is being taken back, and has been asked to resume.
    TakeBack {
        resumed: bool,
    },
    /// The device is suspended: callbacks are excluded.
    Quiesce,
    /// To let the driver go on. Then `order` and the state machine are taken.
    Reopen {
        success: bool,
        goal: Goal,
    },
    /// To take `order` and the state machine: a request has ended.
    Finish {
        success: bool,
        goal: Goal,
    },
    /// As above: the device has failed.
    Fail(Diagnosis),
    /// To take the device lock.
    TryLock,
    /// The device lock was not to be had, or is of no use.
    Postpone,
    /// To take a device out of operation of which somebody waits in `unbind`, or in `start`.
    GiveUp,
    FailProbe,
    /// The device lock is held.
    Recover(Diagnosis),
    /// As above: the device has been reset, and is initialised again.
    Initialise,
    Recovered(Outcome),
    /// `order` is held: to read the status.
    LookStatus,
    /// As above: it was this.
    Looked(Condition),
    /// As above: somebody else has put the device into operation.
    Adopt(Next),
    /// The device, suspended too late, has resumed.
    Notify,
}

/// The driver's life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Bus {
    /// The driver's `start`, called by its probe, waits for the device.
    ProbeStart,
    /// The probe waits for the end of the watch.
    ProbeEnd,
    Bound,
    /// To remove the files, and wait for the writers.
    Files,
    /// To begin to watch.
    Watch,
    /// In the driver's `unbind`, which waits for the device if it is in operation.
    UnbindWait,
    Close,
    Stop,
    /// The extension's: to resume a device that is suspended.
    ResumeAsk,
    ResumeWait,
    /// To leave the driver to itself, with a device that works, or not.
    LetGo(bool),
    Unbound,
}

/// Why the device is stopped by others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stop {
    Sleep,
    Reset,
}

/// What the virtio core and the transport do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Core {
    None,
    /// The sleep of the system has been announced. The tasks are frozen next.
    Tasks,
    FreezeLock,
    FreezeCancel(Stop),
    FreezeStop(Stop),
    /// Until the system is woken, or the reset of the function is over.
    Stopped(Stop),
    ThawLock(Stop),
    Restart(Stop),
    Thaw(Stop, Outcome),
    ThawAnnounce(Stop, Next),
    // The device is to keep its state while the system sleeps, see `sleep.rs`.
    Bed,
    BedGate,
    BedAsk,
    BedWait,
    Asleep,
    Wake,
    WakeWait,
    // As above, with a driver that is none of the crate's.
    /// To have the driver restart the device that it was had to stop.
    OwnRestart,
    /// The transport has done its part.
    Resume,
    /// The tasks go on.
    Awake,
    /// The function is to be reset while a request is under way, which is waited for, for a second.
    ResetUnder,
    // The extension.
    ResetDone,
    Restore,
    // The system goes down.
    DownCancel,
    DownWait,
    DownReset,
    Down,
}

impl Core {
    /// Whether the function of a device is being reset.
    pub fn resets(self) -> bool {
        matches!(
            self,
            Core::FreezeCancel(Stop::Reset)
                | Core::FreezeStop(Stop::Reset)
                | Core::Stopped(Stop::Reset)
                | Core::ThawLock(Stop::Reset)
                | Core::ResetUnder
        )
    }
}

/// What a device has been asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Asked {
    Nothing,
    Suspend,
    /// The suspend has been taken back, but it does not listen.
    TooLate,
    Resume,
}

/// A device, as far as it tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Device {
    pub at: At,
    /// Every bit reads as one.
    pub gone: bool,
    pub asked: Asked,
    /// It has sent a notification that it needs a reset, which nobody has taken note of yet.
    pub news: bool,
    /// It has not been put into operation by those who say so to the controller.
    pub faults: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum At {
    Running,
    Suspended,
    NeedsReset,
    /// It has been reset, and not been initialised.
    Reset,
}

impl Device {
    pub fn condition(&self) -> Condition {
        match self.at {
            _ if self.gone => Condition::Broken(Reason::Lost),
            At::Running => Condition::Running,
            At::Suspended => Condition::Suspended,
            At::NeedsReset => Condition::Broken(Reason::NeedsReset),
            At::Reset => Condition::Broken(Reason::Reset),
        }
    }

    pub fn become_at(&mut self, at: At) {
        self.at = at;
        self.asked = Asked::Nothing;
        self.news = false;
    }
}

/// Who else has reset the device, see `Fate` of the extension.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fate {
    Untouched,
    Reset,
    Operating,
    LeftReset,
    Abandoned,
}

/// How long the device is watched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Watching {
    Off,
    ForAWhile,
    ForEver,
}

/// What must never happen, and did in a step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Violation {
    /// A change was announced that did not follow the one before.
    OutOfOrder,
    /// The device was accessed while it was not the controller's.
    Touched,
    /// The device was taken out of operation by two at a time.
    StoppedTwice,
    /// A lock was released by who did not hold it: a mistake in the model.
    Model,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub kind: Kind,
    pub machine: StateMachine,
    pub order: Option<Who>,
    pub device_lock: Option<Who>,
    /// What the world was told last.
    pub announced: State,
    /// Whether the sleep of the system minds the device.
    pub held: bool,
    pub unbinding: bool,
    pub going_down: bool,
    /// [`Surroundings::sleeping`].
    pub sleeping: bool,
    /// The system's sleep has been announced to those who would suspend a device.
    pub no_suspend: bool,
    pub tasks_frozen: bool,
    pub fate: Fate,
    /// The controller itself resets the device.
    pub recovering: bool,
    pub device: Device,
    /// Somebody else has the device.
    pub away: bool,
    /// The driver is gated.
    pub gated: bool,
    /// The driver has been told that its device is out of operation for good.
    pub told: bool,
    /// The work is pending.
    pub pending: bool,
    /// The work is done no more.
    pub closed: bool,
    pub watching: Watching,
    /// There are files in sysfs.
    pub files: bool,
    pub tasks: [Pc; TASKS],
    pub bus: Bus,
    pub core: Core,
    pub violation: Option<Violation>,
}

impl World {
    pub fn new(kind: Kind, bus: Bus) -> Self {
        let probing = bus == Bus::ProbeStart;
        Self {
            kind,
            machine: StateMachine::running(),
            order: None,
            device_lock: probing.then_some(Who::Bus),
            announced: State::Running,
            held: false,
            unbinding: false,
            going_down: false,
            sleeping: false,
            no_suspend: false,
            tasks_frozen: false,
            fate: Fate::Untouched,
            recovering: false,
            device: Device {
                at: At::Running,
                gone: false,
                asked: Asked::Nothing,
                news: false,
                faults: 0,
            },
            away: false,
            gated: false,
            told: false,
            pending: probing,
            closed: false,
            watching: if probing {
                Watching::ForEver
            } else {
                Watching::Off
            },
            files: !probing,
            tasks: [Pc::Idle; TASKS],
            bus,
            core: Core::None,
            violation: None,
        }
    }

    pub fn others(&self) -> Surroundings {
        Surroundings {
            unbinding: self.unbinding && !self.going_down,
            sleeping: self.sleeping,
            reset: match (self.kind, self.fate) {
                (Kind::Native, _)
                    if self.core.resets() || matches!(self.core, Core::Restart(Stop::Reset)) =>
                {
                    ForeignReset::UnderWay
                }
                (Kind::Extension, Fate::Reset) => ForeignReset::UnderWay,
                (Kind::Extension, Fate::LeftReset) => ForeignReset::LeftUndone,
                _ => ForeignReset::None,
            },
        }
    }

    pub fn who(task: usize) -> Who {
        if task == WATCH {
            Who::Watch
        } else {
            Who::Writer(task as u8)
        }
    }

    pub fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// The device is accessed by the controller.
    pub fn touch(&mut self) {
        if self.away {
            self.violate(Violation::Touched);
        }
    }

    pub fn look_soon(&mut self) {
        if !self.closed {
            self.pending = true;
        }
    }

    /// Somebody else than the controller puts the device into operation.
    pub fn operate(&mut self) {
        self.device.become_at(At::Running);
        if self.fate == Fate::Reset {
            self.fate = Fate::Operating;
            self.look_soon();
        }
    }

    /// `order` is held by whoever announces.
    pub fn announce(&mut self, change: Change) {
        if change.from != self.announced || self.order.is_none() {
            self.violate(Violation::OutOfOrder);
        }
        self.announced = change.to;
        if change.lets_go() {
            self.held = false;
        }
    }

    /// Whether a task drives the device, so that nobody else may.
    pub fn drives(pc: Pc) -> bool {
        matches!(
            pc,
            Pc::Gate
                | Pc::Ask(_)
                | Pc::Wait(_)
                | Pc::TakeBack { .. }
                | Pc::Quiesce
                | Pc::Reopen { .. }
                | Pc::Finish { .. }
                | Pc::Recover { .. }
                | Pc::Initialise
                | Pc::Recovered(_)
                | Pc::Adopt(_)
                | Pc::Notify
        )
    }

    /// Whoever has reset the device has gone, and left it so.
    pub fn is_left(&self) -> bool {
        self.kind == Kind::Extension
            && self.fate == Fate::Reset
            && self.core == Core::None
            && self.bus == Bus::Bound
    }

    /// Which of the writers is which does not matter: one that is idle comes last.
    pub fn sort_writers(&mut self) {
        if self.tasks[0] != Pc::Idle || self.tasks[1] == Pc::Idle {
            return;
        }
        self.tasks.swap(0, 1);
        for who in [&mut self.order, &mut self.device_lock] {
            if *who == Some(Who::Writer(1)) {
                *who = Some(Who::Writer(0));
            }
        }
    }

    pub fn writers_idle(&self) -> bool {
        self.tasks[..WATCH].iter().all(|pc| *pc == Pc::Idle)
    }

    /// The work is cancelled: whoever does that waits for it.
    pub fn watch_idle(&self) -> bool {
        self.tasks[WATCH] == Pc::Idle
    }
}
