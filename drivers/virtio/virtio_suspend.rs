// SPDX-License-Identifier: GPL-2.0

//! SUSPEND for devices that the kernel's own drivers run.
//!
//! The drivers stay as they are: see `virtio::suspend::extension`, and for what an operator has to
//! know, Documentation/admin-guide/virtio-suspend.rst. Here are the drivers that can be stopped,
//! one file for each.

use kernel::prelude::*;
use virtio::suspend::extension::{
    Extension,
    Quiescer, //
};

#[path = "virtio_suspend/block.rs"]
mod block;
#[path = "virtio_suspend/net.rs"]
mod net;

static QUIESCERS: &[&dyn Quiescer] = &[&block::VirtioBlk, &net::VirtioNet];

struct VirtioSuspend {
    _extension: Extension,
}

impl kernel::Module for VirtioSuspend {
    fn init(module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _extension: Extension::new(module, QUIESCERS)?,
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
