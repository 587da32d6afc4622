// SPDX-License-Identifier: GPL-2.0

//! `lab demo`: devices suspended under I/O, with explanations.

use crate::device;
use crate::guest::{self, Config};
use crate::init::Job;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::machines;
use crate::output::print;
use crate::qemu;
use crate::tree::Tree;
use anyhow::Result;

const SCRIPT: &str = "tools/virtio/lab/guest/demo.py";
const LAST_ACT: &str = "tools/virtio/lab/guest/demo_move.py";

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
    let outcome = guest::run(tree, kernel, "demo", &config, &job, print)?;
    println!("\nWhat the devices say of the driver:");
    outcome.report(&config.output);
    Ok(outcome.status().max(last_act(tree, kernel, &config)?))
}

/// A guest moves to another QEMU, if there is one whose devices can be suspended.
fn last_act(tree: &Tree, kernel: &Kernel, config: &Config) -> Result<u8> {
    if qemu::built(tree)?.is_none() {
        println!(
            "\nThere is a last act, in which a guest moves to another QEMU: it needs `make qemu` \
             first, which\ntakes a while, and is shown by `make demo` then."
        );
        return Ok(0);
    }
    println!(
        "\nThe last act: a guest moves to another QEMU process.  Its devices are QEMU's own, which \
         offer SUSPEND\nby the patches in tools/virtio/qemu, and judge the driver, too."
    );
    let config = machines::config(tree, Machine::PciSplit, config)?;
    let job = Job::Command(vec![tree.join(LAST_ACT).display().to_string()]);
    let outcome = machines::run(tree, kernel, "demo-move", &config, &job, print)?;
    outcome.report(&config.output);
    Ok(outcome.status())
}
