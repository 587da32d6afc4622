// SPDX-License-Identifier: GPL-2.0

//! Feature bits.
//!
//! VIRTIO 1.4, "Feature Bits" and "Reserved Feature Bits".

use crate::bindings;

/// The number of a feature bit.
///
/// A device offers features, a driver accepts those that both know. Bits 24 to 40 and some beyond
/// are the same for all device types, the others belong to the device type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Feature(u32);

impl Feature {
    /// The device complies with VIRTIO 1.0 or later.
    pub const VERSION_1: Self = Self(bindings::VIRTIO_F_VERSION_1);
    /// Buffers can be described by a table outside of the virtqueue.
    pub const RING_INDIRECT_DESC: Self = Self(bindings::VIRTIO_RING_F_INDIRECT_DESC);
    /// The packed virtqueue layout.
    pub const RING_PACKED: Self = Self(bindings::VIRTIO_F_RING_PACKED);
    /// The driver can reset single virtqueues.
    pub const RING_RESET: Self = Self(bindings::VIRTIO_F_RING_RESET);
    /// The device has an administration virtqueue.
    pub const ADMIN_VQ: Self = Self(bindings::VIRTIO_F_ADMIN_VQ);
    /// SUSPEND as in VIRTIO 1.4.
    ///
    /// Linux 7.3 has no name for it.
    pub const SUSPEND: Self = Self(43);
    /// SUSPEND as proposed in September 2023, for device types that define no bit 42 of their own.
    pub const SUSPEND_DRAFT: Self = Self(42);

    /// A feature bit of a device type.
    ///
    /// # Examples
    ///
    /// ```
    /// use virtio::Feature;
    ///
    /// const VIRTIO_BLK_F_FLUSH: Feature = Feature::new(9);
    /// # fn main() {}
    /// ```
    pub const fn new(bit: u32) -> Self {
        assert!(bit < 128, "Linux has room for 128 feature bits");
        Self(bit)
    }

    /// Returns the number of the bit.
    pub const fn bit(self) -> u32 {
        self.0
    }
}
