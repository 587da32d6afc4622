// SPDX-License-Identifier: GPL-2.0

//! What others than the controller do to a device by a reset.

use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Full,
    Release, //
};

use super::state_machine::ForeignReset;

/// What others have done to a device.
///
/// Of a driver of the crate the virtio core asks all that is done about a reset, and waits for it:
/// its device is either untouched or reset. Of others it is heard from the accesses to the status,
/// and what comes of a reset is found out by looking.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing, or it has been looked at since.
    Untouched,
    /// Somebody has reset it.
    Reset,
    /// And has put it into operation again, which has not been looked at yet.
    Operating,
    /// Or has left it so: its driver has no virtqueues, and waits to be told that it has.
    LeftReset,
    /// It has been given up while that was so. Whatever is done to it later, nobody counts on it
    /// any more.
    Abandoned,
}

impl Fate {
    const fn from_bits(bits: u32) -> Self {
        match bits {
            0 => Self::Untouched,
            1 => Self::Reset,
            2 => Self::Operating,
            3 => Self::LeftReset,
            _ => Self::Abandoned,
        }
    }
}

/// The [`Fate`] of a device, which others change at any moment: in any context.
pub(crate) struct FateCell(Atomic<u32>);

impl FateCell {
    pub(super) const fn new() -> Self {
        Self(Atomic::new(Fate::Untouched as u32))
    }

    pub(crate) fn get(&self) -> Fate {
        Fate::from_bits(self.0.load(Acquire))
    }

    pub(crate) fn set(&self, fate: Fate) {
        self.0.store(fate as u32, Release);
    }

    /// Returns whether it was `from`, and is `to` now.
    pub(super) fn change(&self, from: Fate, to: Fate) -> bool {
        self.0.cmpxchg(from as u32, to as u32, Full).is_ok()
    }

    /// Somebody resets the device. Returns whether that matters to anybody.
    pub(crate) fn reset(&self) -> bool {
        loop {
            match self.get() {
                Fate::Abandoned => return false,
                fate if self.change(fate, Fate::Reset) => return true,
                _ => {}
            }
        }
    }

    /// Somebody has put the device into operation. Returns whether that comes after a reset.
    pub(super) fn operate(&self) -> bool {
        self.change(Fate::Reset, Fate::Operating) || self.change(Fate::LeftReset, Fate::Operating)
    }

    /// Returns, once, whether somebody has reset the device and put it into operation again.
    pub(super) fn take_operating(&self) -> bool {
        self.change(Fate::Operating, Fate::Untouched)
    }

    /// Returns what of this matters to the decisions of the controller.
    pub(super) fn foreign_reset(&self) -> ForeignReset {
        match self.get() {
            Fate::Untouched | Fate::Operating | Fate::Abandoned => ForeignReset::None,
            Fate::Reset => ForeignReset::UnderWay,
            Fate::LeftReset => ForeignReset::LeftUndone,
        }
    }
}
