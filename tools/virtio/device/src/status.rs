// SPDX-License-Identifier: GPL-2.0

//! The device status field and the suspend state machine (VIRTIO 1.4, "Device Status Field" and
//! "Device Suspend"; rules V1 and V5).
//!
//! Pure: it decides what a status write means and which byte a status read returns. What follows
//! from it (finishing buffers, delays, notifications) is [`crate::device`]'s.

use serde::Serialize;
use virtio::DeviceStatus;

use crate::features::Revision;

/// ACKNOWLEDGE (1).
pub const ACKNOWLEDGE: u8 = DeviceStatus::ACKNOWLEDGE.bits();
/// DRIVER (2).
pub const DRIVER: u8 = DeviceStatus::DRIVER.bits();
/// DRIVER_OK (4).
pub const DRIVER_OK: u8 = DeviceStatus::DRIVER_OK.bits();
/// FEATURES_OK (8).
pub const FEATURES_OK: u8 = DeviceStatus::FEATURES_OK.bits();
/// SUSPEND (16).
pub const SUSPEND: u8 = DeviceStatus::SUSPEND.bits();
/// DEVICE_NEEDS_RESET (64).
pub const NEEDS_RESET: u8 = DeviceStatus::DEVICE_NEEDS_RESET.bits();
/// FAILED (128).
pub const FAILED: u8 = DeviceStatus::FAILED.bits();

/// Whether `status` is the suspended condition of `revision`.
pub fn is_suspended(revision: Revision, status: u8) -> bool {
    match revision {
        Revision::V1_4 => status & SUSPEND != 0 && status & DRIVER_OK == 0,
        Revision::Draft => status & SUSPEND != 0,
        Revision::None => false,
    }
}

/// Whether `status` is the resumed condition of `revision`.
pub fn is_resumed(revision: Revision, status: u8) -> bool {
    match revision {
        Revision::V1_4 => status & SUSPEND == 0 && status & DRIVER_OK != 0,
        Revision::Draft | Revision::None => status & SUSPEND == 0,
    }
}

/// Whether a write of `value` to a suspended device of `revision` asks it to resume.
///
/// In 1.4 the driver sets DRIVER_OK and leaves SUSPEND set (D7), but a device need not insist. In
/// the draft DRIVER_OK has stayed set, so only a cleared SUSPEND can tell a resume.
pub fn is_resume_write(revision: Revision, value: u8) -> bool {
    match revision {
        Revision::V1_4 => value & DRIVER_OK != 0,
        Revision::Draft => value & DRIVER_OK != 0 && value & SUSPEND == 0,
        Revision::None => false,
    }
}

/// Where the device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not (yet) driven: before DRIVER_OK.
    #[default]
    Reset,
    /// DRIVER_OK is set.
    Running,
    /// SUSPEND was written, not yet presented.
    Suspending,
    /// The suspended condition is presented.
    Suspended,
    /// The resume write came, the resumed condition is not yet presented.
    Resuming,
}

/// What a status write asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing more.
    None,
    /// Reset everything.
    Reset,
    /// The features were accepted.
    FeaturesOk,
    /// The device goes live.
    DriverOk,
    /// Suspend: finish what is in process, then [`StatusMachine::begin_suspend`].
    Suspend,
    /// The driver took SUSPEND back before it was presented: run again.
    Cancel,
    /// Resume: present it when ready with [`StatusMachine::present_running`].
    Resume,
}

/// The status byte and the state behind it.
#[derive(Debug, Default)]
pub struct StatusMachine {
    status: u8,
    state: State,
    revision: Revision,
}

impl StatusMachine {
    /// The byte a status read returns.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// The revision of SUSPEND that was negotiated.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether the device may touch its virtqueues.
    pub fn is_live(&self) -> bool {
        self.state == State::Running && self.status & NEEDS_RESET == 0
    }

    /// Whether SUSPEND is set or on its way: the driver may write nothing but status (D6) and the
    /// device ignores it if it does (V3).
    pub fn is_frozen(&self) -> bool {
        matches!(
            self.state,
            State::Suspending | State::Suspended | State::Resuming
        )
    }

    /// Takes a status write.
    ///
    /// `negotiate` is asked when the driver sets FEATURES_OK; it returns the revision of SUSPEND,
    /// or `None` if the device can't accept the features. A bit that the driver clears other than
    /// by a reset stays set: the judge records it (D7), the device does not follow.
    pub fn write(&mut self, value: u8, negotiate: impl FnOnce() -> Option<Revision>) -> Action {
        if value == 0 {
            *self = Self::default();
            return Action::Reset;
        }
        self.status |= value & (ACKNOWLEDGE | DRIVER | FAILED);

        match self.state {
            State::Reset => self.write_before_driver_ok(value, negotiate),
            State::Running => {
                let suspend = value & SUSPEND != 0
                    && self.revision != Revision::None
                    && self.status & NEEDS_RESET == 0;
                if suspend {
                    Action::Suspend
                } else {
                    Action::None
                }
            }
            State::Suspending if value & SUSPEND == 0 && value & DRIVER_OK != 0 => {
                self.state = State::Running;
                Action::Cancel
            }
            State::Suspended
                if is_resume_write(self.revision, value) && self.status & NEEDS_RESET == 0 =>
            {
                self.state = State::Resuming;
                Action::Resume
            }
            State::Suspending | State::Suspended | State::Resuming => Action::None,
        }
    }

    /// Initialization ("Device Initialization"). SUSPEND is ignored here (V1).
    fn write_before_driver_ok(
        &mut self,
        value: u8,
        negotiate: impl FnOnce() -> Option<Revision>,
    ) -> Action {
        let mut action = Action::None;
        if value & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            if let Some(revision) = negotiate() {
                self.revision = revision;
                self.status |= FEATURES_OK;
                action = Action::FeaturesOk;
            }
        }
        if value & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            self.state = State::Running;
            action = Action::DriverOk;
        }
        action
    }

    /// The buffers in process are finished; SUSPEND will be presented after the delay.
    pub fn begin_suspend(&mut self) {
        self.state = State::Suspending;
    }

    /// Forgets that it was to suspend: a fault.
    pub fn forget_suspend(&mut self) {
        self.state = State::Running;
    }

    /// Presents the suspended condition of the negotiated revision.
    pub fn present_suspended(&mut self) {
        self.state = State::Suspended;
        self.status |= SUSPEND;
        if self.revision == Revision::V1_4 {
            self.status &= !DRIVER_OK;
        }
    }

    /// Presents SUSPEND together with DRIVER_OK, whatever the revision: a fault.
    pub fn present_suspended_with_driver_ok(&mut self) {
        self.state = State::Suspended;
        self.status |= SUSPEND | DRIVER_OK;
    }

    /// Forgets a write that asked to resume: a fault.
    pub fn ignore_resume(&mut self) {
        self.state = State::Suspended;
    }

    /// Presents the resumed condition.
    pub fn present_running(&mut self) {
        self.state = State::Running;
        self.status &= !SUSPEND;
        self.status |= DRIVER_OK;
    }

    /// Sets DEVICE_NEEDS_RESET.
    pub fn set_needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn running(revision: Revision) -> StatusMachine {
        let mut machine = StatusMachine::default();
        for value in [0x01, 0x03] {
            assert_eq!(machine.write(value, || None), Action::None);
        }
        assert_eq!(machine.write(0x0b, || Some(revision)), Action::FeaturesOk);
        assert_eq!(machine.write(0x0f, || None), Action::DriverOk);
        assert_eq!((machine.status(), machine.state()), (0x0f, State::Running));
        machine
    }

    fn suspended(revision: Revision) -> StatusMachine {
        let mut machine = running(revision);
        assert_eq!(machine.write(0x1f, || None), Action::Suspend);
        machine.begin_suspend();
        assert_eq!(machine.status(), 0x0f);
        machine.present_suspended();
        machine
    }

    #[test]
    fn ratified_round_trip() {
        let mut machine = suspended(Revision::V1_4);
        assert_eq!(machine.status(), 0x1b);
        assert_eq!(machine.write(0x1b, || None), Action::None);
        assert_eq!(machine.write(0x1f, || None), Action::Resume);
        assert_eq!(machine.status(), 0x1b);
        machine.present_running();
        assert_eq!((machine.status(), machine.state()), (0x0f, State::Running));
    }

    #[test]
    fn ratified_resume_with_suspend_cleared_is_understood() {
        let mut machine = suspended(Revision::V1_4);
        assert_eq!(machine.write(0x0f, || None), Action::Resume);
    }

    #[test]
    fn draft_round_trip() {
        let mut machine = suspended(Revision::Draft);
        assert_eq!(machine.status(), 0x1f);
        assert_eq!(machine.write(0x1f, || None), Action::None);
        assert_eq!(machine.write(0x0f, || None), Action::Resume);
        machine.present_running();
        assert_eq!(machine.status(), 0x0f);
    }

    #[test]
    fn suspend_is_ignored_unless_negotiated_and_live() {
        let mut machine = running(Revision::None);
        assert_eq!(machine.write(0x1f, || None), Action::None);
        assert_eq!((machine.status(), machine.state()), (0x0f, State::Running));

        let mut machine = StatusMachine::default();
        machine.write(0x03, || None);
        machine.write(0x0b, || Some(Revision::V1_4));
        assert_eq!(machine.write(0x1b, || None), Action::None);
        assert_eq!(machine.status(), 0x0b);
        // SUSPEND in the very write that sets DRIVER_OK comes too early, too.
        assert_eq!(machine.write(0x1f, || None), Action::DriverOk);
        assert_eq!(machine.status(), 0x0f);
    }

    #[test]
    fn suspend_is_ignored_by_a_device_that_needs_reset() {
        let mut machine = running(Revision::V1_4);
        machine.set_needs_reset();
        assert_eq!(machine.write(0x5f, || None), Action::None);
        assert!(!machine.is_live());
    }

    #[test]
    fn suspend_can_be_cancelled_until_presented() {
        let mut machine = running(Revision::V1_4);
        machine.write(0x1f, || None);
        machine.begin_suspend();
        assert!(machine.is_frozen());
        assert_eq!(machine.write(0x0f, || None), Action::Cancel);
        assert!(machine.is_live());
    }

    #[test]
    fn zero_resets_from_every_state() {
        for revision in [Revision::V1_4, Revision::Draft] {
            let mut machine = suspended(revision);
            assert_eq!(machine.write(0, || None), Action::Reset);
            assert_eq!((machine.status(), machine.state()), (0, State::Reset));
            assert_eq!(machine.revision(), Revision::None);
        }
    }

    #[test]
    fn refused_features_leave_features_ok_clear() {
        let mut machine = StatusMachine::default();
        assert_eq!(machine.write(0x0b, || None), Action::None);
        assert_eq!(machine.status(), 0x03);
        assert_eq!(machine.write(0x0f, || None), Action::None);
        assert_eq!(machine.state(), State::Reset);
    }

    proptest! {
        /// Whatever is written: SUSPEND is presented only when negotiated and suspended, and the
        /// state and the byte never disagree.
        #[test]
        fn status_and_state_agree(
            writes in proptest::collection::vec((any::<u8>(), any::<bool>()), 0..64),
            draft in any::<bool>(),
        ) {
            let revision = if draft { Revision::Draft } else { Revision::V1_4 };
            let mut machine = StatusMachine::default();
            for (value, at_once) in writes {
                match machine.write(value, || Some(revision)) {
                    Action::Suspend => {
                        machine.begin_suspend();
                        if at_once {
                            machine.present_suspended();
                        }
                    }
                    Action::Resume if at_once => machine.present_running(),
                    _ => {}
                }
                let status = machine.status();
                match machine.state() {
                    State::Reset => prop_assert_eq!(status & (DRIVER_OK | SUSPEND), 0),
                    State::Running | State::Suspending => {
                        prop_assert_eq!(status & (DRIVER_OK | SUSPEND), DRIVER_OK)
                    }
                    State::Suspended | State::Resuming => {
                        prop_assert!(is_suspended(revision, status))
                    }
                }
            }
        }
    }
}
