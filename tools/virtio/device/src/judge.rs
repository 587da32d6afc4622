// SPDX-License-Identifier: GPL-2.0

//! The judge: records every access of the driver that breaks one of the rules D1 to D14.
//!
//! Pure: it is told each access, in order, with the device's view before the access took effect,
//! and answers with violations. One access breaks one rule: the most specific one.
//!
//! What it does not hold against the driver:
//!
//! * PCI configuration space, MSI-X and the mailbox BAR: not virtio accesses, but for a function
//!   level reset and the end of bus mastering (D13). ISR reads: with INTx another device on the
//!   line may cause them at any time.
//! * A rollback that crosses the device's presenting SUSPEND: a bit the driver has not read yet is
//!   not one that it cleared (D7). The device then treats the write as a resume, so the driver
//!   still has to read status before it goes on (D8).
//! * Buffers made available right after a rollback write: register writes are posted, so the ring
//!   may have moved on by the time the write is handled (D4 is checked at status reads, at the
//!   resume write and at a reset only, all of which a driver that keeps the rules issues with its
//!   queues gated).
//! * What it does while it can't know better, because the device misbehaves on request: after
//!   [`Judge::excuse`] nothing counts until the device is initialized again, and [`View::lies`] and
//!   [`View::resume_fault`] leave out what can't be told apart.
//! * Kicks and buffers after DEVICE_NEEDS_RESET was read outside of a transition (D9): a status
//!   read can come from a user, through sysfs, without the driver's knowledge.
//!
//! What a device can't see, and the guest's tests have to prove:
//!
//! * D10, that a buffer used before SUSPEND was presented is reclaimed exactly once. A used ring is
//!   read without a trace. What can be seen is a driver that gives a buffer away that the device
//!   has still: it has reclaimed what was never given back. That nothing is lost or read twice is
//!   proven by the stream of [`crate::settings::DataKind::Counter`].
//! * D12, that a change is handled at all: a driver need not look at the configuration then. What
//!   can be seen is that it looks too early.

use crate::features::{FeatureSet, Revision, SUSPEND as F_SUSPEND, SUSPEND_DRAFT};
use crate::status::{
    is_resume_write, is_resumed, is_suspended, State, DRIVER_OK, FAILED, NEEDS_RESET, SUSPEND,
};
use crate::transport::pci_common_config::{is_queue_setup, reg};

mod record;
#[cfg(test)]
mod tests;

pub use record::{Access, Rule, View, Violation};

/// How many violations are kept; all are counted.
pub const KEPT: usize = 256;

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
    /// It has read DEVICE_NEEDS_RESET during a transition: it knows.
    needs_reset: bool,
    /// The device misbehaves: nothing counts until it is initialized again.
    excused: bool,
    /// Available positions when SUSPEND was processed.
    marks: Vec<AvailMark>,
    violations: Vec<Violation>,
    total: u64,
    /// Violations are not recorded.
    off: bool,
    /// How many were not.
    unjudged: u64,
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

    /// Whether violations are recorded. It goes on to follow where the driver is.
    pub fn switch(&mut self, on: bool) {
        self.off = !on;
    }

    /// Whether violations are not recorded.
    pub fn is_off(&self) -> bool {
        self.off
    }

    /// How many violations were not recorded since the last clear, because it was switched off.
    pub fn unjudged(&self) -> u64 {
        self.unjudged
    }

    /// Forgets the violations, not where the driver is.
    pub fn clear(&mut self) {
        self.violations.clear();
        self.taken = 0;
        self.total = 0;
        self.unjudged = 0;
    }

    /// The device was reset: every transition is over (D13 allows it at any time).
    pub fn reset(&mut self) {
        self.phase = Phase::Running;
        self.last_read = 0;
        self.needs_reset = false;
        self.excused = false;
        self.marks.clear();
    }

    /// The device, on request, is no more what the driver takes it for: nothing counts until the
    /// driver initializes it again.
    pub fn excuse(&mut self) {
        self.reset();
        self.excused = true;
    }

    /// D13: the function is reset, or left, other than by writing 0 to status. `how` is the access.
    pub fn left(&mut self, access: Access, now_us: u64) {
        if self.excused || self.phase == Phase::Running {
            return;
        }
        let what = match access {
            Access::BusMasterOff => {
                "left a device with SUSPEND set that may still use the queues' memory"
            }
            _ => "left a device with SUSPEND set without a reset by status",
        };
        self.record(Rule::D13, what.into(), access, now_us);
    }

    /// D10: the driver made a buffer available that the device has already.
    pub fn taken_twice(&mut self, queue: u16, id: u16, now_us: u64) {
        if !self.excused {
            let what = "made a buffer available that the device has not given back";
            self.record(Rule::D10, what.into(), Access::Available(queue, id), now_us);
        }
    }

    /// Whether the caller should read the queues' available positions and call
    /// [`Judge::check_marks`] before it handles the next status access.
    pub fn watches_queues(&self) -> bool {
        let watched = self.needs_reset || matches!(self.phase, Phase::Pending | Phase::Suspended);
        watched && !self.excused
    }

    /// SUSPEND was processed with the queues at these positions.
    pub fn set_marks(&mut self, marks: Vec<AvailMark>) {
        self.marks = marks;
    }

    /// D4: the queues' positions, before a status read, the resume write or a reset. For the
    /// administration virtqueue it is D14, after DEVICE_NEEDS_RESET D9.
    pub fn check_marks(&mut self, marks: Vec<AvailMark>, access: Access, view: &View, now_us: u64) {
        let before = std::mem::take(&mut self.marks);
        for (queue, (before, after)) in before.iter().zip(&marks).enumerate() {
            if let (Some(before), Some(after)) = (before, after) {
                if before != after {
                    let (rule, when) = if self.needs_reset {
                        (Rule::D9, "after DEVICE_NEEDS_RESET was read")
                    } else if view.admin_queue.map(usize::from) == Some(queue) {
                        (
                            Rule::D14,
                            "in an administration queue while SUSPEND was set",
                        )
                    } else {
                        (Rule::D4, "while SUSPEND was set")
                    };
                    let what = format!(
                        "queue {queue}: a buffer was made available {when} \
                         (position {before} became {after})"
                    );
                    self.record(rule, what, access, now_us);
                }
            }
        }
        self.marks = marks;
    }

    /// D1: the driver sets FEATURES_OK.
    pub fn features(&mut self, offered: FeatureSet, accepted: FeatureSet, value: u8, now_us: u64) {
        // The driver begins anew.
        self.excused = false;
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
            Access::StatusWrite(0) => self.reset(),
            Access::StatusRead(value) => self.status_read(value, view),
            _ if self.excused => {}
            Access::StatusWrite(value) => self.status_write(value, view, now_us),
            Access::IsrRead => {}
            _ => self.other(access, view, now_us),
        }
    }

    fn status_read(&mut self, value: u8, view: &View) {
        self.last_read = value;
        // All ones is a device that is gone: it has every bit set, and this one means nothing.
        if value & NEEDS_RESET != 0 && value != 0xff && self.phase != Phase::Running {
            self.needs_reset = true;
        }
        let runs = is_resumed(view.revision, value) && value & DRIVER_OK != 0;
        match self.phase {
            Phase::Pending if is_suspended(view.revision, value) => self.phase = Phase::Suspended,
            Phase::Resuming if is_resumed(view.revision, value) => self.phase = Phase::Running,
            // By itself: a fault.
            Phase::Suspended if runs => self.phase = Phase::Running,
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
        } else if self.last_read & NEEDS_RESET != 0 && self.last_read != 0xff && value & FAILED == 0
        {
            let what = "wrote status after DEVICE_NEEDS_RESET was read; only a reset helps";
            self.record(Rule::D9, what.into(), access, now_us);
            return;
        }

        match self.phase {
            Phase::Running => {
                if is_suspended(view.revision, self.last_read)
                    && is_resume_write(view.revision, value)
                {
                    // The device has suspended after all, and the driver has seen it.
                    self.phase = Phase::Resuming;
                } else if value & SUSPEND != 0 {
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
                let again = (view.lies || view.resume_fault) && value & DRIVER_OK != 0;
                if cleared == 0 && !again {
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
        // before it has read them. All others it has set itself, and can trust if the device does
        // not lie.
        let unseen = if view.lies {
            !self.last_read | SUSPEND
        } else {
            (SUSPEND | NEEDS_RESET) & !self.last_read
        };
        let mut cleared = view.status & !value & !unseen;
        if view.revision == Revision::Draft || view.resume_fault {
            // The draft knows no other way to resume, and such a device leaves no other.
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
        if view.state == State::Reset && !view.lies {
            let what = "set SUSPEND before DRIVER_OK";
            self.record(Rule::D2, what.into(), access, now_us);
            return;
        }
        self.phase = Phase::Pending;
    }

    /// Everything but status and ISR.
    fn other(&mut self, access: Access, view: &View, now_us: u64) {
        let Some((rule, what)) = self.broken_by(access, view) else {
            return;
        };
        self.record(rule, what.into(), access, now_us);
    }

    fn broken_by(&self, access: Access, view: &View) -> Option<(Rule, &'static str)> {
        let writes = matches!(
            access,
            Access::CommonWrite(..) | Access::ConfigWrite(_) | Access::Notify(_)
        );
        let reads_config = matches!(
            access,
            Access::ConfigRead(_) | Access::CommonRead(reg::CONFIG_GENERATION)
        );
        if self.needs_reset {
            // The transition is over, and a look is allowed.
            return writes.then_some((Rule::D9, "went on after DEVICE_NEEDS_RESET was read"));
        }
        match (self.phase, access) {
            (Phase::Running, _) => None,
            (_, Access::Notify(queue)) if view.admin_queue == Some(queue) => Some((
                Rule::D14,
                "issued an administration command while SUSPEND is set",
            )),
            (Phase::Resuming, _) => {
                Some((Rule::D8, "went on before reading the resumed condition"))
            }
            (_, Access::Notify(_)) => Some((Rule::D5, "notified a queue while SUSPEND is set")),
            (_, Access::CommonWrite(offset, _)) if is_queue_setup(offset) => {
                Some((Rule::D11, "changed a queue's set-up while SUSPEND is set"))
            }
            _ if writes => Some((Rule::D6, "wrote configuration while SUSPEND is set")),
            _ if reads_config && view.config_pending => Some((
                Rule::D12,
                "looked at the configuration, which has changed, before the resume",
            )),
            (Phase::Pending, _) => {
                Some((Rule::D3, "went on before reading the suspended condition"))
            }
            (Phase::Suspended, _) => None,
        }
    }

    fn record(&mut self, rule: Rule, what: String, access: Access, time_us: u64) {
        if self.off {
            self.unjudged += 1;
            return;
        }
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
