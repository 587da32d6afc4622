// SPDX-License-Identifier: GPL-2.0

//! The directory `suspend` of a device in sysfs.
//!
//! Documentation/ABI/testing/sysfs-bus-virtio-suspend. There is no abstraction of sysfs attributes
//! in the kernel crate yet: this module is one, as small as what is needed here.

use core::ptr::{
    null,
    null_mut, //
};

use kernel::{
    container_of,
    device::{
        Bound,
        BoundInternal, //
    },
    error::from_result,
    fmt::{
        self,
        Write as _, //
    },
    page::PAGE_SIZE,
    prelude::*,
    str::{
        as_char_ptr_in_const_context,
        parse_int::ParseInt,
        BStr,
        Formatter, //
    },
};

use super::{
    controller::Stats,
    protocol::{
        Goal,
        Revision,
        State, //
    },
};
use crate::{
    bindings::{
        self,
        attribute,
        attribute_group,
        attribute_group__bindgen_ty_2,
        device,
        device_attribute,
        umode_t, //
    },
    Device, //
};

/// The name of the directory.
const DIRECTORY: &CStr = c"suspend";

/// A file of the directory.
trait File {
    const NAME: &'static CStr;

    /// What the file shows, [`None`] if it can't be read.
    const SHOW: Option<Show> = None;

    /// What is done with a line that is written to the file, [`None`] if it can't be written.
    const STORE: Option<Store> = None;
}

/// A `struct device_attribute` that can be a static.
#[repr(transparent)]
struct Attribute(device_attribute);

// SAFETY: The kernel only reads a `struct device_attribute` after its registration.
unsafe impl Sync for Attribute {}

impl Attribute {
    const fn new<F: File>() -> Self {
        let mut mode: umode_t = 0;
        if F::SHOW.is_some() {
            mode |= 0o444;
        }
        if F::STORE.is_some() {
            mode |= 0o200;
        }
        let mut this: device_attribute = pin_init::zeroed();
        this.attr.name = as_char_ptr_in_const_context(F::NAME);
        this.attr.mode = mode;
        if F::SHOW.is_some() {
            this.__bindgen_anon_1.show = Some(show::<F>);
        }
        if F::STORE.is_some() {
            this.__bindgen_anon_2.store = Some(store::<F>);
        }
        Self(this)
    }
}

/// # Safety
///
/// To be called by the driver core, for an attribute in the group of [`groups`].
unsafe fn bound<'a>(dev: *mut device) -> &'a Device<Bound> {
    // SAFETY: The group is one of the `dev_groups` of drivers of the virtio bus, so that the
    // device is embedded in a `struct virtio_device`.
    let vdev = unsafe { container_of!(dev, bindings::virtio_device, dev) };
    // SAFETY: The driver core adds the group after a probe succeeded, and removes it, waiting for
    // its users, before it calls `remove`.
    // INVARIANT: The reference stays within the call.
    unsafe { &*vdev.cast::<Device<BoundInternal>>() }
}

unsafe extern "C" fn show<F: File>(
    dev: *mut device,
    _attr: *mut device_attribute,
    buf: *mut c_char,
) -> isize {
    // SAFETY: This is called by the driver core.
    let dev = unsafe { bound(dev) };
    // SAFETY: The driver core passes a zeroed buffer of `PAGE_SIZE` bytes, for this call alone.
    let page = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE) };
    let mut f = Formatter::new(page);

    match F::SHOW.map(|show| show(dev, &mut f)) {
        // CAST: At most a page.
        Some(Ok(())) => f.bytes_written() as isize,
        // CAST: Widening.
        _ => EIO.to_errno() as isize,
    }
}

unsafe extern "C" fn store<F: File>(
    dev: *mut device,
    _attr: *mut device_attribute,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: This is called by the driver core.
    let dev = unsafe { bound(dev) };
    // SAFETY: `buf` is valid for reading `count` bytes during the call.
    let bytes = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), count) };
    let line = BStr::from_bytes(bytes.strip_suffix(b"\n").unwrap_or(bytes));

    from_result(|| {
        let store = F::STORE.ok_or(EIO)?;
        store(dev, line)?;
        // CAST: At most a page.
        Ok(count as isize)
    })
}

/// Defines the files, and the array of their attributes.
macro_rules! files {
    ($($file:ident: $name:literal { $($body:tt)* })*) => {
        $(
            struct $file;

            impl File for $file {
                const NAME: &'static CStr = $name;
                $($body)*
            }
        )*

        static ATTRIBUTES: Attributes = Attributes([
            $({
                static ATTRIBUTE: Attribute = Attribute::new::<$file>();
                &raw const ATTRIBUTE.0.attr
            },)*
            null(),
        ]);
    };
}

/// A null-terminated array of attributes.
struct Attributes([*const attribute; 13]);

// SAFETY: The kernel only reads the array, and what it points to.
unsafe impl Sync for Attributes {}

type Show = fn(&Device<Bound>, &mut Formatter<'_>) -> fmt::Result;
type Store = fn(&Device<Bound>, &BStr) -> Result;

fn stats(dev: &Device<Bound>) -> Stats {
    dev.common().controller.stats()
}

files! {
    StateFile: c"state" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).state.name()));
    }

    RequestFile: c"request" {
        const STORE: Option<Store> = Some(|dev, line| {
            let goal = match &**line {
                b"suspend" => Goal::Suspend,
                b"resume" => Goal::Resume,
                _ => return Err(EINVAL),
            };
            dev.common().controller.request(dev, goal)
        });
    }

    RevisionFile: c"revision" {
        const SHOW: Option<Show> = Some(|dev, f| {
            let revision = match dev.common().controller.revision() {
                Some(Revision::V1_4) => "1.4",
                Some(Revision::Draft) => "draft",
                None => "none",
            };
            writeln!(f, "{revision}")
        });
    }

    TimeoutFile: c"timeout_ms" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).timeout_ms));
        const STORE: Option<Store> = Some(|dev, line| {
            dev.common().controller.set_timeout_ms(u32::from_str(line)?)
        });
    }

    SuspendsFile: c"suspends" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).suspends));
    }

    ResumesFile: c"resumes" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).resumes));
    }

    FailuresFile: c"failures" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).failures));
    }

    RecoveriesFile: c"recoveries" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).recoveries));
    }

    QuirksFile: c"quirks" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).quirks));
    }

    LastSuspendFile: c"last_suspend_ns" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).last_suspend_ns));
    }

    LastResumeFile: c"last_resume_ns" {
        const SHOW: Option<Show> = Some(|dev, f| writeln!(f, "{}", stats(dev).last_resume_ns));
    }

    LastErrorFile: c"last_error" {
        const SHOW: Option<Show> = Some(|dev, f| match stats(dev).last_error {
            Some(failure) => writeln!(f, "{} {}", failure.errno_name(), failure.reason),
            None => writeln!(f, "none"),
        });
    }
}

/// A `struct attribute_group` that can be a static.
#[repr(transparent)]
struct Group(attribute_group);

// SAFETY: The kernel only reads a `struct attribute_group`.
unsafe impl Sync for Group {}

static GROUP: Group = {
    let mut group: attribute_group = pin_init::zeroed();
    group.name = as_char_ptr_in_const_context(DIRECTORY);
    group.__bindgen_anon_2 = attribute_group__bindgen_ty_2 {
        attrs_const: ATTRIBUTES.0.as_ptr(),
    };
    Group(group)
};

/// A null-terminated array of groups.
struct Groups([*const attribute_group; 2]);

// SAFETY: The kernel only reads the array, and what it points to.
unsafe impl Sync for Groups {}

static GROUPS: Groups = Groups([&raw const GROUP.0, null()]);

/// The attribute groups of a device that can be suspended, for `dev_groups` of its driver.
pub(super) fn groups() -> *const *const attribute_group {
    GROUPS.0.as_ptr()
}

/// Wakes who polls the file `state`.
pub(super) fn notify(dev: &Device<Bound>) {
    // SAFETY: The device is valid, so its kobject is. Nothing happens if the file is not there.
    unsafe {
        bindings::sysfs_notify(
            &raw mut (*dev.as_raw_device()).kobj,
            DIRECTORY.as_char_ptr(),
            StateFile::NAME.as_char_ptr(),
        )
    };
}

/// Emits a change uevent with the new state as `VIRTIO_SUSPEND_STATE`.
pub(super) fn uevent(dev: &Device<Bound>, state: State) {
    let variable = match state {
        State::Running => c"VIRTIO_SUSPEND_STATE=running",
        State::Suspended => c"VIRTIO_SUSPEND_STATE=suspended",
        State::Failed => c"VIRTIO_SUSPEND_STATE=failed",
        State::Suspending | State::Resuming => return,
    };
    let mut envp = [variable.as_char_ptr().cast_mut(), null_mut()];

    // SAFETY: The device is valid, so its kobject is. The environment is a null-terminated array
    // of strings, which the function copies; it modifies neither.
    //
    // A uevent that can't be sent is lost, as for every other subsystem.
    unsafe {
        bindings::kobject_uevent_env(
            &raw mut (*dev.as_raw_device()).kobj,
            bindings::kobject_action_KOBJ_CHANGE,
            envp.as_mut_ptr(),
        )
    };
}
