// SPDX-License-Identifier: GPL-2.0

//! Buffers: what a virtqueue carries.

use core::ptr::NonNull;

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
/// [`VirtQueueGuard::add`]: crate::VirtQueueGuard::add
/// [`VirtQueueGuard::get_buf`]: crate::VirtQueueGuard::get_buf
///
/// # Safety
///
/// Implementers must guarantee that
///
/// - [`from_raw`](Token::from_raw) gives back the token that [`into_raw`](Token::into_raw) took,
/// - the memory told by [`readable`](Token::readable) and [`writable`](Token::writable) is owned
///   by the token, lies in the kernel's linear mapping (never on a stack, never from vmalloc) and
///   shares no cache line of DMA with other data; the two don't overlap, and are the same each
///   time,
/// - neither that memory moves or is freed nor a reference into it exists between `into_raw` and
///   `from_raw`.
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

    /// The part of the buffer that the device reads: where it begins, and its length in bytes.
    fn readable(&mut self) -> Option<(NonNull<u8>, usize)>;

    /// The part of the buffer that the device writes: where it begins, and its length in bytes.
    fn writable(&mut self) -> Option<(NonNull<u8>, usize)>;
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

fn segment(bytes: &mut KVec<u8>) -> Option<(NonNull<u8>, usize)> {
    (!bytes.is_empty()).then(|| (NonNull::from(bytes.as_mut_slice()).cast(), bytes.len()))
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

    fn readable(&mut self) -> Option<(NonNull<u8>, usize)> {
        segment(&mut self.readable)
    }

    fn writable(&mut self) -> Option<(NonNull<u8>, usize)> {
        segment(&mut self.writable)
    }
}
