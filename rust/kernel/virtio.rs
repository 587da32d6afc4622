// SPDX-License-Identifier: GPL-2.0

//! Abstractions for virtio drivers, with SUSPEND.
//!
//! This crate is what would be `kernel::virtio` upstream. Out of tree it is the module
//! `rust_virtio`, which the drivers link to.
//!
//! - A driver implements [`Driver`] and is registered by [`module_virtio_driver!`].
//! - Its buffers travel through [`VirtQueue`]s, which own them while the device has them.
//! - A driver that implements [`suspend::Quiesce`] can be suspended and resumed through sysfs.
//!
//! C headers: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)
//!
//! # Examples
//!
//! The smallest driver that can be suspended is `samples/rust/rust_virtio_suspend.rs`.

// Kbuild gives modules this attribute; rustdoc has to be told, for the crate and for its examples.
#![cfg_attr(any(doc, doctest), no_std)]
#![doc(test(attr(no_std)))]

use kernel::prelude::*;

#[allow(
    clippy::all,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]
mod bindings {
    include!(env!("VIRTIO_BINDINGS"));
}

// The paths are needed because this file is the root of a crate. Upstream it would be a module.
#[path = "virtio/bench.rs"]
pub mod bench;
#[path = "virtio/blk.rs"]
pub mod blk;
#[path = "block.rs"]
pub mod block;
#[path = "virtio/buffer.rs"]
mod buffer;
#[path = "virtio/bus.rs"]
mod bus;
#[path = "virtio/command.rs"]
mod command;
#[path = "virtio/compat.rs"]
pub mod compat;
#[path = "virtio/config.rs"]
pub mod config;
#[path = "virtio/device.rs"]
mod device;
#[path = "virtio/driver.rs"]
mod driver;
#[path = "virtio/features.rs"]
mod features;
#[path = "hw_random.rs"]
pub mod hw_random;
#[path = "input.rs"]
pub mod input;
#[path = "virtio/net.rs"]
pub mod net;
#[path = "virtio/parameter.rs"]
#[doc(hidden)]
pub mod parameter;
#[path = "virtio/queue.rs"]
mod queue;
#[path = "virtio/status.rs"]
pub mod status;
#[path = "virtio/suspend.rs"]
pub mod suspend;
#[path = "virtio/sync.rs"]
pub mod sync;
#[path = "virtio/sysfs.rs"]
mod sysfs;
#[path = "virtio/input.rs"]
pub mod virtio_input;

pub use self::buffer::{
    Buffer,
    DmaBytes,
    DmaMemory,
    DmaPages,
    Lend,
    LendBox,
    Lists,
    Parts,
    Token, //
};
pub use self::command::Command;
pub use self::device::Device;
pub use self::driver::{
    Adapter,
    DeviceId,
    Driver,
    IdTable,
    Negotiation, //
};
pub use self::features::Feature;
pub use self::queue::{
    AddError,
    Used,
    VirtQueue,
    VirtQueueGuard,
    VirtQueues, //
};
pub use self::status::Status;

struct VirtioModule {
    // The files of this are used by whoever likes: it goes first.
    _directory: suspend::Directory,
    _debugfs: suspend::DebugfsRoot,
    // What is dropped last comes last.
    _sleep: Pin<KBox<suspend::Sleep>>,
    _workqueue: suspend::Workqueue,
    _group: Pin<KBox<suspend::Group>>,
}

impl kernel::Module for VirtioModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        driver::init_registry();
        suspend::extension::init_table();
        let group = suspend::Group::new()?;
        let workqueue = suspend::Workqueue::new()?;
        Ok(Self {
            _directory: suspend::Directory::new(module)?,
            _debugfs: suspend::DebugfsRoot::new(),
            _sleep: suspend::Sleep::new()?,
            _workqueue: workqueue,
            _group: group,
        })
    }
}

module! {
    type: VirtioModule,
    name: "rust_virtio",
    authors: ["The virtio-suspend developers"],
    description: "Rust abstractions for virtio drivers, with SUSPEND",
    license: "GPL",
}

module_parameters! {
    draft: bool {
        default: true,
        description: "Accept the SUSPEND proposed in 2023, feature bit 42 (default: on)",
    },
    recover: bool {
        default: true,
        description: "Reset and initialise a device that failed to suspend (default: on)",
    },
    sleep_keep: bool {
        default: true,
        description: "Suspend devices rather than reset them when the system sleeps (default: on)",
    },
}
