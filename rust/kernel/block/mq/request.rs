// SPDX-License-Identifier: GPL-2.0

//! Requests.

use core::{
    iter::FusedIterator,
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::{
    bindings::blk_status_t,
    prelude::*,
    transmute::AsBytes, //
};

use super::{
    Operations,
    Segments, //
};
use crate::bindings;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Op {
    Read,
    Write,
    Flush,
    Discard,
    SecureErase,
    WriteZeroes,
    /// The driver's own, made by [`Disk::execute`](super::Disk::execute), which reads.
    DriverIn,
    /// One that this abstraction has no name for.
    Other(u32),
}

/// What a driver keeps in every request, its "protocol data unit".
///
/// It begins as zero, in memory of the linear mapping, and is used again and again without being
/// dropped. It is pinned.
///
/// # Safety
///
/// [`segments`](Pdu::segments) must return the same field each time, which nothing else changes.
pub unsafe trait Pdu: Zeroable + Send {
    /// Called once when the memory of a request has been allocated.
    fn init(self: Pin<&mut Self>) {}

    /// The scatterlist of the request's data.
    fn segments(self: Pin<&mut Self>) -> Pin<&mut Segments>;
}

/// A request that the driver owns.
///
/// When it is dropped it is queued again: see [`crate::block::mq`].
///
/// # Invariants
///
/// The pointer is to a valid request of a disk of `T`, that nobody else uses.
#[repr(transparent)]
pub struct Request<T: Operations>(NonNull<bindings::request>, PhantomData<T>);

// SAFETY: A `struct request` is not tied to a thread, and its PDU, the only thing of `T` that is in
// it, is `Send`.
unsafe impl<T: Operations> Send for Request<T> {}

/// A request that the driver can't carry out, or not now.
pub struct Refused<T: Operations> {
    /// The request.
    pub request: Request<T>,
    /// [`EBUSY`] has the block layer come again when the driver starts the hardware queue that it
    /// has stopped, or a request has been completed; [`ENOMEM`] a while later. With any other error
    /// the request fails.
    pub error: Error,
}

/// Turns a result into what the block layer uses. Any context.
#[inline]
pub(super) fn to_blk_status(result: Result) -> blk_status_t {
    match result {
        Ok(()) => 0,
        // SAFETY: The function only looks the number up.
        Err(error) => unsafe { bindings::errno_to_blk_status(error.to_errno()) },
    }
}

impl<T: Operations> Request<T> {
    /// # Safety
    ///
    /// `rq` must be a valid request of a disk of `T`, that becomes the caller's.
    #[inline]
    pub(crate) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(rq, PhantomData)
    }

    /// Hands the request to somebody else.
    #[inline]
    pub(crate) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).0
    }

    #[inline]
    pub(super) fn as_ptr(&self) -> *mut bindings::request {
        self.0.as_ptr()
    }

    #[inline]
    fn flags(&self) -> u32 {
        // SAFETY: By the type invariants the request is valid, and nobody changes it.
        unsafe { (*self.as_ptr()).cmd_flags }
    }

    /// Returns what the request asks for.
    #[inline]
    pub fn op(&self) -> Op {
        match self.flags() & ((1 << bindings::REQ_OP_BITS) - 1) {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            bindings::req_op_REQ_OP_SECURE_ERASE => Op::SecureErase,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            bindings::req_op_REQ_OP_DRV_IN => Op::DriverIn,
            other => Op::Other(other),
        }
    }

    /// Returns whether the request's data is for the device to read.
    #[inline]
    pub fn is_write(&self) -> bool {
        // As `op_is_write()`.
        self.flags() & 1 != 0
    }

    /// Returns whether a request to write zeroes must not deallocate.
    #[inline]
    pub fn no_unmap(&self) -> bool {
        self.flags() & (1 << bindings::req_flag_bits___REQ_NOUNMAP) != 0
    }

    /// Returns the first sector, of 512 bytes.
    #[inline]
    pub fn sector(&self) -> u64 {
        // SAFETY: By the type invariants the request is valid, and nobody changes it.
        unsafe { (*self.as_ptr()).__sector }
    }

    /// Returns how many bytes of data the request has.
    #[inline]
    pub fn data_len(&self) -> usize {
        // CAST: From 32 bits to at least as many.
        //
        // SAFETY: By the type invariants the request is valid, and nobody changes it.
        unsafe { (*self.as_ptr()).__data_len as usize }
    }

    /// Returns the priority, see Documentation/block/ioprio.rst.
    #[inline]
    pub fn ioprio(&self) -> u16 {
        // As `req_get_ioprio()`.
        //
        // SAFETY: By the type invariants the request is valid, and so are its bios.
        unsafe {
            let bio = (*self.as_ptr()).bio;
            if bio.is_null() {
                0
            } else {
                (*bio).bi_ioprio
            }
        }
    }

    /// The ranges of a request to discard, erase, or write zeroes.
    pub fn ranges(&self) -> Ranges<'_> {
        let rq = self.as_ptr();
        // SAFETY: By the type invariants the request is valid.
        let count = unsafe { bindings::blk_rq_nr_discard_segments(rq) };
        // Where only one is allowed, bios have been merged as those of a read are.
        //
        // SAFETY: The queue of a request is valid, and its limits only change while it is frozen.
        let whole = unsafe { (*(*rq).q).limits.max_discard_segments } == 1;

        Ranges {
            bio: if whole {
                None
            } else {
                // SAFETY: By the type invariants the request is valid.
                NonNull::new(unsafe { (*rq).bio })
            },
            whole: whole.then(|| Range {
                sector: self.sector(),
                // SAFETY: As above.
                sectors: unsafe { (*rq).__data_len } >> bindings::SECTOR_SHIFT,
            }),
            left: usize::from(count),
            _request: PhantomData,
        }
    }

    #[inline]
    fn pdu_ptr(&self) -> *mut T::Pdu {
        // SAFETY: By the type invariants the request is one of a `TagSet`, which has room for the
        // PDU right behind it.
        unsafe { self.as_ptr().add(1) }.cast()
    }

    /// Returns the PDU.
    #[inline]
    pub fn pdu(&self) -> &T::Pdu {
        // SAFETY: By the type invariants nobody else uses the request. Its PDU began as zero, which
        // is a valid value.
        unsafe { &*self.pdu_ptr() }
    }

    /// Returns the PDU.
    #[inline]
    pub fn pdu_mut(&mut self) -> Pin<&mut T::Pdu> {
        // SAFETY: As in `pdu`. The memory of a request doesn't move.
        unsafe { Pin::new_unchecked(&mut *self.pdu_ptr()) }
    }

    /// Has the request carry `payload` to the device instead of the memory of who made it.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is empty or more than a segment can be, or the request has one already;
    /// [`EBUSY`] if it has been started.
    pub fn set_payload<P: AsBytes>(&mut self, payload: KVec<P>) -> Result {
        let rq = self.as_ptr();
        let bytes = payload.len() * size_of::<P>();
        let len = c_uint::try_from(bytes).map_err(|_| EINVAL)?;
        // SAFETY: The queue of a request is valid, and its limits only change while it is frozen.
        let max = unsafe { (*(*rq).q).limits.max_segment_size };
        if len == 0 || len > max || self.has_payload() {
            return Err(EINVAL);
        }
        if self.is_started() {
            return Err(EBUSY);
        }
        let (ptr, _, _) = payload.into_raw_parts();
        // SAFETY: By the type invariants the request is valid. The memory is from kmalloc, has
        // `len` bytes, and stays until `unprepare` frees it.
        unsafe { bindings::rq_set_special_payload(rq, ptr.cast(), len) };
        self.pdu_mut().segments().set_owns_payload(true);
        Ok(())
    }

    #[inline]
    fn has_payload(&self) -> bool {
        // SAFETY: By the type invariants the request is valid, and nobody changes its flags.
        let flags = unsafe { (*self.as_ptr()).rq_flags };
        flags & (1 << bindings::rqf_flags___RQF_SPECIAL_PAYLOAD) != 0
    }

    #[inline]
    fn is_started(&self) -> bool {
        // SAFETY: By the type invariants the request is valid, and its state is the owner's.
        let state = unsafe { (*self.as_ptr()).state };
        state != bindings::mq_rq_state_MQ_RQ_IDLE
    }

    /// Returns how many segments its data has at most.
    #[inline]
    fn nr_segments(&self) -> u16 {
        if self.has_payload() {
            return 1;
        }
        // SAFETY: As above.
        unsafe { (*self.as_ptr()).nr_phys_segments }
    }

    /// Maps the data, and starts the request: the device is about to get it.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, [`EBUSY`] if it has been started already.
    #[inline]
    pub fn start(&mut self) -> Result {
        let rq = self.as_ptr();
        if self.is_started() {
            return Err(EBUSY);
        }
        let count = self.nr_segments();
        if count > 0 {
            // SAFETY: The request has so many segments at most, and those in its PDU are not
            // mapped: it has not been started since it was unmapped, before it left its last owner.
            unsafe { self.pdu_mut().segments().map(rq, count)? };
        }
        // SAFETY: By the type invariants the request is valid.
        unsafe { bindings::blk_mq_start_request(rq) };
        Ok(())
    }

    /// Undoes what `start` and `set_payload` did, before the request leaves the driver.
    #[inline]
    pub(super) fn unprepare(&mut self) {
        self.pdu_mut().segments().unmap();
        // There may be one that is somebody else's: that of the request of which this is a clone,
        // see `blk_rq_prep_clone()`.
        if self.pdu_mut().segments().owns_payload() {
            self.pdu_mut().segments().set_owns_payload(false);
            // SAFETY: By the type invariants the request is valid. Its payload comes from
            // `set_payload`, and has not been freed.
            unsafe { bindings::rq_free_special_payload(self.as_ptr()) };
        }
    }

    /// Returns whether the request is one of a hardware queue that has not been started.
    pub(super) fn is_fresh_of(&self, hctx: *mut bindings::blk_mq_hw_ctx) -> bool {
        // SAFETY: By the type invariants the request is valid.
        !self.is_started() && core::ptr::eq(unsafe { (*self.as_ptr()).mq_hctx }, hctx)
    }

    /// Hands the request on to the processor that is to complete it, which then calls
    /// `complete_callback`, or gives it back if that is this one.
    #[inline]
    pub(super) fn complete_remote(self) -> Option<Self> {
        let rq = self.into_raw();
        // Somebody tries what happens when a request never ends (fail_io_timeout): it is left to
        // its timeout.
        //
        // SAFETY: The request is valid, and so is its queue.
        #[cfg(CONFIG_FAIL_IO_TIMEOUT)]
        if unsafe { bindings::blk_should_fake_timeout((*rq.as_ptr()).q) } {
            return None;
        }
        // SAFETY: The request is valid. One that has not been started can be completed, too: the
        // block layer does so itself.
        if unsafe { bindings::blk_mq_complete_request_remote(rq.as_ptr()) } {
            return None;
        }
        // SAFETY: The request is still this one's.
        Some(unsafe { Self::from_raw(rq) })
    }

    /// Completes the request, with what [`Operations::result`] says. Any context.
    #[inline]
    pub(super) fn complete(self) {
        if let Some(request) = self.complete_remote() {
            request.complete_here();
        }
    }

    /// Completes the request on this processor, with what [`Operations::result`] says.
    #[inline]
    pub(super) fn complete_here(self) {
        let result = T::result(&self);
        self.end(result);
    }

    /// Ends the request.
    #[inline]
    pub(super) fn end(mut self, result: Result) {
        self.unprepare();
        let rq = self.into_raw();
        // SAFETY: The request is valid, and has been taken from its owner: it is the block layer's
        // from here on.
        unsafe { bindings::blk_mq_end_request(rq.as_ptr(), to_blk_status(result)) };
    }
}

impl<T: Operations> Drop for Request<T> {
    fn drop(&mut self) {
        self.unprepare();
        // SAFETY: By the type invariants the request is valid. It is the block layer's from here
        // on.
        unsafe { bindings::blk_mq_requeue_request(self.as_ptr(), true) };
    }
}

/// A range of sectors, of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
}

/// The ranges of a request, see [`Request::ranges`].
pub struct Ranges<'a> {
    bio: Option<NonNull<bindings::bio>>,
    whole: Option<Range>,
    left: usize,
    _request: PhantomData<&'a ()>,
}

impl Iterator for Ranges<'_> {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        if let Some(range) = self.whole.take() {
            self.left = 0;
            return Some(range);
        }
        let bio = self.bio?.as_ptr();
        self.left = self.left.saturating_sub(1);
        // SAFETY: The bios of a request stay as they are while it is borrowed.
        let (iter, next) = unsafe { ((*bio).bi_iter, (*bio).bi_next) };
        self.bio = NonNull::new(next);
        Some(Range {
            sector: iter.bi_sector,
            sectors: iter.bi_size >> bindings::SECTOR_SHIFT,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, None)
    }
}

impl FusedIterator for Ranges<'_> {}
