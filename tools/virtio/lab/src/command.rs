// SPDX-License-Identifier: GPL-2.0

//! The command `virtio-suspend`, which a kselftest looks for where this builds it.

use crate::output::Output;
use crate::process::run_logged;
use crate::rust;
use crate::tree::Tree;
use anyhow::Result;

/// Builds it, linked statically: it must not need a library from a disk that it suspends. That is
/// said for this one program, because macros of the compiler can't be built so.
pub fn build(tree: &Tree, output: &Output) -> Result<()> {
    let _lock = tree.lock("command")?;
    let mut cargo = rust::cargo(tree);
    cargo
        .args(["rustc", "--quiet", "--release", "-p", "virtio-suspend"])
        .args(["--bin", "virtio-suspend"])
        .args(["--", "-C", "target-feature=+crt-static"]);
    let log = tree.out("log")?.join("command.log");
    output.announce("building virtio-suspend", || run_logged(&mut cargo, &log))
}
