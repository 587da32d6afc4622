// SPDX-License-Identifier: GPL-2.0

//! `sleep/`: the tests in guests that sleep.

use crate::device::{self, Devices, Spec};
use crate::guest::{self, Config, Ending, Outcome, Root};
use crate::init::{Job, Selftest};
use crate::kernel::{Flavour, Kernel};
use crate::klog::Shutdown;
use crate::ktap::Verdict;
use crate::qmp::Monitor;
use crate::selftests::{self, file_name, Session};
use crate::tally::Results;
use crate::tree::{make_dir, Tree};
use crate::waker::Waker;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub const SUITE: &str = "sleep";

/// What the kselftests of this suite begin with.
const PREFIX: &str = "sleep_";
const SOCKETS: &str = "/run/lab";
/// For one test, on the stock kernel.
const DEADLINE: Duration = Duration::from_secs(240);

/// What is run on the debug kernel, of those tests that are: each thing that is done to a device once.
const DEBUG_CASES: &[&str] = &[
    "s2idle: an entropy device suspended by hand*",
    "s2idle: No_Soft_Reset: a disk suspended by hand*",
    "s2idle: suspended disks *",
    "s2idle: suspended interfaces *",
    "s2idle: somebody waits for a suspended disk*",
    "s2idle: an input device suspended by hand*",
    "s2idle: an entropy device and a disk that refuse *",
    "s2idle: all devices, *",
    "deep: an entropy device and a disk that forget *",
    "deep: a disk under load *",
    "deep: disks under load *",
    "deep: No_Soft_Reset: a disk under load *",
    "deep: a disk suspended by hand*",
    "deep: suspended disks *",
    "deep: a TCP connection *",
    "deep: an input device: *",
    "deep: requests *",
    "deep: something to be written *",
    "a disk that does not finish *",
    "s2idle: virtio_rng and virtio_input, *",
    "*, as far as pm_test says: *",
];

/// The kselftests that put their machine to sleep, which is why nobody else runs them.
pub fn programs(tree: &Tree) -> Result<Vec<PathBuf>> {
    let mut programs = selftests::listed(tree, &["TEST_PROGS_EXTENDED"])?;
    programs.retain(|path| file_name(path).starts_with(PREFIX));
    Ok(programs)
}

/// Runs one of them in a guest of its own.
pub fn test(tree: &Tree, kernel: &Kernel, config: &Config, program: &Path, results: &Results) {
    let slowness = kernel.flavour.slowness();
    let name = file_name(program);
    let is_debug = kernel.flavour == Flavour::Debug;
    if is_debug && is_written(name) {
        let mut report = results.report(&format!("{SUITE}/{name}"));
        report.note("the debug kernel has too much memory in use to be written in time");
        report.case(name, Verdict::Skipped);
        return report.end();
    }
    let cases = match is_debug {
        true => DEBUG_CASES.iter().map(|case| case.to_string()).collect(),
        false => Vec::new(),
    };
    let share = u32::try_from(config.share).unwrap_or(u32::MAX);
    let within = DEADLINE * slowness * share;
    let mut config = Config {
        deadline: guest::BOOT * slowness * share + within,
        devices: devices(name),
        output: results.between(),
        ..config.clone()
    };
    let job = Job::Selftests {
        tests: vec![Selftest {
            program: program.into(),
            cases,
            timeout_s: within.as_secs(),
        }],
        claims: None,
    };
    let mut session = Session::new(results, SUITE);
    let run_name = name.trim_end_matches(".py");
    let outcome = run(
        tree,
        kernel,
        run_name,
        &mut config,
        &job,
        |line, devices| session.line(line, devices),
    );
    session.end(outcome);
}

/// Whether the guest is written to a disk.
fn is_written(name: &str) -> bool {
    name.starts_with("sleep_disk")
}

/// What is to be written to a disk needs one with room.
fn devices(name: &str) -> Vec<Spec> {
    match is_written(name) {
        true => device::with_swap(),
        false => device::that_sleep(),
    }
}

/// Runs a job in a guest with an initramfs for its root, which is woken when it sleeps.
pub fn run(
    tree: &Tree,
    kernel: &Kernel,
    name: &str,
    config: &mut Config,
    job: &Job,
    mut on_line: impl FnMut(&str, &mut Devices) -> Result<()>,
) -> Result<Outcome> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = make_dir(SOCKETS.into())?.join(format!("monitor-{number}"));
    let monitor = Monitor::listen(&path)?;
    config.qemu.extend(monitor.qemu_args());
    config.root = Root::Initramfs { resume: None };
    let mut waker = Waker::new(monitor);
    let mut all: Option<Outcome> = None;
    loop {
        let outcome = guest::run(tree, kernel, name, config, job, |line, devices| {
            waker.line(line)?;
            on_line(line, devices)
        })?;
        let (complaints, records) = match all.take() {
            Some(before) => (before.complaints, before.records),
            None => Default::default(),
        };
        let outcome = outcome.after(complaints, records);
        // It has written itself to a disk, and that is where it goes on, once.
        match waker.take_disk() {
            Some(disk) if matches!(outcome.ending, Ending::Died | OFF) => {
                config.root = Root::Initramfs { resume: Some(disk) };
                all = Some(outcome);
            }
            _ => {
                if matches!(outcome.ending, Ending::Status(_)) {
                    waker.end()?;
                }
                return Ok(outcome);
            }
        }
    }
}

const OFF: Ending = Ending::Shutdown(Shutdown::PowerOff);
