// SPDX-License-Identifier: GPL-2.0

//! The virtio devices, as sysfs has them.

use std::fs;
use std::path::{Path, PathBuf};
use virtio_types::type_name;

/// The device IDs of some types.
pub const BLOCK: u32 = 2;
pub const CONSOLE: u32 = 3;
pub const ENTROPY: u32 = 4;

/// Where sysfs is.
pub struct Sysfs(PathBuf);

impl Default for Sysfs {
    fn default() -> Self {
        Self("/sys".into())
    }
}

/// The revision of SUSPEND that a device offers; the later one, if it offers both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    V1_4,
    Draft,
}

impl Revision {
    pub fn text(revision: Option<Self>) -> &'static str {
        match revision {
            Some(Self::V1_4) => "1.4 (bit 43)",
            Some(Self::Draft) => "draft (bit 42)",
            None => "none",
        }
    }
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    /// The device ID of its type.
    pub id: u32,
    /// The bus it is on, and where.
    pub transport: String,
    pub driver: Option<String>,
}

impl Device {
    /// The name of its type.
    pub fn kind(&self) -> String {
        type_name(self.id).map_or_else(|| format!("type {}", self.id), str::to_string)
    }
}

impl Sysfs {
    #[cfg(test)]
    pub fn at(path: &Path) -> Self {
        Self(path.into())
    }

    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    /// Where a device is.
    pub fn device(&self, name: &str) -> PathBuf {
        self.join("bus/virtio/devices").join(name)
    }

    /// All devices, in the order of their numbers.
    pub fn devices(&self) -> Vec<Device> {
        let entries = fs::read_dir(self.join("bus/virtio/devices"));
        let names = entries.into_iter().flatten().flatten();
        let mut devices: Vec<Device> = names
            .map(|entry| self.look(&entry.file_name().to_string_lossy()))
            .collect();
        let number = |d: &Device| d.name.trim_start_matches("virtio").parse::<u32>();
        devices.sort_by_key(|device| number(device).unwrap_or(u32::MAX));
        devices
    }

    fn look(&self, name: &str) -> Device {
        let path = self.device(name);
        let id = fs::read_to_string(path.join("device")).unwrap_or_default();
        Device {
            name: name.into(),
            id: hexadecimal(id.trim()).unwrap_or(0),
            transport: transport(&path).unwrap_or_else(|| "unknown".into()),
            driver: self.driver(name),
        }
    }

    /// The driver that a device is bound to.
    pub fn driver(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.device(name).join("driver")).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The bus of the device that is a virtio device, and its name there.
fn transport(path: &Path) -> Option<String> {
    let real = path.canonicalize().ok()?;
    let parent = real.parent()?;
    let bus = fs::read_link(parent.join("subsystem")).ok()?;
    let bus = match bus.file_name()?.to_str()? {
        "platform" => "mmio",
        bus => bus,
    };
    Some(format!("{bus} {}", parent.file_name()?.to_string_lossy()))
}

/// Says what was found.
pub fn print(devices: &[Device]) {
    println!("# virtio devices found: {}", devices.len());
    for device in devices {
        println!(
            "#   {:<8} {:<8} {:<20} driver: {}",
            device.name,
            device.kind(),
            device.transport,
            device.driver.as_deref().unwrap_or("none")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine with a device on PCI, which is bound, and one on MMIO.
    fn machine() -> (tempfile::TempDir, Sysfs) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let devices = root.join("bus/virtio/devices");
        fs::create_dir_all(&devices).unwrap();
        for (number, bus, parent, id) in [
            (10, "platform", "LNRO0005:00", "0x0002"),
            (2, "pci", "0000:00:02.0", "0x0004"),
        ] {
            let parent = root.join("devices").join(parent);
            let real = parent.join(format!("virtio{number}"));
            fs::create_dir_all(&real).unwrap();
            symlink(format!("../../bus/{bus}"), parent.join("subsystem")).unwrap();
            fs::write(real.join("device"), format!("{id}\n")).unwrap();
            symlink(&real, devices.join(format!("virtio{number}"))).unwrap();
        }
        symlink(
            "../../../bus/virtio/drivers/virtio_rng",
            devices.join("virtio2/driver"),
        )
        .unwrap();
        let sysfs = Sysfs::at(root);
        (dir, sysfs)
    }

    #[test]
    fn devices_of_each_transport() {
        let (_dir, sysfs) = machine();
        let devices = sysfs.devices();
        assert_eq!(
            devices,
            [
                Device {
                    name: "virtio2".into(),
                    id: ENTROPY,
                    transport: "pci 0000:00:02.0".into(),
                    driver: Some("virtio_rng".into()),
                },
                Device {
                    name: "virtio10".into(),
                    id: BLOCK,
                    transport: "mmio LNRO0005:00".into(),
                    driver: None,
                },
            ]
        );
        assert_eq!(devices[1].kind(), "block");
    }

    #[test]
    fn no_devices() {
        assert!(Sysfs::at(Path::new("/nowhere")).devices().is_empty());
    }

    #[test]
    fn a_type_without_a_name() {
        let device = Device {
            id: 45,
            ..Device::default()
        };
        assert_eq!(device.kind(), "type 45");
    }
}
