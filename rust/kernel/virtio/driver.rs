// SPDX-License-Identifier: GPL-2.0

//! Drivers of virtio devices.

use kernel::{
    device::{
        Bound,
        Core, //
    },
    device_id::RawDeviceId,
    prelude::*, //
};

use crate::{
    bindings,
    compat::LocalInterruptDisabled,
    suspend,
    Device,
    Feature, //
};

#[path = "driver/calls.rs"]
mod calls;
#[path = "driver/freeze.rs"]
mod freeze;
#[path = "driver/keys.rs"]
mod keys;
#[path = "driver/lifecycle.rs"]
mod lifecycle;
#[path = "driver/negotiation.rs"]
mod negotiation;
#[path = "driver/registration.rs"]
mod registration;
#[path = "driver/resets.rs"]
mod resets;
#[path = "driver/system_sleep.rs"]
mod system_sleep;

pub(crate) use self::lifecycle::{
    common_of,
    Common, //
};
pub use self::negotiation::Negotiation;
pub use self::registration::Adapter;
pub(crate) use self::registration::{
    init_registry,
    is_native, //
};

/// Declares a kernel module that exposes a single virtio driver.
///
/// # Examples
///
/// ```ignore
/// virtio::module_virtio_driver! {
///     type: MyDriver,
///     name: "my_driver",
///     authors: ["Author name"],
///     description: "Description",
///     license: "GPL",
/// }
/// ```
#[macro_export]
macro_rules! module_virtio_driver {
    ($($f:tt)*) => {
        ::kernel::module_driver!(<T>, $crate::Adapter<T>, { $($f)* });
    };
}

/// Abstraction for `struct virtio_device_id`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct DeviceId(bindings::virtio_device_id);

impl DeviceId {
    /// Matches all devices of a type, VIRTIO 1.4, "Device Types".
    pub const fn new(device_type: u32) -> Self {
        Self(bindings::virtio_device_id {
            device: device_type,
            vendor: bindings::VIRTIO_DEV_ANY_ID,
        })
    }

    /// Matches all devices.
    pub const ANY: Self = Self::new(bindings::VIRTIO_DEV_ANY_ID);

    /// The device type of a console.
    pub const CONSOLE: u32 = bindings::VIRTIO_ID_CONSOLE;

    /// The device type of a network device.
    pub const NETWORK: u32 = bindings::VIRTIO_ID_NET;

    /// The device type of a block device.
    pub const BLOCK: u32 = bindings::VIRTIO_ID_BLOCK;

    /// The device type of an entropy device.
    pub const ENTROPY: u32 = bindings::VIRTIO_ID_RNG;

    /// The device type of a SCSI host.
    pub const SCSI: u32 = bindings::VIRTIO_ID_SCSI;

    /// The device type of an input device.
    pub const INPUT: u32 = bindings::VIRTIO_ID_INPUT;
}

// SAFETY: `DeviceId` is a `#[repr(transparent)]` wrapper of `virtio_device_id` and does not add
// additional invariants, so it's safe to transmute to `RawType`.
unsafe impl RawDeviceId for DeviceId {
    type RawType = bindings::virtio_device_id;
}

/// IdTable type for virtio drivers.
///
/// A `struct virtio_device_id` has no room for driver data.
pub type IdTable = &'static dyn kernel::device_id::IdTable<DeviceId, ()>;

/// Create a virtio `IdTable` with its alias for modpost.
#[macro_export]
macro_rules! virtio_device_table {
    ($name:ident, [$($id:expr),* $(,)?]) => {
        $crate::__module_device_table!($name, [$($id),*]);
    };
}

/// The virtio driver trait.
///
/// Drivers must implement this trait in order to get a virtio driver registered.
///
/// # Life of a device
///
/// [`probe`](Driver::probe) sets up the virtqueues and the driver's data, then DRIVER_OK is set
/// and [`start`](Driver::start) called. [`stop`](Driver::stop) is called before the device is
/// reset, because it is unbound, the system sleeps, or only a reset helps. `start` follows when
/// the device has been initialised again, unless it is unbound. All buffers that the device had
/// are dropped by the reset.
///
/// # Examples
///
/// A driver that does nothing. One that does something, and can be suspended, is
/// `samples/rust/rust_virtio_suspend.rs`.
///
/// ```
/// use kernel::{
///     device::{Bound, Core},
///     interrupt::LocalInterruptDisabled,
///     prelude::*,
/// };
/// use virtio::{suspend, Device, DeviceId, Driver, IdTable};
///
/// struct MyDriver;
///
/// virtio::virtio_device_table!(ID_TABLE, [DeviceId::new(DeviceId::ENTROPY)]);
///
/// impl Driver for MyDriver {
///     type Data<'bound> = Self;
///     type Queue = ();
///     type Suspend = suspend::Unsupported;
///     const ID_TABLE: IdTable = &ID_TABLE;
///
///     fn probe<'bound>(
///         dev: &'bound Device<Core<'_>>,
///     ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
///         dev_info!(dev, "device of type {}\n", dev.device_type());
///         Ok(MyDriver)
///     }
///
///     fn used(
///         _dev: &Device<Bound>,
///         _this: Pin<&Self>,
///         _queue: (),
///         _irq: &LocalInterruptDisabled,
///     ) {
///     }
/// }
/// # fn main() {}
/// ```
pub trait Driver: Sized {
    /// The type of the driver's bus device private data.
    type Data<'bound>: Send + Sync + 'bound;

    /// By what the driver knows its virtqueues: an enum, a number, or nothing if there is one.
    type Queue: Copy + Send + Sync + 'static;

    /// Whether the driver's devices can be suspended: [`suspend::Native`] or
    /// [`suspend::Unsupported`].
    type Suspend: suspend::Support<Self>;

    /// The table of device ids supported by the driver.
    const ID_TABLE: IdTable;

    /// Whether a device that no driver has gets this one when the driver is registered. Otherwise
    /// user space binds it, by the driver's file `bind`.
    const BINDS_BY_ITSELF: bool = true;

    /// The features that the driver knows, apart from those of the transport and SUSPEND.
    const FEATURES: &'static [Feature] = &[];

    /// Looks at a device before its features are settled: one that offers what can't be is told
    /// that the driver does without that feature, or refused. May sleep.
    ///
    /// # Errors
    ///
    /// Those of the driver: the device is not probed then.
    fn validate(dev: &Negotiation<'_>) -> Result {
        let _ = dev;
        Ok(())
    }

    /// Driver probe. May sleep.
    ///
    /// Called when a virtio device is added or discovered, and features have been negotiated. What
    /// [`Device::virtqueues`] is for is to be done here.
    ///
    /// # Errors
    ///
    /// Those of the driver; [`ENODEV`] says that it doesn't want the device after all.
    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound;

    /// The device is in operation: DRIVER_OK is set, and the virtqueues are open. May sleep.
    ///
    /// # Errors
    ///
    /// An error fails the probe, or leaves the device out of operation if this is not the first
    /// time; `stop` is called in either case.
    fn start(dev: &Device<Core<'_>>, this: Pin<&Self::Data<'_>>) -> Result {
        let _ = (dev, this);
        Ok(())
    }

    /// The device is about to be reset: wake whoever waits for it. May sleep.
    ///
    /// This can be called more than once for each `start`.
    fn stop(dev: &Device<Core<'_>>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }

    /// The system is about to sleep, for which the device is stopped next: have it finish what
    /// others could have to wait for until the system is awake. May sleep, for as long as
    /// `patience` lasts.
    ///
    /// Not called for a device that is suspended, or has failed.
    ///
    /// # Errors
    ///
    /// An error keeps the system awake; everything must be as it was before.
    fn prepare_sleep(
        dev: &Device<Bound>,
        this: Pin<&Self::Data<'_>>,
        patience: &suspend::Patience<'_>,
    ) -> Result<(), suspend::Failure> {
        let _ = (dev, this, patience);
        Ok(())
    }

    /// Driver unbind. May sleep.
    ///
    /// Called first when a device is unbound; optional, see [`kernel::auxiliary::Driver::unbind`].
    fn unbind(dev: &Device<Core<'_>>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }

    /// Used buffer notification: take back what the device has used in the virtqueue that has been
    /// added as `queue`.
    ///
    /// Always called with interrupts disabled, of which `irq` is the proof: by an interrupt, or by
    /// the bus abstraction when the device has been suspended or resumed. Nothing may sleep. A
    /// lock that is taken here and elsewhere has to be a `SpinLockIrq`, which can be taken here by
    /// `lock_with(irq)`.
    ///
    /// There may be nothing to take back, and two calls for the same virtqueue can run at a time.
    /// Buffers are to be taken back until there is none: the device may notify again only when the
    /// driver has seen all.
    fn used(
        dev: &Device<Bound>,
        this: Pin<&Self::Data<'_>>,
        queue: Self::Queue,
        irq: &LocalInterruptDisabled,
    );

    /// What [`Device::schedule_poll`] has asked for, in process context. May sleep.
    ///
    /// It runs once at a time for a device, and not after `stop` has been followed by a reset, or
    /// while the device is being unbound. If it is asked for while it runs, it runs once more.
    fn poll(dev: &Device<Bound>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }

    /// The device is out of operation for good: it has been stopped, and [`start`](Driver::start)
    /// will not follow. Whoever still waits for it is to be told. May sleep.
    fn give_up(dev: &Device<Bound>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }

    /// Configuration change notification. May sleep.
    ///
    /// While the device is suspended the notification is held back (rule D12). One call can stand
    /// for several changes. A suspend waits for it, whatever its deadline: it must not wait for
    /// anything that the device has.
    fn config_changed(dev: &Device<Bound>, this: Pin<&Self::Data<'_>>) {
        let _ = (dev, this);
    }
}
