// SPDX-License-Identifier: GPL-2.0

//! Buffers: what a virtqueue carries.

use core::ptr::{
    null_mut,
    NonNull, //
};

use kernel::prelude::*;

use crate::bindings;

#[path = "buffer/lend.rs"]
mod lend;
#[path = "buffer/memory.rs"]
mod memory;

pub use self::lend::{
    Buffer,
    Lend,
    LendBox,
    Parts, //
};
pub use self::memory::{
    DmaBytes,
    DmaMemory,
    DmaPages, //
};

pub(crate) mod private {
    /// What only this crate implements.
    pub trait Sealed {}
}

/// The token that owns a buffer.
///
/// A driver hands a token to [`VirtQueueGuard::add`], the queue keeps it while the device has the
/// buffer, and the driver gets it back from [`VirtQueueGuard::get_buf`] or from the error of `add`.
/// When the device has been reset, the queue drops the tokens that are still with it.
///
/// There are two, which a driver can have without `unsafe`: [`LendBox`] for whatever it makes of
/// memory for DMA, and a request of the block layer with a [`Command`](crate::Command).
///
/// [`VirtQueueGuard::add`]: crate::VirtQueueGuard::add
/// [`VirtQueueGuard::get_buf`]: crate::VirtQueueGuard::get_buf
///
/// # Safety
///
/// Implementers must guarantee that
///
/// - [`from_raw`](Token::from_raw) gives back the token that [`into_raw`](Token::into_raw) took,
/// - the memory told by [`lists`](Token::lists) can be mapped for DMA (never on a stack, never from
///   vmalloc), and what the device writes shares no cache line of DMA with other data; the parts
///   that it writes overlap with no other,
/// - from `lists` on neither that memory, nor the scatterlists that are told, move or are freed,
///   nor is the memory accessed but to read what the device only reads, as long as nothing but
///   `into_raw` is done with the token, and not before `from_raw` if it is.
///
/// A token may be dropped in any context.
pub unsafe trait Token: private::Sealed + Sized + Send + 'static {
    /// Turns the token into the pointer that goes into the ring.
    fn into_raw(self) -> NonNull<c_void>;

    /// Turns the pointer back into the token.
    ///
    /// # Safety
    ///
    /// `ptr` must come from a call to [`into_raw`](Token::into_raw) that has not been undone yet.
    unsafe fn from_raw(ptr: NonNull<c_void>) -> Self;

    /// Tells the scatterlists of the buffer.
    ///
    /// # Errors
    ///
    /// Those of [`Lists`], and of who made the buffer.
    fn lists(&mut self, lists: &mut Lists) -> Result;

    /// Returns how many bytes the device can write, by the last call of `lists`.
    fn writable_len(&self) -> usize;
}

/// The most scatterlists that a buffer has: a header, data, and what the device answers.
const MAX_LISTS: usize = 3;

/// The scatterlists of a buffer: first those that the device reads, then those that it writes.
pub struct Lists {
    lists: [*mut bindings::scatterlist; MAX_LISTS],
    /// How many there are.
    len: usize,
    /// How many of them the device reads, which are the first.
    readable: usize,
    /// How many entries they have, where that is not known to fit into any virtqueue.
    entries: usize,
}

impl Lists {
    #[inline]
    pub(crate) fn new() -> Self {
        Self {
            lists: [null_mut(); MAX_LISTS],
            len: 0,
            readable: 0,
            entries: 0,
        }
    }

    /// Adds a scatterlist, of at least one entry.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there are too many, or the device is to read this one after one that it
    /// writes.
    #[inline]
    pub(crate) fn push(&mut self, list: NonNull<bindings::scatterlist>, writable: bool) -> Result {
        let next = self.len;
        if !writable && self.readable != next {
            return Err(EINVAL);
        }
        *self.lists.get_mut(next).ok_or(EINVAL)? = list.as_ptr();
        self.len += 1;
        if !writable {
            self.readable = self.len;
        }
        Ok(())
    }

    /// Has [`VirtQueueGuard::add`](crate::VirtQueueGuard::add) check that so many entries more fit
    /// into the virtqueue.
    pub(crate) fn count(&mut self, entries: usize) {
        self.entries += entries;
    }

    /// Returns how many entries are to be checked for.
    #[inline]
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// Returns the scatterlists, and how many of them the device reads, and writes.
    #[inline]
    pub(crate) fn get(&mut self) -> (&mut [*mut bindings::scatterlist], u32, u32) {
        let writable = self.len - self.readable;
        // CAST: At most `MAX_LISTS`.
        let counts = (self.readable as u32, writable as u32);
        (&mut self.lists[..self.len], counts.0, counts.1)
    }
}
