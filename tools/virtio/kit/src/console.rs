// SPDX-License-Identifier: GPL-2.0

//! The console that the kit talks on.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result};

use crate::devices::{Device, Sysfs, CONSOLE};
use crate::parameters::{self, Parameters};

/// What is there on most machines, the best first.
const CANDIDATES: &[&str] = &["ttyS0", "ttyS1", "ttyS2", "ttyS3", "ttyAMA0", "hvc0"];

/// Where the kernel talks.
const KERNELS: &str = "console";

/// The name of the console: the one that is asked for, else the kernel's if the command line names
/// one, else the first there is.
pub fn choose(sysfs: &Sysfs, parameters: &Parameters, command_line: &str) -> String {
    if let Some(name) = &parameters.console {
        return name.clone();
    }
    let words = parameters::words(command_line);
    let kernels = words.iter().rev().find_map(|w| w.strip_prefix("console="));
    let kernels = kernels.map(|value| value.split(',').next().unwrap_or(value));
    if let Some(name) = kernels.filter(|name| is_there(sysfs, name)) {
        return name.into();
    }
    let first = CANDIDATES.iter().find(|name| is_there(sysfs, name));
    (*first.unwrap_or(&KERNELS)).into()
}

/// Whether there is such a terminal. There are files for serial ports that are not.
fn is_there(sysfs: &Sysfs, name: &str) -> bool {
    let directory = sysfs.join("class/tty").join(name);
    match fs::read_to_string(directory.join("type")) {
        Ok(kind) if name.starts_with("ttyS") => kind.trim() != "0",
        _ => directory.exists(),
    }
}

/// Whether it goes away with the driver of this device.
pub fn is_served_by(console: &str, device: &Device) -> bool {
    device.id == CONSOLE && console.starts_with("hvc")
}

/// From now on everything is printed there: a name in /dev, or a path.
pub fn open(name: &str) -> Result<()> {
    let path = Path::new("/dev").join(name);
    let terminal = terminal(&path)?;
    rustix::stdio::dup2_stdin(&terminal).context("can't read from the console")?;
    rustix::stdio::dup2_stdout(&terminal).context("can't print on the console")?;
    rustix::stdio::dup2_stderr(&terminal).context("can't print on the console")
}

fn terminal(path: &Path) -> Result<File> {
    let terminal = OpenOptions::new().read(true).write(true).open(path);
    terminal.with_context(|| format!("can't open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(terminals: &[(&str, Option<&str>)]) -> (tempfile::TempDir, Sysfs) {
        let dir = tempfile::tempdir().unwrap();
        for (name, kind) in terminals {
            let path = dir.path().join("class/tty").join(name);
            fs::create_dir_all(&path).unwrap();
            if let Some(kind) = kind {
                fs::write(path.join("type"), format!("{kind}\n")).unwrap();
            }
        }
        let sysfs = Sysfs::at(dir.path());
        (dir, sysfs)
    }

    fn chosen(terminals: &[(&str, Option<&str>)], command_line: &str) -> String {
        let (_dir, sysfs) = machine(terminals);
        let (parameters, _) = Parameters::parse(command_line);
        choose(&sysfs, &parameters, command_line)
    }

    const PC: &[(&str, Option<&str>)] = &[
        ("ttyS0", Some("4")),
        ("ttyS1", Some("0")),
        ("hvc0", None),
        ("tty0", None),
    ];

    #[test]
    fn the_first_there_is() {
        assert_eq!(chosen(PC, "quiet"), "ttyS0");
        // A serial port that is none.
        let without = [("ttyS0", Some("0")), ("hvc0", None)];
        assert_eq!(chosen(&without, "quiet"), "hvc0");
        assert_eq!(chosen(&[("ttyAMA0", Some("3"))], ""), "ttyAMA0");
        assert_eq!(chosen(&[], ""), "console");
    }

    #[test]
    fn the_kernels_if_it_is_named() {
        assert_eq!(chosen(PC, "console=ttyS0,115200 console=hvc0"), "hvc0");
        assert_eq!(chosen(PC, "console=tty0 console=ttyS0,115200n8"), "ttyS0");
        // It is not there.
        assert_eq!(chosen(PC, "console=ttyS1"), "ttyS0");
    }

    #[test]
    fn the_one_that_is_asked_for() {
        assert_eq!(chosen(PC, "console=ttyS0 suspend.console=hvc0"), "hvc0");
    }

    #[test]
    fn a_console_is_not_taken_from_the_kit() {
        let device = |id| Device {
            id,
            ..Device::default()
        };
        assert!(is_served_by("hvc0", &device(CONSOLE)));
        assert!(!is_served_by("ttyS0", &device(CONSOLE)));
        assert!(!is_served_by("hvc0", &device(2)));
    }
}
