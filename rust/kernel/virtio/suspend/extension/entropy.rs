// SPDX-License-Identifier: GPL-2.0

//! The source of entropy of an entropy device.
//!
//! C header: [`include/linux/hw_random.h`](srctree/include/linux/hw_random.h)

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    sync::aref::ARef, //
};

use super::{
    callbacks::Detached,
    front::Inside,
    Foreign,
    Gate,
    SystemSleep,
    Users,
    Virtqueues, //
};
use crate::{
    bindings::{
        self,
        hwrng, //
    },
    compat::EOPNOTSUPP,
    suspend::failure::Failure,
    Device, //
};

/// How long a reader waits before it looks again, in milliseconds: the kernel serialises the
/// readers, and those that do not want to wait are kept as long.
const SLICE_MS: c_uint = 50;

/// What the hwrng core calls to read from a source.
type Read = unsafe extern "C" fn(*mut hwrng, *mut c_void, usize, bool) -> c_int;

/// The source of entropy that the kernel's own driver has registered for a device.
///
/// # Invariants
///
/// The source is valid as long as the driver is bound, unless the driver registers another, as it
/// does for a sleep of the system.
pub struct Source {
    source: NonNull<hwrng>,
    dev: ARef<Device>,
}

impl Source {
    /// Finds the source of a device.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if the driver does not keep it where Linux 7.3's does.
    pub fn of(dev: &Foreign<'_>) -> Result<Self, Failure> {
        // INVARIANT: It is part of the driver's data, which is there while the driver is bound.
        Self::find(dev.0)
            .map(|source| Self {
                source,
                dev: dev.0.into(),
            })
            .ok_or(Failure::new(
                EOPNOTSUPP,
                "the driver is not that of Linux 7.3",
            ))
    }

    /// The driver must be bound, and have virtqueues.
    fn find(dev: &Device) -> Option<NonNull<hwrng>> {
        // SAFETY: The device is valid, and has the data of its driver.
        NonNull::new(unsafe { bindings::virtio_rng_hwrng(dev.as_raw()) })
    }

    /// Keeps readers from the driver, and takes the callback of its virtqueue away, until what is
    /// returned is dropped. May sleep.
    ///
    /// A reader that has got the last of what the driver has received has it add its buffer again.
    /// That must not fail: the driver takes no notice, and nobody would get anything any more. So
    /// whoever is at it is waited for while the virtqueue is open, and others are kept away: they
    /// wait, or get nothing if they do not want to. One that waits in the driver is sent away.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn hold(self, queues: &Virtqueues<'_>) -> Result<HeldSource, Failure> {
        let queues = queues.detach()?;
        let source = self.source.as_ptr();
        // SAFETY: By the type invariants. Nobody else changes it.
        let own = unsafe { (&raw const (*source).read).read_volatile() };
        // SAFETY: As above. Whoever reads it meanwhile finds the one or the other.
        unsafe { (&raw mut (*source).read).write_volatile(Some(READ_LATER)) };
        // Whoever has seen the driver's own has added the buffer when it sleeps for the first time,
        // which is to wait until it has been used, or it is done. Nobody adds it once more, because
        // nobody takes it out.
        Users::Tasks.wait();
        // SAFETY: As above; the source has the operation, which is the driver's, and wakes whoever
        // waits there: it returns, and the buffer stays where it is.
        if let Some(cleanup) = unsafe { (*source).cleanup } {
            // SAFETY: As above.
            unsafe { cleanup(source) };
        }
        // INVARIANT: The operation is in place of the driver's own.
        Ok(HeldSource {
            source: Some(self),
            own,
            queues: Some(queues),
        })
    }
}

/// A source of entropy from which nobody reads, until this is dropped.
///
/// # Invariants
///
/// The driver is bound as long as there is this, and has virtqueues as long as there is a source;
/// `own` is its operation, for which [`read_later`] stands in.
pub struct HeldSource {
    source: Option<Source>,
    own: Option<Read>,
    queues: Option<Detached>,
}

// SAFETY: None of it is tied to a thread.
unsafe impl Send for HeldSource {}

impl Gate for HeldSource {
    fn abandon(&mut self) {
        // The driver has unregistered it, and told whoever has read from it.
        self.source = None;
    }

    fn system_sleep(&self) -> SystemSleep {
        // The driver unregisters the source, and registers another.
        SystemSleep::IfKept
    }
}

impl Drop for HeldSource {
    fn drop(&mut self) {
        // First: the driver has no lock between a reader that adds the buffer and the callback.
        self.queues = None;
        let Some(Source { source, dev }) = &self.source else {
            return;
        };
        // It is another if the driver has reset the device for a sleep of the system. One at the
        // same address has the same operation.
        if Source::find(dev) == Some(*source) {
            // SAFETY: By the type invariants; the driver has it.
            unsafe { (&raw mut (*source.as_ptr()).read).write_volatile(self.own) };
        }
    }
}

/// What stands in. One function may have several addresses; this is one of them.
static READ_LATER: Read = read_later;

/// Reads nothing; waits for a moment if that is wanted, or until the source is unregistered.
///
/// # Safety
///
/// The source must be registered, and the context be one that may sleep.
unsafe extern "C" fn read_later(
    source: *mut hwrng,
    _buffer: *mut c_void,
    _size: usize,
    wait: bool,
) -> c_int {
    let _inside = Inside::enter();
    if wait {
        // SAFETY: By the safety requirements.
        unsafe { bindings::hwrng_msleep(source, SLICE_MS) };
    }
    0
}
