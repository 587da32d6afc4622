// SPDX-License-Identifier: GPL-2.0

//! The two Rust toolchains of the build root.
//!
//! `/usr/bin/rustc` is the one Debian's kernel was built with, and the only one whose metadata
//! fits it.  The tools need a newer one, which `scripts/provision` unpacks beside it.

use crate::arm64;
use crate::kernel::{Arch, Kernel, ARM64_TARGET};
use crate::tree::Tree;
use anyhow::Result;
use std::process::Command;

const ROOT: &str = "/opt/rust/usr";

/// Cargo for the tools.
pub fn cargo(tree: &Tree) -> Command {
    let mut cargo = Command::new(format!("{ROOT}/bin/cargo"));
    cargo
        .env("PATH", format!("{ROOT}/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
        .env("LD_LIBRARY_PATH", format!("{ROOT}/lib/x86_64-linux-gnu"))
        .env("CARGO_HOME", "/var/cache/cargo")
        .env("CARGO_TARGET_DIR", tree.join("out/target"))
        .current_dir(tree.join("tools/virtio"));
    cargo
}

/// The arguments of cargo that are needed besides, to build a program for the guest.
pub fn for_guest(cargo: &mut Command, kernel: &Kernel) -> Result<()> {
    if kernel.arch == Arch::Arm64 {
        cargo.args(["--target", ARM64_TARGET]);
        cargo.envs(arm64::cargo_env(kernel)?);
    }
    Ok(())
}
