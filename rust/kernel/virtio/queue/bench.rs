// SPDX-License-Identifier: GPL-2.0

//! What a driver that tests devices does with virtqueues, see [`crate::bench`].

use core::ptr::NonNull;

use kernel::{
    device::Bound,
    error::to_result,
    prelude::*, //
};

use super::{
    VirtQueue,
    VirtQueueGuard, //
};
use crate::{
    bindings,
    buffer::Token,
    compat::EOPNOTSUPP,
    Device, //
};

impl<T: Token> VirtQueue<T> {
    /// Takes back one of the buffers that a device had when it was reset.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is no virtqueue of `dev`.
    ///
    /// # Safety
    ///
    /// `dev` must have been reset, so that it uses no buffer any more.
    pub(crate) unsafe fn detach_one(&self, dev: &Device<Bound>) -> Result<Option<T>> {
        let mut inner = self.inner.lock();
        let Some(vq) = inner.vq else { return Ok(None) };
        // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue.
        if unsafe { (*vq.as_ptr()).vdev } != dev.as_raw() {
            return Err(EINVAL);
        }
        // SAFETY: As above; the lock, which is held, excludes all other operations on it, and by
        // the safety requirements the device doesn't use it any more.
        let data = unsafe { bindings::virtqueue_detach_unused_buf(vq.as_ptr()) };
        let Some(data) = NonNull::new(data) else {
            return Ok(None);
        };
        inner.outstanding = inner.outstanding.saturating_sub(1);
        // SAFETY: By the invariants of `VirtQueue`, the pointer comes from `into_raw`, and the
        // virtqueue has given it back.
        Ok(Some(unsafe { T::from_raw(data) }))
    }

    /// Resets the virtqueue while the device operates, drops its buffers, and enables it again. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is no virtqueue of `dev`, [`EOPNOTSUPP`] if the transport or the device
    /// can't, and what the transport finds.
    pub(crate) fn reset(&self, dev: &Device<Bound>) -> Result {
        let was_open = self.inner.lock().open;
        self.close();
        let vq = {
            let mut inner = self.inner.lock();
            let vq = inner.vq.ok_or(EINVAL)?;
            // SAFETY: By the invariants of `VirtQueue`, it is a valid virtqueue.
            if unsafe { (*vq.as_ptr()).vdev } != dev.as_raw() {
                return Err(EINVAL);
            }
            // INVARIANT: Nobody else uses the virtqueue until it is put back.
            inner.vq = None;
            vq
        };
        // SAFETY: The virtqueue is valid, and nobody else can get at it: it has been taken out, and
        // no notification is under way. `recycle` is for the buffers that are in it. The last
        // argument is optional.
        let ret = unsafe { bindings::virtqueue_reset(vq.as_ptr(), Some(Self::recycle), None) };
        let result = to_result(ret);

        let mut inner = self.inner.lock();
        // INVARIANT: The session that this is part of keeps it from being deleted meanwhile.
        inner.vq = Some(vq);
        inner.open = was_open;
        match result {
            Err(error) if error == ENOENT || error == EPERM => return Err(EOPNOTSUPP),
            _ => {}
        }
        inner.outstanding = 0;
        inner.used = 0;
        result
    }

    /// # Safety
    ///
    /// `data` must come from a virtqueue of this type, which has given it back.
    unsafe extern "C" fn recycle(_vq: *mut bindings::virtqueue, data: *mut c_void) {
        if let Some(data) = NonNull::new(data) {
            // SAFETY: By the safety requirements, and the invariants of `VirtQueue`.
            drop(unsafe { T::from_raw(data) });
        }
    }
}

impl<T: Token> VirtQueueGuard<'_, T> {
    /// Notifies the device, whether there are buffers or not, and whether it wants to know or not.
    /// For drivers that test devices; all others want [`VirtQueueGuard::kick`].
    pub fn notify(&mut self) {
        let Some(vq) = self.inner.vq.filter(|_| self.inner.open) else {
            return;
        };
        // What has been added is covered by the notification below.
        //
        // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock, which
        // is held, excludes all other operations on it.
        unsafe { bindings::virtqueue_kick_prepare(vq.as_ptr()) };
        // SAFETY: As above.
        unsafe { bindings::virtqueue_notify(vq.as_ptr()) };
    }

    /// Returns whether the virtqueue is there: a [`Session`](crate::bench::Session) can leave it
    /// out.
    pub fn is_found(&self) -> bool {
        self.inner.vq.is_some()
    }
}
