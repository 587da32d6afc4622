// SPDX-License-Identifier: GPL-2.0

//! By what drivers know their virtqueues.

use core::any::TypeId;

use kernel::{
    device::Bound,
    prelude::*, //
};

use super::{
    Adapter,
    Driver, //
};
use crate::Device;

impl<T: Driver + 'static> Adapter<T> {
    /// Keeps by what the driver knows its virtqueues. A device has them set up once.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the device is bound to another driver, [`EBUSY`] if it has virtqueues.
    pub(crate) fn set_keys(dev: &Device<Bound>, keys: KVec<T::Queue>) -> Result {
        if dev.common().driver != TypeId::of::<T>() {
            return Err(EINVAL);
        }
        // SAFETY: As has just been checked.
        match unsafe { Self::private(dev) }.keys.populate(keys) {
            true => Ok(()),
            false => Err(EBUSY),
        }
    }
}
