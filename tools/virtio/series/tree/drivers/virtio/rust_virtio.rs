// SPDX-License-Identifier: GPL-2.0

//! What virtio drivers in Rust have in common, and there is once.
//!
//! It is linked before all drivers, and its parameters are set before that.

use kernel::{
    prelude::*,
    virtio::{
        Core,
        Parameters, //
    },
};

struct RustVirtio {
    _core: Core,
}

impl kernel::Module for RustVirtio {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let parameters = Parameters {
            draft: parameters::draft.value(),
            recover: parameters::recover.value(),
            sleep_keep: parameters::sleep_keep.value(),
        };
        Ok(Self {
            _core: Core::new(module, parameters)?,
        })
    }
}

module! {
    type: RustVirtio,
    name: "rust_virtio",
    authors: ["The virtio-suspend developers"],
    description: "Rust abstractions for virtio drivers, with SUSPEND",
    license: "GPL",
}

kernel::module_parameters! {
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
