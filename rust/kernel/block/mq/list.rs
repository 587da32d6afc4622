// SPDX-License-Identifier: GPL-2.0

//! Lists of requests, and their completion.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use super::{
    request::Request,
    Operations, //
};
use crate::bindings;

/// A list of requests that the driver owns, first in, first out. Nothing is allocated.
///
/// # Invariants
///
/// The list has requests of disks of `T` that nobody else uses, each as one that
/// `Request::into_raw` has given, linked by `rq_next`. They need be neither of one disk nor of one
/// hardware queue.
pub struct RequestList<T: Operations> {
    list: bindings::rq_list,
    _requests: PhantomData<Request<T>>,
}

impl<T: Operations> Default for RequestList<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Operations> RequestList<T> {
    /// Makes an empty list.
    #[inline]
    pub fn new() -> Self {
        // INVARIANT: There are no requests in it.
        Self {
            list: pin_init::zeroed(),
            _requests: PhantomData,
        }
    }

    /// Returns whether the list is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.list.head.is_null()
    }

    /// Adds a request at the end.
    #[inline]
    pub fn push(&mut self, request: Request<T>) {
        let rq = request.into_raw().as_ptr();
        // INVARIANT: The request comes from `into_raw`.
        //
        // SAFETY: The request is valid, and its link is free while a driver owns it: the block
        // layer has taken it off all lists of its own. The last one of the list is valid by the
        // type invariants.
        unsafe {
            (*rq).__bindgen_anon_1.rq_next = core::ptr::null_mut();
            if self.list.tail.is_null() {
                self.list.head = rq;
            } else {
                (*self.list.tail).__bindgen_anon_1.rq_next = rq;
            }
        }
        self.list.tail = rq;
    }

    /// Takes the first request.
    #[inline]
    pub fn pop(&mut self) -> Option<Request<T>> {
        let rq = NonNull::new(self.list.head)?;
        // SAFETY: By the type invariants the request is valid, and linked by this member.
        self.list.head = unsafe { (*rq.as_ptr()).__bindgen_anon_1.rq_next };
        if self.list.head.is_null() {
            self.list.tail = core::ptr::null_mut();
        }
        // SAFETY: By the type invariants the request is valid, and is the caller's now that it is
        // not in the list any more.
        Some(unsafe { Request::from_raw(rq) })
    }

    /// Returns the list as one of the block layer, to which all its requests belong then.
    pub(super) fn into_raw(self) -> bindings::rq_list {
        core::mem::ManuallyDrop::new(self).list
    }

    /// Completes all requests, with what [`Operations::result`] says. Any context.
    pub fn complete(mut self) {
        let Some(first) = self.pop() else { return };
        if self.list.head.is_null() {
            // A batch of one costs more than it saves.
            return first.complete();
        }
        let mut batch: bindings::io_comp_batch = pin_init::zeroed();

        // SAFETY: `batch` is empty, and stays until it is completed below.
        let mut completing = unsafe { Batch::from_raw(&mut batch) };
        completing.complete(first);
        while let Some(request) = self.pop() {
            completing.complete(request);
        }
        if let Some(complete) = batch.complete {
            // SAFETY: The batch is the one that the function has been set for.
            unsafe { complete(&mut batch) };
        }
    }
}

impl<T: Operations> Drop for RequestList<T> {
    fn drop(&mut self) {
        while let Some(request) = self.pop() {
            drop(request);
        }
    }
}

/// Completes requests, those that can be, together.
///
/// # Invariants
///
/// `iob` is null or valid. If [`Batch::complete`] has put requests into it, its function is
/// `complete_batch` for this `T`: `blk_mq_add_to_batch()` refuses one with another function.
pub struct Batch<'a, T: Operations> {
    iob: *mut bindings::io_comp_batch,
    _batch: PhantomData<(&'a mut (), Request<T>)>,
}

impl<T: Operations> Batch<'_, T> {
    /// # Safety
    ///
    /// `iob` must be null, or valid while this exists, and completed by its own function then.
    #[inline]
    pub(super) unsafe fn from_raw(iob: *mut bindings::io_comp_batch) -> Self {
        // INVARIANT: By the safety requirements, and nothing has been put into it.
        Self {
            iob,
            _batch: PhantomData,
        }
    }

    /// Completes a request, with what [`Operations::result`] says. Any context.
    #[inline]
    pub fn complete(&mut self, request: Request<T>) {
        let Some(request) = request.complete_remote() else {
            return;
        };
        let result = T::result(&request);
        let rq = request.into_raw();
        // SAFETY: The request is valid, and `self.iob` null or a valid batch.
        let batched = unsafe {
            bindings::blk_mq_add_to_batch(
                rq.as_ptr(),
                self.iob,
                result.is_err(),
                Some(Self::complete_batch),
            )
        };
        if !batched {
            // SAFETY: The request is still this one's.
            unsafe { Request::<T>::from_raw(rq) }.end(result);
        }
    }

    /// # Safety
    ///
    /// To be called for a batch of requests that [`Batch::complete`] has put into it.
    unsafe extern "C" fn complete_batch(iob: *mut bindings::io_comp_batch) {
        // SAFETY: By the safety requirements the batch is valid.
        let mut next = unsafe { (*iob).req_list.head };
        while let Some(rq) = NonNull::new(next) {
            // SAFETY: The requests in the batch are nobody's but the batch's, and linked by this
            // member.
            next = unsafe { (*rq.as_ptr()).__bindgen_anon_1.rq_next };
            // SAFETY: As above. The request goes back right away.
            let mut request = unsafe { Request::<T>::from_raw(rq) };
            request.unprepare();
            let _ = request.into_raw();
        }
        // SAFETY: All requests have been prepared for being ended.
        unsafe { bindings::blk_mq_end_request_batch(iob) };
    }
}
