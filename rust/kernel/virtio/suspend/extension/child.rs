// SPDX-License-Identifier: GPL-2.0

//! What the driver of a virtio device has registered with its subsystem.

use core::ptr::NonNull;

use kernel::{
    device::Bound,
    prelude::*, //
};

use crate::{
    bindings,
    Device, //
};

/// A device that the driver of a virtio device has registered: that of a disk, for example.
///
/// # Invariants
///
/// The pointer is valid, and a reference to the device is held.
pub(super) struct Child(NonNull<bindings::device>);

// SAFETY: Devices are reference-counted, and not tied to a thread.
unsafe impl Send for Child {}

// SAFETY: Nothing is done with a shared reference but to take another, which is counted.
unsafe impl Sync for Child {}

impl Child {
    /// Finds a child of the device by its class, or its type, or both. May sleep.
    pub(super) fn find(
        dev: &Device<Bound>,
        class: Option<&'static CStr>,
        kind: Option<&'static CStr>,
    ) -> Option<Self> {
        type Wanted = (Option<&'static CStr>, Option<&'static CStr>);

        unsafe extern "C" fn matches(dev: *mut bindings::device, data: *const c_void) -> c_int {
            // SAFETY: `device_find_child` passes a valid device, and `wanted` from below. Class and
            // type of a device have names, which are strings.
            unsafe {
                let wanted = &*data.cast::<Wanted>();
                let (class, kind) = ((*dev).class, (*dev).type_);
                let same = |name: *const c_char, wanted: &CStr| {
                    !name.is_null() && CStr::from_char_ptr(name).to_bytes() == wanted.to_bytes()
                };
                let found = wanted
                    .0
                    .is_none_or(|wanted| !class.is_null() && same((*class).name, wanted))
                    && wanted
                        .1
                        .is_none_or(|wanted| !kind.is_null() && same((*kind).name, wanted));
                found.into()
            }
        }

        let wanted: Wanted = (class, kind);
        // INVARIANT: The reference that the function returns is owned by the new instance.
        //
        // SAFETY: The device is valid, and `wanted` outlives the call.
        NonNull::new(unsafe {
            bindings::device_find_child(
                dev.as_raw_device(),
                (&raw const wanted).cast(),
                Some(matches),
            )
        })
        .map(Self)
    }

    pub(super) fn as_raw(&self) -> *mut bindings::device {
        self.0.as_ptr()
    }
}

impl Clone for Child {
    fn clone(&self) -> Self {
        // INVARIANT: A reference of its own is taken.
        //
        // SAFETY: By the type invariants.
        unsafe { bindings::get_device(self.0.as_ptr()) };
        Self(self.0)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::put_device(self.0.as_ptr()) };
    }
}
