// SPDX-License-Identifier: GPL-2.0

//! What a status means, by the revision of the feature.

use virtio::{
    Feature,
    Status, //
};

/// ACKNOWLEDGE, DRIVER and FEATURES_OK.
pub(crate) const SET_UP: Status = Status::ACKNOWLEDGE
    .with(Status::DRIVER)
    .with(Status::FEATURES_OK);

/// The status of a device in operation.
pub(crate) const RUNNING: Status = SET_UP.with(Status::DRIVER_OK);

/// A revision of the feature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revision {
    /// VIRTIO 1.4, feature bit 43.
    V1_4,
    /// The proposal of September 2023, feature bit 42.
    Draft,
}

impl Revision {
    pub(crate) const fn feature(self) -> Feature {
        match self {
            Self::V1_4 => Feature::SUSPEND,
            Self::Draft => Feature::SUSPEND_DRAFT,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V1_4 => "VIRTIO 1.4, bit 43",
            Self::Draft => "draft, bit 42",
        }
    }

    /// Returns whether a device that presents `status` is suspended.
    pub(crate) const fn is_suspended(self, status: Status) -> bool {
        status.contains(SET_UP.with(Status::SUSPEND))
            && match self {
                Self::V1_4 => !status.contains(Status::DRIVER_OK),
                Self::Draft => true,
            }
    }
}

/// Returns whether a device that presents `status` is in operation.
pub(crate) const fn is_running(status: Status) -> bool {
    status.contains(RUNNING)
        && !status.contains(Status::SUSPEND)
        && !status.contains(Status::DEVICE_NEEDS_RESET)
}

/// Returns whether only a reset helps a device that presents `status`.
pub(crate) const fn is_broken(status: Status) -> bool {
    !status.contains(SET_UP)
        || status.contains(Status::DEVICE_NEEDS_RESET)
        || status.contains(Status::FAILED)
}
