// SPDX-License-Identifier: GPL-2.0

//! What `kernel::sync` lacks: completions that count, killable waits, and scopes without I/O.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use kernel::{
    prelude::*,
    time::Jiffies,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

use crate::bindings;

/// The name and the key of a lock class, for a lock whose initializer may be compiled in another
/// crate: in a generic function, or in a function that returns an initializer, which is a closure.
///
/// A key is a static, of which there is one whatever crate compiles the initializer, but a literal
/// is a constant, of which each crate has its own. `lockdep` takes two names of one class for a
/// mistake, so the name is a static as well.
macro_rules! lock_class {
    ($name:literal) => {{
        static NAME: &::kernel::str::CStr = $name;
        (NAME, ::kernel::static_lock_class!())
    }};
}
pub(crate) use lock_class;

/// A completion, see Documentation/scheduler/completion.rst.
///
/// Upstream this would extend [`kernel::sync::Completion`].
#[pin_data]
pub struct Completion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A `struct completion` is not tied to a thread.
unsafe impl Send for Completion {}

// SAFETY: Every operation on a `struct completion` that is used here takes the lock in it, `reinit`
// included.
unsafe impl Sync for Completion {}

impl Completion {
    /// Creates an initializer for a completion that is not done.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for writing a `struct completion`.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Lets one waiter go on: one that waits, or the next to come. Any context.
    pub fn complete(&self) {
        // SAFETY: `self.inner` has been initialised by `new`.
        unsafe { bindings::complete(self.inner.get()) };
    }

    /// Lets all waiters go on, those to come included, until [`Completion::reinit`]. Any context.
    pub fn complete_all(&self) {
        // SAFETY: `self.inner` has been initialised by `new`.
        unsafe { bindings::complete_all(self.inner.get()) };
    }

    /// Makes the completion not done again.
    pub fn reinit(&self) {
        // SAFETY: `self.inner` has been initialised by `new`.
        unsafe { bindings::reinit_completion(self.inner.get()) };
    }

    /// Returns whether a wait would end at once. Any context.
    pub fn is_done(&self) -> bool {
        // SAFETY: `self.inner` has been initialised by `new`.
        unsafe { bindings::completion_done(self.inner.get()) }
    }

    /// Waits until the completion is done, for at most `timeout` jiffies. Process context.
    ///
    /// Returns whether it was done in time.
    ///
    /// # Errors
    ///
    /// [`EINTR`] if the task has been killed.
    pub fn wait_killable_timeout(&self, timeout: Jiffies) -> Result<bool> {
        // SAFETY: `self.inner` has been initialised by `new`.
        let left =
            unsafe { bindings::wait_for_completion_killable_timeout(self.inner.get(), timeout) };
        if left < 0 {
            Err(EINTR)
        } else {
            Ok(left > 0)
        }
    }

    /// As above, for a task that goes on to wait when it has been killed.
    pub fn wait_timeout(&self, timeout: Jiffies) -> bool {
        // SAFETY: `self.inner` has been initialised by `new`.
        unsafe { bindings::wait_for_completion_timeout(self.inner.get(), timeout) > 0 }
    }
}

/// A scope in which no allocation of this task waits for I/O, see `memalloc_noio_save`.
pub(crate) struct NoIo(c_uint, NotThreadSafe);

impl NoIo {
    /// Begins the scope.
    pub(crate) fn enter() -> Self {
        // SAFETY: Safe to be called from any context.
        Self(unsafe { bindings::memalloc_noio_save() }, NotThreadSafe)
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: The flags are those that the pairing call has returned, in this task.
        unsafe { bindings::memalloc_noio_restore(self.0) };
    }
}
