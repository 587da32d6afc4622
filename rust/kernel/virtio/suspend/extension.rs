// SPDX-License-Identifier: GPL-2.0

//! SUSPEND for the devices of drivers that know nothing of it.
//!
//! The kernel's own drivers do not have SUSPEND in their feature tables, and nothing in them stops
//! for it. An [`Extension`] adds both from outside: it puts operations of its own in front of those
//! of a device's transport ([`front`]) before a driver binds, so that the feature is negotiated,
//! and has a [`Quiescer`], which knows the driver's subsystem, stop the driver.
//!
//! # What keeps this sound
//!
//! - A device of which something is known here is referred to: it is freed no earlier than its
//!   [`Entry`].
//! - A driver is bound and unbound under the device lock, and whoever does that calls the bus
//!   notifier ([`bus`]). What this module does for a binding, from adding the files in sysfs to
//!   the end of all that runs for it, is begun and ended there, with the lock held.
//! - The operations that are in front only do more than the transport's for a device that has an
//!   entry in [`static@TABLE`]. When the extension is unregistered, the transport's operations are
//!   put back first, then the entry goes, then whoever still runs through ours is waited for. See
//!   [`front::drain`].
//! - While a device's driver is gated, a reference keeps the module of the quiescers loaded.
//! - Operations in place of those of a network interface are there while it is held, and until RTNL
//!   could be had after that, which is waited for when the extension is unregistered. See
//!   [`interface::drain`]. So are the callbacks that have been taken from a driver, see
//!   [`callbacks`], and what is in place of a source of entropy's own operation, see [`entropy`].

#[path = "extension/binding.rs"]
mod binding;
#[path = "extension/bus.rs"]
mod bus;
#[path = "extension/callbacks.rs"]
mod callbacks;
#[path = "extension/child.rs"]
mod child;
#[path = "extension/disk.rs"]
mod disk;
#[path = "extension/entropy.rs"]
mod entropy;
#[path = "extension/front.rs"]
mod front;
#[path = "extension/host.rs"]
mod host;
#[path = "extension/interface.rs"]
mod interface;
#[path = "extension/virtqueues.rs"]
mod virtqueues;

use kernel::{
    device::Bound,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        global_lock,
        new_mutex,
        Arc,
        Mutex, //
    },
};

use self::{
    binding::Binding,
    bus::Watch, //
};
use super::{
    failure::Failure,
    operations::Operations,
    patience::Patience,
    sysfs::Owner, //
};
use crate::{
    bindings,
    sync::NoIo,
    Device,
    Feature, //
};

pub(super) use self::bus::{
    prepare_to_sleep,
    wake_up, //
};
pub use self::{
    callbacks::Detached,
    disk::{
        Disk,
        FrozenDisk, //
    },
    entropy::{
        HeldSource,
        Source, //
    },
    host::{
        HeldHost,
        Host, //
    },
    interface::{
        HeldInterface,
        Interface, //
    },
    virtqueues::{
        Users,
        Virtqueues, //
    },
};

/// A device that is bound to a driver which knows nothing of SUSPEND.
pub struct Foreign<'a>(&'a Device<Bound>);

impl Foreign<'_> {
    /// Returns whether `feature` has been negotiated.
    pub fn has_feature(&self, feature: Feature) -> bool {
        self.0.has_feature(feature)
    }
}

/// Stops a driver that knows nothing of SUSPEND, by means of its subsystem.
pub trait Quiescer: Sync {
    /// The name of the driver.
    fn driver(&self) -> &'static CStr;

    /// The type of the devices, VIRTIO 1.4, "Device Types".
    fn device_type(&self) -> u32;

    /// Stops the driver. May sleep, for as long as `patience` lasts: whatever is waited for, it is
    /// looked in between whether that is so. The driver goes on when what is returned is dropped.
    ///
    /// Until then the driver must do nothing for which it needs a virtqueue. As a safety net,
    /// the virtqueues are closed when this returns, so that what the driver does nevertheless is
    /// done in vain. A quiescer that needs them closed earlier does that itself, and must not fail
    /// any more then.
    ///
    /// # Errors
    ///
    /// Everything must be as it was before. The error is what the writer of the request is told,
    /// and should be one of those that the ABI page lists.
    fn gate(
        &self,
        dev: &Foreign<'_>,
        queues: &Virtqueues<'_>,
        patience: &Patience<'_>,
    ) -> Result<KBox<dyn Gate>, Failure>;
}

/// A driver that has been stopped; it goes on when this is dropped, which may sleep.
pub trait Gate: Send {
    /// The device was reset and could not be initialised again: the driver has no virtqueues any
    /// more. It must not go on, but whoever waits for the device is to be told. May sleep.
    fn abandon(&mut self);

    /// Returns whether the system can sleep meanwhile.
    fn system_sleep(&self) -> SystemSleep;
}

/// Whether the system can sleep while a driver is stopped.
#[derive(Clone, Copy)]
pub enum SystemSleep {
    /// It can: the driver stays stopped, whatever is done to the device.
    Allowed,
    /// Only if the device keeps its state: what the driver does to prepare for a reset lets it go
    /// on.
    IfKept,
    /// Not at all: something below the driver needs the device for that.
    Barred,
}

/// A driver that no quiescer can stop, and the reason.
pub struct Refused {
    driver: &'static CStr,
    reason: &'static str,
}

impl Refused {
    /// The file `last_error` shows the reason. It is meant for people.
    pub const fn new(driver: &'static CStr, reason: &'static str) -> Self {
        Self { driver, reason }
    }
}

/// A device of the bus.
///
/// # Invariants
///
/// - `transport` are the operations that the device's transport has given it, which are there as
///   long as the device.
/// - `ops` is a copy of these, some of which are replaced by those of [`front`].
/// - The device's operations are either of both, and not `ops` if the entry is not in
///   [`static@TABLE`].
#[pin_data]
struct Entry {
    dev: ARef<Device>,
    transport: *const bindings::virtio_config_ops,
    ops: bindings::virtio_config_ops,
    front: front::State,
    /// Whether the device has the operations of its transport for good.
    retired: Atomic<bool>,
    #[pin]
    bound: Mutex<State>,
}

// SAFETY: The operations are only read, and can be called in any thread.
unsafe impl Send for Entry {}

// SAFETY: As above.
unsafe impl Sync for Entry {}

/// What is known of a device's driver.
#[derive(Default)]
struct State {
    /// Set when a driver is about to be bound, until it is unbound.
    quiescer: Option<&'static dyn Quiescer>,
    /// Set while a driver is bound.
    binding: Option<Arc<Binding>>,
}

impl Entry {
    fn new(dev: &Device) -> Result<Arc<Self>> {
        let transport = dev.config_ops();
        // SAFETY: The operations of a device are valid.
        let ops = front::in_front_of(unsafe { &*transport });
        Arc::pin_init(
            // INVARIANT: The device has the operations of its transport, see `find_or_add`.
            pin_init!(Self {
                dev: dev.into(),
                transport,
                ops,
                front: front::State::new(),
                retired: Atomic::new(false),
                bound <- new_mutex!(State::default()),
            }),
            GFP_KERNEL,
        )
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Acquire)
    }

    fn binding(&self) -> Option<Arc<Binding>> {
        self.bound.lock().binding.clone()
    }
}

/// What an extension knows of drivers.
#[derive(Clone, Copy)]
struct Known {
    /// Of which the rest is part.
    module: &'static ThisModule,
    quiescers: &'static [&'static dyn Quiescer],
    refused: &'static [Refused],
}

impl Known {
    fn quiescer(&self, device_type: u32, driver: &CStr) -> Option<&'static dyn Quiescer> {
        self.quiescers.iter().copied().find(|quiescer| {
            quiescer.device_type() == device_type
                && quiescer.driver().to_bytes() == driver.to_bytes()
        })
    }

    /// Why there is no quiescer for a driver.
    fn why_none(&self, driver: &CStr) -> &'static str {
        self.refused
            .iter()
            .find(|refused| refused.driver.to_bytes() == driver.to_bytes())
            .map_or("nothing is known that stops the driver", |refused| {
                refused.reason
            })
    }
}

struct Table {
    /// [`None`] if there is no extension.
    known: Option<Known>,
    entries: KVec<Arc<Entry>>,
}

impl Table {
    fn position(&self, dev: *const bindings::virtio_device) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| core::ptr::eq(entry.dev.as_raw(), dev))
    }
}

global_lock! {
    // SAFETY: `init_table`, called when the module is loaded, initializes it before anything else
    // in the module can run.
    unsafe(uninit) static TABLE: Mutex<Table> = Table { known: None, entries: KVec::new() };
}

/// Called by the module's init function.
pub(crate) fn init_table() {
    // SAFETY: A module is loaded once, and this is called from its init function only.
    unsafe { TABLE.init() };
    callbacks::init();
    host::init();
}

/// Returns the entry of a device. `dev` is only compared.
fn find(dev: *const bindings::virtio_device) -> Option<Arc<Entry>> {
    let table = TABLE.lock();
    Some(table.entries.get(table.position(dev)?)?.clone())
}

/// Returns the entry of a device, a new one if it has none. The device lock must be held.
fn find_or_add(dev: &Device) -> Result<Arc<Entry>> {
    if let Some(entry) = find(dev.as_raw()) {
        return Ok(entry);
    }
    // Nobody else makes one: the device lock is held. The operations are the transport's, because
    // those of an entry are taken away from the device before the entry is removed.
    let entry = Entry::new(dev)?;
    // What is suspended may be what memory is written back to, and its resume needs the table.
    let _no_io = NoIo::enter();
    let mut table = TABLE.lock();
    if table.known.is_none() {
        // The extension is going, and may not look at the table again.
        return Err(ENODEV);
    }
    table.entries.push(entry.clone(), GFP_KERNEL)?;
    Ok(entry)
}

/// Removes the entry of a device.
fn forget(dev: *const bindings::virtio_device) {
    let mut table = TABLE.lock();
    let entry = table
        .position(dev)
        .and_then(|index| table.entries.remove(index).ok());
    drop(table);
    drop(entry);
}

/// Gives SUSPEND to drivers that know nothing of it, until it is dropped.
///
/// Devices that are bound already are left alone: they say so in the file `revision`.
pub struct Extension {
    watch: Option<Pin<KBox<Watch>>>,
}

impl Extension {
    /// Registers an extension with its quiescers, and the drivers that are known to have none. Both
    /// are part of `module`. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there is one already, [`ENOMEM`].
    pub fn new(
        module: &'static ThisModule,
        quiescers: &'static [&'static dyn Quiescer],
        refused: &'static [Refused],
    ) -> Result<Self> {
        {
            let mut table = TABLE.lock();
            if table.known.is_some() {
                return Err(EBUSY);
            }
            table.known = Some(Known {
                module,
                quiescers,
                refused,
            });
        }
        // From here on dropping it undoes all.
        let mut this = Self { watch: None };
        this.watch = Some(Watch::new(module)?);
        Ok(this)
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        // From here on no driver is given anything when it binds.
        TABLE.lock().known = None;

        loop {
            let next = {
                let table = TABLE.lock();
                table
                    .entries
                    .iter()
                    .find(|entry| !entry.is_retired())
                    .cloned()
            };
            let Some(entry) = next else { break };
            let _lock = entry.dev.lock();
            bus::unbind(&entry);
            entry.leave_domain();
            entry.put_back();
            entry.retired.store(true, Release);
        }
        self.watch = None;
        interface::drain();
        callbacks::drain();
        front::drain();
        let entries = core::mem::take(&mut TABLE.lock().entries);
        drop(entries);
    }
}

impl Owner for Extension {
    unsafe fn with<R>(
        dev: &Device<Bound>,
        f: impl FnOnce(&dyn Operations, &Device<Bound>) -> Result<R>,
    ) -> Result<R> {
        let binding = find(dev.as_raw()).and_then(|entry| entry.binding());
        f(&*binding.ok_or(ENODEV)?, dev)
    }
}
