// SPDX-License-Identifier: GPL-2.0

//! The test devices of a guest, and what they say of the driver.

use crate::process::{output_of, tail, Daemon};
use crate::rust;
use crate::tree::Tree;
use anyhow::{ensure, Context, Result};
use serde::Deserialize;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `virtio-test-device`, but for socket and events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec(Vec<String>);

impl FromStr for Spec {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.split_whitespace().map(str::to_string).collect()))
    }
}

impl Spec {
    pub fn new(args: &[&str]) -> Self {
        Self(args.iter().map(|a| a.to_string()).collect())
    }
}

/// One device of VIRTIO 1.4 and one of the draft, whose data is a counter: a gap shows.
pub fn default_pair() -> Vec<Spec> {
    ["43", "42"]
        .map(|offer| Spec::new(&["--offer", offer, "--data", "counter"]))
        .into()
}

/// A device that runs.
pub struct Device {
    daemon: Daemon,
    pub socket: PathBuf,
    events: PathBuf,
    /// How many of the violations have been asked for.
    seen: usize,
}

/// An event that we look at; the device writes others, too.
#[derive(Deserialize)]
struct Event {
    event: String,
    #[serde(flatten)]
    fields: serde_json::Map<String, serde_json::Value>,
}

/// Builds the device program.
pub fn build(tree: &Tree) -> Result<PathBuf> {
    let mut cargo = rust::cargo(tree);
    cargo.args(["build", "--quiet", "--release", "-p", "virtio-test-device"]);
    output_of(&mut cargo)?;
    Ok(tree.join("out/target/release/virtio-test-device"))
}

impl Device {
    pub fn start(program: &Path, spec: &Spec, run: &Path, index: usize) -> Result<Self> {
        let socket = PathBuf::from(format!("/run/dev{index}.sock"));
        let _ = fs::remove_file(&socket);
        let events = run.join(format!("dev{index}.events"));
        let mut command = Command::new(program);
        command
            .args(&spec.0)
            .args(["--once", "--socket"])
            .arg(&socket)
            .arg("--events")
            .arg(&events)
            .env(
                "RUST_LOG",
                std::env::var("RUST_LOG").unwrap_or("info".into()),
            );
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

    /// The violations recorded since this was last asked.
    pub fn new_violations(&mut self) -> Result<Vec<String>> {
        let all = violations(&read(&self.events)?)?;
        let new = all.get(self.seen..).unwrap_or_default().to_vec();
        self.seen = all.len();
        Ok(new)
    }

    /// Lets the device end, now that QEMU has, and returns all violations.
    pub fn finish(mut self) -> Result<Vec<String>> {
        if !self.daemon.wait(Duration::from_millis(500)) {
            self.daemon.terminate();
            ensure!(
                self.daemon.wait(PATIENCE),
                "the device did not end when told to:\n{}",
                tail(self.daemon.log(), 10)
            );
        }
        violations(&read(&self.events)?)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

/// The violations in an event stream, in words.
fn violations(events: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    // The last line may be half written.
    for line in events.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
        let event: Event =
            serde_json::from_str(line).with_context(|| format!("not an event: {line}"))?;
        if event.event == "violation" {
            let fields = event.fields.iter().map(|(key, value)| match value {
                serde_json::Value::String(text) => format!("{key}={text}"),
                other => format!("{key}={other}"),
            });
            found.push(fields.collect::<Vec<_>>().join(" "));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_told_from_other_events() {
        let events = "{\"t_us\":1,\"event\":\"reset\"}\n\
                      {\"t_us\":2,\"event\":\"violation\",\"rule\":\"D5\",\"text\":\"kick\"}\n\
                      {\"t_us\":3,\"ev";
        let found = violations(events).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("rule=D5") && found[0].contains("text=kick"));
        assert!(violations("garbage\n").is_err());
        assert!(violations("").unwrap().is_empty());
    }
}
