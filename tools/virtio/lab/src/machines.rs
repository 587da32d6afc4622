// SPDX-License-Identifier: GPL-2.0

//! `qemu/`: the tests on machines whose devices are QEMU's own.

use crate::guest::{self, Board, Config};
use crate::init::{Job, Selftest};
use crate::kernel::{Flavour, Kernel};
use crate::machine::Machine;
use crate::migrate::Host;
use crate::qemu;
use crate::selftests::{self, file_name, Session};
use crate::tally::Results;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const SUITE: &str = "qemu";

/// What the kselftests of this suite begin with.
const PREFIX: &str = "qemu_";
/// For one test, on the stock kernel.
const DEADLINE: Duration = Duration::from_secs(600);

/// What is run on the debug kernel: each thing that is done to a device once.
const DEBUG_CASES: &[&str] = &[
    "our entropy device: *",
    "our disks: *",
    "the kernel's virtio_blk: *",
    "the kernel's virtio_net: *",
    "the kernel's drivers: all devices at once*",
    "our disk is unbound *",
    "the kernel's drivers: * hops *",
    "a disk that grows before *",
    "a hop while a suspend waits *",
    "a snapshot of a guest whose devices are suspended*",
    "a device that needs a reset *",
    "deep: our disks *",
    "s2idle: the kernel's disks *",
];

/// The kselftests that have QEMU's own devices, which is why nobody else runs them.
pub fn programs(tree: &Tree) -> Result<Vec<PathBuf>> {
    let mut programs = selftests::listed(tree, &["TEST_PROGS_EXTENDED"])?;
    programs.retain(|path| file_name(path).starts_with(PREFIX));
    Ok(programs)
}

/// The name of a test.
pub fn test_name(machine: Machine, program: &Path) -> String {
    format!("{}/{}", machine.suite(), file_name(program))
}

/// A guest on one of the machines, with everything else as in `config`.
pub fn config(tree: &Tree, machine: Machine, config: &Config) -> Result<Config> {
    let emulator = qemu::set_up(tree)?.binary();
    Ok(Config {
        board: match machine.is_pci() {
            true => Board::Q35,
            false => Board::Microvm,
        },
        host: Some(Host::new(machine)),
        devices: Vec::new(),
        root: guest::Root::Initramfs { resume: None },
        emulator,
        ..config.clone()
    })
}

/// Runs one of the kselftests in a guest of its own.
pub fn test(
    tree: &Tree,
    kernel: &Kernel,
    base: &Config,
    machine: Machine,
    program: &Path,
    results: &Results,
) {
    let name = test_name(machine, program);
    let cases = match kernel.flavour {
        Flavour::Stock => Vec::new(),
        Flavour::Debug => DEBUG_CASES.iter().map(|case| case.to_string()).collect(),
    };
    let share = u32::try_from(base.share).unwrap_or(u32::MAX);
    let within = DEADLINE * kernel.flavour.slowness() * share;
    let mut session = Session::new(results, machine.suite());
    let job = Job::Selftests {
        tests: vec![Selftest {
            program: program.into(),
            cases,
            timeout_s: within.as_secs(),
        }],
        claims: None,
    };
    let run_name = name.trim_end_matches(".py").replace('/', "-");
    let outcome = config(tree, machine, base).and_then(|config| {
        let config = Config {
            deadline: guest::BOOT * kernel.flavour.slowness() * share + within,
            output: results.between(),
            ..config
        };
        run(tree, kernel, &run_name, &config, &job, |line, devices| {
            session.line(line, devices)
        })
    });
    session.end(outcome);
}

/// Runs a job in a guest whose requests are carried out.
pub fn run(
    tree: &Tree,
    kernel: &Kernel,
    name: &str,
    config: &Config,
    job: &Job,
    mut on_line: impl FnMut(&str, &mut crate::device::Devices) -> Result<()>,
) -> Result<guest::Outcome> {
    let host = config.host.clone().context("the guest has nobody to ask")?;
    let outcome = guest::run(tree, kernel, name, config, job, |line, devices| {
        if host.line(line)? {
            return Ok(());
        }
        on_line(line, devices)
    })?;
    if matches!(outcome.ending, guest::Ending::Status(_)) {
        host.has_slept()?;
    }
    Ok(outcome)
}
