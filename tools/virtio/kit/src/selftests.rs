// SPDX-License-Identifier: GPL-2.0

//! The kselftests that say something of a device that is not told to misbehave.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::child;
use crate::devices::{Sysfs, BLOCK, ENTROPY};
use crate::ktap::{self, Line};
use crate::parameters::Data;
use crate::report::Report;

/// Where they are installed, as the kernel does it.
const DIRECTORY: &str = "/kselftest/virtio";
/// For a program: more than the limit that it has itself.
const PROGRAM: Duration = Duration::from_secs(660);

/// A kselftest.
pub struct Selftest {
    program: &'static str,
    /// The type of the devices that it is about.
    device: u32,
    /// It writes on disks.
    writes: bool,
}

/// With an entropy device, by our own driver, and with a disk, by the kernel's.
pub const ALL: &[Selftest] = &[
    Selftest {
        program: "suspend_basic.py",
        device: ENTROPY,
        writes: false,
    },
    Selftest {
        program: "suspend_reader.py",
        device: ENTROPY,
        writes: false,
    },
    Selftest {
        program: "ext_blk.py",
        device: BLOCK,
        writes: true,
    },
];

/// The one of a name, with or without its extension.
pub fn find(name: &str) -> Option<&'static Selftest> {
    let stem = |text: &'static str| text.trim_end_matches(".py");
    ALL.iter()
        .find(|s| s.program == name || stem(s.program) == name)
}

/// Runs one, and reports. If it is not `named` it is run only if it says something.
pub fn run(sysfs: &Sysfs, selftest: &Selftest, named: bool, data: Data, report: &mut Report) {
    let Selftest {
        program, device, ..
    } = *selftest;
    let kind = virtio_types::type_name(device).unwrap_or("other");
    if !sysfs.devices().iter().any(|d| d.id == device) {
        return report.skip_program(program, &format!("there is no device of type {kind}"));
    }
    if !named && !report.is_offered_by(device) {
        return report.skip_program(program, &format!("no device of type {kind} offers SUSPEND"));
    }
    if selftest.writes && data == Data::Keep {
        return report.skip_program(program, "it writes on disks: suspend.data=lost allows it");
    }
    report.begin_program(program);
    let mut command = Command::new(Path::new(DIRECTORY).join(program));
    command
        .current_dir(DIRECTORY)
        .env("PYTHONUNBUFFERED", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // Most VMMs are tried under some load, and many by emulation.
        .env("SUSPEND_SLOWNESS", "3");
    // What it says is printed when it says so: it may take its time, and says some of it afterwards.
    let ended = child::run(&mut command, PROGRAM, |line| match ktap::line(line) {
        Line::Case(case) => report.case(&case, ""),
        Line::Note(note) => println!("  # {note}"),
        Line::Frame => {}
    });
    match ended.map(|ended| ended.status) {
        // The cases that failed are counted; 4: all of it is skipped.
        Ok(Some(0 | 1 | 4)) => {}
        Ok(Some(status)) => report.failed_case(&format!("it ended with status {status}"), ""),
        Ok(None) => {
            let text = format!("it did not end within {} s", PROGRAM.as_secs());
            report.failed_case(&text, "");
        }
        Err(error) => report.failed_case(&format!("{error:#}"), ""),
    }
    report.end(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_either_name() {
        for name in ["suspend_basic", "suspend_basic.py"] {
            assert_eq!(find(name).map(|s| s.program), Some("suspend_basic.py"));
        }
        assert!(find("suspend").is_none());
    }

    /// `make kit` installs what the Makefile of the kselftests lists.
    #[test]
    fn all_of_them_are_installed() {
        let makefile = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../testing/selftests/virtio/Makefile"
        );
        let text = std::fs::read_to_string(makefile).unwrap();
        for selftest in ALL {
            let line = format!("= {}", selftest.program);
            assert!(
                text.lines().any(|l| l.ends_with(&line)),
                "{}",
                selftest.program
            );
        }
    }
}
