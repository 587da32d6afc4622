// SPDX-License-Identifier: GPL-2.0

//! Who wakes a guest that sleeps.
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

use crate::qmp::Monitor;
use anyhow::{ensure, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// Between two times that the power button is pressed.
const PRESS: Duration = Duration::from_secs(1);
/// For an event that comes right after what the guest says.
const PATIENCE: Duration = Duration::from_secs(10);

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
pub struct Waker {
    monitor: Monitor,
    /// Which kind of sleep was announced.
    asleep: Option<bool>,
    /// How often the guest has been in deep sleep, as it says itself. What it says may be read late,
    /// when QEMU has told of its next sleep already.
    slept: usize,
    /// Ends the thread that wakes the guest when it is dropped.
    thread: Option<Sender<()>>,
    /// To which the guest is about to be written.
    disk: Option<PathBuf>,
}

impl Waker {
    pub fn new(monitor: Monitor) -> Self {
        Self {
            monitor,
            asleep: None,
            slept: 0,
            thread: None,
            disk: None,
        }
    }

    /// Takes note of what a line says of the guest's sleep, if it does.
    pub fn line(&mut self, line: &str) -> Result<()> {
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

    /// Takes the disk that the guest has written itself to, if it has.
    pub fn take_disk(&mut self) -> Option<PathBuf> {
        self.disk.take()
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
    pub fn end(&self) -> Result<()> {
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
