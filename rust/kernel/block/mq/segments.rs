// SPDX-License-Identifier: GPL-2.0

//! The memory of a request, as a scatterlist.

use core::ptr::{
    null_mut,
    NonNull, //
};

use kernel::prelude::*;

use crate::bindings;

/// So many segments need no allocation: they are in the request.
#[cfg(not(CONFIG_ARCH_NO_SG_CHAIN))]
const INLINE: usize = 8;
#[cfg(CONFIG_ARCH_NO_SG_CHAIN)]
const INLINE: usize = 0;

/// The scatterlist of a request's data, to be kept in its PDU.
///
/// # Invariants
///
/// `table` has been set up by `sg_alloc_table_chained`, with `inline` as the first chunk, unless
/// its `orig_nents` is 0.
#[repr(C)]
pub struct Segments {
    table: bindings::sg_table,
    inline: [bindings::scatterlist; INLINE],
}

// SAFETY: All of it is valid when zero: pointers and integers.
// INVARIANT: `orig_nents` is 0.
unsafe impl Zeroable for Segments {}

impl Segments {
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
    pub(super) unsafe fn map(&mut self, rq: *mut bindings::request, count: u16) -> Result {
        // CAST: `INLINE` is small.
        let inline = INLINE as c_uint;
        self.table.sgl = self.inline.as_mut_ptr();
        // INVARIANT: On failure nothing is left allocated, and `orig_nents` is made 0.
        //
        // SAFETY: By the safety requirements the table is not set up. `inline` has as many entries
        // as are told, and doesn't move.
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

        let mut last = null_mut();
        // SAFETY: The table has an entry for every segment of the request.
        let nents = unsafe { bindings::__blk_rq_map_sg(rq, self.table.sgl, &mut last) };
        // CAST: Never negative.
        self.table.nents = nents as c_uint;
        Ok(())
    }

    /// Gives back what [`Segments::map`] has allocated.
    #[inline]
    pub(super) fn unmap(&mut self) {
        if self.table.orig_nents == 0 {
            return;
        }
        // CAST: `INLINE` is small.
        //
        // SAFETY: By the type invariants the table has been set up with `INLINE` entries as the
        // first chunk.
        unsafe { bindings::sg_free_table_chained(&mut self.table, INLINE as c_uint) };
        // INVARIANT: It is not set up any more.
        self.table.orig_nents = 0;
    }

    /// Returns the scatterlist, [`None`] if there is no data.
    #[inline]
    pub(crate) fn list(&self) -> Option<NonNull<bindings::scatterlist>> {
        (self.table.orig_nents > 0)
            .then(|| NonNull::new(self.table.sgl))
            .flatten()
    }
}
