// SPDX-License-Identifier: GPL-2.0

//! The judge by itself: a view of the device by hand.

use super::*;
use crate::features::VERSION_1;
use crate::transport::pci_common_config::reg;

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
                ..View::default()
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

    fn marks(&mut self, marks: [AvailMark; 2], access: Access) {
        self.judge.check_marks(marks.into(), access, &self.view, 0);
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
    case.marks([Some(7), Some(1)], access);
    assert!(case.rules().is_empty());
    case.marks([Some(8), Some(1)], access);
    case.marks([Some(8), Some(1)], access);
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

#[test]
fn d9_needs_reset_seen_in_a_transition() {
    for access in [
        NOTIFY,
        Access::CommonWrite(reg::QUEUE_SELECT, 0),
        Access::ConfigWrite(0),
        Access::StatusWrite(0x5f),
    ] {
        let mut case = Case::new(Revision::V1_4);
        case.suspending().device(State::Running, 0x4f).read();
        // A look, at status and at the configuration, is allowed.
        case.read()
            .other(Access::ConfigRead(0))
            .other(Access::IsrRead);
        case.judge.violations.clear();
        case.other(access);
        assert_eq!(case.rules(), [Rule::D9], "{access}");
    }
}

#[test]
fn d9_buffers() {
    let mut case = Case::new(Revision::V1_4);
    case.suspending();
    case.judge.set_marks(vec![Some(7), None]);
    case.device(State::Running, 0x4f).read();
    case.marks([Some(8), None], Access::StatusWrite(0));
    assert_eq!(case.rules(), [Rule::D9]);
}

#[test]
fn d9_needs_reset_that_the_driver_may_not_know_of() {
    // A user looked at status through sysfs.
    let mut case = Case::new(Revision::V1_4);
    case.device(State::Running, 0x4f).read().other(NOTIFY);
    assert!(case.rules().is_empty());
    case.write(0xcf).write(0).device(State::Reset, 0);
    assert!(case.rules().is_empty());
}

#[test]
fn d12_a_look_at_a_change_too_early() {
    for access in [
        Access::ConfigRead(0),
        Access::CommonRead(reg::CONFIG_GENERATION),
    ] {
        let mut case = Case::new(Revision::V1_4);
        case.suspended().other(access);
        assert!(case.rules().is_empty());
        case.view.config_pending = true;
        case.other(access);
        assert_eq!(case.rules(), [Rule::D12], "{access}");
    }
}

#[test]
fn d13_leaving_a_suspended_device() {
    for access in [Access::BusMasterOff, Access::FunctionReset("flr")] {
        let mut case = Case::new(Revision::Draft);
        case.judge.left(access, 0);
        case.suspended();
        case.judge.left(access, 0);
        assert_eq!(case.rules(), [Rule::D13]);
        case.write(0);
        case.judge.left(access, 0);
        assert_eq!(case.rules(), [Rule::D13]);
    }
}

#[test]
fn d14_administration_commands() {
    let mut case = Case::new(Revision::V1_4);
    case.view.admin_queue = Some(1);
    case.suspended().other(Access::Notify(1));
    case.judge.set_marks(vec![Some(7), Some(1)]);
    case.marks([Some(7), Some(2)], Access::StatusRead(0x1b));
    assert_eq!(case.rules(), [Rule::D14, Rule::D14]);
    case.resume().other(Access::Notify(1));
    assert_eq!(case.rules(), [Rule::D14; 3]);
}

#[test]
fn a_device_that_suspends_too_late_is_resumed() {
    for (revision, status) in [(Revision::V1_4, 0x1b), (Revision::Draft, 0x1f)] {
        let mut case = Case::new(revision);
        case.suspending().write(0x0f).device(State::Running, 0x0f);
        case.device(State::Suspended, status).read().resume();
        case.device(State::Running, 0x0f).read().other(NOTIFY);
        assert!(case.rules().is_empty(), "{:?}", case.rules());
    }
}

#[test]
fn a_device_that_goes_on_by_itself_is_running() {
    for revision in REVISIONS {
        let mut case = Case::new(revision);
        case.suspended().device(State::Running, 0x0f).read();
        case.other(NOTIFY);
        assert!(case.rules().is_empty());
    }
}

#[test]
fn an_excuse_lasts_until_the_device_is_initialized() {
    let mut case = Case::new(Revision::V1_4);
    case.suspended();
    case.judge.excuse();
    case.device(State::Reset, 0);
    case.write(0x1f).other(NOTIFY);
    case.judge.left(Access::BusMasterOff, 0);
    case.judge.taken_twice(0, 0, 0);
    assert!(case.rules().is_empty());
    case.write(0).write(0x1b);
    assert_eq!(case.rules(), [Rule::D2]);
}

#[test]
fn a_device_that_resumes_as_it_likes_may_be_helped() {
    let mut case = Case::new(Revision::V1_4);
    case.view.resume_fault = true;
    case.suspended().resume().resume().write(0x0f);
    assert!(case.rules().is_empty());
    case.other(NOTIFY);
    assert_eq!(case.rules(), [Rule::D8]);
}

#[test]
fn what_a_liar_presents_counts_if_it_was_read() {
    let mut case = Case::new(Revision::V1_4);
    case.view.lies = true;
    // It says that FEATURES_OK is gone, and later that it never was.
    case.judge
        .access(Access::StatusRead(0x07), &case.view.clone(), 0);
    case.write(0x07);
    assert!(case.rules().is_empty());
    case.read().write(0x07);
    assert_eq!(case.rules(), [Rule::D7]);
}
