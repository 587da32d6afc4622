// SPDX-License-Identifier: GPL-2.0

//! Every state of a transition, every status that a device can present, every stretch of time.
//!
//! What is expected is written down here a second time, out of the rules and not out of the code:
//! bit by bit, in tables.

use crate::protocol::{
    negotiate, Action, Condition, Goal, Reason, Revision, State, Transition, QUIRK_MIN_NS,
    ROLLBACK_NS,
};
use crate::status::Status;

const REVISIONS: [Revision; 2] = [Revision::V1_4, Revision::Draft];
const GOALS: [Goal; 2] = [Goal::Suspend, Goal::Resume];
const TIMEOUT: u64 = 1_000_000_000;

const ACK_DRIVER_FEATURES: u8 = 0x01 | 0x02 | 0x08;
const DRIVER_OK: u8 = 0x04;
const SUSPEND: u8 = 0x10;
const NEEDS_RESET: u8 = 0x40;
const FAILED: u8 = 0x80;

/// What a status means, by the table "Revisions" of the rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    Running,
    Suspended,
    Neither,
    Gone,
    ResetItself,
    NeedsReset,
    DroppedABit,
}

fn meaning(revision: Revision, status: u8) -> Meaning {
    match status {
        0xff => return Meaning::Gone,
        0x00 => return Meaning::ResetItself,
        _ => {}
    }
    if status & NEEDS_RESET != 0 {
        return Meaning::NeedsReset;
    }
    if status & ACK_DRIVER_FEATURES != ACK_DRIVER_FEATURES || status & FAILED != 0 {
        return Meaning::DroppedABit;
    }
    match (revision, status & (SUSPEND | DRIVER_OK)) {
        // "suspended when SUSPEND = 1 and DRIVER_OK = 0", "resumed when SUSPEND = 0 and
        // DRIVER_OK = 1"
        (Revision::V1_4, SUSPEND) => Meaning::Suspended,
        (Revision::V1_4, DRIVER_OK) => Meaning::Running,
        (Revision::V1_4, _) => Meaning::Neither,
        // "suspended when SUSPEND = 1", "resumed when SUSPEND = 0"; without DRIVER_OK a device
        // does not run in either revision.
        (Revision::Draft, DRIVER_OK) => Meaning::Running,
        (Revision::Draft, 0) => Meaning::Neither,
        (Revision::Draft, _) => Meaning::Suspended,
    }
}

fn reason(revision: Revision, status: u8) -> Option<Reason> {
    match meaning(revision, status) {
        Meaning::Gone => Some(Reason::Lost),
        Meaning::ResetItself => Some(Reason::Reset),
        Meaning::NeedsReset => Some(Reason::NeedsReset),
        Meaning::DroppedABit => Some(Reason::Inconsistent(Status::from_bits(status))),
        _ => None,
    }
}

/// All the states that a transition can be in, and how to get there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Forward,
    /// A resume, after SUSPEND has been written as clear.
    Quirk,
    Rollback,
    /// A rollback, after a device that suspended too late has been resumed.
    RollbackResumed,
    /// The same, after SUSPEND has been written as clear.
    RollbackQuirk,
}

const PHASES: [Phase; 5] = [
    Phase::Forward,
    Phase::Quirk,
    Phase::Rollback,
    Phase::RollbackResumed,
    Phase::RollbackQuirk,
];

fn reach(revision: Revision, goal: Goal, phase: Phase) -> Option<Transition> {
    let suspended = match revision {
        Revision::V1_4 => Status::from_bits(0x1b),
        Revision::Draft => Status::from_bits(0x1f),
    };
    let running = Status::from_bits(0x0f);
    let start = match goal {
        Goal::Suspend => running,
        Goal::Resume => suspended,
    };
    let (mut t, _) = Transition::begin(revision, goal, start, TIMEOUT, false).unwrap();
    match (phase, goal, revision) {
        (Phase::Forward, _, _) => {}
        (Phase::Quirk, Goal::Resume, Revision::V1_4) => {
            assert_eq!(
                t.observe(suspended, TIMEOUT / 2),
                Action::Write(Status::from_bits(0x0f))
            );
            assert!(t.quirk());
        }
        (Phase::Rollback, Goal::Suspend, _) => {
            assert_eq!(t.observe(running, TIMEOUT), Action::Write(running));
        }
        (Phase::RollbackQuirk, Goal::Suspend, Revision::V1_4) => {
            t = reach(revision, goal, Phase::RollbackResumed)?;
            assert_eq!(
                t.observe(suspended, TIMEOUT + ROLLBACK_NS / 2),
                Action::Write(running)
            );
            assert!(t.quirk());
        }
        (Phase::RollbackResumed, Goal::Suspend, _) => {
            assert_eq!(t.observe(running, TIMEOUT), Action::Write(running));
            let resume = match revision {
                Revision::V1_4 => 0x1f,
                Revision::Draft => 0x0f,
            };
            assert_eq!(
                t.observe(suspended, TIMEOUT + ROLLBACK_NS / 4),
                Action::Write(Status::from_bits(resume))
            );
        }
        _ => return None,
    }
    Some(t)
}

/// The moments that matter, with one on each side of every limit.
const MOMENTS: [u64; 13] = [
    0,
    TIMEOUT / 2 - 1,
    TIMEOUT / 2,
    TIMEOUT - 1,
    TIMEOUT,
    TIMEOUT + 1,
    TIMEOUT + ROLLBACK_NS / 4 - 1,
    TIMEOUT + ROLLBACK_NS / 4,
    TIMEOUT + ROLLBACK_NS / 2 - 1,
    TIMEOUT + ROLLBACK_NS / 2,
    TIMEOUT + ROLLBACK_NS - 1,
    TIMEOUT + ROLLBACK_NS,
    u64::MAX,
];

/// What `observe` must answer; a wait is only checked for being one, and for its bound.
fn expected(revision: Revision, goal: Goal, phase: Phase, status: u8, now: u64) -> Action {
    use Meaning::*;

    let wait_until = |limit: u64| Action::Wait(limit - now);
    let cleared = Action::Write(Status::from_bits((status | DRIVER_OK) & !SUSPEND));
    let means = meaning(revision, status);

    match (goal, reason(revision, status)) {
        // Suspended and out of reach: it can come back.
        (Goal::Resume, Some(Reason::Lost)) => return Action::RolledBack(Reason::Lost),
        (_, Some(why)) => return Action::Failed(why),
        _ => {}
    }
    match (phase, goal, means) {
        (Phase::Forward, Goal::Suspend, Suspended) => Action::Done,
        (Phase::Forward, Goal::Suspend, _) if now < TIMEOUT => wait_until(TIMEOUT),
        // The rollback begins: what the device presents, without SUSPEND.
        (Phase::Forward, Goal::Suspend, _) => cleared,

        (Phase::Forward | Phase::Quirk, Goal::Resume, Running) => Action::Done,
        (Phase::Forward, Goal::Resume, _) if now < TIMEOUT / 2 && revision == Revision::V1_4 => {
            wait_until(TIMEOUT / 2)
        }
        (Phase::Forward, Goal::Resume, _) if now < TIMEOUT && revision == Revision::V1_4 => cleared,
        (Phase::Forward | Phase::Quirk, Goal::Resume, _) if now < TIMEOUT => wait_until(TIMEOUT),
        // Whatever it presents, it is not broken: the resume can be tried again.
        (Phase::Forward | Phase::Quirk, Goal::Resume, _) => Action::RolledBack(Reason::Timeout),

        (Phase::Rollback | Phase::RollbackResumed | Phase::RollbackQuirk, _, Running) => {
            Action::RolledBack(Reason::Timeout)
        }
        (_, _, _) if now >= TIMEOUT + ROLLBACK_NS => Action::Failed(Reason::Timeout),
        // It may have taken the rollback for the resume: time to show it.
        (Phase::Rollback, _, Suspended) if now < TIMEOUT + ROLLBACK_NS / 4 => {
            wait_until(TIMEOUT + ROLLBACK_NS / 4)
        }
        (Phase::Rollback, _, Suspended) => Action::Write(Status::from_bits(match revision {
            Revision::V1_4 => status | DRIVER_OK,
            Revision::Draft => (status | DRIVER_OK) & !SUSPEND,
        })),
        (Phase::RollbackResumed, _, _) if revision == Revision::V1_4 => {
            if now < TIMEOUT + ROLLBACK_NS / 2 {
                wait_until(TIMEOUT + ROLLBACK_NS / 2)
            } else {
                cleared
            }
        }
        (Phase::Rollback | Phase::RollbackResumed | Phase::RollbackQuirk, _, _) => {
            wait_until(TIMEOUT + ROLLBACK_NS)
        }
        (Phase::Quirk, Goal::Suspend, _) => unreachable!("only a resume has a quirk"),
    }
}

#[test]
fn every_status_has_the_meaning_of_the_rules() {
    for revision in REVISIONS {
        for status in 0..=u8::MAX {
            let condition = Condition::of(revision, Status::from_bits(status));
            let expected = match (meaning(revision, status), reason(revision, status)) {
                (_, Some(why)) => Condition::Broken(why),
                (Meaning::Running, _) => Condition::Running,
                (Meaning::Suspended, _) => Condition::Suspended,
                _ => Condition::Between,
            };
            assert_eq!(condition, expected, "{revision:?} {status:#04x}");
        }
    }
}

#[test]
fn every_beginning() {
    for revision in REVISIONS {
        for goal in GOALS {
            for status in 0..=u8::MAX {
                let status_read = Status::from_bits(status);
                let begin = |asked| {
                    Transition::begin(revision, goal, status_read, TIMEOUT, asked)
                        .map(|(_, action)| action)
                };
                let begun = begin(false);
                let write = |bits| Ok(Action::Write(Status::from_bits(bits)));
                let expected = if let Some(why) = reason(revision, status) {
                    match (goal, why) {
                        (Goal::Resume, Reason::Lost) => Ok(Action::RolledBack(why)),
                        _ => Err(why),
                    }
                } else {
                    match (goal, meaning(revision, status), revision) {
                        // D2: if and only if FEATURES_OK and DRIVER_OK are set.
                        (Goal::Suspend, Meaning::Running, _) => write(status | SUSPEND),
                        (Goal::Suspend, Meaning::Suspended, _) => Ok(Action::Done),
                        (Goal::Suspend, _, _) => Err(Reason::NotReady(Status::from_bits(status))),
                        (Goal::Resume, Meaning::Running, _) => Ok(Action::Done),
                        // D7: 1.4 keeps SUSPEND, the draft has no other way than to drop it.
                        (Goal::Resume, _, Revision::V1_4) => write(status | DRIVER_OK),
                        (Goal::Resume, _, Revision::Draft) => {
                            write((status | DRIVER_OK) & !SUSPEND)
                        }
                    }
                };
                assert_eq!(begun, expected, "{revision:?} {goal:?} {status:#04x}");

                // D8: what has been asked to resume is waited for, and not written to.
                match (goal, expected) {
                    (Goal::Resume, Ok(Action::Write(_))) => {
                        assert!(matches!(begin(true), Ok(Action::Wait(1..))))
                    }
                    _ => assert_eq!(begin(true), expected),
                }
            }
        }
    }
}

#[test]
fn every_state_and_event() {
    let mut pairs = 0;

    for revision in REVISIONS {
        for goal in GOALS {
            for phase in PHASES {
                for status in 0..=u8::MAX {
                    for now in MOMENTS {
                        let Some(mut t) = reach(revision, goal, phase) else {
                            continue;
                        };
                        let action = t.observe(Status::from_bits(status), now);
                        let expected = expected(revision, goal, phase, status, now);
                        let case = format!("{revision:?} {goal:?} {phase:?} {status:#04x} {now}");
                        match (action, expected) {
                            (Action::Wait(ns), Action::Wait(limit)) => {
                                assert!((1..=limit).contains(&ns), "{case}: waits {ns}")
                            }
                            _ => assert_eq!(action, expected, "{case}"),
                        }
                        pairs += 1;
                    }
                }
            }
        }
    }
    // Forward: both goals, both revisions. Quirk: a resume in 1.4. Rollbacks: suspends, and one
    // with the quirk in 1.4.
    assert_eq!(pairs, (4 + 1 + 2 + 2 + 1) * 256 * MOMENTS.len());
}

#[test]
fn every_state_and_abort() {
    for why in [Reason::Killed, Reason::Unbinding, Reason::GoingDown] {
        for revision in REVISIONS {
            for goal in GOALS {
                for phase in PHASES {
                    for status in 0..=u8::MAX {
                        let Some(mut t) = reach(revision, goal, phase) else {
                            continue;
                        };
                        let now = TIMEOUT / 4;
                        let action = t.abort(Status::from_bits(status), now, why);
                        let case = format!("{revision:?} {goal:?} {phase:?} {status:#04x}");
                        let means = meaning(revision, status);
                        let expected = match (phase, goal, means) {
                            (_, Goal::Resume, Meaning::Gone) => Action::RolledBack(Reason::Lost),
                            _ if reason(revision, status).is_some() => {
                                Action::Failed(reason(revision, status).unwrap())
                            }
                            // Reached is reached.
                            (Phase::Forward, Goal::Suspend, Meaning::Suspended)
                            | (Phase::Forward | Phase::Quirk, Goal::Resume, Meaning::Running) => {
                                Action::Done
                            }
                            (Phase::Forward, Goal::Suspend, _) => {
                                Action::Write(Status::from_bits((status | DRIVER_OK) & !SUSPEND))
                            }
                            (_, Goal::Resume, _) => Action::RolledBack(why),
                            // A rollback goes on as if nothing had happened.
                            _ => {
                                let mut same = reach(revision, goal, phase).unwrap();
                                same.observe(Status::from_bits(status), now)
                            }
                        };
                        assert_eq!(action, expected, "{case}");
                        if let Action::Write(_) = action {
                            let mut wait = t.observe(Status::from_bits(0x0b), now);
                            // The rollback is bounded from the abort on.
                            assert!(matches!(wait, Action::Wait(_)), "{case}: {wait:?}");
                            wait = t.observe(Status::from_bits(0x0b), now + ROLLBACK_NS);
                            if phase == Phase::Forward {
                                assert_eq!(wait, Action::Failed(why), "{case}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_short_deadline_leaves_no_time_for_the_quirk() {
    for timeout_ms in [1, 50, 99, 150, 1000] {
        let timeout = timeout_ms * 1_000_000;
        let suspended = Status::from_bits(0x1b);
        let (mut t, _) =
            Transition::begin(Revision::V1_4, Goal::Resume, suspended, timeout, false).unwrap();
        let mut now = 0;
        let mut written = None;
        loop {
            match t.observe(suspended, now) {
                Action::Wait(ns) => now += ns,
                Action::Write(_) => written = Some(now),
                end => {
                    assert_eq!(end, Action::RolledBack(Reason::Timeout));
                    break;
                }
            }
        }
        assert!(now <= timeout);
        let expected = (timeout > QUIRK_MIN_NS).then(|| QUIRK_MIN_NS.max(timeout / 2));
        assert_eq!(written, expected, "deadline of {timeout_ms} ms");
    }
}

#[test]
fn negotiation() {
    const NETWORK: u32 = 1;
    const ENTROPY: u32 = 4;

    for bit_43 in [false, true] {
        for bit_42 in [false, true] {
            for device_type in 0..=64 {
                for driver_has_42 in [false, true] {
                    let got = negotiate(bit_43, bit_42, device_type, driver_has_42);
                    let expected = match (bit_43, bit_42, device_type, driver_has_42) {
                        (true, _, _, _) => Some(Revision::V1_4),
                        (_, true, NETWORK, _) | (_, true, _, true) => None,
                        (_, true, _, _) => Some(Revision::Draft),
                        _ => None,
                    };
                    assert_eq!(
                        got, expected,
                        "{bit_43} {bit_42} {device_type} {driver_has_42}"
                    );
                }
            }
        }
    }
    assert_eq!(
        negotiate(false, true, ENTROPY, false),
        Some(Revision::Draft)
    );
}

#[test]
fn names_are_the_abi() {
    let names = [
        (State::Running, 0, "running"),
        (State::Suspending, 1, "suspending"),
        (State::Suspended, 2, "suspended"),
        (State::Resuming, 3, "resuming"),
        (State::Failed, 4, "failed"),
    ];
    for (state, number, name) in names {
        assert_eq!((state as u8, state.name()), (number, name));
    }
}

#[test]
fn reasons_are_told_apart() {
    let reasons = [
        Reason::NotReady(Status::RESET),
        Reason::Timeout,
        Reason::NeedsReset,
        Reason::Reset,
        Reason::Lost,
        Reason::Inconsistent(Status::RESET),
        Reason::Killed,
        Reason::Unbinding,
        Reason::GoingDown,
    ];
    for (i, a) in reasons.iter().enumerate() {
        for b in &reasons[i + 1..] {
            assert_ne!(a.as_str(), b.as_str());
        }
    }
}
