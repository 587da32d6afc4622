// SPDX-License-Identifier: GPL-2.0

//! Requests and looks: what rust/kernel/virtio/suspend/controller.rs does, step by step.

use crate::{
    protocol::{
        Condition,
        Goal,
        Reason, //
    },
    state_machine::{
        Diagnosis,
        ForeignReset,
        Look,
        Looked,
        Next,
        Outcome,
        Postponed, //
    },
};

use super::{
    moves::Moves,
    world::{
        After,
        Asked,
        At,
        Bus,
        Fate,
        Kind,
        Pc,
        Violation,
        Watching,
        World,
        WATCH, //
    }, //
};

/// Adds what a task can do next.
pub fn moves(m: &mut Moves<'_>, task: usize) {
    let from = m.from;
    let free = from.order.is_none();
    let me = World::who(task);
    let is_watch = task == WATCH;

    match from.tasks[task] {
        // Who waits for `order` before it has begun to do anything may as well begin later.
        Pc::Idle if is_watch => {
            if from.pending && !from.closed && free {
                m.step("looks", |w| {
                    w.pending = false;
                    look(w, task);
                });
            }
        }
        Pc::Idle => {
            if !from.files || from.tasks_frozen || !free {
                return;
            }
            for goal in [Goal::Suspend, Goal::Resume] {
                let sleep = goal == Goal::Suspend && from.no_suspend;
                if from.machine.admit(goal, &from.others()).is_ok() && !sleep {
                    m.event("begins", |w| {
                        w.held |= goal == Goal::Suspend;
                        let change = w.machine.begin(goal);
                        w.order = Some(me);
                        w.tasks[task] = Pc::Announce(Some(change), false, After::Request(goal));
                    });
                }
            }
        }

        Pc::Announce(change, look, after) => m.step("announces", |w| {
            if let Some(change) = change {
                w.announce(change);
            }
            if w.order.take() != Some(me) {
                w.violate(Violation::Model);
            }
            if look {
                w.look_soon();
            }
            w.tasks[task] = match after {
                After::Request(Goal::Suspend) => Pc::Gate,
                After::Request(Goal::Resume) | After::LateResume => Pc::Ask(Goal::Resume),
                After::Recover if is_watch => Pc::TryLock,
                // It is the watch that recovers a device, for which a request does not wait longer
                // than it likes.
                After::Recover => {
                    w.look_soon();
                    Pc::Idle
                }
                After::Unlock => {
                    unlock(w, task);
                    Pc::Idle
                }
                After::End => Pc::Idle,
            };
        }),
        Pc::Gate => {
            m.step("can't be gated in time", |w| {
                w.tasks[task] = Pc::Finish {
                    success: false,
                    goal: Goal::Suspend,
                };
            });
            let fate = match from.fate {
                Fate::Operating => Fate::Untouched,
                fate => fate,
            };
            if from.kind == Kind::Native && from.others().reset == ForeignReset::None
                || from.kind == Kind::Extension && fate == Fate::Untouched
            {
                m.step("is gated", |w| {
                    w.fate = fate;
                    w.gated = true;
                    w.tasks[task] = Pc::Ask(Goal::Suspend);
                });
            }
        }

        Pc::Ask(goal) => {
            for disconnected in [false, true] {
                m.step("asks", |w| {
                    w.touch();
                    let asked = w.machine.ask(goal);
                    match (goal, w.device.condition()) {
                        (Goal::Suspend, Condition::Running) => {
                            w.device.asked = Asked::Suspend;
                            w.tasks[task] = Pc::Wait(goal);
                        }
                        (Goal::Resume, Condition::Suspended) => {
                            // Rule D8: it is waited for if it has been asked.
                            if !asked {
                                w.device.asked = Asked::Resume;
                            }
                            w.tasks[task] = Pc::Wait(goal);
                        }
                        _ => observe(w, task, goal, disconnected),
                    }
                });
            }
        }
        Pc::Wait(goal) => {
            let condition = from.device.condition();
            let waits = matches!(
                (goal, condition),
                (Goal::Suspend, Condition::Running) | (Goal::Resume, Condition::Suspended)
            );
            if !waits {
                for disconnected in [false, true] {
                    m.step("sees", |w| observe(w, task, goal, disconnected));
                }
                return;
            }
            // The deadline, a signal, that the driver is unbound, that the system goes down.
            match goal {
                Goal::Suspend => {
                    for asked in [Asked::Nothing, Asked::TooLate] {
                        m.step("takes back", |w| {
                            w.touch();
                            w.device.asked = asked;
                            w.tasks[task] = Pc::TakeBack { resumed: false };
                        });
                    }
                }
                Goal::Resume => {
                    m.step("waits no longer", |w| {
                        refuse(w, task, goal, Diagnosis::Curable)
                    });
                    // There are devices that resume only if they are asked otherwise.
                    m.step("asks otherwise", |w| {
                        w.touch();
                        w.device.asked = Asked::Resume;
                    });
                }
            }
        }
        Pc::TakeBack { resumed } => match from.device.condition() {
            Condition::Running => m.step("has taken back", |w| {
                w.touch();
                refuse(w, task, Goal::Suspend, Diagnosis::Curable);
            }),
            Condition::Broken(_) => m.step("sees", |w| observe(w, task, Goal::Suspend, false)),
            _ => {
                if !resumed {
                    m.step("asks for the resume", |w| {
                        w.touch();
                        w.device.asked = Asked::Resume;
                        w.tasks[task] = Pc::TakeBack { resumed: true };
                    });
                }
                m.step("can't take back", |w| fail(w, task, Diagnosis::Curable));
            }
        },
        Pc::Quiesce => m.step("quiesces", |w| {
            w.touch();
            w.tasks[task] = Pc::Finish {
                success: true,
                goal: Goal::Suspend,
            };
        }),
        Pc::Reopen { success, goal } => m.step("reopens", |w| {
            w.touch();
            w.gated = false;
            w.tasks[task] = Pc::Finish { success, goal };
        }),
        Pc::Notify => m.step("notifies", |w| {
            w.touch();
            w.tasks[task] = Pc::Finish {
                success: true,
                goal: Goal::Resume,
            };
        }),
        Pc::Finish { success, goal } if free => m.step("ends", |w| {
            let next = if success {
                w.machine.complete(goal)
            } else {
                w.machine.roll_back(goal)
            };
            if !success && goal == Goal::Suspend {
                w.watching = Watching::ForAWhile;
                w.look_soon();
            }
            if is_watch && w.watching != Watching::Off {
                w.look_soon();
            }
            then_announce(w, task, next, After::End);
        }),
        Pc::Fail(diagnosis) if free => m.step("has failed", |w| {
            let change = w.machine.fail(diagnosis);
            w.order = Some(me);
            w.tasks[task] = Pc::Announce(Some(change), false, After::Recover);
        }),

        Pc::TryLock if from.device_lock.is_none() => m.step("locks the device", |w| {
            let others = w.others();
            match w.machine.begin_recovery(&others) {
                Some(diagnosis) => {
                    w.device_lock = Some(me);
                    w.tasks[task] = Pc::Recover(diagnosis);
                }
                None => w.tasks[task] = Pc::Postpone,
            }
        }),
        // It is not waited for: only for a second, and not if something interrupts.
        Pc::TryLock => m.step("can't lock the device", |w| w.tasks[task] = Pc::Postpone),
        Pc::Postpone => m.step("postpones", |w| {
            let others = w.others();
            w.tasks[task] = match w.machine.postpone(&others) {
                Postponed::Leave => Pc::Idle,
                Postponed::GiveUp => Pc::GiveUp,
                Postponed::Retry => Pc::FailProbe,
            };
        }),
        Pc::GiveUp => m.step("gives up", |w| {
            if w.kind == Kind::Native {
                let waits = matches!(
                    w.bus,
                    Bus::Files | Bus::Watch | Bus::UnbindWait | Bus::Close
                );
                if !waits {
                    w.violate(Violation::StoppedTwice);
                }
                w.touch();
                w.device.become_at(At::Reset);
                w.gated = false;
                w.told = true;
            }
            w.tasks[task] = Pc::Idle;
        }),
        Pc::FailProbe => m.step("has the probe fail", |w| {
            if w.bus == Bus::ProbeStart {
                w.device.become_at(At::Reset);
                w.told = true;
            }
            w.look_soon();
            w.tasks[task] = Pc::Idle;
        }),
        Pc::Recover(diagnosis) => recover(m, task, diagnosis),
        Pc::Initialise => {
            if !from.device.gone {
                m.step("initialises", |w| {
                    w.touch();
                    w.device.become_at(At::Running);
                    w.gated = false;
                    w.recovering = false;
                    w.fate = Fate::Untouched;
                    w.tasks[task] = Pc::Recovered(Outcome::Operates);
                });
            }
            m.step("can't initialise", |w| {
                // Its driver is stopped, and does not count on it any more.
                if w.kind == Kind::Extension {
                    w.fate = if w.gated {
                        Fate::Abandoned
                    } else {
                        Fate::LeftReset
                    };
                }
                w.gated = false;
                w.recovering = false;
                w.told = true;
                w.tasks[task] = Pc::Recovered(Outcome::GivenUp);
            });
        }
        Pc::Recovered(outcome) if free => m.step("has recovered", |w| {
            let next = w.machine.recovered(outcome);
            then_announce(w, task, next, After::Unlock);
        }),

        Pc::LookStatus => m.step("reads the status", |w| {
            w.touch();
            w.tasks[task] = Pc::Looked(w.device.condition());
        }),
        Pc::Looked(condition) => looked(m, task, condition),
        Pc::Adopt(next) => m.step("adopts", |w| {
            w.touch();
            w.gated = false;
            w.told = false;
            w.tasks[task] = Pc::Announce(next.change, next.look, After::End);
        }),

        // `order` is held by somebody else.
        Pc::Finish { .. } | Pc::Fail { .. } | Pc::Recovered(_) => {}
    }
}

fn look(w: &mut World, task: usize) {
    let others = w.others();
    let look = w.machine.look(&others);
    let operates = look != Look::Later && w.fate == Fate::Operating;
    if operates {
        w.fate = Fate::Untouched;
    }
    match look {
        Look::Status => {
            w.order = Some(World::who(task));
            w.tasks[task] = Pc::LookStatus;
        }
        Look::Standing { .. } if operates => {
            let next = w.machine.adopt();
            w.order = Some(World::who(task));
            w.tasks[task] = Pc::Adopt(next);
        }
        Look::Failed(change) => {
            w.order = Some(World::who(task));
            w.tasks[task] = Pc::Announce(Some(change), false, After::Recover);
        }
        Look::Standing { failed: true } => w.tasks[task] = Pc::TryLock,
        Look::Standing { failed: false } | Look::Later => {}
    }
}

fn unlock(w: &mut World, task: usize) {
    if w.device_lock.take() != Some(World::who(task)) {
        w.violate(Violation::Model);
    }
}

/// `order` has been taken, and the state machine has decided.
fn then_announce(w: &mut World, task: usize, next: Next, after: After) {
    w.order = Some(World::who(task));
    w.tasks[task] = Pc::Announce(next.change, next.look, after);
}

fn fail(w: &mut World, task: usize, diagnosis: Diagnosis) {
    w.tasks[task] = Pc::Fail(diagnosis);
}

/// The device could not be brought to the goal, but is where it was.
fn refuse(w: &mut World, task: usize, goal: Goal, diagnosis: Diagnosis) {
    let success = false;
    w.tasks[task] = match goal {
        // One that suspended too late, and does not resume, is of no use.
        _ if task == WATCH => Pc::Fail(diagnosis),
        Goal::Suspend => Pc::Reopen { success, goal },
        Goal::Resume => Pc::Finish { success, goal },
    };
}

/// The device presents something else than what it presents while it is waited for.
fn observe(w: &mut World, task: usize, goal: Goal, disconnected: bool) {
    w.touch();
    match (goal, w.device.condition()) {
        (Goal::Suspend, Condition::Suspended) => {
            w.machine.forget_asked();
            w.tasks[task] = Pc::Quiesce;
        }
        (Goal::Resume, Condition::Running) => {
            w.machine.forget_asked();
            w.tasks[task] = if task == WATCH {
                Pc::Notify
            } else {
                Pc::Reopen {
                    success: true,
                    goal,
                }
            };
        }
        (Goal::Resume, Condition::Broken(Reason::Lost)) => {
            w.machine.forget_asked();
            if disconnected {
                fail(w, task, Diagnosis::Lost);
            } else {
                refuse(w, task, goal, Diagnosis::Lost);
            }
        }
        (_, Condition::Broken(Reason::Lost)) => fail(w, task, Diagnosis::Lost),
        _ => fail(w, task, Diagnosis::Curable),
    }
}

/// What [`Operations::recover`] does: `Common` and `Binding` have one each.
fn recover(m: &mut Moves<'_>, task: usize, diagnosis: Diagnosis) {
    let from = m.from;
    let give_up = |w: &mut World| {
        w.told = true;
        w.gated = false;
        w.tasks[task] = Pc::Recovered(Outcome::GivenUp);
    };
    let extension = from.kind == Kind::Extension;
    let left = from.fate == Fate::LeftReset;

    if extension && !matches!(from.fate, Fate::Untouched | Fate::LeftReset) {
        m.step("leaves it to others", |w| {
            w.tasks[task] = Pc::Recovered(Outcome::LeftToOthers);
        });
    } else if diagnosis != Diagnosis::Curable {
        m.step("gives up", |w| {
            w.touch();
            w.device.become_at(At::Reset);
            if left && w.gated {
                w.fate = Fate::Abandoned;
            }
            give_up(w);
        });
    } else {
        m.step("resets", |w| {
            w.touch();
            w.gated = extension && (w.gated || !left);
            w.recovering = extension;
            w.device.become_at(At::Reset);
            w.tasks[task] = Pc::Initialise;
        });
        if extension && !left && !from.gated {
            // A driver that can't be stopped is left to itself: it waits as it would without.
            m.step("can't be gated", |w| give_up(w));
        }
    }
}

fn looked(m: &mut Moves<'_>, task: usize, condition: Condition) {
    let me = World::who(task);
    let choices: &[bool] = match condition {
        Condition::Running => &[false],
        _ => &[false, true],
    };
    for &hopeless in choices {
        m.step("decides", |w| {
            let others = w.others();
            w.tasks[task] = match w.machine.looked(condition, hopeless, &others) {
                Looked::Later => {
                    w.order = None;
                    Pc::Idle
                }
                Looked::Running => {
                    w.order = None;
                    if w.watching != Watching::Off {
                        w.look_soon();
                    }
                    Pc::Idle
                }
                Looked::Failed(change, _) => Pc::Announce(Some(change), false, After::Recover),
                Looked::Resume(change) => Pc::Announce(Some(change), false, After::LateResume),
            };
            if w.order.is_some_and(|who| who != me) {
                w.violate(Violation::Model);
            }
        });
    }
    if condition == Condition::Running && m.from.watching == Watching::ForAWhile {
        m.step("has watched it for a minute", |w| {
            w.watching = Watching::Off;
            w.order = None;
            w.tasks[task] = Pc::Idle;
        });
    }
}
