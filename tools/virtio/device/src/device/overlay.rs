// SPDX-License-Identifier: GPL-2.0

//! How faults stand between the device and who looks at it.

use crate::random::Stream;

/// What stands between a register and who reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Overlay {
    /// Nothing.
    #[default]
    None,
    /// All reads are ones.
    Ones,
    /// All reads are ones, and writes have no effect.
    Gone,
    /// The same, but nothing is lost.
    Away,
    /// Status is random.
    Random(Stream),
    /// Status has no FEATURES_OK.
    NoFeaturesOk,
    /// Status has SUSPEND, which was written when it meant nothing.
    SuspendStored,
    /// Status is what it was before the reset.
    BeforeReset(u8),
}

impl Overlay {
    pub(super) fn is_ones(&self) -> bool {
        matches!(self, Self::Ones | Self::Gone | Self::Away)
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Gone | Self::Away)
    }
}

/// How the server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The connection is closed.
    Disconnect,
    /// The process exits.
    Exit,
}
