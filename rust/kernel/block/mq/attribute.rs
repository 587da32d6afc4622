// SPDX-License-Identifier: GPL-2.0

//! Files in the directory of a disk in sysfs.

use core::ptr::null;

use kernel::{
    container_of,
    device::{
        AsBusDevice,
        Bound, //
    },
    prelude::*,
    str::{
        as_char_ptr_in_const_context,
        BStr, //
    },
};

use super::{
    Disk,
    Operations, //
};
use crate::{
    bindings::{
        self,
        attribute,
        attribute_group,
        device,
        device_attribute,
        kobject,
        umode_t, //
    },
    sysfs, //
};

/// A file of a disk of `T`. It can be read by all, and written by root if it can be written.
pub trait Attribute<T: Operations>: 'static {
    /// The name of the file.
    const NAME: &'static CStr;

    /// Returns whether the file can be written.
    fn is_writable(disk: &Disk<T>, parent: &T::Parent) -> bool {
        let _ = (disk, parent);
        false
    }

    /// Writes what is read from the file. May sleep.
    ///
    /// # Errors
    ///
    /// What the reader is to be told.
    fn show(disk: &Disk<T>, parent: &T::Parent, output: &mut Output<'_>) -> Result;

    /// Takes a line that is written to the file. May sleep.
    ///
    /// # Errors
    ///
    /// What the writer is to be told.
    fn store(disk: &Disk<T>, parent: &T::Parent, line: &BStr) -> Result {
        let _ = (disk, parent, line);
        Err(EACCES)
    }
}

/// What is read from a file: at most a page.
pub struct Output<'a> {
    page: &'a mut [u8],
    len: usize,
}

impl Output<'_> {
    /// Adds bytes as they are.
    ///
    /// # Errors
    ///
    /// [`EFBIG`] if there is no room for them.
    pub fn push(&mut self, bytes: &[u8]) -> Result {
        let room = self.page.get_mut(self.len..).unwrap_or_default();
        room.get_mut(..bytes.len())
            .ok_or(EFBIG)?
            .copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }
}

/// An [`Attribute`], for [`Operations::ATTRIBUTES`].
#[repr(C)]
pub struct AttributeFile<T: Operations> {
    raw: device_attribute,
    is_writable: fn(&Disk<T>, &T::Parent) -> bool,
}

// SAFETY: The kernel only reads it.
unsafe impl<T: Operations> Sync for AttributeFile<T> {}

impl<T: Operations> AttributeFile<T> {
    /// Makes the file of an attribute.
    pub const fn new<A: Attribute<T>>() -> Self {
        let mut raw: device_attribute = pin_init::zeroed();
        raw.attr.name = as_char_ptr_in_const_context(A::NAME);
        raw.attr.mode = 0o644;
        raw.__bindgen_anon_1.show = Some(show::<T, A>);
        raw.__bindgen_anon_2.store = Some(store::<T, A>);
        Self {
            raw,
            is_writable: A::is_writable,
        }
    }
}

/// Returns the disk that an attribute belongs to, and its parent.
///
/// # Safety
///
/// `dev` must be that of a disk of `T` that is being added, or is and is not deleted during `'a`.
unsafe fn disk<'a, T: Operations>(dev: *mut device) -> (&'a Disk<T>, &'a T::Parent) {
    // SAFETY: By the safety requirements. Until the disk has been deleted, which is seen to when
    // the parent is unbound, that is bound.
    unsafe {
        let parent = kernel::device::Device::<Bound>::from_raw((*dev).parent);
        (
            Disk::from_raw(bindings::dev_to_disk(dev)),
            T::Parent::from_device(parent),
        )
    }
}

unsafe extern "C" fn show<T: Operations, A: Attribute<T>>(
    dev: *mut device,
    _attr: *mut device_attribute,
    buf: *mut c_char,
) -> isize {
    // SAFETY: The driver core calls this for a disk that has not been deleted yet: that waits.
    let (disk, parent) = unsafe { disk(dev) };
    // SAFETY: As above, with a buffer for this call.
    unsafe {
        sysfs::show(buf, |page| {
            let mut output = Output { page, len: 0 };
            A::show(disk, parent, &mut output)?;
            Ok(output.len)
        })
    }
}

unsafe extern "C" fn store<T: Operations, A: Attribute<T>>(
    dev: *mut device,
    _attr: *mut device_attribute,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: As in `show`.
    let (disk, parent) = unsafe { disk(dev) };
    // SAFETY: As in `show`.
    unsafe { sysfs::store(buf, count, |line| A::store(disk, parent, line)) }
}

unsafe extern "C" fn is_visible<T: Operations>(
    kobj: *mut kobject,
    attr: *mut attribute,
    _n: c_int,
) -> umode_t {
    // SAFETY: The kobject is that of the disk's device, which is being added.
    let (disk, parent) = unsafe { disk::<T>(container_of!(kobj, device, kobj)) };
    // SAFETY: The attributes are those of `AttributeFile`s, which are `repr(C)`.
    let file = unsafe {
        let raw = container_of!(attr, device_attribute, attr);
        &*raw.cast::<AttributeFile<T>>()
    };

    if (file.is_writable)(disk, parent) {
        0o644
    } else {
        0o444
    }
}

/// The attribute groups of a disk, as the driver core wants them.
pub(super) struct AttributeGroups {
    attributes: KVec<*const attribute>,
    group: attribute_group,
    groups: [*const attribute_group; 2],
}

impl AttributeGroups {
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new<T: Operations>() -> Result<KBox<Self>> {
        let mut attributes = KVec::with_capacity(T::ATTRIBUTES.len() + 1, GFP_KERNEL)?;
        for file in T::ATTRIBUTES {
            attributes.push(&raw const file.raw.attr, GFP_KERNEL)?;
        }
        attributes.push(null(), GFP_KERNEL)?;

        let mut group: attribute_group = pin_init::zeroed();
        group.__bindgen_anon_1.is_visible = Some(is_visible::<T>);
        let mut this = KBox::new(
            Self {
                attributes,
                group,
                groups: [null(); 2],
            },
            GFP_KERNEL,
        )?;
        this.group.__bindgen_anon_2.attrs_const = this.attributes.as_ptr();
        this.groups[0] = &raw const this.group;
        Ok(this)
    }

    /// Returns the null-terminated array, which stays as long as this.
    pub(super) fn as_ptr(&self) -> *const *const attribute_group {
        self.groups.as_ptr()
    }
}
