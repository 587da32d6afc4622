// SPDX-License-Identifier: GPL-2.0

//! `make deb`: the packages for Debian, of what the lab builds anyway.

use crate::command;
use crate::files::copy;
use crate::kernel::Kernel;
use crate::modules;
use crate::output::Output;
use crate::packages;
use crate::process::{announce, run_logged};
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const PACKAGES: &str = "scripts/packages.deb";

/// Builds the packages and has lintian look at them; returns where they are.
pub fn run(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let logs = tree.out("log")?;
    modules::build(tree, kernel)?;
    command::build(tree, &Output::Terminal)?;
    announce("installing what packages are built with", || {
        packages::install(tree, PACKAGES, &logs.join("deb-install.log"))
    })?;

    // dpkg leaves the packages beside the source.
    let dir = tree.out("deb")?;
    fs::remove_dir_all(&dir).context("can't remove older packages")?;
    let source = dir.join("source");
    announce("building the packages", || {
        copy(tree.root(), &source)?;
        let build = |program: &str| {
            let mut command = Command::new(program);
            command
                .current_dir(&source)
                .env("RELEASE", &kernel.release)
                .env("MODULES", tree.root().join("out").join(&kernel.release))
                .env("COMMAND", tree.join("out/target/release/virtio-suspend"));
            command
        };
        let log = logs.join("deb.log");
        run_logged(build("debian/rules").arg("of-release"), &log)?;
        run_logged(
            build("dpkg-buildpackage").args(["--build=binary", "--no-sign"]),
            &log,
        )
    })?;
    fs::remove_dir_all(&source).context("can't remove what the packages were built of")?;
    announce("checking them with lintian", || {
        let mut lintian = Command::new("lintian");
        lintian.current_dir(&dir).args([
            "--allow-root",
            "--fail-on=error,warning",
            "--tag-display-limit=0",
        ]);
        for entry in fs::read_dir(&dir).context("can't read what was built")? {
            let path = entry.context("can't read a directory")?.path();
            if path.extension().is_some_and(|e| e == "changes") {
                lintian.arg(path);
            }
        }
        run_logged(&mut lintian, &logs.join("lintian.log"))
    })?;
    Ok(dir)
}
