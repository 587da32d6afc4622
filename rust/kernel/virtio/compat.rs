// SPDX-License-Identifier: GPL-2.0

//! What is not the same in all series of the kernel that the modules are built for.
//!
//! All code is written for the newest of them. What an older one lacks is made here, and nowhere
//! else does the code know of series; `rust/helpers/compat.c` has what takes C. Kbuild sets
//! `linux_7_3` for Linux 7.3 and whatever comes after it.
//!
//! Upstream there is no such file: each of the items is imported from where the first module has
//! it from.

use kernel::prelude::*;

use crate::bindings::{
    kobj_attribute,
    kobject, //
};

/// Reads a file in sysfs.
pub(crate) type KobjShow =
    unsafe extern "C" fn(*mut kobject, *mut kobj_attribute, *mut c_char) -> isize;

/// Writes to a file in sysfs.
pub(crate) type KobjStore =
    unsafe extern "C" fn(*mut kobject, *mut kobj_attribute, *const c_char, usize) -> isize;

#[cfg(linux_7_3)]
mod items {
    pub use kernel::{
        error::code::{
            EALREADY,
            ENETDOWN,
            EOPNOTSUPP, //
        },
        interrupt::{
            local_interrupt_disable,
            LocalInterruptDisabled, //
        },
        new_spinlock_irq,
        sync::{
            lock::spinlock::SpinLockIrqGuard,
            SpinLockIrq, //
        },
    };

    pub(crate) use kernel::{
        device::BoundInternal,
        module::this_module, //
    };

    pub(crate) use pin_init::raw_try_init;

    use kernel::device_id::IdArray;

    use super::{
        KobjShow,
        KobjStore, //
    };
    use crate::{
        bindings,
        DeviceId, //
    };

    /// Whether virtio_net bears it that its virtqueues are marked as broken. Else
    /// `virtnet_poll_cleantx` looks for used buffers for ever.
    pub const NET_BEARS_BROKEN: bool = true;

    /// Sets what is called when a file is read, and when it is written.
    pub(crate) const fn set_kobj_attribute(
        attribute: &mut bindings::kobj_attribute,
        show: Option<KobjShow>,
        store: Option<KobjStore>,
    ) {
        attribute.__bindgen_anon_1.show = show;
        attribute.__bindgen_anon_2.store = store;
    }

    /// Makes a table of devices.
    pub const fn device_ids<const N: usize>(ids: [DeviceId; N]) -> IdArray<DeviceId, (), N> {
        IdArray::new_without_index(ids)
    }

    /// The same, with its alias for modpost.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! __module_device_table {
        ($name:ident, [$($id:expr),*]) => {
            ::kernel::module_device_table!("virtio", $crate::DeviceId, $name, @none, [$($id),*]);
        };
    }

    /// A full memory barrier between processors.
    #[inline(always)]
    pub fn smp_mb() {
        kernel::sync::barrier::smp_mb(kernel::sync::barrier::Full);
    }

    /// Rounds up to whole milliseconds.
    #[inline]
    pub(crate) fn as_millis_ceil(delta: kernel::time::Delta) -> i64 {
        delta.as_millis_ceil()
    }
}

#[cfg(not(linux_7_3))]
mod items {
    use core::{
        num::NonZeroI32,
        ops::{
            Deref,
            DerefMut, //
        },
    };

    use kernel::{
        device::CoreInternal,
        device_id::IdArray,
        prelude::*,
        sync::{
            lock::spinlock::SpinLockGuard,
            LockClassKey,
            SpinLock, //
        },
        time::Delta,
        types::NotThreadSafe, //
    };

    use super::{
        KobjShow,
        KobjStore, //
    };
    use crate::{
        bindings,
        DeviceId, //
    };

    pub use kernel::sync::barrier::smp_mb;

    /// Makes an error that crate `kernel` has no name for.
    const fn error(errno: u32) -> Error {
        // CAST: It is small.
        let Some(errno) = NonZeroI32::new(-(errno as i32)) else {
            panic!("no error");
        };
        // SAFETY: `Error` has one field, of this type, and nothing else: `transmute` has seen that
        // they are of the same size. Its invariant is that the number is one of an error.
        unsafe { core::mem::transmute::<NonZeroI32, Error>(errno) }
    }

    /// Operation already in progress.
    pub const EALREADY: Error = error(bindings::EALREADY);
    /// Network is down.
    pub const ENETDOWN: Error = error(bindings::ENETDOWN);
    /// Operation not supported on transport endpoint.
    pub const EOPNOTSUPP: Error = error(bindings::EOPNOTSUPP);

    /// Stands for `device::BoundInternal`, of which it allows more. What is more is not used: the
    /// same code is built with the other one.
    pub(crate) type BoundInternal = CoreInternal<'static>;

    /// Returns the module of a driver.
    ///
    /// It is the one that this is compiled into, as any function that is generic over a type of the
    /// driver.
    #[inline]
    pub(crate) const fn this_module<M: kernel::ModuleMetadata>() -> ThisModule {
        // SAFETY: The module loader has made it, and it lives as long as the code.
        unsafe { ThisModule::from_ptr((&raw const kernel::bindings::__this_module).cast_mut()) }
    }

    /// The same: they are plain fields.
    pub(crate) const fn set_kobj_attribute(
        attribute: &mut bindings::kobj_attribute,
        show: Option<KobjShow>,
        store: Option<KobjStore>,
    ) {
        attribute.show = show;
        attribute.store = store;
    }

    /// As above: `virtqueue_enable_cb_delayed` does not look whether the virtqueue is broken.
    pub const NET_BEARS_BROKEN: bool = false;

    /// Makes a table of devices.
    pub const fn device_ids<const N: usize>(ids: [DeviceId; N]) -> IdArray<DeviceId, (), N> {
        let mut with_info = [(ids[0], ()); N];
        let mut i = 1;
        while i < N {
            with_info[i].0 = ids[i];
            i += 1;
        }
        IdArray::new_without_index(with_info)
    }

    /// The same, with its alias for modpost.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! __module_device_table {
        ($name:ident, [$($id:expr),*]) => {
            const $name: ::kernel::device_id::IdArray<
                $crate::DeviceId,
                (),
                { <[$crate::DeviceId]>::len(&[$($id),*]) },
            > = $crate::compat::device_ids([$($id),*]);

            const _: () = {
                ::kernel::module_device_table!("virtio", MODULE_TABLE, $name);
            };
        };
    }

    /// Initialises `slot`.
    ///
    /// # Safety
    ///
    /// - `slot` must be valid for writing, and what is in it is neither used nor dropped if this
    ///   fails.
    /// - It must not move until it is dropped.
    #[inline(always)]
    pub(crate) unsafe fn raw_try_init<T, E>(
        slot: *mut T,
        init: impl PinInit<T, E>,
    ) -> Result<(), E> {
        // SAFETY: By the safety requirements.
        unsafe { init.__pinned_init(slot) }
    }

    /// Rounds up to whole milliseconds.
    #[inline]
    pub(crate) fn as_millis_ceil(delta: Delta) -> i64 {
        let ns = delta.as_nanos();
        // Towards zero is up, for a negative one.
        if ns > 0 {
            (ns - 1) / 1_000_000 + 1
        } else {
            ns / 1_000_000
        }
    }

    // A spin lock can sleep there, which must not be with interrupts disabled.
    #[cfg(CONFIG_PREEMPT_RT)]
    compile_error!("a kernel with PREEMPT_RT has to be of series 7.3 at least");

    /// Interrupts of this processor are disabled as long as this exists.
    ///
    /// Unlike that of Linux 7.3 they are not counted: one that is made while there is another one
    /// is to be dropped before it, as what is in local variables is. Else interrupts are enabled
    /// too early, and a handler may wait for a lock that it has interrupted.
    pub struct LocalInterruptDisabled {
        flags: usize,
        _not_send: NotThreadSafe,
    }

    /// Disables the interrupts of this processor.
    #[inline]
    pub fn local_interrupt_disable() -> LocalInterruptDisabled {
        LocalInterruptDisabled {
            // SAFETY: This can be called anywhere.
            flags: unsafe { bindings::local_irq_save() },
            _not_send: NotThreadSafe,
        }
    }

    impl Drop for LocalInterruptDisabled {
        #[inline]
        fn drop(&mut self) {
            // SAFETY: On the same processor, by what has been saved: who has disabled interrupts
            // stays where it is.
            unsafe { bindings::local_irq_restore(self.flags) };
        }
    }

    /// A spin lock that is held with interrupts disabled.
    #[pin_data]
    pub struct SpinLockIrq<T> {
        #[pin]
        lock: SpinLock<T>,
    }

    impl<T> SpinLockIrq<T> {
        /// Constructs one, see [`kernel::sync::lock::Lock::new`].
        pub fn new(
            t: impl PinInit<T>,
            name: &'static CStr,
            key: Pin<&'static LockClassKey>,
        ) -> impl PinInit<Self> {
            pin_init!(Self {
                lock <- SpinLock::new(t, name, key),
            })
        }

        /// Disables interrupts and acquires the lock.
        #[inline]
        pub fn lock(&self) -> SpinLockIrqGuard<'_, T> {
            let irq = local_interrupt_disable();
            SpinLockIrqGuard {
                guard: self.lock.lock(),
                _irq: irq,
            }
        }

        /// Acquires the lock where interrupts are disabled.
        #[inline]
        pub fn lock_with<'a>(&'a self, _irq: &'a LocalInterruptDisabled) -> SpinLockGuard<'a, T> {
            self.lock.lock()
        }
    }

    /// Access to what a [`SpinLockIrq`] protects.
    pub struct SpinLockIrqGuard<'a, T> {
        // Dropped in this order.
        guard: SpinLockGuard<'a, T>,
        _irq: LocalInterruptDisabled,
    }

    impl<T> Deref for SpinLockIrqGuard<'_, T> {
        type Target = T;

        #[inline]
        fn deref(&self) -> &T {
            &self.guard
        }
    }

    impl<T: Unpin> DerefMut for SpinLockIrqGuard<'_, T> {
        #[inline]
        fn deref_mut(&mut self) -> &mut T {
            &mut self.guard
        }
    }

    /// Makes a [`SpinLockIrq`] with a lock class of its own.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! __new_spinlock_irq {
        ($inner:expr $(, $name:literal)? $(,)?) => {
            $crate::compat::SpinLockIrq::new(
                $inner,
                ::kernel::optional_name!($($name)?),
                ::kernel::static_lock_class!(),
            )
        };
    }
    pub use crate::__new_spinlock_irq as new_spinlock_irq;
}

pub use items::*;
