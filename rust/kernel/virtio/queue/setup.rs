// SPDX-License-Identifier: GPL-2.0

//! Setting up virtqueues, and deleting them.

use core::ptr::{
    null_mut,
    NonNull, //
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
        atomic::Relaxed,
        Arc, //
    },
};

use super::{
    RawQueue,
    Record,
    VirtQueue, //
};
use crate::{
    bindings,
    buffer::Token,
    driver::Common,
    Adapter,
    Device,
    Driver,
    Feature, //
};

/// The virtqueues that a driver sets up in its probe.
///
/// # Examples
///
/// ```
/// use kernel::{device::Core, prelude::*, sync::Arc};
/// use virtio::{Buffer, Device, Driver, LendBox, VirtQueue};
///
/// /// By what the driver knows its virtqueues.
/// #[derive(Clone, Copy)]
/// enum Queue {
///     Requests,
/// }
///
/// fn set_up<T>(dev: &Device<Core<'_>>) -> Result<Arc<VirtQueue<LendBox<Buffer>>>>
/// where
///     T: Driver<Queue = Queue> + 'static,
/// {
///     let mut queues = dev.virtqueues::<T>();
///     let requests = queues.add(Queue::Requests, fmt!("requests"))?;
///     queues.find()?;
///     Ok(requests)
/// }
/// # fn main() {}
/// ```
pub struct VirtQueues<'a, T: Driver> {
    dev: &'a Device<kernel::device::Bound>,
    queues: KVec<Arc<dyn RawQueue>>,
    keys: KVec<T::Queue>,
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

    pub(super) fn as_c_str(&self) -> &CStr {
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

impl<'a, D: Driver + 'static> VirtQueues<'a, D> {
    pub(crate) fn new(dev: &'a Device<Core<'_>>) -> Self {
        Self {
            dev,
            queues: KVec::new(),
            keys: KVec::new(),
            spread: false,
        }
    }

    /// Has the interrupts of the virtqueues spread over the processors, if the transport can.
    pub fn spread(mut self) -> Self {
        self.spread = true;
        self
    }

    /// Adds the next virtqueue: the first has index 0, and so on. The driver knows it by `key`,
    /// which [`Driver::used`] is called with.
    ///
    /// `name`, of at most 15 characters, shows up in /proc/interrupts and debugfs.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, [`EINVAL`] if the name is too long.
    pub fn add<T: Token>(
        &mut self,
        key: D::Queue,
        name: fmt::Arguments<'_>,
    ) -> Result<Arc<VirtQueue<T>>> {
        self.add_queue(key, name, true)
    }

    /// Adds the next virtqueue, of which the device sends no notifications: the driver polls.
    ///
    /// # Errors
    ///
    /// As for [`VirtQueues::add`].
    pub fn add_polled<T: Token>(
        &mut self,
        key: D::Queue,
        name: fmt::Arguments<'_>,
    ) -> Result<Arc<VirtQueue<T>>> {
        self.add_queue(key, name, false)
    }

    fn add_queue<T: Token>(
        &mut self,
        key: D::Queue,
        name: fmt::Arguments<'_>,
        notified: bool,
    ) -> Result<Arc<VirtQueue<T>>> {
        let index = self.queues.len();
        let name = Name::new(name)?;
        let queue = Arc::pin_init(VirtQueue::new(name, index, notified), GFP_KERNEL)?;

        self.keys.push(key, GFP_KERNEL)?;
        self.queues.push(queue.clone(), GFP_KERNEL)?;
        Ok(queue)
    }

    /// Asks the device for the virtqueues.
    ///
    /// They are opened when DRIVER_OK is set, right before
    /// [`Driver::start`] is called.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device has its queues already, or its probe is over; [`EINVAL`] if it is
    /// bound to another driver; [`ENOENT`] if it has fewer queues; and what the transport finds.
    pub fn find(self) -> Result {
        Adapter::<D>::set_keys(self.dev, self.keys)?;
        let common = self.dev.common();
        common.spread_queues.store(self.spread, Relaxed);
        common.set_queues(self.dev, self.queues)
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
        self.find_first_queues(dev, usize::MAX)
    }

    /// As above, but only for the first `count` of them: the transports of Linux 7.3 can't leave
    /// one out, they would move up the next.
    pub(crate) fn find_first_queues(
        &self,
        dev: &Device<kernel::device::Bound>,
        count: usize,
    ) -> Result {
        let queues = self.queues.lock();
        let count = count.min(queues.len());
        // The transports don't know what to delete of nothing.
        if count == 0 {
            return Ok(());
        }

        let mut infos = KVec::with_capacity(count, GFP_KERNEL)?;
        for queue in queues.iter().take(count) {
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
            KVec::from_elem(null_mut(), count, GFP_KERNEL)?;
        let count = u32::try_from(count)?;

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
