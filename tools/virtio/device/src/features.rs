// SPDX-License-Identifier: GPL-2.0

//! Feature bits (VIRTIO 1.4, "Reserved Feature Bits") and the two revisions of SUSPEND.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use virtio::F;

/// A feature set; the transport moves it in windows of 32 bits.
pub type FeatureSet = u128;

/// VIRTIO_F_INDIRECT_DESC (28).
pub const INDIRECT_DESC: FeatureSet = F::INDIRECT_DESC.bits().to_ne();
/// VIRTIO_F_EVENT_IDX (29).
pub const EVENT_IDX: FeatureSet = F::EVENT_IDX.bits().to_ne();
/// VIRTIO_F_VERSION_1 (32).
pub const VERSION_1: FeatureSet = F::VERSION_1.bits().to_ne();
/// VIRTIO_F_ACCESS_PLATFORM (33).
pub const ACCESS_PLATFORM: FeatureSet = F::ACCESS_PLATFORM.bits().to_ne();
/// VIRTIO_F_RING_PACKED (34).
pub const RING_PACKED: FeatureSet = F::RING_PACKED.bits().to_ne();
/// VIRTIO_F_RING_RESET (40).
pub const RING_RESET: FeatureSet = F::RING_RESET.bits().to_ne();
/// VIRTIO_F_ADMIN_VQ (41).
pub const ADMIN_VQ: FeatureSet = F::ADMIN_VQ.bits().to_ne();
/// VIRTIO_F_SUSPEND as ratified in VIRTIO 1.4 (43).
pub const SUSPEND: FeatureSet = F::SUSPEND.bits().to_ne();

/// VIRTIO_F_SUSPEND as the draft of September 2023 had it (42).
///
/// `virtio-spec` follows the ratified text, which gave bit 42 to the device types, so this one
/// constant is our own. For a network device the same bit is VIRTIO_NET_F_GUEST_RSC6.
pub const SUSPEND_DRAFT: FeatureSet = 1 << 42;

/// Which revision of SUSPEND was negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Revision {
    /// None: the driver must not set the SUSPEND status bit (D2).
    #[default]
    #[serde(rename = "none")]
    None,
    /// VIRTIO 1.4: suspended means SUSPEND set and DRIVER_OK clear.
    #[serde(rename = "1.4")]
    V1_4,
    /// The draft: suspended means SUSPEND set; DRIVER_OK stays.
    #[serde(rename = "draft")]
    Draft,
}

impl Revision {
    /// The revision that `accepted` selects: 43 wins over 42, and 42 means nothing for a device
    /// type that defines the bit itself.
    pub fn negotiated(accepted: FeatureSet, type_defines_bit_42: bool) -> Self {
        if accepted & SUSPEND != 0 {
            Self::V1_4
        } else if accepted & SUSPEND_DRAFT != 0 && !type_defines_bit_42 {
            Self::Draft
        } else {
            Self::None
        }
    }
}

/// Which SUSPEND bits the device offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Offer {
    /// VIRTIO 1.4's bit.
    #[default]
    #[value(name = "43")]
    #[serde(rename = "43")]
    Ratified,
    /// The draft's bit.
    #[value(name = "42")]
    #[serde(rename = "42")]
    Draft,
    /// Both: a driver accepts 43 only.
    #[value(name = "both")]
    #[serde(rename = "both")]
    Both,
    /// Neither.
    #[value(name = "none")]
    #[serde(rename = "none")]
    None,
}

impl Offer {
    /// The bits themselves.
    pub fn bits(self) -> FeatureSet {
        match self {
            Self::Ratified => SUSPEND,
            Self::Draft => SUSPEND_DRAFT,
            Self::Both => SUSPEND | SUSPEND_DRAFT,
            Self::None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratified_bit_wins_and_a_type_may_own_bit_42() {
        let both = Offer::Both.bits();
        assert_eq!(Revision::negotiated(both, false), Revision::V1_4);
        assert_eq!(Revision::negotiated(SUSPEND_DRAFT, false), Revision::Draft);
        assert_eq!(Revision::negotiated(SUSPEND_DRAFT, true), Revision::None);
        assert_eq!(Revision::negotiated(VERSION_1, false), Revision::None);
    }

    #[test]
    fn bit_numbers() {
        assert_eq!(SUSPEND, 1 << 43);
        assert_eq!(ADMIN_VQ, 1 << 41);
        assert_eq!(ACCESS_PLATFORM, 1 << 33);
        assert_eq!(RING_PACKED, 1 << 34);
        assert_eq!(VERSION_1, 1 << 32);
        assert_eq!(INDIRECT_DESC | EVENT_IDX, 3 << 28);
    }
}
