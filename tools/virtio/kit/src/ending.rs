// SPDX-License-Identifier: GPL-2.0

//! How the machine ends.
//!
//! A machine that powers itself off has a good status in every VMM. What is no success has to end it
//! in another way, if there is one:
//!
//! - QEMU's isa-debug-exit, if the command line says where it is: QEMU ends with status 1;
//! - a pvpanic device: the kernel panics, and what that means is up to the VMM. QEMU with
//!   `-action panic=exit-failure` ends with status 1.
//!
//! Where there is neither, the last line says it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use rustix::system::RebootCommand;

use crate::console;
use crate::devices::Sysfs;
use crate::modules;
use crate::parameters::Exit;
use crate::report::Verdict;

/// The drivers of pvpanic devices, and their buses.
const PVPANIC: &[(&str, &str)] = &[
    ("pvpanic_pci", "bus/pci/drivers/pvpanic-pci"),
    ("pvpanic_mmio", "bus/platform/drivers/pvpanic-mmio"),
];

/// A VMM takes a moment to end a machine that asks for it by a port.
const PATIENCE: Duration = Duration::from_secs(5);

/// How it is to end.
pub struct Ending {
    pub exit: Exit,
    pub port: Option<u16>,
    pub verdict: Verdict,
    pub last_line: String,
}

impl Default for Ending {
    /// After an error that leaves nothing else to do.
    fn default() -> Self {
        Self {
            exit: Exit::PowerOff,
            port: None,
            verdict: Verdict::NotOk,
            last_line: format!("{}: not ok", crate::report::NAME),
        }
    }
}

impl Ending {
    /// Says the last line, and ends the machine.
    pub fn end(&self) -> ExitCode {
        let failed = self.verdict != Verdict::Ok;
        let pvpanic = failed && self.port.is_none() && has_pvpanic(&Sysfs::default());
        if self.exit == Exit::Shell {
            println!("{}", self.last_line);
            shell();
        }
        println!("# the machine ends {}", self.way(pvpanic));
        silence();
        println!("{}", self.last_line);
        flush();
        rustix::fs::sync();
        if failed {
            if let Some(port) = self.port {
                write_port(port);
                thread::sleep(PATIENCE);
            }
            if pvpanic {
                // Process 1 ends, by which the kernel panics. A VMM that does not care sees a reboot.
                return ExitCode::FAILURE;
            }
        }
        let command = match self.exit {
            Exit::Reboot => RebootCommand::Restart,
            Exit::PowerOff | Exit::Shell => RebootCommand::PowerOff,
        };
        if let Err(error) = rustix::system::reboot(command) {
            println!("# can't end the machine: {error}");
        }
        // Process 1 that ends has the kernel panic, which reboots.
        ExitCode::FAILURE
    }

    fn way(&self, pvpanic: bool) -> String {
        match (self.verdict, self.port) {
            (Verdict::NotOk | Verdict::Skip, Some(port)) => {
                format!("by I/O port {port:#x}: status 1, with QEMU's isa-debug-exit there")
            }
            (Verdict::NotOk | Verdict::Skip, None) if pvpanic => {
                "by pvpanic: status 1, with QEMU's -action panic=exit-failure".into()
            }
            (Verdict::NotOk | Verdict::Skip, None) => {
                "as if all were well: there is no pvpanic, and suspend.exit-port is not set".into()
            }
            (Verdict::Ok, _) => match self.exit {
                Exit::Reboot => "by a reboot".into(),
                Exit::PowerOff | Exit::Shell => "by powering itself off".into(),
            },
        }
    }
}

/// Whether there is a device that tells the VMM of a panic. Its driver is loaded only now.
fn has_pvpanic(sysfs: &Sysfs) -> bool {
    PVPANIC.iter().any(|(module, directory)| {
        // A kernel may have only one of them.
        let _ = modules::load(module, &[]);
        let entries = fs::read_dir(sysfs.join(directory));
        // Links to devices have a colon in their name on either bus.
        let mut names = entries.into_iter().flatten().flatten();
        names.any(|entry| entry.file_name().to_string_lossy().contains(':'))
    })
}

/// The kernel says no more on the console, such as that it powers down, or panics, which it says even
/// if it is to be quiet: the last line is to be the last.
fn silence() {
    let _ = fs::write("/proc/sys/kernel/printk", "0");
}

#[cfg(target_arch = "x86_64")]
fn write_port(port: u16) {
    if let Err(error) = crate::port::write(port, 0) {
        println!("# can't write to I/O port {port:#x}: {error}");
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn write_port(_port: u16) {}

/// What has been printed is on its way out of the machine.
fn flush() {
    let _ = io::stdout().flush();
    let _ = rustix::termios::tcdrain(rustix::stdio::stdout());
}

/// A shell on the console, until it ends.
fn shell() {
    println!("# a shell; the kselftests are in /kselftest; when it ends, so does the machine");
    let mut shell = Command::new("setsid");
    shell
        .args(["-c", "sh", "-i"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TERM", "linux")
        .current_dir(if Path::new("/root").exists() {
            "/root"
        } else {
            "/"
        });
    let path = fs::read_link("/proc/self/fd/0").unwrap_or_default();
    if let Ok(terminal) = File::open(&path) {
        shell.stdin(terminal);
    }
    let ended = shell.spawn().and_then(|mut shell| shell.wait());
    // It was the terminal of the shell's session, with whose end it is hung up: nobody can go on to
    // use what was open.
    if console::open(&path.to_string_lossy()).is_err() {
        return;
    }
    if let Err(error) = ended {
        println!("# can't start a shell: {error}");
    }
}
