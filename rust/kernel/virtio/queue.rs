// SPDX-License-Identifier: GPL-2.0

//! Virtqueues.
//!
//! VIRTIO 1.4, "Virtqueues".

use core::{
    marker::PhantomData,
    ptr::{
        null_mut,
        NonNull, //
    },
};

use kernel::{
    device::Core,
    error::to_result,
    fmt::{
        self,
        Write as _, //
    },
    prelude::*,
    str::Formatter,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        lock::spinlock::SpinLockIrqGuard,
        Arc,
        SpinLockIrq, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

use crate::{
    bindings,
    buffer::{
        Parts,
        Token, //
    },
    driver::Common,
    sync::lock_class,
    Device,
    Feature, //
};

/// The virtqueues that a driver sets up in its probe.
///
/// # Examples
///
/// ```
/// use kernel::{device::Core, prelude::*, sync::Arc};
/// use virtio::{Buffer, Device, VirtQueue};
///
/// fn set_up(dev: &Device<Core<'_>>) -> Result<Arc<VirtQueue<KBox<Buffer>>>> {
///     let mut queues = dev.virtqueues();
///     let requests = queues.add(fmt!("requests"))?;
///     queues.find()?;
///     Ok(requests)
/// }
/// # fn main() {}
/// ```
pub struct VirtQueues<'a> {
    dev: &'a Device<kernel::device::Bound>,
    queues: KVec<Arc<dyn RawQueue>>,
    spread: bool,
}

/// The room for the name of a virtqueue, with its terminating null character.
const NAME_LEN: usize = 16;

/// The name of a virtqueue.
#[derive(Clone, Copy)]
pub(crate) struct Name([u8; NAME_LEN]);

impl Name {
    fn new(name: fmt::Arguments<'_>) -> Result<Self> {
        let mut bytes = [0; NAME_LEN];
        // The last byte stays zero.
        Formatter::new(&mut bytes[..NAME_LEN - 1])
            .write_fmt(name)
            .map_err(|_| EINVAL)?;
        Ok(Self(bytes))
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

impl From<&CStr> for Name {
    /// Cuts off a name that is too long.
    fn from(name: &CStr) -> Self {
        let mut bytes = [0; NAME_LEN];
        // The last byte stays zero.
        for (byte, from) in bytes.iter_mut().zip(name.to_bytes()).take(NAME_LEN - 1) {
            *byte = *from;
        }
        Self(bytes)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_c_str(), f)
    }
}

impl<'a> VirtQueues<'a> {
    pub(crate) fn new(dev: &'a Device<Core<'_>>) -> Self {
        Self {
            dev,
            queues: KVec::new(),
            spread: false,
        }
    }

    /// Has the interrupts of the virtqueues spread over the processors, if the transport can.
    pub fn spread(mut self) -> Self {
        self.spread = true;
        self
    }

    /// Adds the next virtqueue: the first has index 0, and so on.
    ///
    /// `name`, of at most 15 characters, shows up in /proc/interrupts and debugfs.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, [`EINVAL`] if the name is too long.
    pub fn add<T: Token>(&mut self, name: fmt::Arguments<'_>) -> Result<Arc<VirtQueue<T>>> {
        self.add_queue(name, true)
    }

    /// Adds the next virtqueue, of which the device sends no notifications: the driver polls.
    ///
    /// # Errors
    ///
    /// As for [`VirtQueues::add`].
    pub fn add_polled<T: Token>(&mut self, name: fmt::Arguments<'_>) -> Result<Arc<VirtQueue<T>>> {
        self.add_queue(name, false)
    }

    fn add_queue<T: Token>(
        &mut self,
        name: fmt::Arguments<'_>,
        notified: bool,
    ) -> Result<Arc<VirtQueue<T>>> {
        let index = self.queues.len();
        let name = Name::new(name)?;
        let queue = Arc::pin_init(VirtQueue::new(name, index, notified), GFP_KERNEL)?;

        self.queues.push(queue.clone(), GFP_KERNEL)?;
        Ok(queue)
    }

    /// Asks the device for the virtqueues.
    ///
    /// They are opened when DRIVER_OK is set, right before
    /// [`Driver::start`](crate::Driver::start) is called.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device has its queues already, or its probe is over; [`ENOENT`] if the
    /// device has fewer queues; and what the transport finds.
    pub fn find(self) -> Result {
        let common = self.dev.common();
        common.spread_queues.store(self.spread, Relaxed);
        common.set_queues(self.dev, self.queues)
    }
}

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
    /// buffer has no bytes at all or too many.
    pub error: Error,
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
    /// Whether buffers may be made available and notifications sent (rules D4 and D5).
    open: bool,
    /// Whether the device is asked for used buffer notifications.
    callbacks: bool,
    /// How many buffers the device has.
    outstanding: usize,
    /// How many descriptors of the ring were used up to make buffers available, and were given
    /// back with used buffers, since the queue was set up.
    available: u64,
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
        let class = lock_class!(c"virtio::VirtQueue::inner");
        pin_init!(Self {
            name,
            index,
            notified,
            // INVARIANT: There is no virtqueue yet.
            inner <- SpinLockIrq::new(
                Inner {
                    vq: None,
                    open: false,
                    callbacks: *notified,
                    outstanding: 0,
                    available: 0,
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

/// How long to wait before looking again whether a notification has been sent.
const KICK_PATIENCE: Delta = Delta::from_micros(10);

/// A notification that is due. It is sent when this is dropped, which is best done when the queue
/// is no longer locked: to notify means to leave the guest.
///
/// # Invariants
///
/// `vq` is a valid virtqueue, because it counts in `kicks`: [`RawQueue::set_open`] and
/// [`RawQueue::detach`] wait until that is 0.
#[must_use = "a notification is sent when this is dropped: unlock the queue first"]
pub struct Kick<'a> {
    vq: NonNull<bindings::virtqueue>,
    kicks: &'a Atomic<u32>,
}

impl Drop for Kick<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants `vq` is valid. To notify needs no lock.
        unsafe { bindings::virtqueue_notify(self.vq.as_ptr()) };
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
    #[inline]
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

        let mut parts = Parts::new();
        if let Err(error) = token.parts(&mut parts) {
            return Err(AddError { token, error });
        }
        let (lists, readable, writable) = parts.lists();
        // The C functions are not to be called without any part.
        if lists.is_empty() {
            return Err(AddError {
                token,
                error: EINVAL,
            });
        }

        let free = Inner::free(vq);
        let data = token.into_raw();
        // SAFETY:
        // - By the invariants of `VirtQueue`, `vq` is a valid virtqueue, and the lock, which is
        //   held, excludes all other operations on it.
        // - The scatterlists have been initialised by `Parts`, or are those of the token. The
        //   virtqueue does not keep them.
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
            let error = Error::from_errno(ret);
            return Err(AddError { token, error });
        }

        self.inner.outstanding += 1;
        self.inner.available += u64::from(free.saturating_sub(Inner::free(vq)));
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
            unsafe { bindings::virtqueue_kick(vq.as_ptr()) };
        }
    }

    /// Prepares a notification of the buffers added, if the device wants to know.
    ///
    /// There is none while the device is suspended (rule D5), as for [`VirtQueueGuard::kick`].
    #[inline]
    pub fn prepare_kick(&mut self) -> Option<Kick<'a>> {
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
                return count;
            }
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
        // INVARIANT: By the safety requirements, `vq` is a new virtqueue, without any data in it.
        *self.inner.lock() = Inner {
            vq: Some(vq),
            open: false,
            callbacks: self.notified,
            outstanding: 0,
            available: 0,
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
            (position(inner.available), position(inner.used))
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

impl Common {
    /// Takes over the queues that a driver's probe has defined, and asks the device for them.
    fn set_queues(
        &self,
        dev: &Device<kernel::device::Bound>,
        queues: KVec<Arc<dyn RawQueue>>,
    ) -> Result {
        let mut slot = self.queues.lock();
        if !slot.is_empty() || self.is_populated() {
            return Err(EBUSY);
        }
        *slot = queues;
        drop(slot);
        self.find_queues(dev)
    }

    /// Asks the device for the queues, after it has been initialised or reset.
    pub(crate) fn find_queues(&self, dev: &Device<kernel::device::Bound>) -> Result {
        let queues = self.queues.lock();
        if queues.is_empty() {
            return Ok(());
        }

        let mut infos = KVec::with_capacity(queues.len(), GFP_KERNEL)?;
        for queue in queues.iter() {
            let (name, notified) = queue.info();
            infos.push(
                bindings::virtqueue_info {
                    name: name.as_char_ptr(),
                    callback: notified.then_some(self.ops.callback),
                    ctx: false,
                },
                GFP_KERNEL,
            )?;
        }
        // Without one, the transport does not care for affinity.
        let mut affinity = self
            .spread_queues
            .load(Relaxed)
            .then(bindings::irq_affinity::default);
        let mut vqs: KVec<*mut bindings::virtqueue> =
            KVec::from_elem(null_mut(), queues.len(), GFP_KERNEL)?;
        let count = u32::try_from(queues.len())?;

        // SAFETY: `dev` is a valid, bound device: it has the operations of its transport.
        let find_vqs = unsafe { (*(*dev.as_raw()).config).find_vqs }.ok_or(ENODEV)?;
        // SAFETY: Both arrays have `count` elements, and the names stay as long as the queues, that
        // is, until after `delete_queues`. The callback is the one of the driver that the device is
        // bound to. The context may sleep.
        to_result(unsafe {
            find_vqs(
                dev.as_raw(),
                count,
                vqs.as_mut_ptr(),
                infos.as_mut_ptr(),
                affinity.as_mut().map_or(null_mut(), core::ptr::from_mut),
            )
        })?;

        for (queue, vq) in queues.iter().zip(vqs.iter()) {
            // On success the transport has filled in every element, because every queue has a
            // name; if it had not, the queue would just stay closed.
            if let Some(vq) = NonNull::new(*vq) {
                // SAFETY: The transport has just set up the virtqueue, for this queue.
                // `delete_queues`, the only caller of `del_vqs`, detaches first.
                unsafe { queue.attach(vq) };
            }
        }
        Ok(())
    }

    /// Deletes the virtqueues.
    ///
    /// # Safety
    ///
    /// The device must have been reset, and no callback may run any more.
    pub(crate) unsafe fn delete_queues(&self, dev: &Device<kernel::device::Bound>) {
        let queues = self.queues.lock();

        for queue in queues.iter() {
            // SAFETY: By the safety requirements the device has been reset.
            unsafe { queue.detach() };
        }
        // A transport has cleaned up itself when it did not find the queues; without this check,
        // `del_vqs` of virtio-mmio would free its interrupt twice.
        //
        // SAFETY: `dev` is a valid device, whose list of virtqueues only `find_vqs` and `del_vqs`
        // change, both called here under the lock of `queues`.
        let found = unsafe {
            let vqs = &raw const (*dev.as_raw()).vqs;
            !core::ptr::eq((*vqs).next, vqs)
        };
        if !found {
            return;
        }
        // SAFETY: `dev` is a valid, bound device: it has the operations of its transport.
        if let Some(del_vqs) = unsafe { (*(*dev.as_raw()).config).del_vqs } {
            // SAFETY: All queues have been detached, so that nobody uses a virtqueue any more. The
            // context may sleep.
            unsafe { del_vqs(dev.as_raw()) };
        }
    }

    /// Does something with every queue.
    pub(crate) fn for_each_queue(&self, mut f: impl FnMut(usize, &dyn RawQueue)) {
        for (index, queue) in self.queues.lock().iter().enumerate() {
            f(index, &**queue);
        }
    }

    /// Records the state of all queues.
    pub(crate) fn record_queues(
        &self,
        dev: &Device<kernel::device::Bound>,
        records: &mut KVec<Record>,
    ) {
        let packed = dev.has_feature(Feature::RING_PACKED);

        records.clear();
        for queue in self.queues.lock().iter() {
            if let Some(record) = queue.record(packed) {
                // Room for all of them has been reserved when the queues were set up.
                let _ = records.push_within_capacity(record);
            }
        }
    }
}
