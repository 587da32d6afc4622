// SPDX-License-Identifier: GPL-2.0

//! What the bus abstraction does with virtqueues.

use core::ptr::NonNull;

use kernel::prelude::*;

use super::{
    Inner,
    Name,
    VirtQueue, //
};
use crate::{
    bindings,
    buffer::Token, //
};

/// The state of a virtqueue, as recorded when its device was suspended.
///
/// VIRTIO 1.4, "Virtqueues": for a split virtqueue the indices are those of the available and the
/// used ring; for a packed one, positions in the descriptor ring with their wrap counters.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub(crate) name: Name,
    pub(crate) index: usize,
    pub(crate) size: u32,
    pub(crate) packed: bool,
    /// [`None`] if only the virtio core knows it.
    pub(crate) available: Option<(u16, bool)>,
    /// As above.
    pub(crate) used: Option<(u16, bool)>,
    pub(crate) outstanding: usize,
}

/// What the bus abstraction does with a virtqueue, whatever its tokens are.
pub(crate) trait RawQueue: Send + Sync {
    /// Returns the name of the queue, and whether the device notifies of used buffers.
    fn info(&self) -> (&CStr, bool);

    /// Takes over a virtqueue, which stays closed.
    ///
    /// # Safety
    ///
    /// `vq` must be a virtqueue that the transport has just set up, for this queue alone, and that
    /// it does not delete before [`RawQueue::detach`] has been called.
    unsafe fn attach(&self, vq: NonNull<bindings::virtqueue>);

    /// Gives the virtqueue up, and drops the tokens of all buffers that are still in it.
    ///
    /// # Safety
    ///
    /// The device must have been reset, so that it uses no buffer any more.
    unsafe fn detach(&self);

    /// Opens or closes the gate: when it is closed and this returns, no buffer is made available
    /// and no notification sent.
    fn set_open(&self, open: bool);

    /// Asks the device for no more used buffer notifications.
    fn disable_callbacks(&self);

    /// Asks the device for used buffer notifications again.
    ///
    /// There may be used buffers already, of which the device will not notify.
    fn enable_callbacks(&self);

    /// Notifies the device if it has any buffers, whether it wants to know or not.
    fn notify_outstanding(&self);

    /// Returns whether the virtqueue can't be used any more, because of what the device has put
    /// into it.
    fn is_broken(&self) -> bool;

    /// Records the state of the virtqueue, [`None`] if there is none.
    fn record(&self, packed: bool) -> Option<Record>;
}

impl<T: Token> RawQueue for VirtQueue<T> {
    fn info(&self) -> (&CStr, bool) {
        (self.name.as_c_str(), self.notified)
    }

    unsafe fn attach(&self, vq: NonNull<bindings::virtqueue>) {
        // SAFETY: By the safety requirements `vq` is a valid virtqueue.
        let size = unsafe { bindings::virtqueue_get_vring_size(vq.as_ptr()) };
        // INVARIANT: By the safety requirements, `vq` is a new virtqueue, without any data in it.
        *self.inner.lock() = Inner {
            vq: Some(vq),
            size,
            open: false,
            callbacks: self.notified,
            outstanding: 0,
            used: 0,
        };
    }

    unsafe fn detach(&self) {
        self.close();
        let vq = {
            let mut inner = self.inner.lock();
            inner.outstanding = 0;
            // INVARIANT: Nobody sees the virtqueue from here on; it is drained below.
            inner.vq.take()
        };
        let Some(vq) = vq else { return };

        loop {
            // SAFETY: `vq` is a valid virtqueue, of which this is the only user, and the device
            // doesn't use it any more.
            let data = unsafe { bindings::virtqueue_detach_unused_buf(vq.as_ptr()) };
            let Some(data) = NonNull::new(data) else {
                break;
            };
            // SAFETY: By the invariants of `VirtQueue`, the pointer comes from `into_raw`, and the
            // virtqueue has given it back.
            drop(unsafe { T::from_raw(data) });
        }
    }

    fn set_open(&self, open: bool) {
        if !open {
            return self.close();
        }
        let mut inner = self.inner.lock();
        inner.open = inner.vq.is_some();
    }

    fn disable_callbacks(&self) {
        let mut inner = self.inner.lock();
        inner.callbacks = false;
        if let Some(vq) = inner.vq {
            // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock,
            // which is held, excludes all other operations on it.
            unsafe { bindings::virtqueue_disable_cb(vq.as_ptr()) };
        }
    }

    fn enable_callbacks(&self) {
        let mut inner = self.inner.lock();
        inner.callbacks = self.notified;
        if let Some(vq) = inner.vq.filter(|_| self.notified) {
            // Whether there are used buffers already is not looked at: the caller looks anyway.
            //
            // SAFETY: As in `disable_callbacks`.
            unsafe { bindings::virtqueue_enable_cb(vq.as_ptr()) };
        }
    }

    fn notify_outstanding(&self) {
        let inner = self.inner.lock();
        if let (Some(vq), true, 1..) = (inner.vq, inner.open, inner.outstanding) {
            // The buffers added so far are covered by the notification below. Without this the
            // virtqueue would go on to count them as not announced.
            //
            // SAFETY: As in `disable_callbacks`.
            unsafe { bindings::virtqueue_kick_prepare(vq.as_ptr()) };
            // SAFETY: As in `disable_callbacks`.
            unsafe { bindings::virtqueue_notify(vq.as_ptr()) };
        }
    }

    fn is_broken(&self) -> bool {
        match self.inner.lock().vq {
            // SAFETY: As in `disable_callbacks`; the lock is held until the end of the `match`.
            Some(vq) => unsafe { bindings::virtqueue_is_broken(vq.as_ptr()) },
            None => false,
        }
    }

    fn record(&self, packed: bool) -> Option<Record> {
        let inner = self.inner.lock();
        let vq = inner.vq?;
        // SAFETY: As in `disable_callbacks`.
        let size = unsafe { bindings::virtqueue_get_vring_size(vq.as_ptr()) };

        let (available, used) = if packed {
            // A packed ring has no index in memory. Its positions follow from the number of
            // descriptors that went through it; the wrap counters begin at 1.
            let position = |descriptors: u64| {
                let laps = descriptors / u64::from(size.max(1));
                // CAST: A ring has at most 2^15 descriptors.
                let offset = (descriptors % u64::from(size.max(1))) as u16;
                (offset, laps % 2 == 0)
            };
            let posted = u64::from(size.saturating_sub(Inner::free(vq)));
            (position(inner.used + posted), position(inner.used))
        } else {
            // SAFETY: As in `disable_callbacks`, and the virtqueue is a split one.
            let indices = unsafe {
                (
                    bindings::vring_avail_idx(vq.as_ptr()),
                    bindings::vring_used_idx(vq.as_ptr()),
                )
            };
            ((indices.0, false), (indices.1, false))
        };

        Some(Record {
            name: self.name,
            index: self.index,
            size,
            packed,
            available: Some(available),
            used: Some(used),
            outstanding: inner.outstanding,
        })
    }
}
