// SPDX-License-Identifier: GPL-2.0

//! Rules, accesses, violations, and what the judge has to know of the device.

use serde::Serialize;

use crate::features::{FeatureSet, Revision};
use crate::status::State;
use crate::transport::pci_common_config::register_name;

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
    /// Do nothing but look and reset once DEVICE_NEEDS_RESET was seen.
    D9,
    /// Reclaim every buffer once.
    D10,
    /// Resize, reset, enable or move no queue while suspended.
    D11,
    /// Handle a configuration change after the resume.
    D12,
    /// Reset a suspended device before leaving it.
    D13,
    /// Issue no administration command while SUSPEND is set.
    D14,
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
    /// A buffer of a queue was made available: the queue and the ID.
    Available(u16, u16),
    /// The function was reset, not by the driver's writing 0 to status: how.
    FunctionReset(&'static str),
    /// The PCI function was told to do no more DMA.
    BusMasterOff,
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
            Self::Available(queue, id) => {
                write!(f, "make buffer {id} of queue {queue} available")
            }
            Self::FunctionReset(how) => write!(f, "reset by {how}"),
            Self::BusMasterOff => write!(f, "disable bus mastering"),
        }
    }
}

/// The device as it was before the access.
#[derive(Clone, Copy, Debug, Default)]
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
    /// The device has been told to answer status reads with something else than the truth, so the
    /// driver can't be held to what is behind it.
    pub lies: bool,
    /// The device has been told not to resume as VIRTIO 1.4 has it: the driver may try again, and
    /// with SUSPEND clear.
    pub resume_fault: bool,
    /// A configuration change that the driver has not looked at since.
    pub config_pending: bool,
    /// The administration virtqueue.
    pub admin_queue: Option<u16>,
}
