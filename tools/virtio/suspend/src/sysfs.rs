// SPDX-License-Identifier: GPL-2.0

//! The devices, as sysfs has them: Documentation/ABI/testing/sysfs-bus-virtio-suspend.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

pub use crate::root::Root;

/// What there is to be known of SUSPEND on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suspend {
    pub state: String,
    pub revision: String,
    pub timeout_ms: u64,
    pub suspends: u64,
    pub resumes: u64,
    pub failures: u64,
    pub recoveries: u64,
    pub quirks: u64,
    pub last_suspend_ns: u64,
    pub last_resume_ns: u64,
    pub last_error: String,
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    /// The device ID of its type.
    pub id: u32,
    pub driver: Option<String>,
    pub disks: Vec<String>,
    /// But those that are in another network namespace.
    pub interfaces: Vec<String>,
    /// Unless its driver knows nothing of SUSPEND, and the module virtio_suspend is not loaded.
    pub suspend: Option<Suspend>,
}

impl Device {
    /// What people call it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let others = self.disks.iter().chain(&self.interfaces);
        others.map(String::as_str).chain([self.name.as_str()])
    }

    /// Its name, and what is more telling.
    pub fn title(&self) -> String {
        let others: Vec<&str> = self.names().take_while(|name| *name != self.name).collect();
        match others.is_empty() {
            true => self.name.clone(),
            false => format!("{} ({})", self.name, others.join(", ")),
        }
    }

    /// The name of its type.
    pub fn kind(&self) -> &'static str {
        virtio_types::type_name(self.id).unwrap_or("other")
    }

    /// Whether the revision is one that can be used.
    pub fn can_suspend(&self) -> bool {
        let revision = self.suspend.as_ref().map(|s| s.revision.as_str());
        matches!(revision, Some("1.4" | "draft"))
    }
}

/// What a file says, without the end of the line.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = fs::read_to_string(path)?;
    text.truncate(text.trim_end_matches('\n').len());
    Ok(text)
}

/// The names in a directory, in order; none if it is not there.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// All virtio devices, in the order of their numbers.
pub fn devices(root: &Root) -> Vec<Device> {
    let mut found: Vec<Device> = names(&root.join("sys/bus/virtio/devices"))
        .into_iter()
        .map(|name| device(root, name))
        .collect();
    found.sort_by_key(|device| {
        let number = device
            .name
            .trim_start_matches(|c: char| !c.is_ascii_digit());
        number.parse().unwrap_or(u64::MAX)
    });
    found
}

fn device(root: &Root, name: String) -> Device {
    let path = root.device(&name);
    let id = read(&path.join("device")).unwrap_or_default();
    let driver = fs::read_link(path.join("driver")).ok();
    let driver = driver.and_then(|link| Some(link.file_name()?.to_str()?.to_string()));
    Device {
        id: u32::from_str_radix(id.trim_start_matches("0x"), 16).unwrap_or(0),
        driver,
        disks: names(&path.join("block")),
        interfaces: names(&path.join("net")),
        suspend: suspend(&path.join("suspend")).ok(),
        name,
    }
}

fn suspend(dir: &Path) -> io::Result<Suspend> {
    let text = |name: &str| read(&dir.join(name));
    let number = |name: &str| Ok::<_, io::Error>(text(name)?.parse().unwrap_or(0));
    Ok(Suspend {
        state: text("state")?,
        revision: text("revision")?,
        timeout_ms: number("timeout_ms")?,
        suspends: number("suspends")?,
        resumes: number("resumes")?,
        failures: number("failures")?,
        recoveries: number("recoveries")?,
        quirks: number("quirks")?,
        last_suspend_ns: number("last_suspend_ns")?,
        last_resume_ns: number("last_resume_ns")?,
        last_error: text("last_error")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn devices_as_they_are_found() {
        let fake = Fake::new();
        fake.device("virtio10", 2, "virtio_blk", "1.4");
        fake.disk("virtio10", "vda", "254:0");
        fake.device("virtio2", 1, "virtio_net", "rebind");
        fake.interface("virtio2", "ens3");
        fake.plain_device("virtio3", 26);
        let devices = devices(&fake.root());
        let titles: Vec<String> = devices.iter().map(Device::title).collect();
        assert_eq!(titles, ["virtio2 (ens3)", "virtio3", "virtio10 (vda)"]);
        let kinds: Vec<&str> = devices.iter().map(Device::kind).collect();
        assert_eq!(kinds, ["network", "fs", "block"]);
        let can: Vec<bool> = devices.iter().map(Device::can_suspend).collect();
        assert_eq!(can, [false, false, true]);
        assert_eq!(devices[2].driver.as_deref(), Some("virtio_blk"));
        assert_eq!(devices[1].driver, None);
        assert_eq!(devices[2].suspend.as_ref().unwrap().timeout_ms, 10_000);
    }

    #[test]
    fn a_machine_without_any() {
        let fake = Fake::new();
        assert!(devices(&fake.root()).is_empty());
    }
}
