// SPDX-License-Identifier: GPL-2.0

//! Where things are looked for.

use std::path::{Path, PathBuf};

/// Where the file systems of the kernel are: `/`, or a directory in which a test has made the like.
#[derive(Clone, Debug)]
pub struct Root(pub PathBuf);

impl Root {
    /// A path below it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The directory of a device.
    pub fn device(&self, name: &str) -> PathBuf {
        self.join("sys/bus/virtio/devices").join(name)
    }
}
