// SPDX-License-Identifier: GPL-2.0

//! RTNL, the lock of the configuration of all network interfaces.
//!
//! It is never waited for here: whoever holds it may wait for a device that does not answer, and
//! a wait for RTNL could neither be limited nor ended.

use kernel::types::NotThreadSafe;

use crate::bindings;

/// RTNL is held.
pub(super) struct Rtnl(NotThreadSafe);

impl Rtnl {
    /// Takes RTNL, if nobody holds it. Process context.
    pub(super) fn try_lock() -> Option<Self> {
        // SAFETY: The context may sleep, as it has to when RTNL is released.
        let locked = unsafe { bindings::rtnl_trylock() } != 0;
        // Not `then_some`, which would make one, and drop it, in any case.
        locked.then(|| Self(NotThreadSafe))
    }
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        // SAFETY: It has been locked in `try_lock`, by this task.
        unsafe { bindings::rtnl_unlock() };
    }
}
