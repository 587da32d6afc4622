// SPDX-License-Identifier: GPL-2.0

//! Guests that sleep: who wakes them, and `sleep/`, the tests of that.
//!
//! A kselftest that is about to have its guest sleep says so on the terminal, and when it is awake:
//!
//! ```text
//! # sleep: deep
//! # awake: slept
//! ```
//!
//! From `deep`, S3, QEMU wakes it when it has said that the guest sleeps. From `s2idle`, of which
//! QEMU knows nothing, the power button wakes it, which is pressed every second until the guest says
//! that it is awake. What has been written to a disk, `disk /dev/vda`, goes on in another QEMU.

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
use anyhow::{ensure, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

pub const SUITE: &str = "sleep";

/// What the kselftests of this suite begin with.
const PREFIX: &str = "sleep_";
const SOCKETS: &str = "/run/lab";
/// Between two times that the power button is pressed.
const PRESS: Duration = Duration::from_secs(1);
/// For an event that comes right after what the guest says.
const PATIENCE: Duration = Duration::from_secs(10);
/// For one test, on the stock kernel.
const DEADLINE: Duration = Duration::from_secs(240);

/// What is run on the debug kernel, of those tests that are: each thing that is done to a device once.
const DEBUG_CASES: &[&str] = &[
    "s2idle: a suspended draft entropy device *",
    "s2idle: No_Soft_Reset: a suspended disk *",
    "s2idle: a suspended interface *",
    "s2idle: somebody waits for a suspended disk*",
    "s2idle: a suspended input device *",
    "deep: a disk under load *",
    "deep: a suspended disk *",
    "deep: a TCP connection *",
    "deep: an input device: *",
    "deep: requests *",
    "deep: something to be written *",
    "a disk that does not finish *",
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
        match waker.disk.take() {
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

/// What a kselftest says of its guest.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Deep,
    IdleOnly,
    Disk(&'a Path),
    Awake { slept: bool },
}

fn parse(line: &str) -> Option<Said<'_>> {
    let text = line.trim_start_matches("# ");
    match text.strip_prefix("sleep: ") {
        Some("deep") => Some(Said::Deep),
        Some("s2idle") => Some(Said::IdleOnly),
        Some(mode) => Some(Said::Disk(Path::new(mode.strip_prefix("disk ")?))),
        None => match text.strip_prefix("awake: ")? {
            "slept" => Some(Said::Awake { slept: true }),
            "did not sleep" => Some(Said::Awake { slept: false }),
            _ => None,
        },
    }
}

/// Wakes a guest.
struct Waker {
    monitor: Monitor,
    /// Which kind of sleep was announced.
    asleep: Option<bool>,
    /// How often the guest has been in deep sleep, as it says itself. What it says may be read late,
    /// when QEMU has told of its next sleep already.
    slept: usize,
    /// Ends the thread that wakes the guest when it is dropped.
    thread: Option<Sender<()>>,
    disk: Option<PathBuf>,
}

impl Waker {
    fn new(monitor: Monitor) -> Self {
        Self {
            monitor,
            asleep: None,
            slept: 0,
            thread: None,
            disk: None,
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        match parse(line) {
            Some(Said::Deep) => {
                let slept = self.slept;
                self.asleep = Some(true);
                self.wake(move |monitor| {
                    monitor.wait_for_more("SUSPEND", slept, PRESS)
                        && monitor.execute("system_wakeup", json!({})).is_ok()
                });
            }
            Some(Said::IdleOnly) => {
                self.asleep = Some(false);
                self.wake(|monitor| {
                    // It may be too early, or the guest awake already.
                    let _ = monitor.execute("system_powerdown", json!({}));
                    false
                });
            }
            Some(Said::Disk(disk)) => self.disk = Some(disk.into()),
            Some(Said::Awake { slept }) => {
                self.thread = None;
                let still_on = self.disk.take().is_some();
                ensure!(
                    !(slept && still_on),
                    "the guest says that it went on from a disk, and was not switched off"
                );
                self.check(slept)?;
            }
            None => {}
        }
        Ok(())
    }

    /// Has a thread try to wake the guest until it says that it is awake.
    fn wake(&mut self, mut attempt: impl FnMut(&Monitor) -> bool + Send + 'static) {
        let (sender, stopped) = mpsc::channel();
        let monitor = self.monitor.clone();
        thread::spawn(move || {
            while stopped.recv_timeout(PRESS) == Err(RecvTimeoutError::Timeout) {
                if attempt(&monitor) {
                    break;
                }
            }
        });
        self.thread = Some(sender);
    }

    /// Whether QEMU says of a guest's sleep what it says itself.
    fn check(&mut self, slept: bool) -> Result<()> {
        if self.asleep.take() == Some(true) && slept {
            let before = self.slept;
            self.slept += 1;
            ensure!(
                self.monitor.wait_for_more("WAKEUP", before, PATIENCE),
                "the guest has awoken from deep sleep, says itself, but QEMU does not"
            );
        }
        Ok(())
    }

    /// Whether they agree in the end.
    fn end(&self) -> Result<()> {
        let times = self.monitor.count("SUSPEND");
        ensure!(
            times == self.slept,
            "the guest was in deep sleep {} times, says itself, but QEMU: {times} times",
            self.slept
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says() {
        assert_eq!(parse("# # sleep: deep"), Some(Said::Deep));
        assert_eq!(parse("# sleep: s2idle"), Some(Said::IdleOnly));
        let disk = Some(Said::Disk(Path::new("/dev/vda")));
        assert_eq!(parse("# # sleep: disk /dev/vda"), disk);
        let slept = |slept| Some(Said::Awake { slept });
        assert_eq!(parse("# # awake: slept"), slept(true));
        assert_eq!(parse("# # awake: did not sleep"), slept(false));
        for line in ["# ok 1 s2idle", "# sleep: well", "# awake: at last", ""] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
