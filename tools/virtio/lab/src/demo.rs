// SPDX-License-Identifier: GPL-2.0

//! `lab demo`: devices suspended under I/O, with explanations.

use crate::device;
use crate::guest::{self, Config};
use crate::init::Job;
use crate::kernel::Kernel;
use crate::tree::Tree;
use anyhow::Result;

const SCRIPT: &str = "tools/virtio/lab/guest/demo.py";

pub fn run(tree: &Tree, kernel: &Kernel, config: &Config) -> Result<u8> {
    println!(
        "Booting Debian's Linux {} in QEMU, with devices that offer SUSPEND: two for entropy, one \
         as VIRTIO 1.4\nhas it and one as the 2023 draft had it, and a disk.  The devices run \
         outside of QEMU and judge the driver.",
        kernel.release
    );
    let config = Config {
        devices: device::of_demo(),
        ..config.clone()
    };
    let job = Job::Command(vec![tree.join(SCRIPT).display().to_string()]);
    let outcome = guest::run(tree, kernel, "demo", &config, &job, crate::print)?;
    println!("\nWhat the devices say of the driver:");
    outcome.report(&config.output);
    Ok(outcome.status())
}
