// SPDX-License-Identifier: GPL-2.0

//! Devices elsewhere that do otherwise than VIRTIO 1.4 has it: each is what it offers, and faults.
//!
//! As read in their sources and in what was posted, and as far as a driver can tell them from one
//! that keeps the rules.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::fault::{Effect, Fault, Moment, Name};
use crate::features::Offer;

/// A device that is known to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Like {
    /// crosvm's: bit 42; the queues go on while suspended, the interrupts are held back.
    Crosvm,
    /// Those of 5BSD's bhyve: no write counts while it quiesces, for which it has a time of its own.
    #[serde(rename = "5bsd")]
    #[value(name = "5bsd")]
    FiveBsd,
    /// Those of QEMU's series of September 2025: the status is 0 when suspended.
    #[serde(rename = "qemu-2025")]
    #[value(name = "qemu-2025")]
    Qemu2025,
}

/// How long bhyve's disks are given to finish what they have, in milliseconds.
const DRAIN_MS: u64 = 100;

impl Like {
    /// The bits it offers.
    pub fn offer(self) -> Offer {
        match self {
            Self::Crosvm => Offer::Draft,
            Self::FiveBsd | Self::Qemu2025 => Offer::Ratified,
        }
    }

    /// What it does otherwise.
    pub fn faults(self) -> Vec<Fault> {
        match self {
            Self::Crosvm => vec![
                Fault::with(Name::WorksSuspended, 0),
                Fault::with(Name::ConfigWritesTaken, 0),
            ],
            Self::FiveBsd => vec![
                Fault::with(Name::WritesDropped, 0),
                Fault::with(Name::DrainLimit, DRAIN_MS),
            ],
            Self::Qemu2025 => {
                vec![Fault::with(
                    Name::At(Effect::StatusZero, Moment::OnSuspend),
                    0,
                )]
            }
        }
    }
}
