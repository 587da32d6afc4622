// SPDX-License-Identifier: GPL-2.0

//! The command `virtio-suspend`, which a kselftest looks for where this builds it.

use crate::kernel::{Arch, Kernel};
use crate::output::Output;
use crate::process::run_logged;
use crate::rust;
use crate::tree::Tree;
use anyhow::Result;
use std::path::PathBuf;

/// Builds it: it must not need a library from a disk that it suspends.
pub fn build(tree: &Tree, output: &Output) -> Result<()> {
    let _lock = tree.lock("command")?;
    build_static(tree, output, "virtio-suspend").map(drop)
}

/// Builds it for a guest, with what is process 1 there if that is of another architecture.
pub fn build_for_guest(tree: &Tree, kernel: &Kernel, output: &Output) -> Result<()> {
    if kernel.arch == Arch::X86_64 {
        return build(tree, output);
    }
    let _lock = tree.lock("command")?;
    let mut cargo = rust::cargo(tree);
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "-p",
        "lab",
        "-p",
        "virtio-suspend",
    ]);
    rust::for_guest(&mut cargo, kernel)?;
    let log = tree.out("log")?.join("programs.log");
    output.announce("building the programs of the guest", || {
        run_logged(&mut cargo, &log)
    })
}

/// Builds a package's program of the same name, linked statically, and returns where it is. That is
/// said for this one program, because macros of the compiler can't be built so.
pub fn build_static(tree: &Tree, output: &Output, package: &str) -> Result<PathBuf> {
    let mut cargo = rust::cargo(tree);
    cargo
        .args(["rustc", "--quiet", "--release", "-p", package])
        .args(["--bin", package])
        .args(["--", "-C", "target-feature=+crt-static"]);
    let log = tree.out("log")?.join(format!("{package}.log"));
    output.announce(&format!("building {package}"), || {
        run_logged(&mut cargo, &log)
    })?;
    Ok(tree.join("out/target/release").join(package))
}
