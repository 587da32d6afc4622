// SPDX-License-Identifier: GPL-2.0

//! Where things are in the clone.

use anyhow::{ensure, Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The clone this program was built from, at the same path in the build root and in the guest.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    pub fn at_current_dir() -> Result<Self> {
        let root = std::env::current_dir().context("can't tell the current directory")?;
        let tree = Self { root };
        ensure!(
            tree.cargo_manifest().exists(),
            "{} is not a clone of virtio-suspend: call scripts/lab",
            tree.root.display()
        );
        Ok(tree)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    pub fn cargo_manifest(&self) -> PathBuf {
        self.join("tools/virtio/Cargo.toml")
    }

    /// A directory for what is built, made if there is none.
    pub fn out(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        make_dir(self.join("out").join(path))
    }

    /// An empty directory for what one run leaves behind.
    pub fn run_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.join("out/runs").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("can't empty {}", dir.display()))?;
        }
        make_dir(dir)
    }
}

pub fn make_dir(dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    Ok(dir)
}
