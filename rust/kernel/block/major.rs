// SPDX-License-Identifier: GPL-2.0

//! Device numbers of disks.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h),
//! [`include/linux/idr.h`](srctree/include/linux/idr.h)

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Release, //
    },
    types::Opaque, //
};

use crate::bindings;

/// A major number that is registered for a driver.
pub struct Major {
    number: u32,
    name: &'static CStr,
}

impl Major {
    /// Registers a free major number under `name`, which shows up in /proc/devices. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there is none left, [`ENOMEM`] if memory is short.
    pub fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: The name is 'static.
        let number = unsafe { bindings::__register_blkdev(0, name.as_char_ptr(), None) };
        match u32::try_from(number) {
            Ok(number) => Ok(Self { number, name }),
            Err(_) => Err(Error::from_errno(number)),
        }
    }

    /// Returns the number.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Major {
    fn drop(&mut self) {
        // SAFETY: The number has been registered under this name.
        unsafe { bindings::unregister_blkdev(self.number, self.name.as_char_ptr()) };
    }
}

/// Numbers that are handed out one by one, the lowest first. It can be a static.
///
/// Upstream this would be `kernel::ida`.
///
/// # Invariants
///
/// `ida` has been initialised once `ready` is set, which is for good.
pub struct IdAllocator {
    ida: Opaque<bindings::ida>,
    /// Whether [`IdAllocator::init`] has been called.
    claimed: Atomic<bool>,
    ready: Atomic<bool>,
}

// SAFETY: A `struct ida` is not tied to a thread.
unsafe impl Send for IdAllocator {}

// SAFETY: The operations on a `struct ida` synchronise themselves.
unsafe impl Sync for IdAllocator {}

impl IdAllocator {
    /// Makes an allocator, which has to be initialised.
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            ida: Opaque::uninit(),
            claimed: Atomic::new(false),
            ready: Atomic::new(false),
        }
    }

    /// Initialises the allocator. What it needs is freed when the guard is dropped.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it has been initialised before.
    pub fn init(&'static self) -> Result<IdAllocatorGuard> {
        if self.claimed.xchg(true, Full) {
            return Err(EBUSY);
        }
        // SAFETY: `ida` is valid for writing: nobody else gets here, and nobody uses it before it
        // is `ready`. A static doesn't move.
        unsafe { bindings::ida_init(self.ida.get()) };
        // INVARIANT: It has been initialised.
        self.ready.store(true, Release);
        Ok(IdAllocatorGuard(self))
    }

    /// Takes the lowest free number up to `max`. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if there is none, [`ENOMEM`] if memory is short, [`ENXIO`] if the allocator has
    /// not been initialised.
    pub fn alloc(&'static self, max: u32) -> Result<Id> {
        if !self.ready.load(Acquire) {
            return Err(ENXIO);
        }
        // SAFETY: By the type invariants `ida` has been initialised.
        let id = unsafe { bindings::ida_alloc_range(self.ida.get(), 0, max, bindings::GFP_KERNEL) };
        match u32::try_from(id) {
            Ok(number) => Ok(Id {
                number,
                allocator: self,
            }),
            Err(_) => Err(Error::from_errno(id)),
        }
    }
}

/// See [`IdAllocator::init`].
pub struct IdAllocatorGuard(&'static IdAllocator);

impl Drop for IdAllocatorGuard {
    fn drop(&mut self) {
        // SAFETY: By the type invariants `ida` has been initialised. It is empty after this, and
        // could still be used.
        unsafe { bindings::ida_destroy(self.0.ida.get()) };
    }
}

/// A number that has been handed out, until it is dropped.
pub struct Id {
    number: u32,
    allocator: &'static IdAllocator,
}

impl Id {
    /// Returns the number.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: By the type invariants of the allocator its `ida` has been initialised.
        unsafe { bindings::ida_free(self.allocator.ida.get(), self.number) };
    }
}
