// SPDX-License-Identifier: GPL-2.0

//! Files like those of a machine, for tests.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use crate::root::Root;

/// A directory that is gone when this is.
pub struct Fake(TempDir);

impl Fake {
    pub fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    pub fn root(&self) -> Root {
        Root(self.0.path().into())
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    pub fn link(&self, path: &str, to: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        symlink(to, path).expect("a link");
    }

    pub fn directory(&self, path: &str) {
        fs::create_dir_all(self.root().join(path)).expect("a directory");
    }

    fn dir(name: &str) -> String {
        format!("sys/bus/virtio/devices/{name}")
    }

    /// A device without SUSPEND, and without a driver.
    pub fn plain_device(&self, name: &str, id: u32) {
        self.write(
            &format!("{}/device", Self::dir(name)),
            &format!("0x{id:04x}\n"),
        );
    }

    pub fn device(&self, name: &str, id: u32, driver: &str, revision: &str) {
        self.plain_device(name, id);
        let dir = Self::dir(name);
        let link = format!("../../../bus/virtio/drivers/{driver}");
        self.link(&format!("{dir}/driver"), &link);
        for (file, text) in [
            ("state", "running"),
            ("revision", revision),
            ("timeout_ms", "10000"),
            ("suspends", "3"),
            ("resumes", "3"),
            ("failures", "0"),
            ("recoveries", "0"),
            ("quirks", "0"),
            ("last_suspend_ns", "2000000"),
            ("last_resume_ns", "1000000"),
            ("last_error", "none"),
            ("request", ""),
        ] {
            self.suspend_file(name, file, text);
        }
    }

    pub fn suspend_file(&self, name: &str, file: &str, text: &str) {
        self.write(
            &format!("{}/suspend/{file}", Self::dir(name)),
            &format!("{text}\n"),
        );
    }

    /// What has been written to a file of a device last.
    pub fn written(&self, name: &str, file: &str) -> String {
        let path = self.root().device(name).join("suspend").join(file);
        fs::read_to_string(path).expect("a file")
    }

    pub fn disk(&self, device: &str, name: &str, number: &str) {
        self.directory(&format!("{}/block/{name}", Self::dir(device)));
        self.block(name, number);
    }

    /// A block device of any kind.
    pub fn block(&self, name: &str, number: &str) {
        self.write(
            &format!("sys/class/block/{name}/dev"),
            &format!("{number}\n"),
        );
        self.directory(&format!("sys/class/block/{name}/holders"));
    }

    pub fn partition(&self, disk: &str, name: &str, number: &str) {
        self.write(&format!("sys/class/block/{disk}/{name}/partition"), "1\n");
        self.block(name, number);
    }

    pub fn holder(&self, of: &str, name: &str) {
        self.directory(&format!("sys/class/block/{of}/holders/{name}"));
    }

    pub fn interface(&self, device: &str, name: &str) {
        self.directory(&format!("{}/net/{name}", Self::dir(device)));
        self.directory(&format!("sys/class/net/{name}"));
    }
}
