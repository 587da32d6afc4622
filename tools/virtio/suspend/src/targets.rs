// SPDX-License-Identifier: GPL-2.0

//! Which devices are meant, and which of them can't be suspended, and why.

use crate::sysfs::Device;
use crate::topology::User;

/// The devices that some names mean, each once, or what is wrong with the names.
pub fn resolve<'a>(
    devices: &'a [Device],
    names: &[String],
) -> Result<Vec<&'a Device>, Vec<String>> {
    let (mut found, mut problems) = (Vec::<&Device>::new(), Vec::new());
    for given in names {
        let name = given.strip_prefix("/dev/").unwrap_or(given);
        match devices
            .iter()
            .find(|device| device.names().any(|n| n == name))
        {
            Some(device) if found.iter().any(|other| other.name == device.name) => {}
            Some(device) => found.push(device),
            None => problems.push(unknown(devices, given, name)),
        }
    }
    match problems.is_empty() {
        true => Ok(found),
        false => Err(problems),
    }
}

fn unknown(devices: &[Device], given: &str, name: &str) -> String {
    let is_part = |disk: &&String| {
        let rest = name.strip_prefix(disk.as_str()).unwrap_or_default();
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())
    };
    match devices
        .iter()
        .flat_map(|device| &device.disks)
        .find(is_part)
    {
        Some(disk) => format!("{given} is a partition: what is suspended is its disk, {disk}"),
        None => format!("{given} is no virtio device, nor a disk or an interface of one here"),
    }
}

/// Why a device can't be suspended now, if it can't.
pub fn objection(device: &Device) -> Option<String> {
    let Some(suspend) = &device.suspend else {
        return Some(match device.driver {
            Some(_) => "its driver knows nothing of SUSPEND: load virtio_suspend, then bind the \
                        driver again"
                .into(),
            None => "no driver is bound to it".into(),
        });
    };
    let driver = device.driver.as_deref().unwrap_or("no driver");
    let reason = match suspend.revision.as_str() {
        "1.4" | "draft" => match suspend.state.as_str() {
            "running" => return None,
            "suspended" => "it is suspended already".into(),
            "failed" => format!("it has failed: {}", suspend.last_error),
            state => format!("it is {state}: another request is under way"),
        },
        "none" => "it offers no SUSPEND that can be used".into(),
        "rebind" => format!("{driver} was bound before virtio_suspend was loaded: bind it again"),
        "no-quiescer" => format!("virtio_suspend does not know how to stop {driver}"),
        other => format!("its revision, {other:?}, is not known"),
    };
    Some(reason)
}

/// Why a person should not suspend a device and leave it so.
pub fn danger(users: &[User]) -> Option<String> {
    let vital: Vec<String> = users
        .iter()
        .filter(|user| user.is_vital())
        .map(ToString::to_string)
        .collect();
    match vital.is_empty() {
        true => None,
        false => Some(format!(
            "{}: the resume might have to wait for it; use \"run\", or --force",
            vital.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use crate::sysfs;

    fn some() -> Vec<Device> {
        let fake = Fake::new();
        fake.device("virtio0", 2, "virtio_blk", "1.4");
        fake.disk("virtio0", "vda", "254:0");
        fake.device("virtio1", 1, "virtio_net", "rebind");
        fake.interface("virtio1", "ens3");
        fake.device("virtio2", 5, "virtio_balloon", "no-quiescer");
        fake.device("virtio3", 4, "virtio_rng", "none");
        fake.plain_device("virtio4", 26);
        fake.device("virtio5", 4, "virtio_rng", "draft");
        fake.suspend_file("virtio5", "state", "suspended");
        fake.device("virtio6", 4, "virtio_rng", "1.4");
        fake.suspend_file("virtio6", "state", "failed");
        fake.suspend_file("virtio6", "last_error", "EIO device needs a reset");
        sysfs::devices(&fake.root())
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn any_name_will_do_and_each_device_counts_once() {
        let devices = some();
        let found = resolve(&devices, &strings(&["vda", "ens3", "/dev/vda", "virtio0"])).unwrap();
        let names: Vec<&str> = found.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["virtio0", "virtio1"]);
    }

    #[test]
    fn names_that_mean_nothing_are_all_told() {
        let devices = some();
        let names = [
            "",
            "vda1",
            "vdb",
            "../virtio0",
            "virtio0/suspend",
            "virtio99",
            "vda",
            "*",
        ];
        let problems = resolve(&devices, &strings(&names)).unwrap_err();
        assert_eq!(problems.len(), names.len() - 1);
        assert!(problems[1].contains("its disk, vda"), "{problems:?}");
    }

    #[test]
    fn why_not() {
        let reasons: Vec<Option<String>> = some().iter().map(objection).collect();
        let expect = |index: usize, part: &str| {
            let reason = reasons[index].as_deref().unwrap();
            assert!(reason.contains(part), "{reason}");
        };
        assert_eq!(reasons[0], None);
        expect(1, "virtio_net was bound before virtio_suspend");
        expect(2, "how to stop virtio_balloon");
        expect(3, "offers no SUSPEND");
        expect(4, "no driver is bound");
        expect(5, "suspended already");
        expect(6, "EIO device needs a reset");
    }

    #[test]
    fn what_is_dangerous() {
        let swap = User::Swap {
            path: "/dev/vda2".into(),
        };
        let home = User::FileSystem {
            path: "/home".into(),
            of: "xfs".into(),
        };
        assert_eq!(danger(std::slice::from_ref(&home)), None);
        assert!(danger(&[home, swap])
            .unwrap()
            .starts_with("swap /dev/vda2: "));
    }
}
