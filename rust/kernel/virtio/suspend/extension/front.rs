// SPDX-License-Identifier: GPL-2.0

//! Operations in front of those of a transport.
//!
//! A device's `config` points to the operations of its transport. [`Entry::put_in_front`] has it
//! point to a copy, in which those of this file replace what they are named after. Each finds the
//! device's [`Entry`], in which the copy is, does what is to be done, and calls the transport's
//! own.

use kernel::{
    container_of,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

use super::{
    binding::Binding,
    bus,
    Entry, //
};
use crate::{
    bindings::{
        self,
        virtio_config_ops,
        virtio_device,
        virtqueue, //
    },
    suspend::{
        negotiate_offered,
        protocol::Revision, //
    },
    Device,
    Feature,
    Status, //
};

/// How many calls run through the operations of this file.
static INSIDE: Atomic<usize> = Atomic::new(0);

/// How many calls have begun to, ever.
static ENTERED: Atomic<usize> = Atomic::new(0);

/// A call that runs through an operation of this file, or stands in for one of another driver.
pub(super) struct Inside(());

impl Inside {
    pub(super) fn enter() -> Self {
        INSIDE.fetch_add(1, Full);
        ENTERED.fetch_add(1, Full);
        Self(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Full);
    }
}

/// Waits until nobody runs through operations of this file, or reads a copy of them, that have been
/// taken away from all devices. May sleep.
pub(super) fn drain() {
    let grace = || {
        // Whoever has read the pointer to a copy goes on to read the operation out of it, and to
        // enter that, without sleeping in between: every task that has not come as far as
        // `Inside::enter`, or not from its drop back to the caller, is waited for here. So are
        // interrupt handlers, which may read what is in a copy although they can call none of the
        // operations in this file.
        //
        // SAFETY: The context may sleep; no lock is held that a task in the operations needs.
        unsafe {
            bindings::synchronize_rcu_tasks();
            bindings::synchronize_rcu();
        }
    };

    // A caller may have read more than one operation before it calls the first of them, and sleep
    // in that: `virtio_add_status()` is compiled to read `set_status` before it calls `get_status`.
    // When the first returns it goes on to the second, without sleeping in between. So it is over
    // only when nobody was inside at the beginning of a grace period, and nobody has entered by its
    // end. In this order: who enters between both is seen by what is read first.
    loop {
        let entered = ENTERED.load(Acquire);
        let inside = INSIDE.load(Acquire);
        grace();
        if inside == 0 && ENTERED.load(Acquire) == entered {
            break;
        }
        fsleep(Delta::from_millis(1));
    }
}

/// What the operations of this file remember of a device.
pub(super) struct State {
    /// The device was gone when it was to be reset.
    gone: Atomic<bool>,
}

impl State {
    pub(super) const fn new() -> Self {
        Self {
            gone: Atomic::new(false),
        }
    }
}

/// Returns the operations of a transport with those of this file in front of them.
pub(super) fn in_front_of(transport: &virtio_config_ops) -> virtio_config_ops {
    /// Only what the transport has can be replaced: drivers look whether it is there.
    fn replace<T>(slot: &mut Option<T>, by: T) {
        if slot.is_some() {
            *slot = Some(by);
        }
    }

    let mut ops = *transport;
    // Without a condition: it is what an operation of this file knows a copy by. Every transport
    // has it.
    ops.finalize_features = Some(FINALIZE_FEATURES);
    replace(&mut ops.get_status, get_status);
    replace(&mut ops.set_status, set_status);
    replace(&mut ops.reset, reset);
    replace(&mut ops.get, get);
    replace(&mut ops.set, set);
    replace(&mut ops.generation, generation);
    replace(&mut ops.disable_vq_and_reset, disable_vq_and_reset);
    ops
}

impl Entry {
    /// Has the device use the operations of this file. The device lock must be held, and the entry
    /// be in the table.
    pub(super) fn put_in_front(&self) {
        // INVARIANT: The entry is in the table.
        //
        // SAFETY: The operations stay as long as the entry, and `drain` is called before an entry
        // is freed whose device is still there.
        unsafe { self.dev.set_config_ops(&raw const self.ops) };
    }

    /// Gives the device the operations of its transport again. The device lock must be held.
    pub(super) fn put_back(&self) {
        // SAFETY: By the type invariants these are the device's own.
        unsafe { self.dev.set_config_ops(self.transport) };
    }
}

/// What a copy is known by. One function may have several addresses; this is one of them.
static FINALIZE_FEATURES: unsafe extern "C" fn(*mut virtio_device) -> c_int = finalize_features;

/// The transport behind an operation of this file.
struct Behind<'a> {
    entry: Option<&'a Entry>,
    ops: &'a virtio_config_ops,
    _inside: Inside,
}

impl<'a> Behind<'a> {
    /// # Safety
    ///
    /// `vdev` must be the valid device that an operation of this file has been called for, and what
    /// is returned be dropped before that returns.
    unsafe fn of(vdev: *mut virtio_device) -> Self {
        let inside = Inside::enter();
        // SAFETY: By the safety requirements the device is valid.
        let config = unsafe { &*vdev.cast::<Device>() }.config_ops();
        // SAFETY: The operations of a device, or a copy of them, are valid; for the latter see
        // below.
        let ops = unsafe { &*config };

        let is_copy = ops
            .finalize_features
            .is_some_and(|f| core::ptr::fn_addr_eq(f, FINALIZE_FEATURES));
        if !is_copy {
            // The device has got the operations of its transport again right now.
            return Self {
                entry: None,
                ops,
                _inside: inside,
            };
        }
        // SAFETY: A copy is that of an entry, which is there: who removes it has put the operations
        // of the transport back before, and then waits for whoever is inside, see `drain`, or the
        // device is gone from the bus, and with it all who may call its operations.
        let entry = unsafe { &*container_of!(config, Entry, ops) };
        Self {
            entry: Some(entry),
            // SAFETY: The operations of a transport are valid as long as the device, which outlives
            // the call.
            ops: unsafe { &*entry.transport },
            _inside: inside,
        }
    }

    /// The transport's own operations.
    fn ops(&self) -> &virtio_config_ops {
        self.ops
    }

    fn binding(&self) -> Option<Arc<Binding>> {
        self.entry?.binding()
    }
}

/// Adds the SUSPEND that the device offers to the features, if the driver's quiescer is known.
unsafe extern "C" fn finalize_features(vdev: *mut virtio_device) -> c_int {
    // SAFETY: The virtio core calls this with a valid device, here and below.
    let behind = unsafe { Behind::of(vdev) };

    if let Some(entry) = behind.entry {
        let dev = &*entry.dev;
        if entry.bound.lock().quiescer.is_some() {
            // The features are a function of the table of the driver that is about to be bound.
            match negotiate_offered(dev, bus::driver_has_42(dev)) {
                Some(Revision::V1_4) => dev.set_feature(Feature::SUSPEND),
                Some(Revision::Draft) => dev.set_feature(Feature::SUSPEND_DRAFT),
                None => {}
            }
        }
    }
    match behind.ops().finalize_features {
        // SAFETY: As above.
        Some(finalize_features) => unsafe { finalize_features(vdev) },
        None => 0,
    }
}

/// Tells the status, which is 0 for a device that is gone and has been "reset": drivers and core
/// rely on that.
unsafe extern "C" fn get_status(vdev: *mut virtio_device) -> u8 {
    // SAFETY: As in `finalize_features`.
    let behind = unsafe { Behind::of(vdev) };
    let status = Status::from_bits(match behind.ops().get_status {
        // SAFETY: As above.
        Some(get_status) => unsafe { get_status(vdev) },
        None => Status::RESET.bits(),
    });

    if let Some(entry) = behind.entry {
        if status == Status::ALL_ONES && entry.front.gone.load(Acquire) {
            return Status::RESET.bits();
        }
    }
    status.bits()
}

/// Notices when somebody puts a device into operation that has been reset while its driver was
/// gated: when the system wakes up, for example.
///
/// The virtio core acknowledges a device when its last driver has been unbound. One that was gone
/// then, and is back, does not know that, so it is told here, before it is told of the next driver.
unsafe extern "C" fn set_status(vdev: *mut virtio_device, status: u8) {
    // SAFETY: As in `finalize_features`.
    let behind = unsafe { Behind::of(vdev) };
    let mut status = Status::from_bits(status);

    if let Some(set_status) = behind.ops().set_status {
        if status.contains(Status::DRIVER) && !status.contains(Status::ACKNOWLEDGE) {
            // SAFETY: As above.
            unsafe { set_status(vdev, Status::ACKNOWLEDGE.bits()) };
            status = status.with(Status::ACKNOWLEDGE);
        }
        // SAFETY: As above.
        unsafe { set_status(vdev, status.bits()) };
    }
    if status.contains(Status::DRIVER_OK) {
        if let (Some(entry), Some(binding)) = (behind.entry, behind.binding()) {
            binding.driver_ok(&entry.dev);
        }
    }
}

/// Resets a device, unless it is gone: it would never present that it has been reset, and some
/// transports wait for that for ever.
unsafe extern "C" fn reset(vdev: *mut virtio_device) {
    // SAFETY: As in `finalize_features`.
    let behind = unsafe { Behind::of(vdev) };
    let ops = behind.ops();

    if let (Some(entry), Some(binding)) = (behind.entry, behind.binding()) {
        binding.reset(&entry.dev);
    }
    if let (Some(entry), Some(get_status)) = (behind.entry, ops.get_status) {
        // SAFETY: As above.
        let status = Status::from_bits(unsafe { get_status(vdev) });
        let gone = status == Status::ALL_ONES;
        entry.front.gone.store(gone, Release);
        if gone {
            // As after a reset, no callback runs when this returns.
            entry.dev.synchronize_callbacks();
            return;
        }
    }
    if let Some(reset) = ops.reset {
        // SAFETY: As above.
        unsafe { reset(vdev) };
    }
}

/// Reads the device configuration space, but not between a request to the device and its answer
/// (rules D3 and D8): then the reader waits, for as long as the request may take.
unsafe extern "C" fn get(vdev: *mut virtio_device, offset: c_uint, buf: *mut c_void, len: c_uint) {
    // SAFETY: As in `finalize_features`.
    let behind = unsafe { Behind::of(vdev) };
    let read = || {
        if let Some(get) = behind.ops().get {
            // SAFETY: As above; the buffer is the caller's, which waits.
            unsafe { get(vdev, offset, buf, len) };
        }
    };

    match behind.binding() {
        Some(binding) => binding.read_config(read),
        None => read(),
    }
}

/// Reads the generation of the configuration, as above.
unsafe extern "C" fn generation(vdev: *mut virtio_device) -> u32 {
    // SAFETY: As in `finalize_features`.
    let behind = unsafe { Behind::of(vdev) };
    let read = || match behind.ops().generation {
        // SAFETY: As above.
        Some(generation) => unsafe { generation(vdev) },
        None => 0,
    };

    match behind.binding() {
        Some(binding) => binding.read_config(read),
        None => read(),
    }
}

/// Writes to the device configuration space, but not while the device is suspended (rule D6): then
/// the writer waits. If it is killed, nothing is written.
unsafe extern "C" fn set(
    vdev: *mut virtio_device,
    offset: c_uint,
    buf: *const c_void,
    len: c_uint,
) {
    // SAFETY: As in `finalize_features`.
    let behind = unsafe { Behind::of(vdev) };
    let write = || {
        if let Some(set) = behind.ops().set {
            // SAFETY: As above; the buffer is the caller's, which waits.
            unsafe { set(vdev, offset, buf, len) };
        }
    };

    match behind.binding() {
        Some(binding) => binding.write_config(write),
        None => write(),
    }
}

/// Resets a virtqueue, but not while the device is suspended (rule D11).
///
/// One that has been reset is enabled again before the device is suspended: the driver does both
/// under a lock that its quiescer takes.
unsafe extern "C" fn disable_vq_and_reset(vq: *mut virtqueue) -> c_int {
    // SAFETY: The virtio core calls this with a valid virtqueue of a valid device.
    let behind = unsafe { Behind::of((*vq).vdev) };

    if behind.binding().is_some_and(|binding| binding.is_gated()) {
        return EBUSY.to_errno();
    }
    match behind.ops().disable_vq_and_reset {
        // SAFETY: As above.
        Some(disable_vq_and_reset) => unsafe { disable_vq_and_reset(vq) },
        None => ENOENT.to_errno(),
    }
}
