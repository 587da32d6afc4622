// SPDX-License-Identifier: GPL-2.0

//! Memory that can be lent to a device.

use core::ptr::NonNull;

use kernel::{
    alloc::{
        flags::{
            __GFP_HIGHMEM,
            __GFP_ZERO, //
        },
        Flags, //
    },
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*, //
};

use super::private::Sealed;
use crate::bindings;

/// Memory that can be part of a buffer: [`DmaBytes`] or [`DmaPages`].
///
/// # Safety
///
/// Implementers must guarantee that the runs that [`runs`](DmaMemory::runs) tells
///
/// - are of the linear mapping, can be mapped for DMA, and share no cache line of DMA with other
///   data; they don't overlap,
/// - are owned: valid for reading and writing for as long as the value is borrowed, and accessed by
///   nobody who does not borrow it; by a shared borrow only read.
pub unsafe trait DmaMemory: Sealed {
    /// Returns how many bytes there are.
    fn len(&self) -> usize;

    /// Returns whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `f` with each run of bytes that follow one another in the linear mapping, in order.
    ///
    /// # Errors
    ///
    /// Those of `f`.
    #[doc(hidden)]
    fn runs(&self, f: &mut dyn FnMut(NonNull<u8>, usize) -> Result) -> Result;
}

/// What memory for DMA is aligned to, and a multiple of, so that it shares no cache line: the most
/// that any architecture asks for.
const DMA_ALIGN: usize = 128;

/// Bounds what a device says to have written. Since it is the device's word, neither it nor what is
/// made of it leads outside of what there is, not even speculatively.
fn bound(written: usize, len: usize) -> usize {
    let written = written.min(len);
    // SAFETY: Any index and size will do. A length has less than `usize::MAX` bytes.
    unsafe { bindings::array_index_nospec(written, len + 1) }
}

/// Bytes from `kmalloc`, in cache lines of DMA of their own.
///
/// They are zero at first. Nothing makes them zero again: what a device did not write into a buffer
/// that is used once more is what was in it before.
pub struct DmaBytes(KVec<u8>);

impl DmaBytes {
    /// Allocates `len` bytes, which can be 0.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, [`EINVAL`] if it is more than there can be.
    pub fn new(len: usize, flags: Flags) -> Result<Self> {
        // `kmalloc` aligns to the largest power of two that divides the size.
        let size = len.checked_next_multiple_of(DMA_ALIGN).ok_or(EINVAL)?;
        let mut bytes = KVec::with_capacity(size, flags)?;

        bytes.extend_with(len, 0, flags)?;
        Ok(Self(bytes))
    }

    /// Returns the bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Returns what the device has written: the first `written` bytes, or all of them, if it says
    /// more. That is [`Used::len`](crate::Used::len), less what the parts before have room for.
    pub fn written(&self, written: usize) -> &[u8] {
        &self.0[..bound(written, self.0.len())]
    }
}

impl Sealed for DmaBytes {}

// SAFETY: `Kmalloc` allocates from the linear mapping, and `new` asks for whole cache lines. A
// `KVec` owns its elements, which stay where they are unless it grows, and this one does not.
unsafe impl DmaMemory for DmaBytes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn runs(&self, f: &mut dyn FnMut(NonNull<u8>, usize) -> Result) -> Result {
        match NonNull::new(self.0.as_ptr().cast_mut()) {
            Some(ptr) if !self.0.is_empty() => f(ptr, self.0.len()),
            _ => Ok(()),
        }
    }
}

/// A list of pages, for what is too long, or too often allocated, to be in one piece.
///
/// They are zero at first, as [`DmaBytes`] are.
///
/// # Invariants
///
/// The pages are of the linear mapping, and initialised. There are as many as `len` bytes need.
pub struct DmaPages {
    pages: KVec<Page>,
    len: usize,
}

impl DmaPages {
    /// Allocates pages for `len` bytes, which can be 0.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub fn new(len: usize, flags: Flags) -> Result<Self> {
        let count = len.div_ceil(PAGE_SIZE);
        let mut pages = KVec::with_capacity(count, flags)?;

        for _ in 0..count {
            let page = Page::alloc_page((flags & !__GFP_HIGHMEM) | __GFP_ZERO)?;
            pages.push(page, flags)?;
        }
        // INVARIANT: All memory but high memory is in the linear mapping, and it has been zeroed.
        Ok(Self { pages, len })
    }

    /// Returns the address of a page, and how many of its bytes count.
    fn run(&self, index: usize) -> Option<(NonNull<u8>, usize)> {
        let page = self.pages.get(index)?;
        let len = (self.len - index * PAGE_SIZE).min(PAGE_SIZE);
        // SAFETY: The page is valid, and by the type invariants it has an address.
        let address = unsafe { bindings::page_address(page.as_ptr()) };
        Some((NonNull::new(address.cast())?, len))
    }

    /// Returns the bytes of a page, to be changed; the last may have less than the others.
    pub fn page_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let (ptr, len) = self.run(index)?;
        // SAFETY: By the type invariants the bytes are initialised. The page is owned by this, and
        // has no other address that is used: who has borrowed it mutably has it alone. A device has
        // it only while it is borrowed, see `Lend`.
        Some(unsafe { core::slice::from_raw_parts_mut(ptr.as_ptr(), len) })
    }

    /// Returns what the device has written, in slices of a page each: the first `written` bytes, or
    /// all of them, if it says more; as for [`DmaBytes::written`].
    pub fn written(&self, written: usize) -> impl Iterator<Item = &[u8]> {
        let mut left = bound(written, self.len);
        (0..self.pages.len()).map_while(move |index| {
            let (ptr, len) = self.run(index)?;
            let len = len.min(left);
            left -= len;
            // SAFETY: As in `page_mut`, and nobody writes while this is borrowed.
            (len > 0).then(|| unsafe { core::slice::from_raw_parts(ptr.as_ptr(), len) })
        })
    }
}

impl Sealed for DmaPages {}

// SAFETY: By the type invariants the pages are of the linear mapping. They are whole, and a `Page`
// owns one. They stay where they are, and a shared borrow does not let them be written.
unsafe impl DmaMemory for DmaPages {
    fn len(&self) -> usize {
        self.len
    }

    fn runs(&self, f: &mut dyn FnMut(NonNull<u8>, usize) -> Result) -> Result {
        (0..self.pages.len())
            .map_while(|index| self.run(index))
            .try_for_each(|(ptr, len)| f(ptr, len))
    }
}
