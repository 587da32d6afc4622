// SPDX-License-Identifier: GPL-2.0

//! What whoever is started first has to do.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::MountFlags;

const MOUNTS: &[(&str, &str, &CStr)] = &[
    ("proc", "/proc", c""),
    ("sysfs", "/sys", c""),
    ("devtmpfs", "/dev", c""),
    ("devpts", "/dev/pts", c"mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", c"mode=1777"),
    ("tmpfs", "/tmp", c"mode=1777"),
    ("tmpfs", "/run", c"mode=755"),
    ("debugfs", "/sys/kernel/debug", c""),
    ("tracefs", "/sys/kernel/tracing", c""),
];

/// kselftest's runner writes to /dev/stdout.
const DESCRIPTORS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Mounts the file systems that programs expect.
pub fn mount() -> Result<()> {
    for (kind, target, data) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("can't make {target}"))?;
        match rustix::mount::mount(*kind, *target, *kind, MountFlags::empty(), *data) {
            // The kernel has mounted it.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("can't mount {kind} on {target}"))
            }
        }
    }
    for (path, target) in DESCRIPTORS {
        if !Path::new(path).exists() {
            symlink(target, path).with_context(|| format!("can't link {path}"))?;
        }
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // A kit that dies ends the machine.
    fs::write("/proc/sys/kernel/panic", "-1").context("can't set what follows a panic")
}

pub fn command_line() -> Result<String> {
    fs::read_to_string("/proc/cmdline").context("can't read the command line")
}

/// Says what runs here.
pub fn describe() {
    let system = rustix::system::uname();
    println!(
        "virtio-suspend kit {}: Linux {}, {}, processors: {}",
        env!("CARGO_PKG_VERSION"),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
        thread::available_parallelism().map_or(1, |n| n.get()),
    );
}
