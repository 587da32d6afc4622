// SPDX-License-Identifier: GPL-2.0

//! The test devices of a guest, and what they say of the driver.

use crate::output::Output;
use crate::process::{run_logged, tail, Daemon};
use crate::rust;
use crate::tree::{RunDir, Tree};
use anyhow::{ensure, Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `virtio-test-device`, but for socket and events; `%t` stands for the directory of
/// the guest's sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec(Vec<String>);

impl FromStr for Spec {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::new(text))
    }
}

impl Spec {
    fn new(text: &str) -> Self {
        Self(text.split_whitespace().map(str::to_string).collect())
    }
}

impl Spec {
    fn arguments(&self, sockets: &Path) -> impl Iterator<Item = String> + use<'_> {
        let sockets = sockets.display().to_string();
        self.0.iter().map(move |word| word.replace("%t", &sockets))
    }
}

/// One device of VIRTIO 1.4 and one of the draft, whose data is a counter: a gap shows.
pub fn default_pair() -> Vec<Spec> {
    ["--offer 43 --data counter", "--offer 42 --data counter"]
        .map(Spec::new)
        .into()
}

/// A disk.
pub fn disk() -> Spec {
    Spec::new("--type blk --size 64M --queues 2 --queue-size 128")
}

/// A disk that answers before the notification is over.
pub fn immediate_disk() -> Spec {
    Spec::new("--type blk --size 64M --queue-size 128 --threads 0")
}

/// The pair, and a disk.
pub fn of_demo() -> Vec<Spec> {
    let mut specs = default_pair();
    specs.push(disk());
    specs
}

/// The pair, a disk, and two network devices on a cable.
fn common() -> Vec<Spec> {
    let end = "--type net --cable %t/cable.sock --queue-pairs 2 --queue-size 256";
    let mut specs = default_pair();
    specs.push(disk());
    specs.extend([end, end].map(Spec::new));
    specs
}

/// Those of the kselftests: the pair, two network devices on a cable, two disks, of which most
/// tests use the first, and an input device.
pub fn of_selftests() -> Vec<Spec> {
    let mut specs = common();
    specs.extend(["--type blk --size 16M --queue-size 64", "--type input"].map(Spec::new));
    specs
}

/// Those of the kselftests, of which the second disk, the second network device, and one more entropy
/// device, keep their state when the guest sleeps: their functions set No_Soft_Reset.
pub fn that_sleep() -> Vec<Spec> {
    let mut specs = common();
    if let Some(end) = specs.last_mut() {
        end.0.push("--no-soft-reset".into());
    }
    specs.extend(
        [
            "--type blk --size 16M --queue-size 64 --no-soft-reset",
            "--offer 43 --data counter --no-soft-reset",
            "--type input",
        ]
        .map(Spec::new),
    );
    specs
}

/// The pair, and a disk with room for all of the guest's memory, which is the same in the guest's next
/// QEMU.
pub fn with_swap() -> Vec<Spec> {
    let mut specs = default_pair();
    specs.push(Spec::new(
        "--type blk --size 1G --queues 2 --queue-size 128 --backing %t/swap",
    ));
    specs
}

/// A disk of some MiB that has been made.
pub fn root_disk(path: &Path, mib: u64) -> Spec {
    let path = path.display();
    Spec::new(&format!(
        "--type blk --size {mib}M --queues 2 --queue-size 128 --backing {path}"
    ))
}

/// The devices of one guest.
pub struct Devices(Vec<Device>);

struct Device {
    daemon: Daemon,
    socket: PathBuf,
    events: PathBuf,
    /// How many of its violations have been asked for.
    seen: usize,
}

/// Something that happened to a device.
#[derive(Debug, Deserialize)]
struct Event {
    event: String,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// All that happened to a device.
#[derive(Debug)]
pub struct Record(Vec<Event>);

/// Builds the device program.
pub fn build(tree: &Tree, output: &Output) -> Result<PathBuf> {
    // For the log; cargo has locks of its own.
    let _lock = tree.lock("device")?;
    let mut cargo = rust::cargo(tree);
    cargo.args(["build", "--quiet", "--release", "-p", "virtio-test-device"]);
    let log = tree.out("log")?.join("device.log");
    output.announce("building the test device", || run_logged(&mut cargo, &log))?;
    Ok(tree.join("out/target/release/virtio-test-device"))
}

impl Devices {
    /// Starts devices, of the clone `tree`.
    pub fn start(tree: &Tree, specs: &[Spec], run: &RunDir, output: &Output) -> Result<Self> {
        if specs.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let program = build(tree, output)?;
        specs
            .iter()
            .enumerate()
            .map(|(index, spec)| Device::start(&program, spec, run, index))
            .collect::<Result<_>>()
            .map(Self)
    }

    pub fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|device| device.socket.as_path())
    }

    /// The violations recorded since this was last asked.
    pub fn new_violations(&mut self) -> Result<Vec<String>> {
        let mut new = Vec::new();
        for (index, device) in self.0.iter_mut().enumerate() {
            let mut all = device.record()?.violations();
            for violation in all.drain(device.seen..) {
                new.push(format!("device {index}: {violation}"));
                device.seen += 1;
            }
        }
        Ok(new)
    }

    /// Kills a device.
    pub fn kill(&mut self, index: usize) {
        self.0[index].daemon.kill();
    }

    /// Lets the devices end, now that QEMU has.
    pub fn finish(self) -> Result<Vec<Record>> {
        self.0.into_iter().map(Device::finish).collect()
    }
}

impl Device {
    fn start(program: &Path, spec: &Spec, run: &RunDir, index: usize) -> Result<Self> {
        let sockets = run.sockets()?;
        let socket = sockets.join(format!("dev{index}.sock"));
        let _ = fs::remove_file(&socket);
        let events = run.join(format!("dev{index}.events"));
        let mut command = Command::new(program);
        command
            .args(spec.arguments(&sockets))
            .args(["--once", "--socket"])
            .arg(&socket)
            .arg("--events")
            .arg(&events);
        let log = run.join(format!("dev{index}.log"));
        let mut daemon = Daemon::spawn("virtio-test-device", &mut command, log)?;
        daemon.wait_for(&socket, PATIENCE)?;
        Ok(Self {
            daemon,
            socket,
            events,
            seen: 0,
        })
    }

    fn record(&self) -> Result<Record> {
        let text = fs::read_to_string(&self.events)
            .with_context(|| format!("can't read {}", self.events.display()))?;
        Record::parse(&text)
    }

    fn finish(mut self) -> Result<Record> {
        ensure!(
            self.daemon.wait(PATIENCE),
            "the device did not end with QEMU:\n{}",
            tail(self.daemon.log(), 10)
        );
        self.record()
    }
}

impl Record {
    /// Parses an event stream, whose last line may be half written.
    fn parse(events: &str) -> Result<Self> {
        events
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).with_context(|| format!("not an event: {line}")))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// What the driver did against the rules, in words.
    pub fn violations(&self) -> Vec<String> {
        self.0
            .iter()
            .filter(|event| event.event == "violation")
            .map(|event| {
                let field = |name| {
                    event
                        .fields
                        .get(name)
                        .and_then(Value::as_str)
                        .unwrap_or("?")
                };
                format!("{}: {} ({})", field("rule"), field("what"), field("access"))
            })
            .collect()
    }

    /// The driver reset the device after it had suspended it for the last time.
    pub fn reset_while_suspended(&self) -> bool {
        let mut events = self.0.iter().rev();
        let reset = events
            .by_ref()
            .take_while(|event| event.event != "suspended")
            .any(|e| e.event == "reset" && e.fields.get("by").is_some_and(|by| by == "driver"));
        reset && self.0.iter().any(|event| event.event == "suspended")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_told_from_other_events() {
        let record = Record::parse(
            "{\"t_us\":1,\"event\":\"reset\",\"by\":\"vfio\"}\n\
             {\"t_us\":2,\"event\":\"violation\",\"rule\":\"D5\",\"what\":\"a notification\",\
             \"access\":\"notify 0\",\"time_us\":2}\n\
             {\"t_us\":3,\"ev",
        )
        .unwrap();
        assert_eq!(record.violations(), ["D5: a notification (notify 0)"]);
        assert!(Record::parse("garbage\n").is_err());
        assert!(Record::parse("").unwrap().violations().is_empty());
    }

    #[test]
    fn each_guest_has_its_own_sockets() {
        let spec = Spec::new("--type net --cable %t/cable.sock");
        let arguments: Vec<_> = spec.arguments(Path::new("/run/lab/test-2")).collect();
        assert_eq!(arguments[3], "/run/lab/test-2/cable.sock");
    }

    #[test]
    fn a_reset_counts_after_the_suspend_only() {
        let record = |events: &[&str]| {
            let lines: String = events
                .iter()
                .map(|event| format!("{{\"t_us\":1,\"event\":{event}}}\n"))
                .collect();
            Record::parse(&lines).unwrap()
        };
        let by_driver = "\"reset\",\"by\":\"driver\"";
        let by_client = "\"reset\",\"by\":\"disconnect\"";
        assert!(record(&["\"suspended\"", by_driver, by_client]).reset_while_suspended());
        assert!(!record(&["\"suspended\"", by_client]).reset_while_suspended());
        assert!(!record(&[by_driver, "\"suspended\""]).reset_while_suspended());
        assert!(!record(&[by_driver]).reset_while_suspended());
    }
}
