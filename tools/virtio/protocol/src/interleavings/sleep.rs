// SPDX-License-Identifier: GPL-2.0

//! A device that is to keep its state while the system sleeps: what
//! rust/kernel/virtio/suspend/controller/system_sleep.rs does, and those who call it.
//!
//! The PM core calls with the device lock held, before the transport stops the device, and after it
//! has put it into operation again. A device that keeps its state is not stopped. A driver that is
//! none of the crate's is stopped and restarted by the same means as by the transport, if its device
//! has lost its state.

use crate::{
    protocol::State,
    state_machine::{
        Denial,
        Outcome, //
    },
};

use super::{
    moves::Moves,
    world::{
        Asked,
        At,
        Bus,
        Core,
        Fate,
        Kind,
        Stop,
        Who,
        World, //
    }, //
};

/// Adds what the PM core's callbacks can do next.
pub fn moves(m: &mut Moves<'_>) {
    let from = m.from;
    let free = from.order.is_none();
    let lock = from.device_lock.is_none();

    match from.core {
        Core::Bed => {
            m.step("is not to keep the state", go_on);
            if lock && free && from.bus == Bus::Bound {
                m.step("puts the device to sleep", |w| {
                    match w.machine.fall_asleep() {
                        Ok(State::Suspended) => sleep(w),
                        Ok(_) => {
                            w.device_lock = Some(Who::Core);
                            w.core = Core::BedGate;
                        }
                        Err(Denial::Failed) => go_on(w),
                        Err(_) => w.core = Core::Awake,
                    }
                });
            }
        }
        Core::BedGate => {
            if free {
                m.step("can't be gated in time", |w| {
                    leave_bed(w);
                    go_on(w);
                });
            }
            m.step("is gated", |w| {
                w.gated = true;
                w.core = Core::BedAsk;
            });
        }
        Core::BedAsk => m.step("asks for the suspend", |w| {
            w.touch();
            if w.device.gone || w.device.at != At::Running {
                lose(w);
            } else {
                w.device.asked = Asked::Suspend;
                w.core = Core::BedWait;
            }
        }),
        Core::BedWait => {
            if from.device.gone || from.device.at == At::NeedsReset {
                m.step("sees that it is broken", |w| {
                    w.touch();
                    lose(w);
                });
            } else if from.device.at == At::Suspended {
                m.step("sees that it is suspended", |w| {
                    w.touch();
                    sleep(w);
                });
            } else if free {
                m.step("takes it back", |w| {
                    w.touch();
                    w.device.asked = Asked::Nothing;
                    w.gated = false;
                    leave_bed(w);
                    go_on(w);
                });
            }
        }
        Core::Asleep => {
            // What becomes of its state in the deepest sleep.
            if !from.device.gone && from.device.at == At::Suspended {
                m.event("takes the power from the device", |w| {
                    w.device.become_at(At::Reset)
                });
            }
            m.event("is woken", |w| w.core = Core::Wake);
        }
        Core::Wake if lock && free => m.step("wakes the device", |w| {
            w.away = false;
            wake(w);
        }),
        Core::WakeWait if free => {
            if from.device.at == At::Running && !from.device.gone {
                m.step("sees that it has resumed", |w| {
                    w.touch();
                    resumed(w);
                });
            }
            m.step("does not wait any longer", lose);
        }
        Core::OwnRestart => {
            if !from.device.gone {
                m.step("restarts the device", |w| {
                    w.away = false;
                    w.operate();
                    w.core = Core::Resume;
                });
            }
            if free {
                m.step("can't restart the device", |w| {
                    w.away = false;
                    w.gated = false;
                    w.told = true;
                    w.fate = Fate::Abandoned;
                    thaw(w, Outcome::GivenUp);
                });
            }
        }
        Core::Resume if free && (lock || from.device_lock == Some(Who::Core)) => {
            m.step("sees what the transport has done", |w| {
                if w.bus == Bus::Unbound {
                    w.core = Core::Awake;
                } else if w.fate == Fate::Operating {
                    w.fate = Fate::Untouched;
                    w.gated = false;
                    w.told = false;
                    thaw(w, Outcome::Operates);
                } else {
                    // What it has left is found by a look.
                    w.core = Core::Awake;
                }
            });
        }
        _ => {}
    }
}

/// The transport has its turn.
fn go_on(w: &mut World) {
    if w.device_lock == Some(Who::Core) {
        w.device_lock = None;
    }
    w.core = match w.kind {
        Kind::Native => Core::FreezeLock,
        Kind::Extension => Core::FreezeStop(Stop::Sleep),
    };
}

/// The device operates again, or does not, which the controller is told.
fn thaw(w: &mut World, outcome: Outcome) {
    assert!(w.machine.freeze().is_ok());
    let next = w.machine.thaw(outcome);
    w.order = Some(Who::Core);
    w.device_lock = Some(Who::Core);
    w.core = Core::ThawAnnounce(Stop::Sleep, next);
}

/// The device keeps its state: nobody does anything with it.
fn sleep(w: &mut World) {
    w.away = true;
    w.device_lock = None;
    w.core = Core::Asleep;
}

fn leave_bed(w: &mut World) {
    if w.machine.wake_up().look {
        w.look_soon();
    }
}

fn wake(w: &mut World) {
    let asleep = w.machine.asleep().filter(|_| w.bus != Bus::Unbound);
    let Some(state) = asleep else {
        w.core = Core::Awake;
        return;
    };
    w.touch();
    w.device_lock = Some(Who::Core);
    match (state, w.device.at) {
        // Who resumes one that is out of reach will see.
        (State::Suspended, _) if w.device.gone => stays(w),
        (State::Suspended, At::Running | At::Suspended) => stays(w),
        (_, At::Running) if !w.device.gone => resumed(w),
        (State::Running, At::Suspended) if !w.device.gone => {
            w.device.asked = Asked::Resume;
            w.core = Core::WakeWait;
        }
        _ => lose(w),
    }
}

fn stays(w: &mut World) {
    leave_bed(w);
    w.device_lock = None;
    w.core = Core::Awake;
}

fn resumed(w: &mut World) {
    w.gated = false;
    stays(w);
}

/// The device is broken, or has lost its state: it is stopped, and restarted when the system is awake.
fn lose(w: &mut World) {
    if w.kind == Kind::Native {
        assert!(w.machine.freeze().is_ok());
        w.core = Core::FreezeCancel(Stop::Sleep);
        return;
    }
    w.device.become_at(At::Reset);
    w.fate = Fate::Reset;
    w.away = true;
    if matches!(w.core, Core::Wake | Core::WakeWait) {
        assert!(w.machine.freeze().is_ok());
        w.core = Core::OwnRestart;
    } else {
        w.device_lock = None;
        w.core = Core::Stopped(Stop::Sleep);
    }
}
