// SPDX-License-Identifier: GPL-2.0

//! What is printed of devices.

use serde::Serialize;

use crate::machine::Machine;
use crate::sysfs::{Device, Suspend};
use crate::targets::objection;
use crate::topology::User;

/// A device, as `list --json` has it.
#[derive(Serialize)]
struct Entry<'a> {
    device: &'a str,
    r#type: &'static str,
    driver: Option<&'a str>,
    disks: &'a [String],
    interfaces: &'a [String],
    /// Why it can't be suspended now.
    objection: Option<String>,
    users: Vec<UserEntry>,
    suspend: Option<&'a Suspend>,
}

#[derive(Serialize)]
struct UserEntry {
    #[serde(flatten)]
    user: User,
    text: String,
}

fn entry<'a>(machine: &Machine, device: &'a Device) -> Entry<'a> {
    let users = machine.topology.users(device).into_iter();
    Entry {
        device: &device.name,
        r#type: device.kind(),
        driver: device.driver.as_deref(),
        disks: &device.disks,
        interfaces: &device.interfaces,
        objection: objection(device),
        users: users
            .map(|user| UserEntry {
                text: user.to_string(),
                user,
            })
            .collect(),
        suspend: device.suspend.as_ref(),
    }
}

/// All devices in JSON.
pub fn json(machine: &Machine) -> String {
    let entries: Vec<Entry> = machine.devices.iter().map(|d| entry(machine, d)).collect();
    // There is nothing in it that JSON can't say.
    serde_json::to_string_pretty(&entries).unwrap_or_default()
}

/// All devices as a table, and below it what does not fit in: who depends on them, and what went
/// wrong last.
pub fn table(machine: &Machine) -> String {
    let mut rows =
        vec![["DEVICE", "TYPE", "DRIVER", "NAME", "REVISION", "STATE"].map(str::to_string)];
    let mut notes = Vec::new();
    for device in &machine.devices {
        let names: Vec<&str> = device.names().filter(|name| *name != device.name).collect();
        let suspend = device.suspend.as_ref();
        let or_dash =
            |text: Option<&str>| text.filter(|t| !t.is_empty()).unwrap_or("-").to_string();
        rows.push([
            device.name.clone(),
            device.kind().into(),
            or_dash(device.driver.as_deref()),
            or_dash(Some(&names.join(","))),
            or_dash(suspend.map(|suspend| suspend.revision.as_str())),
            or_dash(suspend.map(|suspend| suspend.state.as_str())),
        ]);
        let users: Vec<String> = machine
            .topology
            .users(device)
            .iter()
            .map(User::to_string)
            .collect();
        if !users.is_empty() {
            notes.push(format!(
                "{} is used by: {}",
                device.title(),
                users.join(", ")
            ));
        }
        match suspend.map(|suspend| suspend.last_error.as_str()) {
            None | Some("none") => {}
            Some(error) => notes.push(format!("{}: last error: {error}", device.title())),
        }
    }
    let mut text = columns(&rows);
    if !notes.is_empty() {
        text.push('\n');
    }
    notes
        .iter()
        .for_each(|note| text.push_str(&format!("{note}\n")));
    text
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn fake() -> Fake {
        let fake = Fake::new();
        fake.device("virtio0", 2, "virtio_blk", "1.4");
        fake.disk("virtio0", "vda", "254:0");
        fake.write(
            "proc/self/mountinfo",
            "20 1 254:0 / / rw - ext4 /dev/vda rw\n",
        );
        fake.device("virtio1", 1, "virtio_net", "rebind");
        fake.interface("virtio1", "ens3");
        fake.suspend_file("virtio1", "last_error", "EOPNOTSUPP not negotiated");
        fake.plain_device("virtio2", 26);
        fake
    }

    #[test]
    fn a_table() {
        assert_eq!(
            table(&Machine::look(&fake().root())),
            "\
DEVICE   TYPE     DRIVER      NAME  REVISION  STATE
virtio0  block    virtio_blk  vda   1.4       running
virtio1  network  virtio_net  ens3  rebind    running
virtio2  fs       -           -     -         -

virtio0 (vda) is used by: / (ext4)
virtio1 (ens3): last error: EOPNOTSUPP not negotiated
"
        );
    }

    #[test]
    fn the_same_in_json() {
        let text = json(&Machine::look(&fake().root()));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value[0]["users"][0]["kind"], "file-system");
        assert_eq!(value[0]["users"][0]["text"], "/ (ext4)");
        assert_eq!(value[0]["suspend"]["revision"], "1.4");
        assert_eq!(value[0]["objection"], serde_json::Value::Null);
        assert!(value[1]["objection"]
            .as_str()
            .unwrap()
            .contains("bind it again"));
        assert_eq!(value[2]["suspend"], serde_json::Value::Null);
    }
}
