// SPDX-License-Identifier: GPL-2.0

//! `virtio-suspend metrics`: what monitoring systems read, as OpenMetrics.
//!
//! Only of what the older text format of Prometheus has, too: it is what the textfile collector of
//! node_exporter reads, and it refuses a whole file for one type that it does not know.

use std::fmt::Write;

use crate::sysfs::{Device, Suspend};

/// The states that a device can be in.
const STATES: [&str; 5] = ["running", "suspending", "suspended", "resuming", "failed"];

type Value = fn(&Suspend) -> u64;

const COUNTERS: &[(&str, &str, Value)] = &[
    ("suspends", "Suspends that succeeded", |s| s.suspends),
    ("resumes", "Resumes that succeeded", |s| s.resumes),
    (
        "failures",
        "Requests that failed, and failures of the device itself",
        |s| s.failures,
    ),
    ("recoveries", "Resets after a failure", |s| s.recoveries),
    (
        "quirks",
        "Resumes for which SUSPEND was written as clear",
        |s| s.quirks,
    ),
];

const TIMES: &[(&str, &str, Value)] = &[
    ("last_suspend", "How long the last suspend took", |s| {
        s.last_suspend_ns
    }),
    ("last_resume", "How long the last resume took", |s| {
        s.last_resume_ns
    }),
];

/// All that can be said of some devices.
pub fn text(devices: &[Device]) -> String {
    let mut text = String::new();
    let all = || {
        devices
            .iter()
            .filter_map(|d| Some((d, labels(d), d.suspend.as_ref()?)))
    };
    // Writing to a string does not fail.
    let mut line = |args: std::fmt::Arguments| {
        let _ = writeln!(text, "{args}");
    };
    for (name, help, value) in COUNTERS {
        line(format_args!("# TYPE virtio_suspend_{name} counter"));
        line(format_args!("# HELP virtio_suspend_{name} {help}."));
        for (_, labels, suspend) in all() {
            line(format_args!(
                "virtio_suspend_{name}_total{{{labels}}} {}",
                value(suspend)
            ));
        }
    }
    for (name, help, value) in TIMES {
        line(format_args!("# TYPE virtio_suspend_{name}_seconds gauge"));
        line(format_args!("# UNIT virtio_suspend_{name}_seconds seconds"));
        line(format_args!("# HELP virtio_suspend_{name}_seconds {help}."));
        for (_, labels, suspend) in all() {
            let ns = value(suspend);
            let (s, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
            line(format_args!(
                "virtio_suspend_{name}_seconds{{{labels}}} {s}.{rest:09}"
            ));
        }
    }
    // A stateset by its nature.
    line(format_args!("# TYPE virtio_suspend_state gauge"));
    line(format_args!(
        "# HELP virtio_suspend_state The state of the device."
    ));
    for (_, labels, suspend) in all() {
        for state in STATES {
            let is = u8::from(suspend.state == state);
            line(format_args!(
                "virtio_suspend_state{{{labels},state=\"{state}\"}} {is}"
            ));
        }
    }
    line(format_args!("# EOF"));
    text
}

fn labels(device: &Device) -> String {
    let names: Vec<&str> = device.names().filter(|name| *name != device.name).collect();
    // None of them can have a character that would have to be escaped.
    let name = names.join(",");
    format!(
        "device=\"{}\",type=\"{}\",name=\"{name}\"",
        device.name,
        device.kind()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use crate::sysfs;

    #[test]
    fn what_is_printed() {
        let fake = Fake::new();
        fake.device("virtio0", 2, "virtio_blk", "1.4");
        fake.disk("virtio0", "vda", "254:0");
        fake.plain_device("virtio1", 26);
        let text = text(&sysfs::devices(&fake.root()));
        let labels = "device=\"virtio0\",type=\"block\",name=\"vda\"";
        for line in [
            format!("virtio_suspend_suspends_total{{{labels}}} 3"),
            format!("virtio_suspend_last_suspend_seconds{{{labels}}} 0.002000000"),
            format!("virtio_suspend_state{{{labels},state=\"running\"}} 1"),
            format!("virtio_suspend_state{{{labels},state=\"failed\"}} 0"),
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line} is not in\n{text}"
            );
        }
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            let kind = line.rsplit(' ').next().unwrap_or_default();
            assert!(["counter", "gauge"].contains(&kind), "{line}");
        }
        assert!(!text.contains("virtio1"));
        assert!(text.ends_with("# EOF\n"));
    }
}
