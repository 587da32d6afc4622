// SPDX-License-Identifier: GPL-2.0

//! Where things are in the clone.

use anyhow::{ensure, Context, Result};
use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// Where the kselftests are in the clone.
pub const SELFTESTS: &str = "tools/testing/selftests/virtio";
/// What is kept between runs, in the build root.
pub const STATE: &str = "/var/lib/lab";
/// Each run of the lab has a file system of its own there.
const SOCKETS: &str = "/run/lab";

/// The clone this program was built from, at the same path in the build root and in the guest.
#[derive(Clone)]
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

    /// A copy of a clone, made by the caller.
    pub fn copy_at(root: PathBuf) -> Self {
        Self { root }
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

    /// Waits until nobody else uses what a name stands for, and keeps it until dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        let file = self.lock_file(name)?;
        file.lock().with_context(|| format!("can't lock {name}"))?;
        Ok(file)
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.out("lock")?.join(name);
        File::create(&path).with_context(|| format!("can't write {}", path.display()))
    }

    /// An empty directory for what one run leaves behind, named after what the run is for.
    pub fn run_dir(&self, name: &str) -> Result<RunDir> {
        for number in 1.. {
            let name = match number {
                1 => name.to_string(),
                _ => format!("{name}-{number}"),
            };
            let lock = self.lock_file(&format!("run-{name}"))?;
            // Another run of this name is under way.
            if lock.try_lock().is_err() {
                continue;
            }
            let path = self.join("out/runs").join(name);
            if path.exists() {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("can't empty {}", path.display()))?;
            }
            return Ok(RunDir {
                path: make_dir(path)?,
                _lock: lock,
            });
        }
        unreachable!("the numbers do not end")
    }
}

/// A directory that no other run uses.
pub struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// A directory for the run's sockets, whose paths must be short.
    pub fn sockets(&self) -> Result<PathBuf> {
        let name = self.path.file_name().unwrap_or_default();
        make_dir(Path::new(SOCKETS).join(name))
    }
}

impl Deref for RunDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

pub fn make_dir(dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    Ok(dir)
}
