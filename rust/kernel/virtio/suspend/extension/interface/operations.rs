// SPDX-License-Identifier: GPL-2.0

//! Operations in place of those of an interface's driver.
//!
//! The `netdev_ops` of an interface point to the operations of its driver. While the interface is
//! held they point to a copy, in which those of this file replace what they are named after. So
//! nothing is between the network stack and the driver of an interface that is not held, and what
//! an interface's pointer points to says whether it is.
//!
//! Nobody but the owner of such operations compares the pointer with anything: drivers do, to tell
//! whether an interface is one of theirs.

use core::ptr;

use kernel::{
    container_of,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    types::Opaque, //
};

use super::hold::Hold;
use crate::bindings::{
    self,
    net_device,
    net_device_ops,
    netdev_bpf,
    netdev_tx_t,
    sk_buff,
    xdp_frame, //
};
use crate::compat::ENETDOWN;

/// A copy of the operations of a driver, with those of this file.
///
/// # Invariants
///
/// It is one of the two tables of a [`Hold`], as `holds` says.
#[pin_data]
pub(super) struct Table {
    #[pin]
    ops: Opaque<net_device_ops>,
    /// Whether nothing may be sent. Else only what is asked for is held back.
    holds: bool,
}

// SAFETY: The operations are only read, and can be called in any thread.
unsafe impl Send for Table {}

// SAFETY: As above.
unsafe impl Sync for Table {}

impl Table {
    /// Returns an initializer for a copy of `own`.
    ///
    /// # Safety
    ///
    /// `own` must be valid until it has been run. The table must be the one of a [`Hold`] that is
    /// for this.
    pub(super) unsafe fn new(own: *const net_device_ops, holds: bool) -> impl PinInit<Self> {
        // INVARIANT: By the safety requirements.
        pin_init!(Self {
            ops <- Opaque::ffi_init(move |slot: *mut net_device_ops| {
                // SAFETY: By the safety requirements, and `slot` is valid for writing.
                unsafe {
                    ptr::copy_nonoverlapping(own, slot, 1);
                    bindings::net_device_ops_replace_config(slot, Some(set_features), Some(bpf));
                    if holds {
                        bindings::net_device_ops_replace_xmit(
                            slot,
                            Some(start_xmit),
                            Some(xdp_xmit),
                        );
                    }
                }
            }),
            holds,
        })
    }

    pub(super) fn ops(&self) -> *const net_device_ops {
        self.ops.get()
    }

    /// Returns whether nothing may be sent.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// Returns the table that operations are part of, if they are.
    ///
    /// # Safety
    ///
    /// They must be those that an interface has. The interface must not get others that it keeps
    /// as long as the reference is used, see [`Hold`].
    unsafe fn of<'a>(ops: *const net_device_ops) -> Option<&'a Self> {
        // SAFETY: The operations of an interface are valid.
        if !unsafe { bindings::net_device_ops_has(ops, Some(set_features)) } {
            return None;
        }
        let ops = ops.cast::<Opaque<net_device_ops>>();
        // SAFETY: Nobody else has this function in operations: they are part of a table.
        Some(unsafe { &*container_of!(ops, Self, ops) })
    }
}

/// Returns what an interface is held by, or was until RTNL can be had.
///
/// # Safety
///
/// The interface must be valid, and RTNL held as long as the reference is used.
pub(super) unsafe fn held_by<'a>(netdev: *mut net_device) -> Option<&'a Hold> {
    // SAFETY: By the safety requirements: an interface gets its own operations back with RTNL held
    // only, and what they replace is not freed before.
    unsafe { Table::of(bindings::netdev_ops(netdev)) }.map(Hold::of)
}

/// What has been asked of an interface's driver that it has not been told.
pub(super) struct Asked {
    /// Features that were to be changed.
    features: Atomic<u64>,
    /// The program of XDP was to be detached.
    detach: Atomic<bool>,
}

impl Asked {
    pub(super) const fn nothing() -> Self {
        Self {
            features: Atomic::new(0),
            detach: Atomic::new(false),
        }
    }

    pub(super) fn features(&self) -> u64 {
        self.features.load(Relaxed)
    }

    pub(super) fn detach(&self) -> bool {
        self.detach.load(Relaxed)
    }
}

/// A packet is to be sent: not now. The transmit queue is stopped.
///
/// Whoever has seen the operations before they were taken back, and comes here after that, has the
/// packet sent.
unsafe extern "C" fn start_xmit(skb: *mut sk_buff, netdev: *mut net_device) -> netdev_tx_t {
    // SAFETY: The network stack calls this with a valid interface, here and below.
    let ops = unsafe { bindings::netdev_ops(netdev) };
    // SAFETY: It does so with bottom halves disabled, which is waited for before a table is freed.
    match unsafe { Table::of(ops) } {
        Some(table) if table.holds => {
            // SAFETY: The packet is valid.
            let index = unsafe { bindings::skb_get_queue_mapping(skb) };
            // The lock of the transmit queue is held, as it is whenever something is sent.
            Hold::of(table).stop(index);
            bindings::netdev_tx_NETDEV_TX_BUSY
        }
        // SAFETY: All is as it came.
        _ => unsafe { bindings::ndo_start_xmit(ops, skb, netdev) },
    }
}

/// Frames are to be sent that were received elsewhere. They can't wait: whoever wants to send them
/// frees them.
unsafe extern "C" fn xdp_xmit(
    netdev: *mut net_device,
    count: c_int,
    frames: *mut *mut xdp_frame,
    flags: u32,
) -> c_int {
    // SAFETY: As in `start_xmit`.
    let ops = unsafe { bindings::netdev_ops(netdev) };
    // SAFETY: As in `start_xmit`.
    match unsafe { Table::of(ops) } {
        Some(table) if table.holds => ENETDOWN.to_errno(),
        // SAFETY: All is as it came.
        _ => unsafe { bindings::ndo_xdp_xmit(ops, netdev, count, frames, flags) },
    }
}

/// Features are to be changed. The driver is asked again later, see [`Hold::settle`].
unsafe extern "C" fn set_features(netdev: *mut net_device, features: u64) -> c_int {
    // SAFETY: The network stack calls this with a valid interface and RTNL held.
    let Some(hold) = (unsafe { held_by(netdev) }) else {
        return EBUSY.to_errno();
    };
    // SAFETY: The interface is valid.
    let changed = features ^ unsafe { bindings::netdev_features(netdev) };
    let asked = &hold.asked().features;
    // RTNL is held: nobody else stores.
    asked.store(asked.load(Relaxed) | changed, Relaxed);
    0
}

/// A program of XDP is to be attached, replaced or detached, or an AF_XDP socket bound.
///
/// Detaching is no request: whoever has attached the program may have died. It is done later.
unsafe extern "C" fn bpf(netdev: *mut net_device, bpf: *mut netdev_bpf) -> c_int {
    // SAFETY: As in `set_features`, and `bpf` is valid.
    let detaches = unsafe { bindings::netdev_bpf_detaches(bpf) };
    // SAFETY: As in `set_features`.
    match unsafe { held_by(netdev) } {
        Some(hold) if detaches => {
            hold.asked().detach.store(true, Relaxed);
            0
        }
        _ => {
            // SAFETY: As above.
            unsafe { bindings::netdev_bpf_refuse(bpf) };
            EBUSY.to_errno()
        }
    }
}
