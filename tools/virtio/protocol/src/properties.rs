// SPDX-License-Identifier: GPL-2.0

//! Properties of whole transitions, over devices that behave at random.

use proptest::prelude::*;

use crate::protocol::{
    Action, Condition, Goal, Reason, Revision, Transition, BACKOFF_MAX_NS, ROLLBACK_NS,
};
use crate::status::Status;

const DRIVER_OK: u8 = 0x04;
const SUSPEND: u8 = 0x10;

/// What a device does, some time after its status has been written or from the beginning.
#[derive(Clone, Copy, Debug)]
struct Event {
    after_ns: u64,
    status: u8,
}

/// A device: it obeys each write after a while, or not at all, and presents things at random.
#[derive(Clone, Debug)]
struct Device {
    revision: Revision,
    /// For each write, how long it takes to obey it; [`None`] if it does not.
    obedience: Vec<Option<u64>>,
    /// What it presents out of its own, at times since the beginning.
    whims: Vec<Event>,
    /// How long an access takes.
    access_ns: u64,
}

/// The device at work.
struct Running<'a> {
    device: &'a Device,
    now: u64,
    status: u8,
    pending: Option<Event>,
    writes: Vec<(u8, u8)>,
}

impl Running<'_> {
    fn settle(&mut self) {
        if let Some(event) = self.pending.filter(|event| event.after_ns <= self.now) {
            self.status = event.status;
            self.pending = None;
        }
        for whim in &self.device.whims {
            if whim.after_ns <= self.now
                && whim.after_ns > self.now.saturating_sub(self.device.access_ns)
            {
                self.status = whim.status;
            }
        }
    }

    fn read(&mut self) -> Status {
        self.now += self.device.access_ns;
        self.settle();
        Status::from_bits(self.status)
    }

    fn write(&mut self, value: Status) {
        self.now += self.device.access_ns;
        self.settle();
        let obeys = self
            .device
            .obedience
            .get(self.writes.len())
            .copied()
            .flatten();
        self.writes.push((self.status, value.bits()));
        let Some(after) = obeys else { return };
        let suspended = Condition::of(self.device.revision, Status::from_bits(self.status))
            == Condition::Suspended;
        // A device of 1.4 resumes on DRIVER_OK, whatever SUSPEND is; one of the draft when
        // SUSPEND is clear.
        let resumes = match self.device.revision {
            Revision::V1_4 => suspended || value.bits() & SUSPEND == 0,
            Revision::Draft => value.bits() & SUSPEND == 0,
        };
        let status = match (resumes, self.device.revision) {
            (true, _) => 0x0f,
            (false, Revision::V1_4) => 0x1b,
            (false, Revision::Draft) => 0x1f,
        };
        self.pending = Some(Event {
            after_ns: self.now + after,
            status,
        });
    }
}

fn status() -> impl Strategy<Value = u8> {
    prop_oneof![
        4 => Just(0x0f),
        4 => Just(0x1b),
        4 => Just(0x1f),
        1 => Just(0x00),
        1 => Just(0xff),
        1 => Just(0x4f),
        2 => any::<u8>(),
    ]
}

fn revision() -> impl Strategy<Value = Revision> {
    prop_oneof![Just(Revision::V1_4), Just(Revision::Draft)]
}

fn goal() -> impl Strategy<Value = Goal> {
    prop_oneof![Just(Goal::Suspend), Just(Goal::Resume)]
}

prop_compose! {
    fn device(whims: usize)(
        revision in revision(),
        obedience in prop::collection::vec(
            prop::option::weighted(0.7, prop_oneof![Just(0u64), 0..3_000_000_000u64]), 0..4),
        whims in prop::collection::vec(
            (0..3_000_000_000u64, status()).prop_map(|(after_ns, status)| Event { after_ns, status }),
            0..=whims),
        access_ns in 100u64..200_000,
    ) -> Device {
        Device { revision, obedience, whims, access_ns }
    }
}

/// How a run ended.
struct End {
    action: Action,
    at: u64,
    last: Status,
    writes: Vec<(u8, u8)>,
    quirk: bool,
}

/// Does with the device what the controller does, and ends the transition at `abort` if given.
fn run(device: &Device, goal: Goal, timeout: u64, abort: Option<u64>) -> Option<End> {
    let status = match (goal, device.revision) {
        (Goal::Suspend, _) => 0x0f,
        (Goal::Resume, Revision::V1_4) => 0x1b,
        (Goal::Resume, Revision::Draft) => 0x1f,
    };
    let mut running = Running {
        device,
        now: 0,
        status,
        pending: None,
        writes: Vec::new(),
    };
    let mut last = running.read();
    let start = running.now;
    let (mut t, mut action) =
        Transition::begin(device.revision, goal, last, timeout, false).ok()?;

    for _ in 0..2_000_000 {
        let elapsed = running.now - start;
        match action {
            Action::Write(value) => {
                running.write(value);
                last = running.read();
                action = t.observe(last, running.now - start);
            }
            Action::Wait(ns) => {
                assert!(ns > 0, "a wait of no time is a loop");
                assert!(
                    ns <= BACKOFF_MAX_NS,
                    "a wait longer than the back-off allows"
                );
                let aborted = abort.filter(|at| *at <= elapsed + ns);
                running.now += match aborted {
                    Some(at) => at.saturating_sub(elapsed),
                    None => ns,
                };
                last = running.read();
                let elapsed = running.now - start;
                action = match aborted {
                    Some(_) => t.abort(last, elapsed, Reason::Killed),
                    None => t.observe(last, elapsed),
                };
                if let (Some(_), Action::Wait(ns)) = (aborted, action) {
                    running.now += ns;
                    last = running.read();
                    action = t.observe(last, running.now - start);
                }
            }
            _ => {
                return Some(End {
                    action,
                    at: elapsed,
                    last,
                    writes: running.writes,
                    quirk: t.quirk(),
                })
            }
        }
    }
    panic!("no verdict after two million steps");
}

/// What holds of every end, whatever the device did.
fn check(device: &Device, goal: Goal, timeout: u64, end: &End) -> Result<(), TestCaseError> {
    let condition = Condition::of(device.revision, end.last);
    let slack = 4 * device.access_ns;

    // A verdict, and in time: a rollback has its own bound.
    let rolled_back =
        matches!(end.action, Action::RolledBack(_) | Action::Failed(_)) && goal == Goal::Suspend;
    let bound = timeout + if rolled_back { ROLLBACK_NS } else { 0 } + slack;
    prop_assert!(
        end.at <= bound,
        "ended at {} ns, after {} ns",
        end.at,
        bound
    );

    // The verdict is what the device presented last.
    match (end.action, goal) {
        (Action::Done, Goal::Suspend) => prop_assert_eq!(condition, Condition::Suspended),
        // A resume that failed can be tried again.
        (Action::RolledBack(_), Goal::Resume) => {
            prop_assert!(matches!(
                condition,
                Condition::Suspended | Condition::Between | Condition::Broken(Reason::Lost)
            ))
        }
        (Action::Done, Goal::Resume) | (Action::RolledBack(_), Goal::Suspend) => {
            prop_assert_eq!(condition, Condition::Running)
        }
        (Action::Failed(why), _) => match condition {
            Condition::Broken(what) => prop_assert_eq!(why, what),
            _ => prop_assert!(matches!(why, Reason::Timeout | Reason::Killed)),
        },
        (action, _) => prop_assert!(false, "{:?} is no end", action),
    }

    // Few writes: the request, the rollback, its resume and the quirk; or request and quirk.
    let most = if goal == Goal::Suspend { 4 } else { 2 };
    prop_assert!(end.writes.len() <= most, "{:?}", end.writes);
    for (i, (presented, written)) in end.writes.iter().enumerate() {
        // A reset is not for the protocol to make, and SUSPEND without DRIVER_OK is never asked.
        prop_assert_ne!(*written, 0);
        prop_assert_eq!(written & DRIVER_OK, DRIVER_OK);
        // D7: no bit but SUSPEND is ever cleared, whatever the device came to present meanwhile.
        if end.last.bits() != 0 && device.whims.is_empty() {
            prop_assert_eq!(presented & !written & !SUSPEND, 0);
        }
        if i == 0 && goal == Goal::Suspend {
            prop_assert_eq!(written & SUSPEND, SUSPEND);
        }
        if goal == Goal::Suspend && i > 0 && written & SUSPEND != 0 {
            // Only to resume a device of 1.4.
            prop_assert_eq!(device.revision, Revision::V1_4);
        }
        // D7 to the letter first: 1.4's first write of a resume keeps SUSPEND.
        if i == 0 && goal == Goal::Resume {
            prop_assert_eq!(written & SUSPEND != 0, device.revision == Revision::V1_4);
        }
    }
    prop_assert_eq!(end.quirk, end.writes.len() == most);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    /// Any device.
    #[test]
    fn every_transition_ends(
        device in device(6), goal in goal(), timeout_ms in 1u64..2_000,
    ) {
        let timeout = timeout_ms * 1_000_000;
        if let Some(end) = run(&device, goal, timeout, None) {
            check(&device, goal, timeout, &end)?;
        }
    }

    /// Any device, and whoever waits is killed at any time.
    #[test]
    fn every_abort_ends(
        device in device(6), goal in goal(), timeout_ms in 1u64..600_000, abort in 0..3_000_000_000u64,
    ) {
        let timeout = timeout_ms * 1_000_000;
        if let Some(end) = run(&device, goal, timeout, Some(abort)) {
            check(&device, goal, timeout, &end)?;
            // However far away the deadline is, it ends soon after the abort.
            let bound = abort.min(timeout) + ROLLBACK_NS + BACKOFF_MAX_NS + 8 * device.access_ns;
            prop_assert!(end.at <= bound, "ended at {} ns, after {} ns", end.at, bound);
        }
    }

    /// A device that obeys within the deadline gets there, with one write and without a quirk.
    #[test]
    fn an_obedient_device_gets_there(
        revision in revision(), goal in goal(), timeout_ms in 1u64..10_000,
        share in 0.0..0.45f64, access_ns in 100u64..1_000,
    ) {
        let timeout = timeout_ms * 1_000_000;
        let after = (timeout as f64 * share) as u64;
        let device = Device { revision, obedience: vec![Some(after)], whims: vec![], access_ns };
        let end = run(&device, goal, timeout, None).unwrap();
        prop_assert_eq!(end.action, Action::Done);
        prop_assert_eq!(end.writes.len(), 1);
        prop_assert!(!end.quirk);
    }

    /// A device that obeys at once costs one write and one read.
    #[test]
    fn an_immediate_device_costs_one_write_and_one_read(
        revision in revision(), goal in goal(), access_ns in 1u64..1_000,
    ) {
        let device = Device { revision, obedience: vec![Some(0)], whims: vec![], access_ns };
        let end = run(&device, goal, 10_000_000_000, None).unwrap();
        prop_assert_eq!(end.action, Action::Done);
        prop_assert_eq!(end.writes.len(), 1);
        prop_assert_eq!(end.at, 2 * access_ns);
    }

    /// A device that ignores SUSPEND is left running, and is told so once.
    #[test]
    fn a_deaf_device_is_left_running(revision in revision(), timeout_ms in 1u64..2_000) {
        let device = Device { revision, obedience: vec![], whims: vec![], access_ns: 1_000 };
        let end = run(&device, Goal::Suspend, timeout_ms * 1_000_000, None).unwrap();
        prop_assert_eq!(end.action, Action::RolledBack(Reason::Timeout));
        prop_assert_eq!(end.writes, vec![(0x0f, 0x1f), (0x0f, 0x0f)]);
    }
}
