// SPDX-License-Identifier: GPL-2.0

//! SUSPEND for devices that the kernel's own drivers run.
//!
//! The drivers stay as they are: see `virtio::suspend::extension`, and for what an operator has to
//! know, Documentation/admin-guide/virtio-suspend.rst. Here are the drivers that can be stopped,
//! one file for each, and those that can't.

use kernel::prelude::*;
use virtio::suspend::extension::{
    Extension,
    Quiescer, //
};

#[path = "virtio_suspend/block.rs"]
mod block;
#[path = "virtio_suspend/entropy.rs"]
mod entropy;
#[path = "virtio_suspend/input.rs"]
mod input;
#[path = "virtio_suspend/net.rs"]
mod net;
#[path = "virtio_suspend/refused.rs"]
mod refused;
#[path = "virtio_suspend/scsi.rs"]
mod scsi;

static QUIESCERS: &[&dyn Quiescer] = &[
    &block::VirtioBlk,
    &entropy::VirtioRng,
    &input::VirtioInput,
    &net::VirtioNet,
    &scsi::VirtioScsi,
];

struct VirtioSuspend {
    _extension: Extension,
}

impl kernel::Module for VirtioSuspend {
    fn init(module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _extension: Extension::new(module, QUIESCERS, refused::REFUSED)?,
        })
    }
}

module! {
    type: VirtioSuspend,
    name: "virtio_suspend",
    authors: ["The virtio-suspend developers"],
    description: "SUSPEND for virtio devices that the kernel's own drivers run",
    license: "GPL",
}
