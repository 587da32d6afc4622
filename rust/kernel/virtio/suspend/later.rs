// SPDX-License-Identifier: GPL-2.0

//! Work that is done for a device later, unless it is unbound by then.
//!
//! `kernel::workqueue` has no way to cancel work, and this has to be; nor does it make workqueues.

use core::ptr::{
    null_mut,
    NonNull, //
};

use kernel::{
    container_of,
    device::Bound,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    time::Jiffies,
    types::Opaque, //
};

use crate::{
    bindings,
    compat::BoundInternal,
    Device, //
};

/// The workqueue of all [`Later`] work, null while the module is not there.
static WORKQUEUE: Atomic<*mut c_void> = Atomic::new(null_mut());

fn workqueue() -> *mut bindings::workqueue_struct {
    WORKQUEUE.load(Relaxed).cast()
}

/// Has work done on the workqueue after `delay`, unless it is pending already.
///
/// # Safety
///
/// The work must have been initialised, stay until it has been done or cancelled, and be no longer
/// asked for when the module is about to go.
pub(crate) unsafe fn queue(work: *mut bindings::delayed_work, delay: Jiffies) {
    // SAFETY: By the safety requirements; the workqueue is there as long as the module.
    unsafe { bindings::queue_delayed_work(workqueue(), work, delay) };
}

/// The workqueue on which work is done later, which is there as long as the module.
///
/// It has a rescuer: what is to be recovered may be what memory is written back to.
pub(crate) struct Workqueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A workqueue is not tied to a thread.
unsafe impl Send for Workqueue {}

// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for Workqueue {}

impl Workqueue {
    /// Makes the workqueue; for the module's init function. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The name is a string.
        let raw = unsafe { bindings::alloc_rescued_workqueue(c"virtio_suspend".as_char_ptr()) };
        let this = Self(NonNull::new(raw).ok_or(ENOMEM)?);
        WORKQUEUE.store(raw.cast(), Relaxed);
        Ok(this)
    }
}

impl Drop for Workqueue {
    fn drop(&mut self) {
        WORKQUEUE.store(null_mut(), Relaxed);
        // SAFETY: It has been made in `new`. The module goes last of all whose work is on it.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}

/// Work for a device.
///
/// # Invariants
///
/// While the work is pending or runs, `dev` points to a bound device: whoever unbinds the device
/// calls [`Later::close`] first, after which the work is neither.
#[pin_data(PinnedDrop)]
pub(crate) struct Later {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    dev: Atomic<*mut c_void>,
    f: fn(&Device<Bound>),
}

// SAFETY: A `struct delayed_work` is not tied to a thread.
unsafe impl Send for Later {}

// SAFETY: The operations on a `struct delayed_work` that are used here synchronise themselves.
unsafe impl Sync for Later {}

impl Later {
    /// Creates an initializer for work that calls `f`, in process context.
    pub(crate) fn new(f: fn(&Device<Bound>)) -> impl PinInit<Self> {
        Self::with(f, bindings::init_delayed_work)
    }

    /// The same for work that waits for other work for the device.
    pub(crate) fn waiting(f: fn(&Device<Bound>)) -> impl PinInit<Self> {
        Self::with(f, bindings::init_waiting_work)
    }

    fn with(
        f: fn(&Device<Bound>),
        init: unsafe extern "C" fn(*mut bindings::delayed_work, bindings::work_func_t),
    ) -> impl PinInit<Self> {
        // INVARIANT: The work is not pending.
        pin_init!(Self {
            work <- Opaque::ffi_init(move |slot: *mut bindings::delayed_work| {
                // SAFETY: `slot` is valid for writing, and pinned; both callers pass a function
                // that initialises it.
                unsafe { init(slot, Some(Self::callback)) };
            }),
            dev: Atomic::new(null_mut()),
            f,
        })
    }

    /// Has the work done after `delay`, unless it is pending already.
    ///
    /// After [`Later::close`] this does nothing. Any context.
    pub(crate) fn schedule(&self, dev: &Device<Bound>, delay: Jiffies) {
        // INVARIANT: The device is bound.
        self.dev.store(dev.as_raw().cast(), Release);
        // SAFETY: The work has been initialised, and stays until it has been cancelled.
        unsafe { queue(self.work.get(), delay) };
    }

    /// Has the work done at once, even if it is pending for later. For the rest as
    /// [`Later::schedule`].
    pub(crate) fn schedule_now(&self, dev: &Device<Bound>) {
        // INVARIANT: The device is bound.
        self.dev.store(dev.as_raw().cast(), Release);
        // SAFETY: As above; the workqueue is there as long as the module.
        unsafe { bindings::mod_delayed_work(workqueue(), self.work.get(), 0) };
    }

    /// Has the work done at once if it is pending, and waits until it is done. May sleep.
    pub(crate) fn flush(&self) {
        // SAFETY: The work has been initialised.
        unsafe { bindings::flush_delayed_work(self.work.get()) };
    }

    /// Cancels the work, and waits for it if it runs. May sleep.
    pub(crate) fn cancel(&self) {
        // SAFETY: The work has been initialised.
        unsafe { bindings::cancel_delayed_work_sync(self.work.get()) };
    }

    /// Cancels the work as above, for good: it is not done any more, even if it is asked for. May
    /// sleep.
    pub(crate) fn close(&self) {
        // SAFETY: The work has been initialised.
        unsafe { bindings::disable_delayed_work_sync(self.work.get()) };
    }

    unsafe extern "C" fn callback(work: *mut bindings::work_struct) {
        // SAFETY: This is called for the `work_struct` in the `delayed_work` of a `Later`, which is
        // a transparent wrapper.
        let later = unsafe {
            let delayed = container_of!(work, bindings::delayed_work, work);
            &*container_of!(Opaque::cast_from(delayed), Later, work)
        };
        // SAFETY: By the type invariants the device is bound, and stays so while the work runs.
        let dev = unsafe { &*later.dev.load(Acquire).cast::<Device<BoundInternal>>() };

        (later.f)(dev);
    }
}

#[pinned_drop]
impl PinnedDrop for Later {
    fn drop(self: Pin<&mut Self>) {
        // Whoever unbinds the device has done so before; the memory is not left to the work in any
        // case.
        self.close();
    }
}
