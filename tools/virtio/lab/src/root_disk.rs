// SPDX-License-Identifier: GPL-2.0

//! `boot/boot_root.py`: a guest whose root file system and swap are on the one disk, which is suspended.
//!
//! The disk is a test device, and run by the kernel's own driver with virtio_suspend, as by an
//! operator's initramfs. There is no other file system, and little memory. A host is played that asks
//! for a suspend by virtio-serial, and is gone. When the guest has ended, the file system is checked.

use crate::device::{self, Devices};
use crate::guest::{self, Config, Ending, Outcome, Root};
use crate::init::{Job, Selftest};
use crate::kernel::{Flavour, Kernel};
use crate::ktap::Verdict;
use crate::process::output_of;
use crate::root_image::{BOUNDS, DISK, MIB};
use crate::selftests::Session;
use crate::tally::Results;
use crate::tree::{Tree, SELFTESTS};
use anyhow::{ensure, Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub const PROGRAM: &str = "boot_root.py";
const SUITE: &str = "boot";
const RUN: &str = "root-disk";
const DEADLINE: Duration = Duration::from_secs(240);
const MEMORY: &str = "320M";

/// The port by which the host asks.
const PORT: &str = "trigger";
/// With this the guest has the host ask.
const ASK: &str = "host: ";
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the kselftest.
pub fn test(tree: &Tree, kernel: &Kernel, config: &Config, results: &Results) {
    if kernel.flavour != Flavour::Stock {
        let mut report = results.report(&format!("{SUITE}/{PROGRAM}"));
        report.note("it takes memory that the debug kernel needs itself");
        report.case(PROGRAM, Verdict::Skipped);
        return report.end();
    }
    let share = u32::try_from(config.share).unwrap_or(u32::MAX);
    let config = Config {
        deadline: (guest::BOOT + DEADLINE) * share,
        output: results.between(),
        ..config.clone()
    };
    let job = Job::Selftests {
        tests: vec![Selftest {
            program: tree.join(SELFTESTS).join(PROGRAM),
            cases: Vec::new(),
            timeout_s: (DEADLINE * share).as_secs(),
        }],
        claims: None,
    };
    let mut session = Session::new(results, SUITE);
    let outcome = run(tree, kernel, config, &job, |line, devices| {
        session.line(line, devices)
    });
    session.end(outcome);
}

/// Runs a job in such a guest.
pub fn run(
    tree: &Tree,
    kernel: &Kernel,
    mut config: Config,
    job: &Job,
    mut on_line: impl FnMut(&str, &mut Devices) -> Result<()>,
) -> Result<Outcome> {
    let sockets = tree.run_dir(RUN)?.sockets()?;
    let socket = sockets.join(PORT);
    let disk = sockets.join(DISK);
    config.devices = vec![device::root_disk(&disk, BOUNDS[2])];
    config.root = Root::Disk;
    config.memory = Some(MEMORY);
    let chardev = format!(
        "socket,id={PORT},path={},server=on,wait=off",
        socket.display()
    );
    let port = format!("virtserialport,chardev={PORT},name={PORT}");
    let words = [
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &chardev,
        "-device",
        &port,
    ];
    config.qemu.extend(words.map(str::to_string));

    let outcome = guest::run(tree, kernel, RUN, &config, job, |line, devices| {
        if let Some((_, words)) = line.split_once(ASK) {
            ask(&socket, words).with_context(|| format!("the host can't ask: {words}"))?;
        }
        on_line(line, devices)
    })?;
    if matches!(outcome.ending, Ending::Status(_)) {
        check(&disk).context("the guest's root file system")?;
    }
    Ok(outcome)
}

/// A host asks, hears that it is done, and is gone.
fn ask(socket: &Path, words: &str) -> Result<()> {
    let mut port = UnixStream::connect(socket).context("can't connect to the port")?;
    port.set_read_timeout(Some(PATIENCE))?;
    writeln!(port, "{words}").context("can't write to the port")?;
    let mut answer = String::new();
    BufReader::new(port)
        .read_line(&mut answer)
        .context("no answer")?;
    ensure!(
        answer.starts_with("ok suspended"),
        "the answer is {answer:?}"
    );
    Ok(())
}

/// Has e2fsck look at the file system, which was made read-only in the end.
fn check(disk: &Path) -> Result<()> {
    let place = format!("{}?offset={}", disk.display(), BOUNDS[0] * MIB);
    output_of(Command::new("e2fsck").args(["-f", "-n", &place])).map(drop)
}
