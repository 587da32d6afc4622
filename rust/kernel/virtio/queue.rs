// SPDX-License-Identifier: GPL-2.0

//! Virtqueues.
//!
//! VIRTIO 1.4, "Virtqueues".

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        LockClassKey, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

use crate::{
    bindings,
    buffer::{
        Lists,
        Token, //
    },
    compat::{
        BoundInternal,
        SpinLockIrq,
        SpinLockIrqGuard, //
    },
    Device, //
};

#[path = "queue/bench.rs"]
mod bench;
#[path = "queue/raw.rs"]
mod raw;
#[path = "queue/setup.rs"]
mod setup;

pub(crate) use self::raw::{
    RawQueue,
    Record, //
};
pub(crate) use self::setup::Name;
pub use self::setup::VirtQueues;

/// A buffer that came back from the device.
pub struct Used<T> {
    /// The token that owns the buffer.
    pub token: T,
    /// How many bytes the device says it has written, never more than the buffer has.
    pub len: usize,
}

/// A buffer that could not be made available: why, and the token.
pub struct AddError<T> {
    /// The token, which the driver owns again.
    pub token: T,
    /// [`ENOSPC`] if the queue is full, [`EBUSY`] if the queue is closed, because the device is
    /// suspended or about to be, or not in operation yet, [`ENODEV`] if the device is no longer the
    /// driver's, [`EIO`] if the queue is broken, [`ENOMEM`] if memory is short, [`EINVAL`] if the
    /// buffer has no bytes at all, or more pieces than the queue has entries; and those of
    /// [`Lend::lend`](crate::Lend::lend).
    pub error: Error,
}

/// How many virtqueues of a device have a lock class of their own.
const LOCK_CLASSES: usize = 32;

/// Returns the lock class of a virtqueue: there is one for each index, so that several virtqueues
/// of a device can be locked at a time, in a fixed order. Those beyond the last class share it, and
/// can't.
fn lock_class(index: usize) -> (&'static CStr, Pin<&'static LockClassKey>) {
    static KEYS: [LockClassKey; LOCK_CLASSES] = [const {
        // SAFETY: They are in static memory, and none of them is ever dropped.
        unsafe { LockClassKey::new_static() }
    }; LOCK_CLASSES];
    static NAME: &CStr = c"virtio::VirtQueue::inner";

    (NAME, Pin::static_ref(&KEYS[index.min(LOCK_CLASSES - 1)]))
}

/// A virtqueue of buffers that are owned by tokens of type `T`.
///
/// It is shared by the driver, whose operations go through [`VirtQueue::lock`], and the bus
/// abstraction, which gates the queue when the device is suspended and takes it down when the
/// device is unbound. After that the queue is still safe to use, and every operation fails.
///
/// # Invariants
///
/// - While `inner.vq` is not [`None`], it is a virtqueue that the transport has not deleted yet.
/// - Every pointer that is in the virtqueue as data comes from `T::into_raw`.
#[pin_data]
pub struct VirtQueue<T: Token> {
    name: Name,
    index: usize,
    /// Whether the device notifies the driver of used buffers.
    notified: bool,
    #[pin]
    inner: SpinLockIrq<Inner>,
    /// How many notifications are about to be sent by those who have a [`Kick`].
    kicks: Atomic<u32>,
    _tokens: PhantomData<fn(T) -> T>,
}

struct Inner {
    vq: Option<NonNull<bindings::virtqueue>>,
    /// How many descriptors the ring has.
    size: u32,
    /// Whether buffers may be made available and notifications sent (rules D4 and D5).
    open: bool,
    /// Whether the device is asked for used buffer notifications.
    callbacks: bool,
    /// How many buffers the device has.
    outstanding: usize,
    /// How many descriptors of the ring were given back with used buffers since the queue was set
    /// up. Those that are not free were used up besides to make buffers available.
    used: u64,
}

// SAFETY: The pointer in it stands for a virtqueue, which is not tied to a thread: it may be used
// by whoever excludes other users, which holding the lock around `Inner` does.
unsafe impl Send for Inner {}

impl Inner {
    fn free(vq: NonNull<bindings::virtqueue>) -> u32 {
        // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue. The lock is held, so
        // that nobody changes the number.
        unsafe { (*vq.as_ptr()).num_free }
    }
}

impl<T: Token> VirtQueue<T> {
    fn new(name: Name, index: usize, notified: bool) -> impl PinInit<Self> {
        let class = lock_class(index);
        pin_init!(Self {
            name,
            index,
            notified,
            // INVARIANT: There is no virtqueue yet.
            inner <- SpinLockIrq::new(
                Inner {
                    vq: None,
                    size: 0,
                    open: false,
                    callbacks: *notified,
                    outstanding: 0,
                    used: 0,
                },
                class.0,
                class.1,
            ),
            kicks: Atomic::new(0),
            _tokens: PhantomData,
        })
    }

    /// Takes the queue's lock, with interrupts disabled. Any context; nothing may sleep before the
    /// guard is dropped.
    ///
    /// Several queues of a device can be locked at a time, if always in the same order: each index
    /// has a lock class of its own, up to 32 of them.
    #[inline]
    pub fn lock(&self) -> VirtQueueGuard<'_, T> {
        VirtQueueGuard {
            queue: self,
            inner: self.inner.lock(),
        }
    }

    /// Returns the index of the queue.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns how many buffers of one descriptor there is room for now, 0 if the queue has not
    /// been found yet. Any context.
    pub fn num_free(&self) -> u32 {
        self.inner.lock().vq.map_or(0, Inner::free)
    }

    /// Closes the gate, and waits until the last notification has been sent. May sleep.
    fn close(&self) {
        self.inner.lock().open = false;
        // A `Kick` is only made while the queue is open, and sent soon.
        while self.kicks.load(Acquire) != 0 {
            fsleep(KICK_PATIENCE);
        }
    }
}

/// Has the device looked at, if it has put something into the virtqueue that can't be: else whoever
/// waits for it waits in vain. Any context.
///
/// The handler of interrupts does this, too, but there are none for a queue that is polled, nor is
/// there one when the virtqueue is found to be broken in another way.
///
/// # Safety
///
/// `vq` must be attached to a [`VirtQueue`], and not be detached during the call.
#[cold]
unsafe fn look_if_broken(vq: NonNull<bindings::virtqueue>) {
    // SAFETY: By the safety requirements.
    if !unsafe { bindings::virtqueue_is_broken(vq.as_ptr()) } {
        return;
    }
    // SAFETY: By the safety requirements the virtqueue is valid, and so is its device.
    let vdev = unsafe { (*vq.as_ptr()).vdev };
    // SAFETY: A virtqueue is detached before its device is unbound.
    // INVARIANT: The reference stays within the call.
    let dev = unsafe { &*vdev.cast::<Device<BoundInternal>>() };
    dev.common().controller.look_soon(dev);
}

/// How long to wait before looking again whether a notification has been sent. Long enough for
/// `fsleep` to sleep.
const KICK_PATIENCE: Delta = Delta::from_micros(20);

/// A notification that is due. It is sent when this is dropped, which is best done when the queue
/// is no longer locked: to notify means to leave the guest.
///
/// Not for drivers: one that is not dropped keeps the queue from being closed.
///
/// # Invariants
///
/// `vq` is a valid virtqueue, because it counts in `kicks`: [`RawQueue::set_open`] and
/// [`RawQueue::detach`] wait until that is 0.
struct Kick<'a> {
    vq: NonNull<bindings::virtqueue>,
    kicks: &'a Atomic<u32>,
}

impl Drop for Kick<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants `vq` is valid. To notify needs no lock: with
        // VIRTIO_F_NOTIFICATION_DATA the transport reads the position of the next buffer, and may
        // then tell the device of more than was there when the notification was prepared, which is
        // true all the same. The virtio core allows for that, see `virtqueue_notify`.
        if !unsafe { bindings::virtqueue_notify(self.vq.as_ptr()) } {
            // SAFETY: By the type invariants `vq` is valid, and not detached yet.
            unsafe { look_if_broken(self.vq) };
        }
        self.kicks.fetch_sub(1, Release);
    }
}

/// Exclusive access to a [`VirtQueue`].
///
/// It is a spin lock with interrupts disabled: nothing may sleep while it is held, and memory is
/// allocated with `GFP_ATOMIC`.
pub struct VirtQueueGuard<'a, T: Token> {
    queue: &'a VirtQueue<T>,
    inner: SpinLockIrqGuard<'a, Inner>,
}

impl<'a, T: Token> VirtQueueGuard<'a, T> {
    /// Makes a buffer available to the device, which is told by [`VirtQueueGuard::kick`].
    ///
    /// # Errors
    ///
    /// See [`AddError`], which gives the token back.
    // A call, and a result in memory, would cost twenty instructions for each buffer.
    #[inline(always)]
    pub fn add(&mut self, mut token: T) -> Result<(), AddError<T>> {
        let Some(vq) = self.inner.vq else {
            return Err(AddError {
                token,
                error: ENODEV,
            });
        };
        if !self.inner.open {
            return Err(AddError {
                token,
                error: EBUSY,
            });
        }

        let mut lists = Lists::new();
        if let Err(error) = token.lists(&mut lists) {
            return Err(AddError { token, error });
        }
        // VIRTIO 1.4, "The Virtqueue Descriptor Table": no chain is longer than the queue, and the
        // virtio core warns of one.
        //
        // CAST: From 32 bits to at least as many.
        let too_long = lists.entries() > self.inner.size as usize;
        let (lists, readable, writable) = lists.get();
        // The C functions are not to be called without any part.
        if lists.is_empty() || too_long {
            return Err(AddError {
                token,
                error: EINVAL,
            });
        }

        let data = token.into_raw();
        // SAFETY:
        // - By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock, which is
        //   held, excludes all other operations on it.
        // - The scatterlists are those of the token, which nothing but `into_raw` has been done
        //   with since. The virtqueue does not keep them.
        // - The data is a token, by which the virtqueue owns the memory from here on.
        let ret = unsafe {
            bindings::virtqueue_add_sgs(
                vq.as_ptr(),
                lists.as_mut_ptr(),
                readable,
                writable,
                data.as_ptr(),
                bindings::GFP_ATOMIC,
            )
        };
        if ret != 0 {
            // SAFETY: `data` comes from `into_raw` above, and the virtqueue did not take it.
            let token = unsafe { T::from_raw(data) };
            // SAFETY: `vq` is a valid virtqueue, and attached while the lock is held.
            unsafe { look_if_broken(vq) };
            let error = Error::from_errno(ret);
            return Err(AddError { token, error });
        }

        self.inner.outstanding += 1;
        Ok(())
    }

    /// Notifies the device of the buffers added, if it wants to know.
    ///
    /// Does nothing while the device is suspended (rule D5): the notification is sent at the end
    /// of the resume.
    pub fn kick(&mut self) {
        let Some(vq) = self.inner.vq else { return };

        if self.inner.open {
            // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock,
            // which is held, excludes all other operations on it.
            if !unsafe { bindings::virtqueue_kick(vq.as_ptr()) } {
                // SAFETY: As above, and it is attached while the lock is held.
                unsafe { look_if_broken(vq) };
            }
        }
    }

    /// Prepares a notification of the buffers added, if the device wants to know.
    ///
    /// There is none while the device is suspended (rule D5), as for [`VirtQueueGuard::kick`].
    #[inline]
    fn prepare_kick(&mut self) -> Option<Kick<'a>> {
        let vq = self.inner.vq.filter(|_| self.inner.open)?;

        // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock, which
        // is held, excludes all other operations on it.
        if !unsafe { bindings::virtqueue_kick_prepare(vq.as_ptr()) } {
            return None;
        }
        // INVARIANT: The queue is open, so that who closes it will take the lock after this, and
        // then see the count.
        self.queue.kicks.fetch_add(1, Relaxed);
        Some(Kick {
            vq,
            kicks: &self.queue.kicks,
        })
    }

    /// Unlocks the queue, and then notifies the device of the buffers added, if it wants to know.
    #[inline]
    pub fn unlock_and_kick(mut self) {
        let kick = self.prepare_kick();
        drop(self);
        drop(kick);
    }

    /// Takes back all buffers that the device has used, and returns how many that were.
    ///
    /// `pass` gets those that there are, and takes them all; it is called again until the device
    /// has used no more. Meanwhile the device need not notify: what is done with the buffers in
    /// `pass`, rather than after it, saves interrupts. The device is asked for notifications again
    /// at the end, unless it is suspended.
    #[inline]
    pub fn drain(&mut self, mut pass: impl FnMut(UsedBuffers<'_, 'a, T>)) -> usize {
        let Some(vq) = self.inner.vq else { return 0 };
        let mut count = 0;

        loop {
            if self.inner.callbacks {
                // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the
                // lock, which is held, excludes all other operations on it.
                unsafe { bindings::virtqueue_disable_cb(vq.as_ptr()) };
            }
            let before = count;
            loop {
                let taken = count;
                pass(UsedBuffers {
                    queue: self,
                    count: &mut count,
                });
                // What is done with a single one takes too little time to look again for others:
                // those that come meanwhile are seen below.
                if count <= taken + 1 {
                    break;
                }
            }
            // The number of rounds is limited by that of the buffers: a device that claims to have
            // used more, but has not, is not listened to again.
            if !self.inner.callbacks
                // SAFETY: As above.
                || unsafe { bindings::virtqueue_enable_cb(vq.as_ptr()) }
                || count == before
            {
                // What is not found by an interrupt is found here, when there was nothing.
                if count == 0 && !self.queue.notified && self.inner.outstanding > 0 {
                    // SAFETY: As above, and it is attached while the lock is held.
                    unsafe { look_if_broken(vq) };
                }
                return count;
            }
        }
    }

    /// Asks the device for no more used buffer notifications of this queue, for a driver that is
    /// about to look by itself; some may come all the same.
    ///
    /// [`VirtQueueGuard::enable_callbacks`] undoes it, and so does a resume, or a reset.
    pub fn disable_callbacks(&mut self) {
        if let Some(vq) = self.inner.vq {
            // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock,
            // which is held, excludes all other operations on it.
            unsafe { bindings::virtqueue_disable_cb(vq.as_ptr()) };
        }
    }

    /// Asks the device for used buffer notifications again, and returns whether that is all: if
    /// not, the device has used buffers meanwhile, of which it may not notify.
    ///
    /// So a driver that takes buffers back elsewhere than in [`Driver::used`] has that disable
    /// notifications and see to it that somebody looks, who takes back what there is, calls this,
    /// and goes on unless it returns true. That is what NAPI, or work, needs.
    ///
    /// Of a device that is suspended it asks nothing, and returns true: `used` is called after the
    /// resume.
    ///
    /// [`Driver::used`]: crate::Driver::used
    #[must_use]
    pub fn enable_callbacks(&mut self) -> bool {
        match self.inner.vq.filter(|_| self.inner.callbacks) {
            // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock,
            // which is held, excludes all other operations on it.
            Some(vq) => unsafe { bindings::virtqueue_enable_cb(vq.as_ptr()) },
            None => true,
        }
    }

    /// As [`VirtQueueGuard::enable_callbacks`], but asks the device to notify only when it has used
    /// most of the buffers that it has: for buffers that nobody waits for, such as those of what
    /// has been sent. One that can't tell how many they are (VIRTIO_F_EVENT_IDX) notifies at once.
    ///
    /// Returns false if it has used so many already.
    #[must_use]
    pub fn enable_callbacks_delayed(&mut self) -> bool {
        match self.inner.vq.filter(|_| self.inner.callbacks) {
            // SAFETY: As in `enable_callbacks`.
            Some(vq) => unsafe { bindings::virtqueue_enable_cb_delayed(vq.as_ptr()) },
            None => true,
        }
    }

    /// Takes back the next buffer that the device has used, if there is one.
    #[inline]
    pub fn get_buf(&mut self) -> Option<Used<T>> {
        let vq = self.inner.vq?;
        let free = Inner::free(vq);
        let mut len = 0;

        // SAFETY: By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock, which
        // is held, excludes all other operations on it.
        let data = NonNull::new(unsafe { bindings::virtqueue_get_buf(vq.as_ptr(), &mut len) })?;

        // SAFETY: By the invariants of `VirtQueue`, the pointer comes from `into_raw`. The
        // virtqueue has given it back, and gives no pointer back twice: it clears its entry, and
        // whatever the device says, it looks up its own entries only.
        let token = unsafe { T::from_raw(data) };
        let size = token.writable_len();

        self.inner.outstanding -= 1;
        self.inner.used += u64::from(Inner::free(vq).saturating_sub(free));
        Some(Used {
            token,
            // What the device says is not trusted.
            // CAST: From 32 bits to at least as many.
            len: size.min(len as usize),
        })
    }

    /// Returns how many buffers the device has.
    pub fn outstanding(&self) -> usize {
        self.inner.outstanding
    }
}

/// The buffers that the device has used, see [`VirtQueueGuard::drain`].
pub struct UsedBuffers<'a, 'b, T: Token> {
    queue: &'a mut VirtQueueGuard<'b, T>,
    count: &'a mut usize,
}

impl<T: Token> Iterator for UsedBuffers<'_, '_, T> {
    type Item = Used<T>;

    #[inline]
    fn next(&mut self) -> Option<Used<T>> {
        let used = self.queue.get_buf()?;
        *self.count += 1;
        Some(used)
    }
}
