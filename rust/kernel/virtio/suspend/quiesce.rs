// SPDX-License-Identifier: GPL-2.0

//! What a driver does to have its devices suspended.

use core::ptr::null;

use kernel::{
    device::Bound,
    prelude::*, //
};

use super::{
    failure::Failure,
    patience::Patience,
    sysfs, //
};
use crate::{
    bindings,
    compat::EOPNOTSUPP,
    Device,
    Driver,
    Feature, //
};

/// A driver whose devices can be suspended.
///
/// When a device is suspended, [`gate`](Quiesce::gate) is called first. Then the bus abstraction
/// closes the virtqueues, so that [`VirtQueueGuard::add`] fails with [`EBUSY`] and no notification
/// is sent (rules D4 and D5), holds back configuration changes (D12), and sets SUSPEND. When the
/// device presents that it is suspended, [`Driver::used`] is called once for each virtqueue, to
/// take back what the device used before (D10).
///
/// When the device has been resumed, or has refused, everything is opened again,
/// [`Driver::used`] is called for each virtqueue, and then [`ungate`](Quiesce::ungate). At the end
/// the device is notified of every virtqueue that has buffers.
///
/// A device that is reset, because it is unbound, the system sleeps, or only a reset helps, is no
/// longer suspended: [`Driver::stop`] is called then, gated or not, and [`Driver::start`] when the
/// device operates again, but not `ungate`.
///
/// [`VirtQueueGuard::add`]: crate::VirtQueueGuard::add
pub trait Quiesce: Driver {
    /// Stop making buffers available. May sleep.
    ///
    /// What is needed here depends on the driver: if it can bear that adding a buffer fails, it
    /// needs nothing. If it waits for something, then as long as `patience` lasts.
    ///
    /// # Errors
    ///
    /// An error refuses the suspend: `ungate` is not called, the device not touched, and the writer
    /// of the request is told the error. It should be one of those that the ABI page lists, or
    /// [`EAGAIN`] or [`ENOMEM`].
    fn gate(
        dev: &Device<Bound>,
        this: Pin<&Self::Data<'_>>,
        patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        let _ = (dev, this, patience);
        Ok(())
    }

    /// Go on: make available what is missing. May sleep.
    fn ungate(dev: &Device<Bound>, this: Pin<&Self::Data<'_>>);
}

mod private {
    pub trait Sealed {}
    impl Sealed for super::Native {}
    impl Sealed for super::Unsupported {}
}

/// Whether the devices of driver `T` can be suspended. See [`Native`] and [`Unsupported`].
pub trait Support<T: Driver>: private::Sealed {
    #[doc(hidden)]
    const SUPPORTED: bool;

    /// The feature bits to add to the driver's table.
    #[doc(hidden)]
    fn features() -> &'static [Feature];

    /// The attribute groups of a bound device.
    #[doc(hidden)]
    fn groups() -> *const *const bindings::attribute_group;

    #[doc(hidden)]
    fn gate(
        dev: &Device<Bound>,
        this: Pin<&T::Data<'_>>,
        patience: &Patience<'_>,
    ) -> Result<(), Failure>;

    #[doc(hidden)]
    fn ungate(dev: &Device<Bound>, this: Pin<&T::Data<'_>>);
}

/// The driver's devices can be suspended: it implements [`Quiesce`].
pub struct Native;

impl<T: Quiesce> Support<T> for Native {
    const SUPPORTED: bool = true;

    fn features() -> &'static [Feature] {
        if *crate::parameters::draft.value_ref() {
            &[Feature::SUSPEND, Feature::SUSPEND_DRAFT]
        } else {
            &[Feature::SUSPEND]
        }
    }

    fn groups() -> *const *const bindings::attribute_group {
        sysfs::groups()
    }

    fn gate(
        dev: &Device<Bound>,
        this: Pin<&T::Data<'_>>,
        patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        T::gate(dev, this, patience)
    }

    fn ungate(dev: &Device<Bound>, this: Pin<&T::Data<'_>>) {
        T::ungate(dev, this)
    }
}

/// The driver's devices can't be suspended: SUSPEND is not negotiated for them.
pub struct Unsupported;

impl<T: Driver> Support<T> for Unsupported {
    const SUPPORTED: bool = false;

    fn features() -> &'static [Feature] {
        &[]
    }

    fn groups() -> *const *const bindings::attribute_group {
        null()
    }

    fn gate(
        _dev: &Device<Bound>,
        _this: Pin<&T::Data<'_>>,
        _patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        Err(EOPNOTSUPP.into())
    }

    fn ungate(_dev: &Device<Bound>, _this: Pin<&T::Data<'_>>) {}
}
