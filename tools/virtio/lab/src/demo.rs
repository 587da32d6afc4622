// SPDX-License-Identifier: GPL-2.0

//! `lab demo`: a device suspended under I/O, with explanations.

use crate::guest::{self, Config};
use crate::init::Job;
use crate::kernel::Kernel;
use crate::tree::Tree;
use anyhow::Result;

const SCRIPT: &str = "tools/virtio/lab/guest/demo.py";

pub fn run(tree: &Tree, kernel: &Kernel, config: &Config) -> Result<u8> {
    println!(
        "Booting Debian's Linux {} in QEMU, with two devices that offer SUSPEND: one as VIRTIO 1.4 \
         has it,\none as the 2023 draft had it.  The devices run outside of QEMU and judge the \
         driver.",
        kernel.release
    );
    let job = Job::Command(vec![tree.join(SCRIPT).display().to_string()]);
    let outcome = guest::run(tree, kernel, "demo", config, &job, crate::print)?;
    println!("\nWhat the devices say of the driver:");
    outcome.report();
    Ok(outcome.status())
}
