// SPDX-License-Identifier: GPL-2.0

//! The device configuration space.
//!
//! VIRTIO 1.4, "Device Configuration Space".

use core::marker::PhantomData;

use kernel::{
    device::Bound,
    prelude::*, //
};

use crate::{
    Device,
    Feature, //
};

/// How often a read is repeated while the device keeps changing its configuration.
///
/// A device that changes it faster than it can be read is broken or hostile, and must not hold the
/// driver for ever.
const MAX_TRIES: usize = 64;

mod private {
    pub trait Sealed {}
}

/// A type that a field of the device configuration space can have.
pub trait ConfigValue: private::Sealed + Copy {
    /// Makes the value out of the little-endian bytes that a device of VIRTIO 1.0 or later uses,
    /// or out of bytes in the guest's order for an older one.
    #[doc(hidden)]
    fn read(config: &Config<'_>, offset: u32, modern: bool) -> Self;

    /// Writes the value in such bytes.
    #[doc(hidden)]
    fn write(self, config: &Config<'_>, offset: u32, modern: bool);
}

macro_rules! impl_config_value {
    ($($ty:ty),*) => {$(
        impl private::Sealed for $ty {}

        impl ConfigValue for $ty {
            fn read(config: &Config<'_>, offset: u32, modern: bool) -> Self {
                let mut bytes = [0; size_of::<$ty>()];
                config.read_bytes(offset, &mut bytes);
                if modern {
                    <$ty>::from_le_bytes(bytes)
                } else {
                    <$ty>::from_ne_bytes(bytes)
                }
            }

            fn write(self, config: &Config<'_>, offset: u32, modern: bool) {
                let mut bytes = if modern {
                    self.to_le_bytes()
                } else {
                    self.to_ne_bytes()
                };
                config.write_bytes(offset, &mut bytes);
            }
        }
    )*};
}

impl_config_value!(u8, u16, u32, u64);

/// A field of the configuration space of a device type.
///
/// Only this crate makes them, out of the specification: the transports do not check where they
/// read.
pub struct Field<T: ConfigValue> {
    device_type: u32,
    offset: u32,
    /// Without this feature, the field is not there.
    feature: Option<Feature>,
    writable: bool,
    _value: PhantomData<T>,
}

impl<T: ConfigValue> Field<T> {
    /// # Safety
    ///
    /// The configuration space of every device of the type, with which `feature` has been
    /// negotiated, must have the field.
    pub(crate) const unsafe fn new(
        device_type: u32,
        offset: u32,
        feature: Option<Feature>,
    ) -> Self {
        // An access that is not aligned faults on some architectures.
        assert!(offset as usize % size_of::<T>() == 0);
        Self {
            device_type,
            offset,
            feature,
            writable: false,
            _value: PhantomData,
        }
    }

    /// Makes it a field that the driver can write.
    pub(crate) const fn writable(mut self) -> Self {
        self.writable = true;
        self
    }
}

/// The configuration space of a device.
///
/// # Examples
///
/// ```
/// use kernel::{device::Bound, prelude::*};
/// use virtio::{blk, Device};
///
/// /// Reads the capacity of a block device, in bytes.
/// fn capacity(dev: &Device<Bound>) -> Result<u64> {
///     dev.config().read(&blk::CAPACITY)?.checked_mul(512).ok_or(EINVAL)
/// }
/// # fn main() {}
/// ```
pub struct Config<'a>(&'a Device<Bound>);

impl<'a> Config<'a> {
    pub(crate) fn new(dev: &'a Device<Bound>) -> Self {
        Self(dev)
    }

    /// Reads a field.
    ///
    /// The value is consistent: it is read again if the device changed its configuration
    /// meanwhile. May sleep.
    ///
    /// # Errors
    ///
    /// [`EIO`] if the device doesn't stop changing its configuration, [`EINVAL`] if the device is
    /// of another type, [`EOPNOTSUPP`] if the feature that the field belongs to has not been
    /// negotiated.
    pub fn read<T: ConfigValue>(&self, field: &Field<T>) -> Result<T> {
        self.check(field)?;
        self.read_with(|config, modern| T::read(config, field.offset, modern))
    }

    /// Writes a field. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device is suspended, or a request to suspend or resume it is under way
    /// (rule D6), or it is not in operation; [`EACCES`] if the field can't be written; and as for
    /// [`Config::read`].
    pub fn write<T: ConfigValue>(&self, field: &Field<T>, value: T) -> Result {
        self.check(field)?;
        if !field.writable {
            return Err(EACCES);
        }
        self.0.common().controller.while_running(|| {
            value.write(self, field.offset, self.0.has_feature(Feature::VERSION_1));
        })
    }

    /// Checks that the device has a field.
    fn check<T: ConfigValue>(&self, field: &Field<T>) -> Result {
        if self.0.device_type() != field.device_type {
            return Err(EINVAL);
        }
        match field.feature {
            Some(feature) if !self.0.has_feature(feature) => Err(EOPNOTSUPP),
            _ => Ok(()),
        }
    }

    /// Calls `read` until the configuration did not change during the call.
    fn read_with<R>(&self, read: impl Fn(&Self, bool) -> R) -> Result<R> {
        let modern = self.0.has_feature(Feature::VERSION_1);

        for _ in 0..MAX_TRIES {
            let before = self.generation();
            let value = read(self, modern);
            if self.generation() == before {
                return Ok(value);
            }
        }
        Err(EIO)
    }

    fn generation(&self) -> u32 {
        let vdev = self.0.as_raw();

        // SAFETY: By the type invariant of `Device`, `vdev` is a valid `struct virtio_device`, and
        // a device that is bound has the operations of its transport.
        match unsafe { (*(*vdev).config).generation } {
            // SAFETY: The operation takes the device that it belongs to. It may sleep, as the
            // caller was told.
            Some(generation) => unsafe { generation(vdev) },
            None => 0,
        }
    }

    fn read_bytes(&self, offset: u32, bytes: &mut [u8]) {
        let vdev = self.0.as_raw();

        // SAFETY: As in `generation`.
        if let Some(get) = unsafe { (*(*vdev).config).get } {
            // SAFETY: `bytes` is valid for writing as many bytes as are asked for, and they fit
            // into `u32`: the longest field has 8. The offset is that of a `Field` of this device
            // type, see `Field::new`.
            unsafe { get(vdev, offset, bytes.as_mut_ptr().cast(), bytes.len() as u32) };
        }
    }

    fn write_bytes(&self, offset: u32, bytes: &mut [u8]) {
        let vdev = self.0.as_raw();

        // SAFETY: As in `generation`.
        if let Some(set) = unsafe { (*(*vdev).config).set } {
            // SAFETY: As in `read_bytes`; the operation only reads `bytes`.
            unsafe { set(vdev, offset, bytes.as_mut_ptr().cast(), bytes.len() as u32) };
        }
    }
}
