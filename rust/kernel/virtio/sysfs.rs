// SPDX-License-Identifier: GPL-2.0

//! Files in sysfs: what those of devices, of the bus and of disks have in common.
//!
//! There is no abstraction of sysfs attributes in the kernel crate yet: this module is one, as
//! small as what is needed here.

use kernel::{
    error::from_result,
    page::PAGE_SIZE,
    prelude::*,
    str::{
        as_char_ptr_in_const_context,
        BStr, //
    },
};

use crate::bindings::{
    attribute,
    attribute_group,
    attribute_group__bindgen_ty_2,
    umode_t, //
};

/// A file of a directory, `S` being what can show it, and `T` what can take a line for it.
pub(crate) trait File<S: Copy, T: Copy> {
    const NAME: &'static CStr;

    /// What the file shows, [`None`] if it can't be read.
    const SHOW: Option<S> = None;

    /// What is done with a line that is written to the file, [`None`] if it can't be written.
    const STORE: Option<T> = None;

    /// Everyone may read what can be read, only root writes.
    const MODE: umode_t = {
        let readable: umode_t = if Self::SHOW.is_some() { 0o444 } else { 0 };
        let writable: umode_t = if Self::STORE.is_some() { 0o200 } else { 0 };
        readable | writable
    };
}

/// A null-terminated array of attributes.
pub(crate) struct Attributes<const N: usize>(pub(crate) [*const attribute; N]);

// SAFETY: The kernel only reads the array, and what it points to.
unsafe impl<const N: usize> Sync for Attributes<N> {}

/// A `struct attribute_group` that can be a static.
#[repr(transparent)]
pub(crate) struct Group(pub(crate) attribute_group);

// SAFETY: The kernel only reads a `struct attribute_group`.
unsafe impl Sync for Group {}

impl Group {
    /// A group whose files are in the directory that they are added to.
    pub(crate) const fn new<const N: usize>(attributes: &'static Attributes<N>) -> Self {
        let mut group: attribute_group = pin_init::zeroed();
        group.__bindgen_anon_2 = attribute_group__bindgen_ty_2 {
            attrs_const: attributes.0.as_ptr(),
        };
        Self(group)
    }

    /// The same, in a directory of that name.
    pub(crate) const fn named<const N: usize>(
        name: &'static CStr,
        attributes: &'static Attributes<N>,
    ) -> Self {
        let mut this = Self::new(attributes);
        this.0.name = as_char_ptr_in_const_context(name);
        this
    }
}

/// Shows a file: `write` writes to the page, and returns how much that is.
///
/// # Safety
///
/// To be called with what sysfs passes to the operation that shows a file: a zeroed buffer of
/// `PAGE_SIZE` bytes, for that call alone.
pub(crate) unsafe fn show(
    buf: *mut c_char,
    write: impl FnOnce(&mut [u8]) -> Result<usize>,
) -> isize {
    // SAFETY: By the safety requirements.
    let page = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE) };

    // CAST: At most a page.
    from_result(|| write(page).map(|len| len as isize))
}

/// Has `take` take what has been written to a file, without the newline at its end.
///
/// # Safety
///
/// To be called with what sysfs passes to the operation that stores to a file: `buf` must be valid
/// for reading `count` bytes, which are at most a page, during that call.
pub(crate) unsafe fn store(
    buf: *const c_char,
    count: usize,
    take: impl FnOnce(&BStr) -> Result,
) -> isize {
    // SAFETY: By the safety requirements.
    let bytes = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), count) };
    let line = BStr::from_bytes(bytes.strip_suffix(b"\n").unwrap_or(bytes));

    // CAST: At most a page.
    from_result(|| take(line).map(|()| count as isize))
}
