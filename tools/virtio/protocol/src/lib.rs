// SPDX-License-Identifier: GPL-2.0

//! The protocol of virtio SUSPEND, as the kernel module has it, built on the host.
//!
//! The files are those of the crate `virtio`, not copies: what is tested here is what runs there.
//! The modules have the paths that they have in the crate.

#[path = "../../../../rust/kernel/virtio/status.rs"]
pub mod status;

#[path = "../../../../rust/kernel/virtio/suspend/protocol.rs"]
pub mod protocol;

#[path = "../../../../rust/kernel/virtio/suspend/state_machine.rs"]
pub mod state_machine;

#[cfg(test)]
mod exhaustive;
#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod properties;
