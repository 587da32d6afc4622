// SPDX-License-Identifier: GPL-2.0

//! Who depends on a device, and so waits while it is suspended.

mod block;
mod login;
mod mounts;
mod routes;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::sysfs::{self, Device, Root};

use block::{Blocks, Number};
use mounts::{Mount, Swap};
use routes::Routes;

/// Something that waits while a device is suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum User {
    /// A file system that is mounted, at the first place where it is.
    FileSystem { path: PathBuf, of: String },
    /// Swap, by the name of its device or file.
    Swap { path: PathBuf },
    /// A block device that is made of others: software RAID, LVM, encryption.
    Stacked { name: String, of: String },
    /// An interface that is made of others: a bridge, a bond, a VLAN.
    Upper { name: String, of: String },
    /// A file system of a server that is reached through the interface.
    NetworkFileSystem { path: PathBuf, of: String },
    /// The login that this process belongs to.
    Login { from: String },
}

impl User {
    /// Whether it may be what a resume has to come from: a person who types the command for it
    /// would wait for the device, and so for himself.
    pub fn is_vital(&self) -> bool {
        match self {
            Self::FileSystem { path, .. } | Self::NetworkFileSystem { path, .. } => {
                [Path::new("/"), Path::new("/usr")].contains(&path.as_path())
            }
            Self::Swap { .. } | Self::Login { .. } => true,
            Self::Stacked { .. } | Self::Upper { .. } => false,
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileSystem { path, of } | Self::NetworkFileSystem { path, of } => {
                write!(f, "{} ({of})", path.display())
            }
            Self::Swap { path } => write!(f, "swap {}", path.display()),
            Self::Stacked { name, of } | Self::Upper { name, of } => write!(f, "{name} ({of})"),
            Self::Login { from } => write!(f, "your login from {from}"),
        }
    }
}

/// What there is on the machine, as of now.
pub struct Topology {
    blocks: Blocks,
    mounts: Vec<Mount>,
    swaps: Vec<Swap>,
    routes: Routes,
    uppers: routes::Uppers,
    login: Option<String>,
}

impl Topology {
    /// Reads it.
    pub fn read(root: &Root) -> Self {
        let text = |path: &str| sysfs::read(&root.join(path)).unwrap_or_default();
        Self {
            blocks: Blocks::read(root),
            mounts: mounts::parse_mounts(&text("proc/self/mountinfo")),
            swaps: mounts::parse_swaps(&text("proc/swaps")),
            routes: Routes::parse(&text("proc/net/route"), &text("proc/net/ipv6_route")),
            uppers: routes::Uppers::read(root),
            login: login::address(root),
        }
    }

    /// Who depends on a device.
    pub fn users(&self, device: &Device) -> Vec<User> {
        let mut users = Vec::new();
        for disk in &device.disks {
            self.users_of_disk(disk, &mut users);
        }
        for interface in &device.interfaces {
            self.users_of_interface(interface, &mut users);
        }
        users
    }

    /// The file systems on a device's disks, each once, at the first place where it is mounted.
    /// One that lies on another comes before it: what it writes last has to get there.
    pub fn file_systems(&self, device: &Device) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for disk in &device.disks {
            let above = self.blocks.above(disk);
            let mounts = self.mounts_on(&above);
            found.extend(mounts.into_iter().rev().map(|mount| mount.path.clone()));
        }
        found
    }

    /// The devices of `all` that a path is on: the file system that it is in.
    pub fn holds_path(&self, device: &Device, path: &Path) -> bool {
        let Some(mount) = mounts::mount_of(&self.mounts, path) else {
            return false;
        };
        let on = |disk: &String| self.is_on(mount, &self.blocks.above(disk));
        device.disks.iter().any(on)
    }

    fn is_on(&self, mount: &Mount, above: &[Number]) -> bool {
        let source = self.blocks.number_of(&mount.source);
        above
            .iter()
            .any(|number| *number == mount.device || Some(number) == source.as_ref())
    }

    /// In the order of the block devices that they are on, those of a lower one first.
    fn mounts_on(&self, above: &[Number]) -> Vec<&Mount> {
        let mut found: Vec<&Mount> = Vec::new();
        for number in above {
            for mount in &self.mounts {
                let known = found.iter().any(|other| other.device == mount.device);
                if !known && self.is_on(mount, std::slice::from_ref(number)) {
                    found.push(mount);
                }
            }
        }
        found
    }

    fn users_of_disk(&self, disk: &str, users: &mut Vec<User>) {
        let above = self.blocks.above(disk);
        for mount in self.mounts_on(&above) {
            // The root file system may be mounted elsewhere, too, and that first.
            let same = || {
                self.mounts
                    .iter()
                    .filter(|other| other.device == mount.device)
            };
            let vital =
                same().find(|other| [Path::new("/"), Path::new("/usr")].contains(&&*other.path));
            users.push(User::FileSystem {
                path: vital.unwrap_or(mount).path.clone(),
                of: mount.of.clone(),
            });
        }
        for swap in &self.swaps {
            let number = self.blocks.number_of(&swap.path);
            let file = || mounts::mount_of(&self.mounts, &swap.path);
            let is_here = match number {
                Some(number) => above.contains(&number),
                None => file().is_some_and(|mount| self.is_on(mount, &above)),
            };
            if is_here {
                let path = swap.path.clone();
                users.push(User::Swap { path });
            }
        }
        for (name, of) in self.blocks.stacked(disk) {
            users.push(User::Stacked { name, of });
        }
    }

    fn users_of_interface(&self, interface: &str, users: &mut Vec<User>) {
        let above = self.uppers.above(interface);
        let goes_through = |address: &str| {
            let through = self.routes.interface_to(address);
            through.is_some_and(|name| {
                name == interface || above.iter().any(|(upper, _)| upper == name)
            })
        };
        for mount in &self.mounts {
            if mount.server.as_deref().is_some_and(goes_through) {
                users.push(User::NetworkFileSystem {
                    path: mount.path.clone(),
                    of: mount.of.clone(),
                });
            }
        }
        if let Some(from) = self.login.as_ref().filter(|from| goes_through(from)) {
            users.push(User::Login { from: from.clone() });
        }
        for (name, of) in above {
            users.push(User::Upper { name, of });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn texts(fake: &Fake, name: &str) -> Vec<String> {
        let root = fake.root();
        let devices = sysfs::devices(&root);
        let device = devices.iter().find(|device| device.name == name).unwrap();
        let users = Topology::read(&root).users(device);
        users.iter().map(ToString::to_string).collect()
    }

    /// Root on a partition, swap on another and in a file, LVM on a RAID on a third.
    fn machine() -> Fake {
        let fake = Fake::new();
        fake.device("virtio0", 2, "virtio_blk", "1.4");
        fake.disk("virtio0", "vda", "254:0");
        fake.partition("vda", "vda1", "254:1");
        fake.partition("vda", "vda2", "254:2");
        fake.partition("vda", "vda3", "254:3");
        fake.holder("vda3", "md0");
        fake.block("md0", "9:0");
        fake.write("sys/class/block/md0/md/level", "raid1\n");
        fake.holder("md0", "dm-0");
        fake.block("dm-0", "253:0");
        fake.write("sys/class/block/dm-0/dm/name", "vg-home\n");
        fake.write("sys/class/block/dm-0/dm/uuid", "LVM-abc\n");
        fake.device("virtio1", 2, "virtio_blk", "1.4");
        fake.disk("virtio1", "vdb", "254:16");
        fake.write(
            "proc/self/mountinfo",
            "20 1 254:1 / /mnt/root rw shared:1 - ext4 /dev/vda1 rw\n\
             21 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw\n\
             22 21 0:20 / /proc rw - proc proc rw\n\
             23 21 253:0 / /home rw - xfs /dev/mapper/vg-home rw\n\
             24 21 0:40 /sub /srv\\040a rw - btrfs /dev/vdb rw\n\
             25 21 0:50 / /net rw - nfs4 srv:/x rw,vers=4.2,addr=10.0.0.9\n",
        );
        fake.write(
            "proc/swaps",
            "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
             /dev/vda2                               partition\t1024\t0\t-2\n\
             /home/swap                              file\t\t1024\t0\t-3\n",
        );
        fake
    }

    #[test]
    fn what_waits_for_a_disk() {
        let fake = machine();
        assert_eq!(
            texts(&fake, "virtio0"),
            [
                "/ (ext4)",
                "/home (xfs)",
                "swap /dev/vda2",
                "swap /home/swap",
                "md0 (raid1)",
                "dm-0 (LVM vg-home)",
            ]
        );
        assert_eq!(texts(&fake, "virtio1"), ["/srv a (btrfs)"]);
    }

    #[test]
    fn file_systems_are_frozen_from_the_top() {
        let fake = machine();
        let root = fake.root();
        let paths = Topology::read(&root).file_systems(&sysfs::devices(&root)[0]);
        assert_eq!(paths, [Path::new("/home"), Path::new("/mnt/root")]);
    }

    #[test]
    fn where_a_path_is() {
        let fake = machine();
        let root = fake.root();
        let devices = sysfs::devices(&root);
        let topology = Topology::read(&root);
        let on = |path: &str| {
            let path = Path::new(path);
            let holds = |device: &&Device| topology.holds_path(device, path);
            devices
                .iter()
                .filter(holds)
                .map(|d| d.name.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(on("/home/user/x"), ["virtio0"]);
        assert_eq!(on("/etc/x"), ["virtio0"]);
        assert_eq!(on("/srv a/x"), ["virtio1"]);
        assert!(on("/proc/x").is_empty());
        assert!(on("/net/x").is_empty());
    }

    #[test]
    fn what_waits_for_an_interface() {
        let fake = machine();
        fake.device("virtio2", 1, "virtio_net", "1.4");
        fake.interface("virtio2", "ens3");
        fake.link("sys/class/net/ens3/upper_br0", "../br0");
        fake.directory("sys/class/net/br0/bridge");
        fake.device("virtio3", 1, "virtio_net", "1.4");
        fake.interface("virtio3", "ens4");
        fake.write(
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             br0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             ens4\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n",
        );
        fake.write(
            "proc/self/environ",
            "HOME=/root\0SSH_CONNECTION=192.168.7.1 50000 192.168.7.2 22\0",
        );
        assert_eq!(texts(&fake, "virtio2"), ["/net (nfs4)", "br0 (bridge)"]);
        assert_eq!(texts(&fake, "virtio3"), ["your login from 192.168.7.1"]);
    }

    #[test]
    fn what_is_vital() {
        let file_system = |path: &str| User::FileSystem {
            path: path.into(),
            of: "ext4".into(),
        };
        assert!(file_system("/").is_vital());
        assert!(file_system("/usr").is_vital());
        assert!(!file_system("/home").is_vital());
        assert!(User::Swap { path: "/x".into() }.is_vital());
    }
}
