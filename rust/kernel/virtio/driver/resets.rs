// SPDX-License-Identifier: GPL-2.0

//! Resets of functions that are under way.
//!
//! The bus tells a driver before and after a reset of its function. In between the registers can't
//! be read, and then the virtio core initialises the device, all of it without the device lock. A
//! device that is unbound or bound meanwhile would be torn between the two, and the virtio core
//! finds a device that its driver has left in a state that is not reset.

use kernel::{
    device::Bound,
    prelude::*,
    sync::global_lock,
    time::{
        delay::fsleep,
        Delta, //
    },
};

use crate::{
    bindings,
    Device, //
};

/// How long a reset of a function can take, in milliseconds, as `PCIE_RESET_READY_POLL_MS` has it
/// with a little time for the driver.
const PATIENCE_MS: i64 = 61_000;

/// How often it is looked whether one is over, in milliseconds.
const STEP_MS: i64 = 2;

global_lock! {
    // SAFETY: `init`, called when the module is loaded, initializes it before anything else in the
    // module can run.
    unsafe(uninit) static RESETS: Mutex<KVec<usize>> = KVec::new();
}

/// Called by the module's init function.
pub(super) fn init() {
    // SAFETY: A module is loaded once, and this is called from its init function only.
    unsafe { RESETS.init() };
}

/// The function of a device is about to be reset. `vdev` is only compared, here and below. May
/// sleep; the lock of the function is held.
pub(super) fn begin(vdev: *const bindings::virtio_device) {
    // Without memory nobody waits for the reset, as if there were none of this.
    let _ = RESETS.lock().push(vdev.addr(), GFP_KERNEL);
}

/// The function has been reset, and the virtio core does nothing more to the device before it has
/// the device lock. May sleep.
pub(super) fn end(vdev: *const bindings::virtio_device) {
    let mut resets = RESETS.lock();
    resets.retain(|addr| *addr != vdev.addr());
    // A static is not dropped when its module is unloaded.
    if resets.is_empty() {
        *resets = KVec::new();
    }
}

/// Waits until the function of a device is not being reset. May sleep; the device lock is held.
pub(super) fn wait(dev: &Device<Bound>) {
    let vdev = dev.as_raw();
    for _ in 0..PATIENCE_MS / STEP_MS {
        if !RESETS.lock().contains(&vdev.addr()) {
            return;
        }
        // Who resets the function holds its lock. So does who removes it, and calls this.
        if dev.has_failed() || !dev.is_parent_locked() {
            break;
        }
        fsleep(Delta::from_millis(STEP_MS));
    }
    // The device could not be initialised, and nobody tells.
    end(vdev);
}
