// SPDX-License-Identifier: GPL-2.0

//! The device status field.
//!
//! VIRTIO 1.4, "Device Status Field". Pure logic: this file is also built and tested on the host.

/// A value of the device status field.
///
/// The field is a set of bits that driver and device set as they come to know each other. Apart
/// from a reset (writing 0) the driver never clears one of them, see rule D7.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug, Hash))]
#[repr(transparent)]
pub struct Status(u8);

impl Status {
    /// No bit: the device is reset, or has reset itself.
    pub const RESET: Self = Self(0);
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: Self = Self(1);
    /// The guest knows how to drive the device.
    pub const DRIVER: Self = Self(2);
    /// The driver is set up and ready to drive the device.
    pub const DRIVER_OK: Self = Self(4);
    /// Feature negotiation is complete.
    pub const FEATURES_OK: Self = Self(8);
    /// With `VIRTIO_F_SUSPEND`: the device has been, or is to be, suspended.
    pub const SUSPEND: Self = Self(16);
    /// The device has experienced an error that it can only recover from by a reset.
    pub const DEVICE_NEEDS_RESET: Self = Self(64);
    /// The driver has given up on the device.
    pub const FAILED: Self = Self(128);
    /// What every read of a device returns that is no longer there.
    ///
    /// Every bit is set, SUSPEND among them: such a device is lost, not suspended.
    pub const ALL_ONES: Self = Self(0xff);

    /// Creates a status from the bits of the field.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Returns the bits of the field.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Returns whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns this status with the bits of `other` set.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns this status with the bits of `other` clear.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}
