// SPDX-License-Identifier: GPL-2.0

//! Those who have to do with a device beside the controller: the device itself, the bus, the virtio
//! core, the sleep of the system.

use crate::state_machine::Outcome;

use super::{
    moves::Moves,
    world::{
        Asked,
        At,
        Bus,
        Core,
        Fate,
        Kind,
        Pc,
        Stop,
        Violation,
        Watching,
        Who,
        World,
        WATCH, //
    }, //
};

/// How often a device breaks or vanishes.
const FAULTS: u8 = 1;

/// Adds what the device can do next.
pub fn device(m: &mut Moves<'_>) {
    let from = m.from;
    let device = from.device;
    if from.bus == Bus::Unbound || from.core == Core::Down {
        return;
    }

    if device.gone {
        m.event("is back", |w| w.device.gone = false);
    } else {
        match (device.at, device.asked) {
            (At::Running, Asked::Suspend | Asked::TooLate) => {
                m.event("suspends", |w| w.device.become_at(At::Suspended));
            }
            (At::Suspended, Asked::Resume) => {
                m.event("resumes", |w| w.device.become_at(At::Running));
            }
            _ => {}
        }
    }
    if device.faults < FAULTS {
        if matches!(device.at, At::Running | At::Suspended) && !device.gone {
            m.event("breaks", |w| {
                w.device.become_at(At::NeedsReset);
                w.device.news = w.kind == Kind::Native;
                w.device.faults += 1;
            });
        }
        if !device.gone {
            m.event("vanishes", |w| {
                w.device.gone = true;
                w.device.faults += 1;
            });
        }
    }
    if deliverable(from) {
        m.step("has its notification passed on", |w| {
            w.device.news = false;
            w.look_soon();
        });
    }
}

/// Whether the virtio core passes a notification of the device on now.
pub fn deliverable(w: &World) -> bool {
    let bound = matches!(w.bus, Bus::Bound | Bus::Files);
    w.device.news && !w.device.gone && !w.gated && !w.away && bound
}

/// Adds what can become of the driver's binding.
pub fn bus(m: &mut Moves<'_>) {
    let from = m.from;
    let answers = from.device.at == At::Running && !from.device.gone && !from.gated;
    // See `resets::wait`.
    let being_reset = from.core.resets() && from.core != Core::ThawLock(Stop::Reset);

    match from.bus {
        Bus::ProbeStart if from.told || answers => {
            m.step("goes on", |w| w.bus = Bus::ProbeEnd);
        }
        Bus::ProbeEnd if from.watch_idle() => m.step("ends the watch", |w| {
            w.watching = Watching::Off;
            w.pending = false;
            if w.told || !w.machine.is_running() {
                w.bus = Bus::Close;
            } else {
                w.device_lock = None;
                w.files = true;
                w.bus = Bus::Bound;
            }
        }),
        // It is a task that unbinds. Drivers of the crate would bear it nevertheless.
        Bus::Bound if from.kind == Kind::Extension && from.tasks_frozen => {}
        Bus::Bound if from.device_lock.is_none() => m.event("tells all who wait", |w| {
            w.device_lock = Some(Who::Bus);
            w.unbinding = true;
            w.bus = Bus::Files;
        }),
        Bus::Files if from.files => m.step("removes the files", |w| w.files = false),
        Bus::Files if from.writers_idle() => m.step("has waited for writers", |w| {
            w.bus = match w.kind {
                Kind::Native => Bus::Watch,
                Kind::Extension => Bus::Close,
            };
        }),
        Bus::Watch if !being_reset => m.step("begins to watch", |w| {
            w.watching = Watching::ForEver;
            w.look_soon();
            w.bus = if w.machine.is_running() && answers {
                Bus::UnbindWait
            } else {
                Bus::Close
            };
        }),
        Bus::UnbindWait if from.told || answers => {
            m.step("has waited", |w| w.bus = Bus::Close);
        }
        Bus::Close if !from.closed => m.step("cancels the work", |w| {
            w.closed = true;
            w.pending = false;
        }),
        Bus::Close if from.watch_idle() => m.step("has waited for the work", |w| {
            w.bus = match w.kind {
                Kind::Native => Bus::Stop,
                Kind::Extension if !w.gated => Bus::Stop,
                Kind::Extension if w.machine.state() == crate::protocol::State::Suspended => {
                    Bus::ResumeAsk
                }
                Kind::Extension => Bus::LetGo(false),
            };
        }),
        Bus::ResumeAsk => m.step("asks for the resume", |w| {
            w.touch();
            w.bus = match (w.device.gone, w.device.at) {
                (false, At::Running) => Bus::LetGo(true),
                (false, At::Suspended) => {
                    w.device.asked = Asked::Resume;
                    Bus::ResumeWait
                }
                _ => Bus::LetGo(false),
            };
        }),
        Bus::ResumeWait => m.step("sees", |w| {
            w.touch();
            w.bus = Bus::LetGo(w.device.at == At::Running && !w.device.gone);
        }),
        Bus::LetGo(works) => m.step("lets the driver go on", |w| {
            w.gated = false;
            w.told |= !works;
            w.bus = Bus::Stop;
        }),
        Bus::Stop => m.step("stops the device", |w| {
            if w.tasks[WATCH] != Pc::Idle || !w.writers_idle() {
                w.violate(Violation::StoppedTwice);
            }
            w.device.become_at(At::Reset);
            w.gated = false;
            w.told = true;
            w.away = true;
            w.device_lock = None;
            w.bus = Bus::Unbound;
        }),
        _ => {}
    }
}

/// Adds what the virtio core, the transport and the system can do next.
pub fn core(m: &mut Moves<'_>) {
    let from = m.from;
    let free = from.order.is_none();
    let lock = from.device_lock.is_none();
    let native = from.kind == Kind::Native;

    // What is looked at every second.
    if from.is_left() {
        m.step("is found to have left the device", |w| {
            w.fate = Fate::LeftReset;
            w.look_soon();
        });
    }

    match from.core {
        // Who waits for a lock before it has begun to do anything may as well begin later.
        Core::None if from.bus != Bus::Unbound => {
            if native {
                m.event("announces the sleep", |w| {
                    w.no_suspend = true;
                    w.core = Core::Tasks;
                });
            } else if free {
                m.event("announces the sleep", |w| {
                    w.no_suspend = true;
                    w.sleeping = true;
                    w.core = match w.machine.prepare_to_sleep() {
                        Ok(()) => Core::Tasks,
                        Err(_) => Core::Awake,
                    };
                });
            }
            if native && lock {
                m.event("is to reset the function", |w| freeze(w, Stop::Reset));
                m.event("goes down", |w| {
                    w.device_lock = Some(Who::Core);
                    w.machine.shut_down();
                    w.going_down = true;
                    w.core = Core::DownCancel;
                });
            } else if !native && from.bus == Bus::Bound {
                m.event("resets the function", |w| {
                    w.device.become_at(At::Reset);
                    if !w.recovering && w.fate != Fate::Abandoned {
                        w.fate = Fate::Reset;
                    }
                    w.core = Core::ResetDone;
                });
            }
        }

        // The sleep of the system.
        Core::Tasks if !from.tasks_frozen => m.step("freezes tasks", |w| w.tasks_frozen = true),
        Core::Tasks => {
            m.step("could not freeze the tasks", |w| w.core = Core::Awake);
            let bus = native || matches!(from.bus, Bus::Bound | Bus::Unbound);
            if from.writers_idle() && bus {
                m.step("has frozen the tasks", |w| w.core = Core::Bed);
            }
        }
        Core::Awake => m.step("is awake", |w| {
            w.tasks_frozen = false;
            w.no_suspend = false;
            if w.sleeping {
                w.sleeping = false;
                w.look_soon();
            }
            w.core = Core::None;
        }),

        // What stops a driver of the crate.
        Core::FreezeLock if lock => m.step("freezes", |w| {
            if w.bus == Bus::Unbound {
                w.core = Core::Awake;
            } else {
                freeze(w, Stop::Sleep);
            }
        }),
        Core::FreezeCancel(_) if from.pending => {
            m.step("cancels the work", |w| w.pending = false);
        }
        Core::FreezeCancel(stop) if from.watch_idle() => {
            m.step("has waited for the work", |w| {
                w.core = Core::FreezeStop(stop)
            });
        }
        Core::FreezeStop(stop) => {
            m.step("stops the device", |w| {
                w.device.become_at(At::Reset);
                if native {
                    w.gated = false;
                    w.device_lock = None;
                } else if w.fate != Fate::Abandoned {
                    w.fate = Fate::Reset;
                }
                w.away = true;
                w.core = Core::Stopped(stop);
            });
            if !native {
                // Its registers are left alone: No_Soft_Reset.
                m.step("leaves the device as it is", |w| {
                    w.away = true;
                    w.core = Core::Stopped(stop);
                });
            }
        }
        Core::Stopped(Stop::Sleep) => m.event("is woken", |w| {
            w.core = if native {
                Core::ThawLock(Stop::Sleep)
            } else if w.machine.asleep().is_some() {
                Core::OwnRestart
            } else {
                Core::Restore
            };
        }),
        Core::Stopped(Stop::Reset) => {
            m.step("has reset the function", |w| {
                w.core = Core::ThawLock(Stop::Reset)
            });
        }
        Core::ThawLock(stop) if lock => m.step("locks the device", |w| {
            if w.bus == Bus::Unbound {
                w.core = end(stop);
                return;
            }
            w.device_lock = Some(Who::Core);
            w.core = Core::Restart(stop);
        }),
        Core::Restart(stop) => {
            // What has been given up stays so.
            if !from.told && !from.device.gone {
                m.step("restarts the device", |w| {
                    w.device.become_at(At::Running);
                    w.away = false;
                    w.core = Core::Thaw(stop, Outcome::Operates);
                });
            }
            m.step("can't restart the device", |w| {
                w.told = true;
                w.away = false;
                w.core = Core::Thaw(stop, Outcome::GivenUp);
            });
        }
        Core::Thaw(stop, outcome) if free => m.step("thaws", |w| {
            let next = w.machine.thaw(outcome);
            w.order = Some(Who::Core);
            w.core = Core::ThawAnnounce(stop, next);
        }),
        Core::ThawAnnounce(stop, next) => m.step("announces", |w| {
            if let Some(change) = next.change {
                w.announce(change);
            }
            w.order = None;
            if next.look {
                w.look_soon();
            }
            w.device_lock = None;
            w.core = end(stop);
        }),

        // The device has been reset under a request, which is waited for, but not for ever: one that
        // waits for its driver can take longer. Else it looks at the status every few milliseconds.
        Core::ResetUnder if from.pending => {
            m.step("cancels the work", |w| w.pending = false);
        }
        Core::ResetUnder if from.watch_idle() => {
            if from.tasks.contains(&Pc::Gate) {
                m.step("waits no longer for the request", |w| {
                    w.device_lock = None;
                    w.core = Core::Stopped(Stop::Reset);
                });
            }
            if !from.machine.in_transition() {
                m.step("freezes", |w| {
                    if w.machine.freeze().is_ok() {
                        w.away = true;
                        w.device_lock = None;
                        w.core = Core::Stopped(Stop::Reset);
                    }
                });
            }
        }

        // What others do with the device of a driver that is none of the crate's.
        Core::ResetDone => {
            m.step("has reset the function", |w| {
                w.operate();
                w.core = Core::None;
            });
            m.step("leaves the function reset", |w| w.core = Core::None);
        }
        Core::Restore => {
            if !from.device.gone {
                m.step("restores the device", |w| {
                    w.away = false;
                    if w.fate == Fate::Reset {
                        w.operate();
                    }
                    w.core = Core::Resume;
                });
            }
            m.step("can't restore the device", |w| {
                w.away = false;
                w.core = Core::Resume;
            });
        }

        // The system goes down.
        Core::DownCancel if from.pending => m.step("cancels the work", |w| w.pending = false),
        Core::DownCancel if from.watch_idle() => {
            m.step("has waited for the work", |w| w.core = Core::DownWait);
        }
        Core::DownWait if !from.machine.in_transition() => {
            m.step("has waited for the request", |w| w.core = Core::DownReset);
        }
        Core::DownReset => m.step("resets the device", |w| {
            w.device.become_at(At::Reset);
            w.away = true;
            w.device_lock = None;
            w.core = Core::Down;
        }),
        _ => super::sleep::moves(m),
    }
}

/// To stop the device, with the device lock.
fn freeze(w: &mut World, stop: Stop) {
    w.core = match (w.machine.freeze(), stop) {
        (Ok(()), _) => Core::FreezeCancel(stop),
        (Err(_), Stop::Sleep) => {
            w.core = Core::Awake;
            return;
        }
        (Err(_), Stop::Reset) => {
            w.device.become_at(At::Reset);
            w.gated = false;
            Core::ResetUnder
        }
    };
    w.device_lock = Some(Who::Core);
}

fn end(stop: Stop) -> Core {
    match stop {
        Stop::Sleep => Core::Awake,
        Stop::Reset => Core::None,
    }
}
