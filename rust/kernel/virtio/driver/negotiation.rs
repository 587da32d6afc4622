// SPDX-License-Identifier: GPL-2.0

//! What a driver can say of features before they are settled.

use kernel::{
    device::{
        self,
        Bound, //
    },
    error::from_result,
    prelude::*, //
};

use super::{
    resets,
    Adapter,
    Driver, //
};
use crate::{
    bindings,
    config::{
        Config,
        ConfigValue,
        Field, //
    },
    suspend::{
        self,
        Support as _, //
    },
    Device,
    Feature, //
};

/// A device between the negotiation of its features and FEATURES_OK, see
/// [`Driver::validate`].
///
/// # Invariants
///
/// The device is about to be probed: there is no driver data, and `Device::common` is not used.
pub struct Negotiation<'a>(&'a Device<Bound>);

impl Negotiation<'_> {
    /// Returns whether `feature` is offered by the device, and known to the driver.
    pub fn has_feature(&self, feature: Feature) -> bool {
        self.0.has_feature(feature)
    }

    /// Returns the number in the device's name: 0 for `virtio0`.
    pub fn index(&self) -> u32 {
        self.0.index()
    }

    /// Does without a feature.
    pub fn refuse(&self, feature: Feature) {
        self.0.clear_feature(feature);
    }

    /// Reads a field of the configuration space. May sleep.
    ///
    /// # Errors
    ///
    /// As for [`Config::read`](crate::config::Config::read).
    pub fn read<T: ConfigValue>(&self, field: &Field<T>) -> Result<T> {
        Config::of_unprobed(self.0).read(field)
    }
}

impl AsRef<device::Device<Bound>> for Negotiation<'_> {
    fn as_ref(&self) -> &device::Device<Bound> {
        self.0.as_ref()
    }
}

impl<T: Driver + 'static> Adapter<T> {
    pub(super) extern "C" fn validate_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core calls this with the valid device that it is about to probe.
        let dev = unsafe { Self::core(vdev) };

        // Its registers can't be read meanwhile, and nothing that is written to them stays.
        resets::wait(dev);
        from_result(|| {
            dev.revive()?;
            // INVARIANT: The probe comes after this.
            T::validate(&Negotiation(dev))?;
            if T::Suspend::SUPPORTED {
                suspend::negotiate(dev, Self::HAS_42);
            }
            Ok(0)
        })
    }
}
