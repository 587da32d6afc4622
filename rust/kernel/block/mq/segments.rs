// SPDX-License-Identifier: GPL-2.0

//! The memory of a request, as a scatterlist.

use core::{
    marker::PhantomPinned,
    ptr::{
        null_mut,
        NonNull, //
    },
};

use kernel::prelude::*;

use crate::bindings;

/// So many entries are in the request. Less segments than that need no allocation: the last entry
/// is for the link to more.
#[cfg(not(CONFIG_ARCH_NO_SG_CHAIN))]
const INLINE: usize = 8;
#[cfg(CONFIG_ARCH_NO_SG_CHAIN)]
const INLINE: usize = 0;

/// The scatterlist of a request's data, to be kept in its PDU.
///
/// # Invariants
///
/// - The entries of `inline` have been initialised. The last one may be a link that leads nowhere
///   any more.
/// - If `table.orig_nents` is more than `INLINE`, the table has been set up by
///   `sg_alloc_table_chained`, with `inline` as its first chunk.
#[repr(C)]
pub struct Segments {
    table: bindings::sg_table,
    inline: [bindings::scatterlist; INLINE],
    /// Whether the request has a payload that is to be freed.
    owns_payload: bool,
    _pin: PhantomPinned,
}

// SAFETY: All of it is valid when zero: pointers and integers.
// INVARIANT: `orig_nents` is 0, and `init` is called before anything else.
unsafe impl Zeroable for Segments {}

impl Segments {
    /// Initialises the entries, when the memory of the request has been allocated.
    pub(super) fn init(self: Pin<&mut Self>) {
        // SAFETY: Nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        if INLINE > 0 {
            // CAST: `INLINE` is small.
            //
            // SAFETY: There are as many entries as are told.
            unsafe { bindings::sg_init_table(this.inline.as_mut_ptr(), INLINE as c_uint) };
        }
    }

    /// Sets up a table in which all of `inline` is used, and what is missing is allocated. There
    /// must be none.
    #[cold]
    fn allocate(&mut self, count: u16) -> Result {
        // CAST: `INLINE` is small.
        let inline = INLINE as c_uint;
        self.table.sgl = self.inline.as_mut_ptr();
        // INVARIANT: On failure nothing is left allocated, and nothing refers to it.
        //
        // SAFETY: `inline` has as many entries as are told, and doesn't move: there is a pinned
        // reference to it.
        let ret = unsafe {
            bindings::sg_alloc_table_chained(
                &mut self.table,
                c_int::from(count),
                self.table.sgl,
                inline,
            )
        };
        if ret != 0 {
            self.table.orig_nents = 0;
            return Err(ENOMEM);
        }
        Ok(())
    }

    /// Frees what `allocate` has allocated.
    #[cold]
    fn free(&mut self) {
        // CAST: `INLINE` is small.
        //
        // SAFETY: By the type invariants the table has been set up with `INLINE` entries as the
        // first chunk.
        unsafe { bindings::sg_free_table_chained(&mut self.table, INLINE as c_uint) };
    }

    /// Maps the data of a request.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    ///
    /// # Safety
    ///
    /// `rq` must be a request that the caller owns, in whose PDU this is, with at most `count`
    /// segments, which must not be 0. They must not be mapped.
    #[inline]
    pub(super) unsafe fn map(
        self: Pin<&mut Self>,
        rq: *mut bindings::request,
        count: u16,
    ) -> Result {
        // SAFETY: Nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        if usize::from(count) < INLINE {
            this.table.sgl = this.inline.as_mut_ptr();
            this.table.orig_nents = c_uint::from(count);
        } else {
            this.allocate(count)?;
        }

        let mut last = null_mut();
        // SAFETY: The table has an entry for every segment of the request, and no link but those in
        // between. The entries need not be as new: this marks the end, and takes off the mark of an
        // earlier mapping that was shorter.
        let nents = unsafe { bindings::__blk_rq_map_sg(rq, this.table.sgl, &mut last) };
        // CAST: Never negative.
        this.table.nents = nents as c_uint;
        Ok(())
    }

    /// Gives back what [`Segments::map`] has allocated.
    #[inline]
    pub(super) fn unmap(self: Pin<&mut Self>) {
        // SAFETY: Nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        // CAST: From 32 bits to at least as many.
        if this.table.orig_nents as usize > INLINE {
            this.free();
        }
        // INVARIANT: It is not set up any more.
        this.table.orig_nents = 0;
    }

    /// Returns whether the request has a payload that is to be freed.
    #[inline]
    pub(super) fn owns_payload(&self) -> bool {
        self.owns_payload
    }

    /// Notes whether the request has a payload that is to be freed.
    #[inline]
    pub(super) fn set_owns_payload(self: Pin<&mut Self>, owns: bool) {
        // SAFETY: Nothing is moved out.
        unsafe { self.get_unchecked_mut() }.owns_payload = owns;
    }

    /// Returns the scatterlist, [`None`] if there is no data.
    #[inline]
    pub(crate) fn list(&self) -> Option<NonNull<bindings::scatterlist>> {
        (self.table.orig_nents > 0)
            .then(|| NonNull::new(self.table.sgl))
            .flatten()
    }
}
