// SPDX-License-Identifier: GPL-2.0

//! What a driver does for the block layer.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    bindings::blk_status_t,
    device::{
        AsBusDevice,
        Bound, //
    },
    prelude::*,
    ModuleMetadata, //
};

use super::{
    list::{
        Batch,
        RequestList, //
    },
    request::{
        to_blk_status,
        Pdu,
        Refused,
        Request, //
    },
    tag_set::Shared,
    AttributeFile,
    Disk,
    Geometry, //
};
use crate::bindings;

/// A driver of disks.
///
/// The block layer excludes none of these functions from running at the same time, on several
/// processors, even for the same hardware queue.
pub trait Operations: Sized + 'static {
    /// The module that implements this, which can't be unloaded while one of its disks is open.
    type OwnerModule: ModuleMetadata;

    /// The device that a disk belongs to.
    type Parent: AsBusDevice<Bound>;

    /// What the driver keeps in each request.
    type Pdu: Pdu;

    /// What the driver keeps for each hardware queue.
    type QueueData: Send + Sync + 'static;

    /// What the driver keeps for a disk. It stays until the last user has closed the disk, which
    /// can be long after its device is gone.
    type DiskData: Send + Sync + 'static;

    /// The files in the directory of a disk in sysfs.
    const ATTRIBUTES: &'static [AttributeFile<Self>] = &[];

    /// Takes a request, not started yet. Nothing may sleep. If `last` is false, more follow, or
    /// [`Operations::commit_rqs`], so that the device need not be notified yet.
    ///
    /// # Errors
    ///
    /// See [`Refused`], which gives the request back.
    fn queue_rq(
        hw_queue: HwQueue<'_, Self>,
        request: Request<Self>,
        last: bool,
    ) -> Result<(), Refused<Self>>;

    /// Takes requests for one hardware queue, not started yet, and gives those back that
    /// [`Operations::queue_rq`] is to be tried with, in their order. Nothing may sleep.
    fn queue_rqs(hw_queue: HwQueue<'_, Self>, requests: RequestList<Self>) -> RequestList<Self>;

    /// No more requests follow after one for which `last` was false. Nothing may sleep.
    fn commit_rqs(hw_queue: HwQueue<'_, Self>);

    /// Looks for requests that a hardware queue which is polled has carried out, and returns how
    /// many those were. Nothing may sleep.
    fn poll(hw_queue: HwQueue<'_, Self>, batch: &mut Batch<'_, Self>) -> usize;

    /// Returns the result of a request that has been carried out. Any context.
    ///
    /// # Errors
    ///
    /// The error of the request, [`EIO`] if there is none that fits.
    fn result(request: &Request<Self>) -> Result;

    /// Returns the geometry that partitioning tools of old want. May sleep.
    fn geometry(disk: &Disk<Self>) -> Geometry;
}

/// A hardware queue of a disk.
///
/// # Invariants
///
/// The pointer is to a valid `struct blk_mq_hw_ctx`, whose `driver_data` points to the driver's.
pub struct HwQueue<'a, T: Operations>(NonNull<bindings::blk_mq_hw_ctx>, PhantomData<&'a T>);

impl<'a, T: Operations> HwQueue<'a, T> {
    /// # Safety
    ///
    /// `hctx` must be a hardware queue of a disk of `T`, and stay so for `'a`.
    #[inline]
    unsafe fn from_raw(hctx: *mut bindings::blk_mq_hw_ctx) -> Self {
        // INVARIANT: By the safety requirements, and because of `init_hctx_callback`.
        //
        // SAFETY: By the safety requirements the pointer is not null.
        Self(unsafe { NonNull::new_unchecked(hctx) }, PhantomData)
    }

    /// Returns what the driver keeps for the queue.
    #[inline]
    pub fn data(&self) -> &'a T::QueueData {
        // SAFETY: By the type invariants both pointers are valid. The data stays as long as the tag
        // set, which the disk keeps.
        unsafe { &*(*self.0.as_ptr()).driver_data.cast() }
    }

    /// Returns the disk that the queue belongs to.
    pub fn disk(&self) -> &'a Disk<T> {
        // SAFETY: By the type invariants the pointer is valid, and its disk is one of `T`, which
        // stays as long as its hardware queues.
        unsafe { Disk::from_raw((*(*self.0.as_ptr()).queue).disk) }
    }

    /// Has the block layer queue nothing more, until the driver starts the queue again by
    /// [`Disk::start_stopped`]. Any context.
    pub fn stop(&self) {
        // SAFETY: By the type invariants the pointer is valid.
        unsafe { bindings::blk_mq_stop_hw_queue(self.0.as_ptr()) };
    }
}

pub(super) struct VTable<T: Operations>(PhantomData<T>);

impl<T: Operations> VTable<T> {
    pub(super) const OPS: bindings::blk_mq_ops = bindings::blk_mq_ops {
        queue_rq: Some(Self::queue_rq_callback),
        commit_rqs: Some(Self::commit_rqs_callback),
        queue_rqs: Some(Self::queue_rqs_callback),
        complete: Some(Self::complete_callback),
        poll: Some(Self::poll_callback),
        init_hctx: Some(Self::init_hctx_callback),
        init_request: Some(Self::init_request_callback),
        map_queues: Some(Shared::<T>::map_queues_callback),
        ..pin_init::zeroed()
    };

    unsafe extern "C" fn queue_rq_callback(
        hctx: *mut bindings::blk_mq_hw_ctx,
        bd: *const bindings::blk_mq_queue_data,
    ) -> blk_status_t {
        // SAFETY: The block layer passes a valid hardware queue, and a request, which is the
        // driver's until it is given back.
        let (hw_queue, rq, last) = unsafe {
            let rq = NonNull::new_unchecked((*bd).rq);
            (HwQueue::from_raw(hctx), rq, (*bd).last)
        };
        // SAFETY: As above.
        let request = unsafe { Request::from_raw(rq) };

        let Err(Refused { mut request, error }) = T::queue_rq(hw_queue, request, last) else {
            return 0;
        };
        if request.as_ptr() != rq.as_ptr() {
            // The driver refuses another one that it had: it is dropped, and thereby queued again.
            return 0;
        }
        request.unprepare();
        let _ = request.into_raw();
        to_blk_status(Err(error))
    }

    unsafe extern "C" fn queue_rqs_callback(list: *mut bindings::rq_list) {
        // SAFETY: The block layer passes a list of requests that are the driver's. Those that are
        // left in it when this returns are the block layer's again.
        let taken = unsafe { core::mem::replace(&mut *list, pin_init::zeroed()) };
        let mut next = NonNull::new(taken.head);
        let mut left = RequestList::new();

        while let Some(first) = next {
            // SAFETY: The requests are valid, and linked by this member.
            let hctx = unsafe { (*first.as_ptr()).mq_hctx };
            let mut run = RequestList::<T>::new();
            while let Some(rq) = next {
                // SAFETY: As above.
                let (this, link) = unsafe {
                    let rq = rq.as_ptr();
                    ((*rq).mq_hctx, (*rq).__bindgen_anon_1.rq_next)
                };
                if this != hctx {
                    break;
                }
                next = NonNull::new(link);
                // SAFETY: The request is the driver's, and not in the list any more.
                run.push(unsafe { Request::from_raw(rq) });
            }
            // SAFETY: The hardware queue of a request is valid.
            let mut refused = T::queue_rqs(unsafe { HwQueue::from_raw(hctx) }, run);
            while let Some(request) = refused.pop() {
                // Another one that the driver had is dropped, and thereby queued again.
                if request.is_fresh_of(hctx) {
                    left.push(request);
                }
            }
        }
        // SAFETY: As above.
        unsafe { *list = left.into_unprepared() };
    }

    unsafe extern "C" fn commit_rqs_callback(hctx: *mut bindings::blk_mq_hw_ctx) {
        // SAFETY: The block layer passes a valid hardware queue.
        T::commit_rqs(unsafe { HwQueue::from_raw(hctx) });
    }

    unsafe extern "C" fn complete_callback(rq: *mut bindings::request) {
        // SAFETY: `Request::complete_remote` has handed the request on to this function.
        unsafe { Request::<T>::from_raw(NonNull::new_unchecked(rq)) }.complete_here();
    }

    unsafe extern "C" fn poll_callback(
        hctx: *mut bindings::blk_mq_hw_ctx,
        iob: *mut bindings::io_comp_batch,
    ) -> c_int {
        // SAFETY: The block layer passes a valid hardware queue, and a batch or null.
        let (hw_queue, mut batch) = unsafe { (HwQueue::from_raw(hctx), Batch::from_raw(iob)) };
        // CAST: Not more than a queue has.
        T::poll(hw_queue, &mut batch) as c_int
    }

    unsafe extern "C" fn init_hctx_callback(
        hctx: *mut bindings::blk_mq_hw_ctx,
        data: *mut c_void,
        index: c_uint,
    ) -> c_int {
        // SAFETY: The block layer passes the `driver_data` of the tag set, which is a `Shared`.
        let shared = unsafe { &*data.cast::<Shared<T>>() };

        // CAST: From 32 bits to at least as many.
        match shared.queues.get(index as usize) {
            Some(queue) => {
                // SAFETY: The block layer passes a valid hardware queue that is being set up.
                unsafe { (*hctx).driver_data = core::ptr::from_ref(queue).cast_mut().cast() };
                0
            }
            None => EINVAL.to_errno(),
        }
    }

    unsafe extern "C" fn init_request_callback(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _index: c_uint,
        _node: c_int,
    ) -> c_int {
        // SAFETY: The block layer passes a request with room for the PDU behind it, all zero, which
        // nobody uses yet, and which doesn't move.
        let mut pdu = unsafe { Pin::new_unchecked(&mut *rq.add(1).cast::<T::Pdu>()) };
        pdu.as_mut().segments().init();
        pdu.init();
        0
    }
}

impl<T: Operations> RequestList<T> {
    /// Returns the list to the block layer.
    fn into_unprepared(mut self) -> bindings::rq_list {
        let mut list = Self::new();
        while let Some(mut request) = self.pop() {
            request.unprepare();
            list.push(request);
        }
        list.into_raw()
    }
}
