// SPDX-License-Identifier: GPL-2.0

//! Requests of the block layer in virtqueues.

use core::{
    marker::PhantomPinned,
    ptr::NonNull, //
};

use kernel::{
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
};

use crate::{
    bindings::{
        self,
        scatterlist, //
    },
    block::mq::{
        Operations,
        Pdu,
        Request,
        Segments, //
    },
    buffer::{
        private::Sealed,
        Lists,
        Token, //
    },
};

/// A value that the device writes, in cache lines of DMA of its own.
#[repr(C)]
struct Isolated<S> {
    before: [u8; bindings::ARCH_DMA_MINALIGN - 1],
    value: S,
    after: [u8; bindings::ARCH_DMA_MINALIGN - 1],
}

/// The PDU of a request whose buffer is a header for the device to read, the data of the request,
/// and a status for the device to write. [`Request`] is the token of the buffer then: nothing is
/// allocated for it, nor counted.
#[repr(C)]
pub struct Command<H, S> {
    /// What the device reads.
    pub header: H,
    header_list: scatterlist,
    status_list: scatterlist,
    segments: Segments,
    status: Isolated<S>,
    _pin: PhantomPinned,
}

// SAFETY: All of it is valid when zero.
unsafe impl<H: Zeroable, S: Zeroable> Zeroable for Command<H, S> {}

// SAFETY: The scatterlists point into this or are memory of the request's, and are not tied to a
// thread.
unsafe impl<H: Send, S: Send> Send for Command<H, S> {}

impl<H, S> Command<H, S> {
    /// Fills in the header, and the status that counts if the device writes none.
    #[inline]
    pub fn set(self: Pin<&mut Self>, header: H, status: S) {
        // SAFETY: Nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        this.header = header;
        this.status.value = status;
    }

    /// Returns the status.
    #[inline]
    pub fn status(&self) -> &S {
        &self.status.value
    }
}

// SAFETY: `segments` returns the field of the name.
unsafe impl<H, S> Pdu for Command<H, S>
where
    H: Zeroable + Send,
    S: Zeroable + Send,
{
    fn init(self: Pin<&mut Self>) {
        const { assert!(size_of::<H>() > 0 && size_of::<S>() > 0) };
        // SAFETY: Nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        // CAST: Both are small.
        let (header_len, status_len) = (size_of::<H>() as c_uint, size_of::<S>() as c_uint);
        let header = (&raw mut this.header).cast();
        let status = (&raw mut this.status.value).cast();
        // SAFETY: A PDU is in the linear mapping, and stays where it is.
        unsafe {
            bindings::sg_init_one(&mut this.header_list, header, header_len);
            bindings::sg_init_one(&mut this.status_list, status, status_len);
        }
    }

    #[inline]
    fn segments(self: Pin<&mut Self>) -> Pin<&mut Segments> {
        // SAFETY: Nothing is moved out, and the segments are pinned as the whole is.
        unsafe { self.map_unchecked_mut(|this| &mut this.segments) }
    }
}

impl<T: Operations> Sealed for Request<T> {}

// SAFETY:
// - `Request::from_raw` undoes `Request::into_raw`.
// - Header and status are in the PDU, which is in the linear mapping; the block layer has found the
//   data fit for DMA. What the block layer itself changes in a request is outside of the PDU, where
//   the status has cache lines of its own.
// - All of it belongs to the request, doesn't move, and is reached through a `Request` only.
unsafe impl<T, H, S> Token for Request<T>
where
    T: Operations<Pdu = Command<H, S>>,
    H: AsBytes + Zeroable + Send,
    S: FromBytes + Zeroable + Send,
{
    #[inline]
    fn into_raw(self) -> NonNull<c_void> {
        Self::into_raw(self).cast()
    }

    #[inline]
    unsafe fn from_raw(ptr: NonNull<c_void>) -> Self {
        // SAFETY: By the safety requirements the pointer comes from `into_raw`, and the request is
        // the caller's.
        unsafe { Self::from_raw(ptr.cast()) }
    }

    // As `VirtQueueGuard::add`, which is its only caller.
    #[inline(always)]
    fn lists(&mut self, lists: &mut Lists) -> Result {
        let is_write = self.is_write();
        // SAFETY: Nothing is moved out.
        let command = unsafe { self.pdu_mut().get_unchecked_mut() };
        let data = command.segments.list();

        lists.push(NonNull::from(&mut command.header_list), false)?;
        if let Some(list) = data {
            lists.push(list, !is_write)?;
        }
        lists.push(NonNull::from(&mut command.status_list), true)
    }

    #[inline]
    fn writable_len(&self) -> usize {
        let data = if self.is_write() { 0 } else { self.data_len() };
        data + size_of::<S>()
    }
}
