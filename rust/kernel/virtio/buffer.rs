// SPDX-License-Identifier: GPL-2.0

//! Buffers: what a virtqueue carries.

use core::{
    mem::MaybeUninit,
    ptr::{
        null_mut,
        NonNull, //
    },
};

use kernel::{
    alloc::Flags,
    prelude::*, //
};

use crate::bindings;

/// The token that owns a buffer.
///
/// A driver hands a token to [`VirtQueueGuard::add`], the queue keeps it while the device has the
/// buffer, and the driver gets it back from [`VirtQueueGuard::get_buf`] or from the error of `add`.
/// When the device has been reset, the queue drops the tokens that are still with it.
///
/// A driver gets one without `unsafe` as a [`Buffer`] of any length, or as a request of the block
/// layer with a [`Command`](crate::Command). Others are added to this crate, which alone can tell
/// [`Parts`].
///
/// [`VirtQueueGuard::add`]: crate::VirtQueueGuard::add
/// [`VirtQueueGuard::get_buf`]: crate::VirtQueueGuard::get_buf
///
/// # Safety
///
/// Implementers must guarantee that
///
/// - [`from_raw`](Token::from_raw) gives back the token that [`into_raw`](Token::into_raw) took,
/// - the memory told by [`parts`](Token::parts) is owned by the token, can be mapped for DMA (never
///   on a stack, never from vmalloc), and what the device writes shares no cache line of DMA with
///   other data; the parts don't overlap, and are the same each time,
/// - neither that memory, nor the scatterlists that are told, move or are freed, nor a reference
///   into the memory exists, between `into_raw` and `from_raw`.
///
/// A token may be dropped in any context.
pub unsafe trait Token: Sized + Send + 'static {
    /// Turns the token into the pointer that goes into the ring.
    fn into_raw(self) -> NonNull<c_void>;

    /// Turns the pointer back into the token.
    ///
    /// # Safety
    ///
    /// `ptr` must come from a call to [`into_raw`](Token::into_raw) that has not been undone yet.
    unsafe fn from_raw(ptr: NonNull<c_void>) -> Self;

    /// Tells the parts of the buffer.
    ///
    /// # Errors
    ///
    /// Those of [`Parts`].
    fn parts(&mut self, parts: &mut Parts) -> Result;

    /// Returns how many bytes the device can write.
    fn writable_len(&self) -> usize;
}

/// The most parts that a buffer has: a header, data, and what the device answers.
const MAX_PARTS: usize = 3;

/// The parts of a buffer: first those that the device reads, then those that it writes.
pub struct Parts {
    /// Room for the scatterlists of parts that have none.
    own: [MaybeUninit<bindings::scatterlist>; MAX_PARTS],
    /// The scatterlists; a null pointer stands for the one in `own`.
    lists: [*mut bindings::scatterlist; MAX_PARTS],
    /// How many parts there are.
    len: usize,
    /// How many of them the device reads, which are the first.
    readable: usize,
    /// Whether any of `own` is in use.
    owns: bool,
}

impl Parts {
    #[inline]
    pub(crate) fn new() -> Self {
        Self {
            own: [const { MaybeUninit::uninit() }; MAX_PARTS],
            lists: [null_mut(); MAX_PARTS],
            len: 0,
            readable: 0,
            owns: false,
        }
    }

    /// Adds a part that the device writes or reads, and returns its place.
    #[inline]
    fn push_any(&mut self, list: *mut bindings::scatterlist, writable: bool) -> Result<usize> {
        let next = self.len;
        if !writable && self.readable != next {
            return Err(EINVAL);
        }
        *self.lists.get_mut(next).ok_or(EINVAL)? = list;
        self.len += 1;
        if !writable {
            self.readable = self.len;
        }
        Ok(next)
    }

    /// Adds a part of the linear mapping; one without bytes is left out.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is too long, there are too many parts, or the device is to read this one
    /// after one that it writes.
    pub(crate) fn push(&mut self, ptr: NonNull<u8>, len: usize, writable: bool) -> Result {
        if len == 0 {
            return Ok(());
        }
        let len = u32::try_from(len).map_err(|_| EINVAL)?;
        let next = self.push_any(null_mut(), writable)?;
        self.owns = true;
        // SAFETY: The place is valid for writing. By the safety requirements of `Token`, the memory
        // is of the linear mapping; nothing but its address is looked at here.
        unsafe { bindings::sg_init_one(self.own[next].as_mut_ptr(), ptr.as_ptr().cast(), len) };
        Ok(())
    }

    /// Adds a part that has a scatterlist already, of at least one entry.
    ///
    /// # Errors
    ///
    /// As for `push`.
    #[inline]
    pub(crate) fn push_list(
        &mut self,
        list: NonNull<bindings::scatterlist>,
        writable: bool,
    ) -> Result {
        self.push_any(list.as_ptr(), writable)?;
        Ok(())
    }

    /// Returns the scatterlists, and how many parts the device reads, and writes.
    #[inline]
    pub(crate) fn lists(&mut self) -> (&mut [*mut bindings::scatterlist], u32, u32) {
        let lists = &mut self.lists[..self.len];
        if self.owns {
            for (list, own) in lists.iter_mut().zip(self.own.iter_mut()) {
                if list.is_null() {
                    *list = own.as_mut_ptr();
                }
            }
        }
        let writable = self.len - self.readable;
        // CAST: At most `MAX_PARTS`.
        (lists, self.readable as u32, writable as u32)
    }
}

/// A buffer in memory of its own: a part that the device reads, one that it writes, or both.
///
/// The parts come from `kmalloc`, each in cache lines of its own. `context` is the driver's own.
///
/// `KBox<Buffer<C>>` is the [`Token`].
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use virtio::Buffer;
///
/// fn request() -> Result<KBox<Buffer<u64>>> {
///     let mut request = Buffer::new(16, 512, 42, GFP_KERNEL)?;
///     request.readable_mut().fill(0);
///     Ok(request)
/// }
/// # fn main() {}
/// ```
pub struct Buffer<C: Send + 'static = ()> {
    readable: KVec<u8>,
    writable: KVec<u8>,
    /// What the driver wants to find again when the buffer comes back.
    pub context: C,
}

impl<C: Send + 'static> Buffer<C> {
    /// Allocates a buffer of `readable` bytes for the device to read, followed by `writable` bytes
    /// for it to write; all are zero.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, [`EINVAL`] if both lengths are 0.
    pub fn new(readable: usize, writable: usize, context: C, flags: Flags) -> Result<KBox<Self>> {
        if readable == 0 && writable == 0 {
            return Err(EINVAL);
        }
        Ok(KBox::new(
            Self {
                readable: zeroed(readable, flags)?,
                writable: zeroed(writable, flags)?,
                context,
            },
            flags,
        )?)
    }

    /// What the device will read.
    pub fn readable_mut(&mut self) -> &mut [u8] {
        &mut self.readable
    }

    /// Copies what the device has written to `to`, from byte `from` on, and returns how many bytes
    /// that were.
    ///
    /// `written` is the length that came with the buffer, [`Used::len`](crate::Used::len). Since it
    /// is the device's word, neither it nor an index made of it can lead outside of the buffer, not
    /// even speculatively.
    pub fn copy_written(&self, written: usize, from: usize, to: &mut [u8]) -> usize {
        let written = written.min(self.writable.len());
        if from >= written {
            return 0;
        }
        // SAFETY: Any index and size will do.
        let from = unsafe { bindings::array_index_nospec(from, written) };
        let bytes = &self.writable[from..written];
        let len = bytes.len().min(to.len());

        to[..len].copy_from_slice(&bytes[..len]);
        len
    }
}

/// What memory for DMA is aligned to, and a multiple of, so that it shares no cache line: the most
/// that any architecture asks for.
const DMA_ALIGN: usize = 128;

/// Allocates memory for DMA.
fn zeroed(len: usize, flags: Flags) -> Result<KVec<u8>> {
    // `kmalloc` aligns to the largest power of two that divides the size.
    let size = len.checked_next_multiple_of(DMA_ALIGN).ok_or(EINVAL)?;
    let mut bytes = KVec::with_capacity(size, flags)?;

    bytes.extend_with(len, 0, flags)?;
    Ok(bytes)
}

// SAFETY:
// - `KBox::from_raw` undoes `KBox::into_raw`.
// - The memory is that of two `KVec`s, which the token owns: `Kmalloc` allocates from the linear
//   mapping, and `zeroed` asks for whole cache lines.
// - A `KVec` doesn't move its elements unless it grows, and nothing can reach it, nor create a
//   reference to its elements, while there is just a raw pointer to the box.
unsafe impl<C: Send + 'static> Token for KBox<Buffer<C>> {
    fn into_raw(self) -> NonNull<c_void> {
        // SAFETY: A box never is a null pointer.
        unsafe { NonNull::new_unchecked(KBox::into_raw(self)) }.cast()
    }

    unsafe fn from_raw(ptr: NonNull<c_void>) -> Self {
        // SAFETY: By the safety requirements, `ptr` comes from `KBox::into_raw` above, and nobody
        // else has made a box of it again.
        unsafe { KBox::from_raw(ptr.cast().as_ptr()) }
    }

    fn parts(&mut self, parts: &mut Parts) -> Result {
        let buffer = &mut **self;
        for (bytes, writable) in [(&mut buffer.readable, false), (&mut buffer.writable, true)] {
            let ptr = NonNull::from(bytes.as_mut_slice()).cast();
            parts.push(ptr, bytes.len(), writable)?;
        }
        Ok(())
    }

    fn writable_len(&self) -> usize {
        self.writable.len()
    }
}
