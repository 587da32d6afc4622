// SPDX-License-Identifier: GPL-2.0

//! The directory `suspend` of the virtio bus in sysfs.
//!
//! Documentation/ABI/testing/sysfs-bus-virtio-suspend.

use core::ptr::{
    null,
    NonNull, //
};

use kernel::{
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
    }, //
};

use super::{
    super::{
        controller::TIMEOUT_MS,
        sysfs::{
            goal_of,
            DIRECTORY, //
        },
    },
    with,
    Group as Everyone,
    MAX_EXCEPTIONS, //
};
use crate::{
    bindings::{
        self,
        kobj_attribute,
        kobject, //
    },
    bus,
    compat::{
        set_kobj_attribute,
        KobjShow,
        KobjStore, //
    },
    sync::NoIo,
    sysfs::{
        self,
        Attributes,
        File,
        Group, //
    },
};

/// What the names of devices begin with.
const PREFIX: &[u8] = b"virtio";

type Show = fn(&Everyone, &mut Formatter<'_>) -> fmt::Result;
type Store = fn(&Everyone, &BStr) -> Result;

/// A `struct kobj_attribute` that can be a static.
#[repr(transparent)]
struct Attribute(kobj_attribute);

// SAFETY: The kernel only reads a `struct kobj_attribute`.
unsafe impl Sync for Attribute {}

impl Attribute {
    const fn new<F: File<Show, Store>>() -> Self {
        let mut this: kobj_attribute = pin_init::zeroed();
        this.attr.name = as_char_ptr_in_const_context(F::NAME);
        this.attr.mode = F::MODE;
        let (mut file_show, mut file_store): (Option<KobjShow>, Option<KobjStore>) = (None, None);
        if F::SHOW.is_some() {
            file_show = Some(show::<F>);
        }
        if F::STORE.is_some() {
            file_store = Some(store::<F>);
        }
        set_kobj_attribute(&mut this, file_show, file_store);
        Self(this)
    }
}

unsafe extern "C" fn show<F: File<Show, Store>>(
    _kobj: *mut kobject,
    _attr: *mut kobj_attribute,
    buf: *mut c_char,
) -> isize {
    // SAFETY: sysfs calls this, with a buffer for this call.
    unsafe {
        sysfs::show(buf, |page| {
            let show = F::SHOW.ok_or(EIO)?;
            let mut f = Formatter::new(page);
            with(|group| show(group, &mut f).map_err(|_| EIO))?;
            Ok(f.bytes_written())
        })
    }
}

unsafe extern "C" fn store<F: File<Show, Store>>(
    _kobj: *mut kobject,
    _attr: *mut kobj_attribute,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: As in `show`.
    unsafe {
        sysfs::store(buf, count, |line| {
            let store = F::STORE.ok_or(EIO)?;
            with(|group| store(group, line))
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

        static ATTRIBUTES: Attributes<{ 1 + [$(stringify!($file)),*].len() }> = Attributes([
            $({
                static ATTRIBUTE: Attribute = Attribute::new::<$file>();
                &raw const ATTRIBUTE.0.attr
            },)*
            null(),
        ]);
    };
}

/// Writes the names of devices in one line.
fn write_names(f: &mut Formatter<'_>, numbers: impl Iterator<Item = u32>) -> fmt::Result {
    for (index, number) in numbers.enumerate() {
        let space = if index == 0 { "" } else { " " };
        write!(f, "{space}virtio{number}")?;
    }
    writeln!(f)
}

/// Reads the names of devices.
fn read_names(line: &BStr) -> Result<KVec<u32>> {
    let mut numbers = KVec::new();
    let words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    for word in words {
        let digits = word.strip_prefix(PREFIX).ok_or(EINVAL)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(EINVAL);
        }
        let number = u32::from_str(BStr::from_bytes(digits))?;
        if numbers.contains(&number) {
            continue;
        }
        if numbers.len() == MAX_EXCEPTIONS {
            return Err(E2BIG);
        }
        numbers.push(number, GFP_KERNEL)?;
    }
    Ok(numbers)
}

files! {
    StateFile: c"state" {
        const SHOW: Option<Show> = Some(|group, f| {
            let state = group.inner.lock().state();
            writeln!(f, "{}", state.name())
        });
    }

    RequestFile: c"request" {
        const STORE: Option<Store> = Some(|group, line| group.request(goal_of(line)?));
    }

    TimeoutFile: c"timeout_ms" {
        const SHOW: Option<Show> = Some(|group, f| {
            let timeout_ms = group.inner.lock().timeout_ms;
            writeln!(f, "{timeout_ms}")
        });
        const STORE: Option<Store> = Some(|group, line| {
            let timeout_ms = u32::from_str(line)?;
            if !TIMEOUT_MS.contains(&timeout_ms) {
                return Err(EINVAL);
            }
            group.inner.lock().timeout_ms = timeout_ms;
            Ok(())
        });
    }

    DevicesFile: c"devices" {
        const SHOW: Option<Show> = Some(|group, f| {
            let inner = group.inner.lock();
            let held = inner.seats.iter().filter(|seat| seat.is_held());
            write_names(f, held.map(|seat| seat.dev.index()))
        });
    }

    ExceptFile: c"except" {
        const SHOW: Option<Show> = Some(|group, f| {
            let inner = group.inner.lock();
            write_names(f, inner.excepted.iter().copied())
        });
        const STORE: Option<Store> = Some(|group, line| {
            // Freed while the lock is not held, as it has been allocated.
            let numbers = read_names(line)?;
            let before = core::mem::replace(&mut group.inner.lock().excepted, numbers);
            drop(before);
            Ok(())
        });
    }

    LastErrorFile: c"last_error" {
        const SHOW: Option<Show> = Some(|group, f| {
            let last_error = group.inner.lock().last_error;
            match last_error {
                Some((number, failure)) => writeln!(
                    f,
                    "{} virtio{number} {}",
                    failure.errno_name(),
                    failure.reason
                ),
                None => writeln!(f, "none"),
            }
        });
    }
}

static FILES: Group = Group::new(&ATTRIBUTES);

/// The directory, there until it is dropped.
///
/// # Invariants
///
/// It is that of a kobject to which there is a reference.
pub(crate) struct Directory(NonNull<kobject>);

// SAFETY: A kobject is not tied to a thread.
unsafe impl Send for Directory {}

// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for Directory {}

impl Directory {
    /// For the module's init function. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(module: &'static ThisModule) -> Result<Self> {
        let _no_io = NoIo::enter();
        let bus = bus::find(module)?;
        // SAFETY: The bus is valid and registered, and stays so while this module is there, which
        // needs the module that has registered it.
        let parent = unsafe { bindings::bus_get_kset(bus) };
        let parent = NonNull::new(parent).ok_or(ENODEV)?;
        // SAFETY: As above, so its kobject is valid. The name is a string, which is copied.
        let raw = unsafe {
            bindings::kobject_create_and_add(
                DIRECTORY.as_char_ptr(),
                &raw mut (*parent.as_ptr()).kobj,
            )
        };
        // INVARIANT: There is the reference that has just been made.
        let this = Self(NonNull::new(raw).ok_or(ENOMEM)?);
        // SAFETY: The kobject is valid, and has the operations that attributes of this kind need.
        // The files are 'static.
        to_result(unsafe { bindings::sysfs_create_group(raw, &raw const FILES.0) })?;
        Ok(this)
    }
}

impl Drop for Directory {
    /// Removes the files, and waits for whoever uses them. May sleep.
    fn drop(&mut self) {
        // SAFETY: By the type invariants. Files that are not there are not removed.
        unsafe {
            bindings::sysfs_remove_group(self.0.as_ptr(), &raw const FILES.0);
            bindings::kobject_put(self.0.as_ptr());
        }
    }
}
