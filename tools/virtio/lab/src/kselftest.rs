// SPDX-License-Identifier: GPL-2.0

//! The kselftests as the kernel's own build system installs them, with the kernel's own runner.
//!
//! A tree that has them at their place is made of links: the kernel's makefiles and runner, and our
//! directory. `make install` of the kernel copies from there what the Makefile of the kselftests
//! lists, and nothing else: a file that is not listed is missing in the guest, too.

use crate::files::link;
use crate::kernel::Kernel;
use crate::process::run_logged;
use crate::tree::{Tree, SELFTESTS};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernel has its own.
const KERNELS: &str = "tools/testing/selftests";
/// The directory of ours, and so the collection that they are.
pub const COLLECTION: &str = "virtio";
/// What the kernel's makefiles need of their tree.
const NEEDED: &[&str] = &[
    "scripts/subarch.include",
    "tools/testing/selftests/Makefile",
    "tools/testing/selftests/kselftest",
    "tools/testing/selftests/lib.mk",
    "tools/testing/selftests/run_kselftest.sh",
];
/// Brought along for who has no kernel tree.
pub const BROUGHT: &str = "tools/testing/selftests/kselftest/ksft.py";

/// Installs them into a directory, which is made anew.
pub fn install(tree: &Tree, kernel: &Kernel, into: &Path) -> Result<()> {
    let linked = into.with_extension("tree");
    for dir in [into, &linked] {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("can't empty {}", dir.display()))?;
        }
    }
    for path in NEEDED {
        link(&kernel.source.join(path), &linked.join(path))?;
    }
    let ours = linked.join(KERNELS).join(COLLECTION);
    for entry in fs::read_dir(tree.join(SELFTESTS)).context("can't read the kselftests")? {
        let path = entry.context("can't read the kselftests")?.path();
        if path.is_file() {
            link(&path, &ours.join(path.file_name().unwrap_or_default()))?;
        }
    }
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(linked.join(KERNELS))
        .arg(format!("TARGETS={COLLECTION}"))
        .arg(format!("KSFT_INSTALL_PATH={}", into.display()))
        .args(["FORCE_TARGETS=1", "install"]);
    run_logged(&mut make, &into.with_extension("log")).context("can't install the kselftests")?;
    fs::remove_dir_all(&linked).context("can't remove the links to the kselftests")
}

/// `make kselftest`: leaves them in out/kselftest, and says how they are run.
pub fn run(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let _lock = tree.lock("kselftest")?;
    let into = tree.out("kselftest")?;
    install(tree, kernel, &into)?;
    Ok(into)
}

/// Whether what is brought along of the kernel is what the kernel has; prints what differs.
pub fn check(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    let mut diff = Command::new("diff");
    diff.arg("-u")
        .arg(kernel.source.join(BROUGHT))
        .arg(tree.join(BROUGHT));
    Ok(diff.status().context("can't run diff")?.success())
}
