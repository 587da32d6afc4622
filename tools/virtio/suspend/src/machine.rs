// SPDX-License-Identifier: GPL-2.0

//! From names on the command line to the steps of a plan, and what stands against it.

use std::path::Path;

use crate::cli::Targets;
use crate::error::Error;
use crate::handles::{timeout_ms, Step, What};
use crate::plan::Rank;
use crate::sysfs::{self, Device, Root};
use crate::targets::{danger, objection, resolve};
use crate::topology::Topology;

/// What there is, as of now.
pub struct Machine {
    pub root: Root,
    pub devices: Vec<Device>,
    pub topology: Topology,
}

impl Machine {
    pub fn look(root: &Root) -> Self {
        Self {
            root: root.clone(),
            devices: sysfs::devices(root),
            topology: Topology::read(root),
        }
    }

    /// The devices that are meant; with `all`, those that are `wanted`.
    pub fn choose(
        &self,
        targets: &Targets,
        wanted: impl Fn(&Device) -> bool,
    ) -> Result<Vec<&Device>, Error> {
        if !targets.all {
            return resolve(&self.devices, &targets.names).map_err(Error::Refused);
        }
        let found: Vec<&Device> = self
            .devices
            .iter()
            .filter(|device| wanted(device))
            .collect();
        match found.is_empty() {
            true => Err(Error::refused("there is no such device")),
            false => Ok(found),
        }
    }

    /// The devices to be suspended, none of which has anything against it.
    pub fn to_suspend(&self, targets: &Targets, force: bool) -> Result<Vec<&Device>, Error> {
        let chosen = self.choose(targets, Device::can_suspend)?;
        let mut reasons = Vec::new();
        for device in &chosen {
            let danger = || danger(&self.topology.users(device)).filter(|_| !force);
            if let Some(reason) = objection(device).or_else(danger) {
                reasons.push(format!("{}: {reason}", device.title()));
            }
        }
        match reasons.is_empty() {
            true => Ok(chosen),
            false => Err(Error::Refused(reasons)),
        }
    }

    /// The steps, in their order.
    pub fn steps(
        &self,
        devices: &[&Device],
        targets: &Targets,
        fsfreeze: bool,
    ) -> Result<Vec<Step>, Error> {
        let timeout_ms = targets.timeout.map(timeout_ms).transpose();
        let timeout_ms = timeout_ms.map_err(Error::refused)?;
        let mut steps = Vec::new();
        for device in devices {
            steps.push(Step {
                what: What::Device(device.name.clone()),
                title: device.title(),
                rank: rank(device),
                timeout_ms,
            });
            let paths = match fsfreeze {
                true => self.topology.file_systems(device),
                false => Vec::new(),
            };
            for path in paths {
                steps.push(Step {
                    title: path.display().to_string(),
                    what: What::FileSystem(path),
                    rank: Rank::FileSystem,
                    timeout_ms: None,
                });
            }
        }
        // A file system may be on several disks.
        let mut unique: Vec<Step> = Vec::new();
        for step in steps {
            if !unique.iter().any(|other| other.what == step.what) {
                unique.push(step);
            }
        }
        unique.sort_by_key(|step| step.rank);
        Ok(unique)
    }

    /// The device among some whose disk a path is on.
    pub fn holder<'a>(&self, devices: &[&'a Device], path: &Path) -> Option<&'a Device> {
        let holds = |device: &&&Device| self.topology.holds_path(device, path);
        devices.iter().find(holds).copied()
    }
}

fn rank(device: &Device) -> Rank {
    match (device.disks.is_empty(), device.interfaces.is_empty()) {
        (false, _) => Rank::Disk,
        (true, false) => Rank::Interface,
        (true, true) => Rank::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn targets(names: &[&str]) -> Targets {
        Targets {
            names: names.iter().map(ToString::to_string).collect(),
            all: names.is_empty(),
            timeout: None,
            dry_run: false,
        }
    }

    fn machine() -> Fake {
        let fake = Fake::new();
        fake.device("virtio0", 2, "virtio_blk", "1.4");
        fake.disk("virtio0", "vda", "254:0");
        fake.device("virtio1", 1, "virtio_net", "1.4");
        fake.interface("virtio1", "ens3");
        fake.device("virtio2", 4, "virtio_rng", "1.4");
        fake.plain_device("virtio3", 26);
        fake.write(
            "proc/self/mountinfo",
            "20 1 254:0 / / rw - ext4 /dev/vda rw\n21 1 254:0 /a /b rw - ext4 /dev/vda rw\n",
        );
        fake
    }

    fn titles(steps: &[Step]) -> Vec<&str> {
        steps.iter().map(|step| step.title.as_str()).collect()
    }

    #[test]
    fn all_that_can_be_suspended_in_their_order() {
        let fake = machine();
        let machine = Machine::look(&fake.root());
        let targets = targets(&[]);
        let devices = machine.to_suspend(&targets, true).unwrap();
        let steps = machine.steps(&devices, &targets, true).unwrap();
        let expected = ["/", "virtio2", "virtio1 (ens3)", "virtio0 (vda)"];
        assert_eq!(titles(&steps), expected);
        let steps = machine.steps(&devices, &targets, false).unwrap();
        assert_eq!(titles(&steps), expected[1..]);
    }

    #[test]
    fn every_reason_is_told() {
        let fake = machine();
        fake.suspend_file("virtio1", "state", "suspended");
        let machine = Machine::look(&fake.root());
        let error = machine.to_suspend(&targets(&["vda", "ens3", "virtio2"]), false);
        let Err(Error::Refused(reasons)) = error else {
            panic!("not refused");
        };
        assert_eq!(reasons.len(), 2);
        assert!(
            reasons[0].starts_with("virtio0 (vda): / (ext4)"),
            "{reasons:?}"
        );
        assert!(
            reasons[1].starts_with("virtio1 (ens3): it is suspended"),
            "{reasons:?}"
        );
        assert!(machine.to_suspend(&targets(&["vda"]), true).is_ok());
    }

    #[test]
    fn there_is_none() {
        let fake = Fake::new();
        let machine = Machine::look(&fake.root());
        assert!(matches!(
            machine.to_suspend(&targets(&[]), true),
            Err(Error::Refused(_))
        ));
    }

    #[test]
    fn where_a_file_is() {
        let fake = machine();
        let machine = Machine::look(&fake.root());
        let devices = machine
            .to_suspend(&targets(&["vda", "ens3"]), true)
            .unwrap();
        let holder = machine.holder(&devices, Path::new("/x/y")).unwrap();
        assert_eq!(holder.name, "virtio0");
        assert!(machine.holder(&devices[1..], Path::new("/x/y")).is_none());
    }
}
