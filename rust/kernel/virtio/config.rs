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
    compat::EOPNOTSUPP,
    suspend::Turnstile,
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

impl_config_value!(u8, u16, u32, u64, i32);

impl<T: ConfigValue + Default, const N: usize> private::Sealed for [T; N] {}

/// The transports want accesses of the width of an element.
impl<T: ConfigValue + Default, const N: usize> ConfigValue for [T; N] {
    fn read(config: &Config<'_>, offset: u32, modern: bool) -> Self {
        let mut values = [T::default(); N];
        read_array(config, offset, modern, &mut values);
        values
    }

    fn write(self, config: &Config<'_>, mut offset: u32, modern: bool) {
        for value in self {
            value.write(config, offset, modern);
            // CAST: A scalar.
            offset += size_of::<T>() as u32;
        }
    }
}

/// Reads as many elements as there is room for.
fn read_array<T: ConfigValue>(
    config: &Config<'_>,
    mut offset: u32,
    modern: bool,
    values: &mut [T],
) {
    for value in values {
        *value = T::read(config, offset, modern);
        // CAST: A scalar.
        offset += size_of::<T>() as u32;
    }
}

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
        assert!(offset as usize % align_of::<T>() == 0);
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
pub struct Config<'a> {
    dev: &'a Device<Bound>,
    /// Where reads pass. [`None`] before the device is in operation.
    reads: Option<&'a Turnstile>,
}

impl<'a> Config<'a> {
    pub(crate) fn new(dev: &'a Device<Bound>) -> Self {
        Self {
            dev,
            reads: Some(dev.common().controller.config_reads()),
        }
    }

    /// That of a device which nothing is kept for yet.
    pub(crate) fn of_unprobed(dev: &'a Device<Bound>) -> Self {
        Self { dev, reads: None }
    }

    /// Calls `read`, which reads the configuration space, when the device has answered what it is
    /// asked.
    fn when_answered<R>(&self, mut read: impl FnMut() -> R) -> R {
        match self.reads {
            Some(reads) => reads.pass(read),
            None => read(),
        }
    }

    /// Reads a field.
    ///
    /// The value is consistent: it is read again if the device changed its configuration
    /// meanwhile. While the device is asked to suspend or to resume it is not read before the
    /// answer, or the end of the request. May sleep.
    ///
    /// # Errors
    ///
    /// [`EIO`] if the device doesn't stop changing its configuration, [`EINVAL`] if the device is
    /// of another type, [`EOPNOTSUPP`] if the feature that the field belongs to has not been
    /// negotiated.
    pub fn read<T: ConfigValue>(&self, field: &Field<T>) -> Result<T> {
        self.snapshot(|fields| fields.read(field))
    }

    /// Reads fields that belong together.
    ///
    /// All values are of one generation of the configuration: `read` is called again if the device
    /// changed it meanwhile. May sleep.
    ///
    /// # Errors
    ///
    /// [`EIO`] if the device doesn't stop changing its configuration, and those of `read`.
    pub fn snapshot<R>(&self, read: impl Fn(&Fields<'_>) -> Result<R>) -> Result<R> {
        let fields = self.fields();

        for _ in 0..MAX_TRIES {
            let before = self.generation();
            let value = read(&fields)?;
            if self.generation() == before {
                return Ok(value);
            }
        }
        Err(EIO)
    }

    /// Writes a field, once. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] as for [`Config::transact`], and those of [`Transaction::write`].
    pub fn write<T: ConfigValue>(&self, field: &Field<T>, value: T) -> Result {
        self.transact(|fields| fields.write(field, value), |_| Ok(()))
    }

    /// Writes fields, and then reads what they select. Not within another one.
    ///
    /// Who else writes waits, and the device is not suspended meanwhile. What is written is written
    /// once: to a device that counts that as a change it would be a change each time. `read` is
    /// called again as by [`Config::snapshot`]. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device is suspended, or a request to suspend or resume it is under way
    /// (rule D6), or it is not in operation; the probe may write. Those of `write`, and those of
    /// [`Config::snapshot`].
    pub fn transact<R>(
        &self,
        write: impl FnOnce(&Transaction<'_, '_>) -> Result,
        read: impl Fn(&Fields<'_>) -> Result<R>,
    ) -> Result<R> {
        self.dev.common().controller.while_running(|| {
            write(&Transaction(&self.fields()))?;
            self.snapshot(read)
        })?
    }

    fn fields(&self) -> Fields<'_> {
        Fields {
            config: self,
            modern: self.dev.has_feature(Feature::VERSION_1),
        }
    }

    /// Returns the generation of the configuration, which the device changes when it changes the
    /// configuration; 0 if the transport has none. May sleep.
    pub fn generation(&self) -> u32 {
        let vdev = self.dev.as_raw();

        // SAFETY: By the type invariant of `Device`, `vdev` is a valid `struct virtio_device`, and
        // a device that is bound has the operations of its transport.
        match unsafe { (*(*vdev).config).generation } {
            // SAFETY: The operation takes the device that it belongs to. It may sleep, as the
            // caller was told.
            Some(generation) => self.when_answered(|| unsafe { generation(vdev) }),
            None => 0,
        }
    }

    fn read_bytes(&self, offset: u32, bytes: &mut [u8]) {
        let vdev = self.dev.as_raw();

        // SAFETY: As in `generation`.
        if let Some(get) = unsafe { (*(*vdev).config).get } {
            // SAFETY: `bytes` is valid for writing as many bytes as are asked for, and they fit
            // into `u32`: the longest scalar has 8. The offset is that of a `Field` of this device
            // type, see `Field::new`.
            self.when_answered(|| unsafe {
                get(vdev, offset, bytes.as_mut_ptr().cast(), bytes.len() as u32)
            });
        }
    }

    fn write_bytes(&self, offset: u32, bytes: &mut [u8]) {
        let vdev = self.dev.as_raw();

        // SAFETY: As in `generation`.
        if let Some(set) = unsafe { (*(*vdev).config).set } {
            // SAFETY: As in `read_bytes`; the operation only reads `bytes`.
            unsafe { set(vdev, offset, bytes.as_mut_ptr().cast(), bytes.len() as u32) };
        }
    }
}

/// The fields of a configuration space, to be read together: see [`Config::snapshot`].
pub struct Fields<'a> {
    config: &'a Config<'a>,
    modern: bool,
}

impl Fields<'_> {
    /// Reads a field. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the device is of another type, [`EOPNOTSUPP`] if the feature that the field
    /// belongs to has not been negotiated.
    pub fn read<T: ConfigValue>(&self, field: &Field<T>) -> Result<T> {
        self.check(field)?;
        Ok(T::read(self.config, field.offset, self.modern))
    }

    /// Reads the first elements of an array, as many as there is room for in `values`, and returns
    /// how many that were. The device may have no more. May sleep.
    ///
    /// # Errors
    ///
    /// As for [`Fields::read`].
    pub fn read_first<T, const N: usize>(
        &self,
        field: &Field<[T; N]>,
        values: &mut [T],
    ) -> Result<usize>
    where
        T: ConfigValue + Default,
    {
        self.check(field)?;
        let len = values.len().min(N);
        read_array(self.config, field.offset, self.modern, &mut values[..len]);
        Ok(len)
    }

    /// Checks that the device has a field.
    fn check<T: ConfigValue>(&self, field: &Field<T>) -> Result {
        let dev = self.config.dev;
        if dev.device_type() != field.device_type {
            return Err(EINVAL);
        }
        match field.feature {
            Some(feature) if !dev.has_feature(feature) => Err(EOPNOTSUPP),
            _ => Ok(()),
        }
    }
}

/// The fields of a configuration space, to be written: see [`Config::transact`].
pub struct Transaction<'a, 'b>(&'a Fields<'b>);

impl Transaction<'_, '_> {
    /// Writes a field. May sleep.
    ///
    /// # Errors
    ///
    /// [`EACCES`] if the field can't be written; and as for [`Fields::read`].
    pub fn write<T: ConfigValue>(&self, field: &Field<T>, value: T) -> Result {
        let Self(fields) = self;
        fields.check(field)?;
        if !field.writable {
            return Err(EACCES);
        }
        value.write(fields.config, field.offset, fields.modern);
        Ok(())
    }
}
