// SPDX-License-Identifier: GPL-2.0

//! The judge: records every access of the driver that breaks a rule D1 to D8 or D11.
//!
//! Pure: it is told each access, in order, with the device's view before the access took effect,
//! and answers with violations. One access breaks one rule: the most specific one.
//!
//! What it does not hold against the driver:
//!
//! * PCI configuration space, MSI-X and the mailbox BAR: not virtio accesses. ISR reads: with INTx
//!   another device on the line may cause them at any time.
//! * A rollback that crosses the device's presenting SUSPEND: a bit the driver has not read yet is
//!   not one that it cleared (D7). The device then treats the write as a resume, so the driver
//!   still has to read status before it goes on (D8).
//! * Buffers made available right after a rollback write: register writes are posted, so the ring
//!   may have moved on by the time the write is handled (D4 is checked at status reads and at the
//!   resume write only, both of which a driver that keeps the rules issues with its queues gated).

use serde::Serialize;

use crate::common::{is_queue_setup, register_name};
use crate::features::{FeatureSet, Revision, SUSPEND as F_SUSPEND, SUSPEND_DRAFT};
use crate::status::{
    is_resume_write, is_resumed, is_suspended, State, DRIVER_OK, NEEDS_RESET, SUSPEND,
};

/// How many violations are kept; all are counted.
pub const KEPT: usize = 256;

/// A rule of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Rule {
    /// Accept only what is offered; never bit 42 as SUSPEND where the type defines it.
    D1,
    /// Set SUSPEND only if negotiated, with FEATURES_OK and DRIVER_OK set.
    D2,
    /// Re-read status until suspended.
    D3,
    /// Make no buffer available while SUSPEND is set.
    D4,
    /// Send no notification while SUSPEND is set.
    D5,
    /// Write nothing but status while SUSPEND is set.
    D6,
    /// Clear no status bit.
    D7,
    /// Wait for the resumed condition before anything else.
    D8,
    /// Resize, reset, enable or move no queue while suspended.
    D11,
}

/// A recorded violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What was wrong, in words.
    pub what: String,
    /// The access, as `write device_status 0x1f`.
    pub access: String,
    /// When, in microseconds since the device started.
    pub time_us: u64,
}

/// An access of the driver to the virtio structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Status was read and this was the answer.
    StatusRead(u8),
    /// Status was written.
    StatusWrite(u8),
    /// Another register of the common configuration structure was read.
    CommonRead(u64),
    /// Another register of the common configuration structure was written.
    CommonWrite(u64, u64),
    /// Device configuration was read.
    ConfigRead(u64),
    /// Device configuration was written.
    ConfigWrite(u64),
    /// A queue was notified.
    Notify(u16),
    /// The ISR status was read.
    IsrRead,
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::StatusRead(value) => write!(f, "read device_status {value:#04x}"),
            Self::StatusWrite(value) => write!(f, "write device_status {value:#04x}"),
            Self::CommonRead(offset) => write!(f, "read {}", register_name(offset)),
            Self::CommonWrite(offset, value) => {
                write!(f, "write {} {value:#x}", register_name(offset))
            }
            Self::ConfigRead(offset) => write!(f, "read device config+{offset:#x}"),
            Self::ConfigWrite(offset) => write!(f, "write device config+{offset:#x}"),
            Self::Notify(queue) => write!(f, "notify queue {queue}"),
            Self::IsrRead => write!(f, "read isr"),
        }
    }
}

/// The device as it was before the access.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The status byte presented.
    pub status: u8,
    /// The state behind it.
    pub state: State,
    /// The revision of SUSPEND that was negotiated.
    pub revision: Revision,
    /// The features the driver has accepted.
    pub accepted: FeatureSet,
    /// Whether the device type defines feature bit 42 itself.
    pub type_defines_bit_42: bool,
}

/// Where the driver is, by what it has written and read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    /// It set SUSPEND and has not read the suspended condition yet.
    Pending,
    /// It has read the suspended condition.
    Suspended,
    /// It wrote to resume and has not read the resumed condition yet.
    Resuming,
}

/// One queue's available position, opaque: it changes when a buffer is made available.
pub type AvailMark = Option<u32>;

/// The judge.
#[derive(Debug, Default)]
pub struct Judge {
    phase: Phase,
    /// The last status value the driver has read since the last reset.
    last_read: u8,
    /// Available positions when SUSPEND was processed.
    marks: Vec<AvailMark>,
    violations: Vec<Violation>,
    total: u64,
    /// How many of the kept violations the caller has taken by [`Judge::take_new`].
    taken: usize,
}

impl Judge {
    /// How many violations there were since the last clear.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The first [`KEPT`] of them.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The violations recorded since the last call.
    pub fn take_new(&mut self) -> Vec<Violation> {
        let new = self.violations[self.taken..].to_vec();
        self.taken = self.violations.len();
        new
    }

    /// Forgets the violations, not where the driver is.
    pub fn clear(&mut self) {
        self.violations.clear();
        self.taken = 0;
        self.total = 0;
    }

    /// The device was reset: every transition is over (D13 allows it at any time).
    pub fn reset(&mut self) {
        self.phase = Phase::Running;
        self.last_read = 0;
        self.marks.clear();
    }

    /// Whether the caller should read the queues' available positions and call
    /// [`Judge::check_marks`] before it handles the next status access.
    pub fn watches_queues(&self) -> bool {
        matches!(self.phase, Phase::Pending | Phase::Suspended)
    }

    /// SUSPEND was processed with the queues at these positions.
    pub fn set_marks(&mut self, marks: Vec<AvailMark>) {
        self.marks = marks;
    }

    /// D4: the queues' positions, before a status read or the resume write.
    pub fn check_marks(&mut self, marks: Vec<AvailMark>, access: Access, now_us: u64) {
        let before = std::mem::take(&mut self.marks);
        for (queue, (before, after)) in before.iter().zip(&marks).enumerate() {
            if let (Some(before), Some(after)) = (before, after) {
                if before != after {
                    let what = format!(
                        "queue {queue}: a buffer was made available while SUSPEND was set \
                         (position {before} became {after})"
                    );
                    self.record(Rule::D4, what, access, now_us);
                }
            }
        }
        self.marks = marks;
    }

    /// D1: the driver sets FEATURES_OK.
    pub fn features(&mut self, offered: FeatureSet, accepted: FeatureSet, value: u8, now_us: u64) {
        let extra = accepted & !offered;
        if extra != 0 {
            let bits: Vec<String> = (0..FeatureSet::BITS)
                .filter(|bit| extra & (1 << bit) != 0)
                .map(|bit| bit.to_string())
                .collect();
            let what = format!(
                "accepted features that were not offered: {}",
                bits.join(", ")
            );
            self.record(Rule::D1, what, Access::StatusWrite(value), now_us);
        }
    }

    /// Any access, in order.
    pub fn access(&mut self, access: Access, view: &View, now_us: u64) {
        match access {
            Access::StatusRead(value) => self.status_read(value, view),
            Access::StatusWrite(0) => self.reset(),
            Access::StatusWrite(value) => self.status_write(value, view, now_us),
            Access::IsrRead => {}
            _ => self.other(access, now_us),
        }
    }

    fn status_read(&mut self, value: u8, view: &View) {
        self.last_read = value;
        match self.phase {
            Phase::Pending if is_suspended(view.revision, value) => self.phase = Phase::Suspended,
            Phase::Resuming if is_resumed(view.revision, value) => self.phase = Phase::Running,
            _ => {}
        }
    }

    fn status_write(&mut self, value: u8, view: &View, now_us: u64) {
        let access = Access::StatusWrite(value);
        let rollback = self.phase == Phase::Pending && value & SUSPEND == 0;

        let cleared = self.cleared_bits(value, view);
        if cleared != 0 {
            self.record(
                Rule::D7,
                format!(
                    "cleared {cleared:#04x}, which the device presents ({:#04x}); only a reset \
                     clears status bits",
                    view.status
                ),
                access,
                now_us,
            );
        }

        match self.phase {
            Phase::Running => {
                if value & SUSPEND != 0 {
                    self.suspend_write(access, view, now_us);
                }
            }
            Phase::Pending if rollback && value & DRIVER_OK != 0 => {
                // If SUSPEND got presented in between, the device takes this for a resume.
                self.phase = if view.state == State::Suspended {
                    Phase::Resuming
                } else {
                    Phase::Running
                };
            }
            Phase::Pending => {
                if value & SUSPEND != 0 {
                    self.record(
                        Rule::D3,
                        "wrote status again before reading the suspended condition".into(),
                        access,
                        now_us,
                    );
                }
                if view.state == State::Suspended && is_resume_write(view.revision, value) {
                    self.phase = Phase::Resuming;
                }
            }
            Phase::Suspended => {
                if is_resume_write(view.revision, value) {
                    self.phase = Phase::Resuming;
                }
            }
            Phase::Resuming => {
                if cleared == 0 {
                    self.record(
                        Rule::D8,
                        "wrote status again before reading the resumed condition".into(),
                        access,
                        now_us,
                    );
                }
            }
        }
    }

    /// The bits that the driver clears although the device presents them (D7).
    fn cleared_bits(&self, value: u8, view: &View) -> u8 {
        // SUSPEND and DEVICE_NEEDS_RESET appear by the device's doing: the driver can't know them
        // before it has read them. All others it has set itself.
        let unseen = (SUSPEND | NEEDS_RESET) & !self.last_read;
        let mut cleared = view.status & !value & !unseen;
        if view.revision == Revision::Draft {
            // The draft knows no other way to resume.
            cleared &= !SUSPEND;
        }
        cleared
    }

    /// The driver sets SUSPEND while running.
    fn suspend_write(&mut self, access: Access, view: &View, now_us: u64) {
        if view.revision == Revision::None {
            let as_draft = view.type_defines_bit_42
                && view.accepted & SUSPEND_DRAFT != 0
                && view.accepted & F_SUSPEND == 0;
            if as_draft {
                let what = "took feature bit 42 for SUSPEND, but this device type defines it";
                self.record(Rule::D1, what.into(), access, now_us);
            } else {
                let what = "set SUSPEND, which was not negotiated";
                self.record(Rule::D2, what.into(), access, now_us);
            }
            return;
        }
        if view.state == State::Reset {
            let what = "set SUSPEND before DRIVER_OK";
            self.record(Rule::D2, what.into(), access, now_us);
            return;
        }
        self.phase = Phase::Pending;
    }

    /// Everything but status and ISR.
    fn other(&mut self, access: Access, now_us: u64) {
        let writes = matches!(
            access,
            Access::CommonWrite(..) | Access::ConfigWrite(_) | Access::Notify(_)
        );
        match self.phase {
            Phase::Running => {}
            Phase::Pending | Phase::Suspended if writes => {
                let (rule, what) = match access {
                    Access::Notify(_) => (Rule::D5, "notified a queue while SUSPEND is set"),
                    Access::CommonWrite(offset, _) if is_queue_setup(offset) => {
                        (Rule::D11, "changed a queue's set-up while SUSPEND is set")
                    }
                    _ => (Rule::D6, "wrote configuration while SUSPEND is set"),
                };
                self.record(rule, what.into(), access, now_us);
            }
            Phase::Pending => {
                let what = "went on before reading the suspended condition";
                self.record(Rule::D3, what.into(), access, now_us);
            }
            Phase::Suspended => {}
            Phase::Resuming => {
                let what = "went on before reading the resumed condition";
                self.record(Rule::D8, what.into(), access, now_us);
            }
        }
    }

    fn record(&mut self, rule: Rule, what: String, access: Access, time_us: u64) {
        self.total += 1;
        if self.violations.len() < KEPT {
            self.violations.push(Violation {
                rule,
                what,
                access: access.to_string(),
                time_us,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::reg;
    use crate::features::VERSION_1;

    /// A judge and the device's side of the story, by hand.
    struct Case {
        judge: Judge,
        view: View,
    }

    impl Case {
        fn new(revision: Revision) -> Self {
            let bit = match revision {
                Revision::V1_4 => F_SUSPEND,
                Revision::Draft => SUSPEND_DRAFT,
                Revision::None => 0,
            };
            Self {
                judge: Judge::default(),
                view: View {
                    status: 0x0f,
                    state: State::Running,
                    revision,
                    accepted: VERSION_1 | bit,
                    type_defines_bit_42: false,
                },
            }
        }

        fn write(&mut self, value: u8) -> &mut Self {
            self.judge.access(Access::StatusWrite(value), &self.view, 0);
            self
        }

        fn read(&mut self) -> &mut Self {
            self.judge
                .access(Access::StatusRead(self.view.status), &self.view, 0);
            self
        }

        fn other(&mut self, access: Access) -> &mut Self {
            self.judge.access(access, &self.view, 0);
            self
        }

        /// The device's state and status change.
        fn device(&mut self, state: State, status: u8) -> &mut Self {
            self.view.state = state;
            self.view.status = status;
            self
        }

        fn suspending(&mut self) -> &mut Self {
            self.read().write(0x1f).device(State::Suspending, 0x0f)
        }

        fn suspended(&mut self) -> &mut Self {
            let status = match self.view.revision {
                Revision::V1_4 => 0x1b,
                _ => 0x1f,
            };
            self.suspending().device(State::Suspended, status).read()
        }

        fn resume(&mut self) -> &mut Self {
            let value = match self.view.revision {
                Revision::V1_4 => 0x1f,
                _ => 0x0f,
            };
            let presented = self.view.status;
            self.write(value).device(State::Resuming, presented)
        }

        fn rules(&self) -> Vec<Rule> {
            self.judge.violations().iter().map(|v| v.rule).collect()
        }
    }

    const REVISIONS: [Revision; 2] = [Revision::V1_4, Revision::Draft];
    const NOTIFY: Access = Access::Notify(0);

    #[test]
    fn a_driver_that_keeps_the_rules_is_left_alone() {
        for revision in REVISIONS {
            let mut case = Case::new(revision);
            let status = if revision == Revision::V1_4 {
                0x1b
            } else {
                0x1f
            };
            case.other(NOTIFY)
                .suspending()
                .read()
                .read()
                .device(State::Suspended, status)
                .read()
                .other(Access::CommonRead(reg::QUEUE_SIZE))
                .other(Access::IsrRead)
                .resume()
                .read()
                .other(Access::IsrRead)
                .device(State::Running, 0x0f)
                .read()
                .other(NOTIFY)
                .other(Access::CommonWrite(reg::QUEUE_SELECT, 0))
                .other(Access::ConfigWrite(0));
            assert!(case.rules().is_empty(), "{:?}", case.rules());
        }
    }

    #[test]
    fn d1_features_that_were_not_offered() {
        let mut judge = Judge::default();
        judge.features(VERSION_1 | F_SUSPEND, VERSION_1, 0x0b, 0);
        assert_eq!(judge.total(), 0);
        judge.features(VERSION_1, VERSION_1 | F_SUSPEND, 0x0b, 0);
        assert_eq!(judge.violations()[0].rule, Rule::D1);
        assert!(judge.violations()[0].what.contains("43"));
    }

    #[test]
    fn d1_bit_42_of_a_type_that_defines_it() {
        let mut case = Case::new(Revision::None);
        case.view.accepted |= SUSPEND_DRAFT;
        case.view.type_defines_bit_42 = true;
        case.write(0x1f);
        assert_eq!(case.rules(), [Rule::D1]);
    }

    #[test]
    fn d2_not_negotiated() {
        let mut case = Case::new(Revision::None);
        case.write(0x1f).other(NOTIFY);
        assert_eq!(case.rules(), [Rule::D2]);
    }

    #[test]
    fn d2_before_driver_ok() {
        let mut case = Case::new(Revision::V1_4);
        case.device(State::Reset, 0x0b).write(0x1b);
        assert_eq!(case.rules(), [Rule::D2]);
    }

    #[test]
    fn d3_resume_without_a_look() {
        let mut case = Case::new(Revision::V1_4);
        case.suspending().device(State::Suspended, 0x1b).resume();
        assert_eq!(case.rules(), [Rule::D3]);
        case.device(State::Running, 0x0f).read().other(NOTIFY);
        assert_eq!(case.rules(), [Rule::D3]);
    }

    #[test]
    fn d3_a_read_that_shows_the_old_status_is_not_enough() {
        for revision in REVISIONS {
            let mut case = Case::new(revision);
            case.suspending().read().write(0x1f);
            assert_eq!(case.rules(), [Rule::D3]);
        }
    }

    #[test]
    fn d3_other_reads_before_the_look() {
        for access in [Access::CommonRead(0), Access::ConfigRead(0)] {
            let mut case = Case::new(Revision::V1_4);
            case.suspending().other(access);
            assert_eq!(case.rules(), [Rule::D3]);
        }
    }

    #[test]
    fn d4_available_positions() {
        let mut case = Case::new(Revision::V1_4);
        case.suspended();
        case.judge.set_marks(vec![Some(7), None]);
        let access = Access::StatusWrite(0x1f);
        case.judge.check_marks(vec![Some(7), Some(1)], access, 0);
        assert!(case.rules().is_empty());
        case.judge.check_marks(vec![Some(8), Some(1)], access, 0);
        case.judge.check_marks(vec![Some(8), Some(1)], access, 0);
        assert_eq!(case.rules(), [Rule::D4]);
    }

    #[test]
    fn d4_is_watched_from_the_suspend_write_to_the_resume_write() {
        let mut case = Case::new(Revision::Draft);
        assert!(!case.judge.watches_queues());
        case.suspending();
        assert!(case.judge.watches_queues());
        case.device(State::Suspended, 0x1f).read();
        assert!(case.judge.watches_queues());
        case.resume();
        assert!(!case.judge.watches_queues());
    }

    #[test]
    fn d5_notification() {
        for revision in REVISIONS {
            let mut case = Case::new(revision);
            case.suspending().other(NOTIFY);
            assert_eq!(case.rules(), [Rule::D5]);
            let mut case = Case::new(revision);
            case.suspended().other(NOTIFY);
            assert_eq!(case.rules(), [Rule::D5]);
        }
    }

    #[test]
    fn d6_configuration_writes() {
        for access in [
            Access::CommonWrite(reg::QUEUE_SELECT, 0),
            Access::CommonWrite(reg::CONFIG_MSIX_VECTOR, 0),
            Access::CommonWrite(reg::QUEUE_MSIX_VECTOR, 0),
            Access::CommonWrite(reg::DRIVER_FEATURE, 0),
            Access::ConfigWrite(0),
        ] {
            let mut case = Case::new(Revision::V1_4);
            case.suspended().other(access);
            assert_eq!(case.rules(), [Rule::D6], "{access}");
        }
    }

    #[test]
    fn d11_queue_setup() {
        for offset in [
            reg::QUEUE_SIZE,
            reg::QUEUE_ENABLE,
            reg::QUEUE_RESET,
            reg::QUEUE_DESC,
        ] {
            let mut case = Case::new(Revision::Draft);
            case.suspended().other(Access::CommonWrite(offset, 1));
            assert_eq!(case.rules(), [Rule::D11], "{offset:#x}");
        }
    }

    #[test]
    fn d7_bits_cleared() {
        let mut case = Case::new(Revision::V1_4);
        case.suspended().write(0x0f);
        assert_eq!(case.rules(), [Rule::D7]);

        let mut case = Case::new(Revision::Draft);
        case.suspended().write(0x0f);
        assert!(case.rules().is_empty());

        let mut case = Case::new(Revision::Draft);
        case.write(0x0b);
        assert_eq!(case.rules(), [Rule::D7]);

        // DRIVER_OK gone in the write that sets SUSPEND.
        let mut case = Case::new(Revision::V1_4);
        case.write(0x1b);
        assert_eq!(case.rules(), [Rule::D7]);
    }

    #[test]
    fn d7_needs_reset_only_once_seen() {
        let mut case = Case::new(Revision::V1_4);
        case.read().device(State::Running, 0x4f).write(0x0f);
        assert!(case.rules().is_empty());
        case.read().write(0x0f);
        assert_eq!(case.rules(), [Rule::D7]);
    }

    #[test]
    fn d8_going_on_before_the_look() {
        for access in [
            NOTIFY,
            Access::CommonRead(0),
            Access::CommonWrite(reg::QUEUE_SELECT, 0),
            Access::ConfigRead(0),
            Access::ConfigWrite(0),
        ] {
            for revision in REVISIONS {
                let mut case = Case::new(revision);
                case.suspended().resume().read().other(access);
                assert_eq!(case.rules(), [Rule::D8], "{access}");
            }
        }
    }

    #[test]
    fn d8_status_writes() {
        let mut case = Case::new(Revision::V1_4);
        case.suspended().resume().resume();
        assert_eq!(case.rules(), [Rule::D8]);
        // Clearing SUSPEND to help a device along is D7, once.
        let mut case = Case::new(Revision::V1_4);
        case.suspended().resume().write(0x0f);
        assert_eq!(case.rules(), [Rule::D7]);
    }

    #[test]
    fn rollback_is_allowed() {
        for revision in REVISIONS {
            let mut case = Case::new(revision);
            case.suspending()
                .read()
                .write(0x0f)
                .device(State::Running, 0x0f)
                .other(NOTIFY);
            assert!(case.rules().is_empty());
        }
    }

    #[test]
    fn rollback_that_crosses_the_presentation_needs_a_look() {
        for (revision, status) in [(Revision::V1_4, 0x1b), (Revision::Draft, 0x1f)] {
            let mut case = Case::new(revision);
            case.suspending()
                .read()
                .device(State::Suspended, status)
                .write(0x0f)
                .device(State::Running, 0x0f);
            assert!(case.rules().is_empty());
            case.other(NOTIFY);
            assert_eq!(case.rules(), [Rule::D8]);
        }
    }

    #[test]
    fn a_reset_ends_everything() {
        for revision in REVISIONS {
            let mut case = Case::new(revision);
            case.suspended()
                .write(0)
                .device(State::Reset, 0)
                .other(Access::CommonWrite(reg::QUEUE_SELECT, 0))
                .other(Access::CommonWrite(reg::QUEUE_ENABLE, 1))
                .other(NOTIFY);
            assert!(case.rules().is_empty());
        }
    }

    #[test]
    fn violations_are_bounded_but_counted() {
        let mut case = Case::new(Revision::None);
        for _ in 0..KEPT + 10 {
            case.write(0x1f);
        }
        assert_eq!(case.judge.violations().len(), KEPT);
        assert_eq!(case.judge.total(), KEPT as u64 + 10);
        assert_eq!(case.judge.take_new().len(), KEPT);
        assert!(case.judge.take_new().is_empty());
    }
}
