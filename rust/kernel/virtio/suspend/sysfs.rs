// SPDX-License-Identifier: GPL-2.0

//! The directory `suspend` of a device in sysfs.
//!
//! Documentation/ABI/testing/sysfs-bus-virtio-suspend.

use core::ptr::{
    null,
    null_mut, //
};

use kernel::{
    container_of,
    device::Bound,
    error::to_result,
    fmt::{
        self,
        Write as _, //
    },
    prelude::*,
    str::{
        as_char_ptr_in_const_context,
        parse_int::ParseInt,
        BStr,
        Formatter, //
    },
    sync::aref::ARef, //
};

use super::{
    controller::Stats,
    extension::Extension,
    operations::Operations,
    protocol::{
        Goal,
        Revision,
        State, //
    },
};
use crate::{
    bindings::{
        self,
        attribute_group,
        device,
        device_attribute, //
    },
    compat::{
        BoundInternal,
        EOPNOTSUPP, //
    },
    driver::common_of,
    sysfs::{
        self,
        Attributes,
        File,
        Group, //
    },
    Device, //
};

/// The name of the directory.
pub(super) const DIRECTORY: &CStr = c"suspend";

/// A `struct device_attribute` that can be a static.
#[repr(transparent)]
struct Attribute(device_attribute);

// SAFETY: The kernel only reads a `struct device_attribute` after its registration.
unsafe impl Sync for Attribute {}

impl Attribute {
    const fn new<F: File<Show, Store>, O: Owner>() -> Self {
        let mut this: device_attribute = pin_init::zeroed();
        this.attr.name = as_char_ptr_in_const_context(F::NAME);
        this.attr.mode = F::MODE;
        if F::SHOW.is_some() {
            this.__bindgen_anon_1.show = Some(show::<F, O>);
        }
        if F::STORE.is_some() {
            this.__bindgen_anon_2.store = Some(store::<F, O>);
        }
        Self(this)
    }
}

/// Whose devices a group of attributes belongs to.
pub(super) trait Owner {
    /// Calls `f` for a device.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is none of the owner's.
    ///
    /// # Safety
    ///
    /// The device must be bound, and the group must be one that the owner has added to it.
    unsafe fn with<R>(
        dev: &Device<Bound>,
        f: impl FnOnce(&dyn Operations, &Device<Bound>) -> Result<R>,
    ) -> Result<R>;
}

/// The drivers of this crate: the group is among their `dev_groups`.
struct CrateDrivers;

impl Owner for CrateDrivers {
    unsafe fn with<R>(
        dev: &Device<Bound>,
        f: impl FnOnce(&dyn Operations, &Device<Bound>) -> Result<R>,
    ) -> Result<R> {
        // SAFETY: By the safety requirements the driver is one that was registered through
        // `Adapter`. The driver core adds the group after a probe has succeeded.
        f(unsafe { common_of(dev) }, dev)
    }
}

/// # Safety
///
/// To be called by the driver core, for an attribute in a group of this file.
unsafe fn bound<'a>(dev: *mut device) -> &'a Device<Bound> {
    // SAFETY: The groups are only added to devices of the virtio bus, so that the device is
    // embedded in a `struct virtio_device`.
    let vdev = unsafe { container_of!(dev, bindings::virtio_device, dev) };
    // SAFETY: The group is added after a probe succeeded, and removed, waiting for its users,
    // before `remove` is called.
    // INVARIANT: The reference stays within the call.
    unsafe { &*vdev.cast::<Device<BoundInternal>>() }
}

unsafe extern "C" fn show<F: File<Show, Store>, O: Owner>(
    dev: *mut device,
    _attr: *mut device_attribute,
    buf: *mut c_char,
) -> isize {
    // SAFETY: This is called by the driver core.
    let dev = unsafe { bound(dev) };
    // SAFETY: As above, with a buffer for this call. The group is one of the owner's.
    unsafe {
        sysfs::show(buf, |page| {
            let show = F::SHOW.ok_or(EIO)?;
            let mut f = Formatter::new(page);
            O::with(dev, |ops, _| show(ops, &mut f).map_err(|_| EIO))?;
            Ok(f.bytes_written())
        })
    }
}

unsafe extern "C" fn store<F: File<Show, Store>, O: Owner>(
    dev: *mut device,
    _attr: *mut device_attribute,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: This is called by the driver core.
    let dev = unsafe { bound(dev) };
    // SAFETY: As above, with a buffer for this call. The group is one of the owner's.
    unsafe {
        sysfs::store(buf, count, |line| {
            let store = F::STORE.ok_or(EIO)?;
            O::with(dev, |ops, dev| store(ops, dev, line))
        })
    }
}

/// Defines the files, and the array of their attributes.
macro_rules! files {
    ($($file:ident: $name:literal { $($body:tt)* })*) => {
        $(
            struct $file;

            impl File<Show, Store> for $file {
                const NAME: &'static CStr = $name;
                $($body)*
            }
        )*

        files!(@array CRATE_ATTRIBUTES CrateDrivers $($file)*);
        files!(@array EXTENSION_ATTRIBUTES Extension $($file)*);
    };
    (@array $name:ident $owner:ident $($file:ident)*) => {
        static $name: Attributes<{ 1 + [$(stringify!($file)),*].len() }> = Attributes([
            $({
                static ATTRIBUTE: Attribute = Attribute::new::<$file, $owner>();
                &raw const ATTRIBUTE.0.attr
            },)*
            null(),
        ]);
    };
}

type Show = fn(&dyn Operations, &mut Formatter<'_>) -> fmt::Result;
type Store = fn(&dyn Operations, &Device<Bound>, &BStr) -> Result;

/// What a line that is written to a file `request` asks for.
pub(super) fn goal_of(line: &BStr) -> Result<Goal> {
    match &**line {
        b"suspend" => Ok(Goal::Suspend),
        b"resume" => Ok(Goal::Resume),
        _ => Err(EINVAL),
    }
}

fn stats(ops: &dyn Operations) -> Stats {
    ops.controller().stats()
}

files! {
    StateFile: c"state" {
        const SHOW: Option<Show> = Some(|ops, f| {
            let state = ops.controller().state();
            writeln!(f, "{}", state.name())
        });
    }

    RequestFile: c"request" {
        const STORE: Option<Store> = Some(|ops, dev, line| {
            let goal = goal_of(line)?;
            ops.controller().request(ops, dev, goal, None)
        });
    }

    RevisionFile: c"revision" {
        const SHOW: Option<Show> = Some(|ops, f| {
            let revision = match ops.controller().revision() {
                Some(Revision::V1_4) => "1.4",
                Some(Revision::Draft) => "draft",
                None => ops.obstacle().0,
            };
            writeln!(f, "{revision}")
        });
    }

    TimeoutFile: c"timeout_ms" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).timeout_ms));
        const STORE: Option<Store> = Some(|ops, _dev, line| {
            ops.controller().set_timeout_ms(u32::from_str(line)?)
        });
    }

    SuspendsFile: c"suspends" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).suspends));
    }

    ResumesFile: c"resumes" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).resumes));
    }

    FailuresFile: c"failures" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).failures));
    }

    RecoveriesFile: c"recoveries" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).recoveries));
    }

    QuirksFile: c"quirks" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).quirks));
    }

    SleepFile: c"sleep" {
        const SHOW: Option<Show> = Some(|ops, f| {
            let keep = stats(ops).keep && ops.can_keep_state();
            writeln!(f, "{}", if keep { "keep" } else { "reset" })
        });
        const STORE: Option<Store> = Some(|ops, _dev, line| {
            let keep = match &**line {
                b"keep" => true,
                b"reset" => false,
                _ => return Err(EINVAL),
            };
            if keep && !ops.can_keep_state() {
                return Err(EOPNOTSUPP);
            }
            ops.controller().set_keep(keep);
            Ok(())
        });
    }

    SleepsKeptFile: c"sleeps_kept" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).sleeps_kept));
    }

    SleepsResetFile: c"sleeps_reset" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).sleeps_reset));
    }

    LastSuspendFile: c"last_suspend_ns" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).last_suspend_ns));
    }

    LastResumeFile: c"last_resume_ns" {
        const SHOW: Option<Show> = Some(|ops, f| writeln!(f, "{}", stats(ops).last_resume_ns));
    }

    LastErrorFile: c"last_error" {
        const SHOW: Option<Show> = Some(|ops, f| match stats(ops).last_error {
            Some(failure) => writeln!(f, "{} {}", failure.errno_name(), failure.reason),
            None => writeln!(f, "none"),
        });
    }
}

static CRATE: Group = Group::named(DIRECTORY, &CRATE_ATTRIBUTES);
static EXTENSION: Group = Group::named(DIRECTORY, &EXTENSION_ATTRIBUTES);

/// A null-terminated array of groups.
struct Groups([*const attribute_group; 2]);

// SAFETY: The kernel only reads the array, and what it points to.
unsafe impl Sync for Groups {}

static CRATE_GROUPS: Groups = Groups([&raw const CRATE.0, null()]);

/// The attribute groups of a device that can be suspended, for `dev_groups` of its driver.
pub(super) fn groups() -> *const *const attribute_group {
    CRATE_GROUPS.0.as_ptr()
}

/// The files of a device whose driver is none of this crate's, there until it is dropped.
///
/// # Invariants
///
/// The group is there. The device is bound until this has been dropped.
pub(super) struct Files(ARef<Device>);

impl Files {
    /// Adds the files. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], or [`EEXIST`] if there is a directory of the name.
    ///
    /// # Safety
    ///
    /// What is returned must be dropped before the device is unbound.
    pub(super) unsafe fn new(dev: &Device<Bound>) -> Result<Self> {
        // SAFETY: The device is valid, so its kobject is. The group is 'static.
        to_result(unsafe {
            bindings::sysfs_create_group(
                &raw mut (*dev.as_raw_device()).kobj,
                &raw const EXTENSION.0,
            )
        })?;
        let dev: &Device = dev;
        // INVARIANT: By the safety requirements.
        Ok(Self(dev.into()))
    }
}

impl Drop for Files {
    /// Removes the files, and waits for whoever uses them. May sleep.
    fn drop(&mut self) {
        // SAFETY: As in `new`.
        unsafe {
            bindings::sysfs_remove_group(
                &raw mut (*self.0.as_raw_device()).kobj,
                &raw const EXTENSION.0,
            )
        };
    }
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
