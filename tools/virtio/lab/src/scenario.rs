// SPDX-License-Identifier: GPL-2.0

//! Tests that end their guest.

use crate::device::Devices;
use crate::guest::{Ending, Outcome};
use crate::klog::Shutdown;
use anyhow::{ensure, Result};
use std::time::Duration;

/// Suspends every device that can be.
const SUSPEND_ALL: &str = "modprobe virtio_rng; \
    set -e; \
    for d in /sys/bus/virtio/devices/*/suspend; do \
        echo suspend >$d/request; \
        echo \"$d is $(cat $d/state)\"; \
    done; ";

/// Waits until a device is gone, asks something of it and of the other one.
const USE_GONE: &str = "modprobe virtio_rng; \
    cd /sys/bus/virtio/drivers/virtio_rng; \
    set -- virtio*; \
    echo ready; \
    until [ $(cat $1/status) = 0x000000ff ]; do sleep 0.1; done; \
    busybox echo suspend 2>&1 >$1/suspend/request | sed 's/.*: //'; \
    cat $1/suspend/state $1/suspend/last_error; \
    echo suspend >$2/suspend/request; \
    cat $2/suspend/state; ";

pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    /// What the guest does first.
    begin: &'static str,
    /// What it then prints that is looked at.
    prints: &'static [&'static str],
    /// When it prints this, the first device is killed.
    kill_at: Option<&'static str>,
    /// What ends the guest, as a command.
    end: &'static str,
    expected: Ending,
    /// How long the guest may take from its first command to its end.
    pub within: Duration,
}

pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "reboot-suspended",
            what: "a reboot while suspended resets the devices (D13)",
            begin: SUSPEND_ALL,
            prints: &[],
            kill_at: None,
            end: "busybox reboot -f",
            expected: Ending::Shutdown(Shutdown::Reboot),
            within: Duration::from_secs(30),
        },
        Scenario {
            name: "power-off-suspended",
            what: "a power-off while suspended resets the devices (D13)",
            begin: SUSPEND_ALL,
            prints: &[],
            kill_at: None,
            end: "busybox poweroff -f",
            expected: Ending::Shutdown(Shutdown::PowerOff),
            within: Duration::from_secs(30),
        },
        Scenario {
            name: "device-killed",
            what: "a device whose process is killed fails at once, the other goes on, and the \
                   guest powers off",
            begin: USE_GONE,
            prints: &[
                "No such device",
                "failed",
                "ENODEV device is gone",
                "suspended",
            ],
            kill_at: Some("ready"),
            end: "busybox poweroff -f",
            expected: Ending::Shutdown(Shutdown::PowerOff),
            within: Duration::from_secs(30),
        },
    ]
}

/// Whether a guest printed some lines, in their order, and ended as it should.
pub fn ended(
    outcome: &Outcome,
    ending: Ending,
    printed: &[String],
    expected: &[&str],
) -> Result<()> {
    let mut lines = printed.iter();
    for expected in expected {
        ensure!(
            lines.any(|line| line == expected),
            "the guest did not print: {expected}"
        );
    }
    ensure!(
        outcome.ending == ending,
        "{}, but expected: {ending}",
        outcome.ending
    );
    Ok(())
}

impl Scenario {
    pub fn command(&self) -> Vec<String> {
        let script = format!("{} {}", self.begin, self.end);
        ["sh", "-c", &script].map(str::to_string).into()
    }

    /// Takes note of a line that the guest prints, and does what is to be done then.
    pub fn on_line(&self, line: &str, printed: &mut Vec<String>, devices: &mut Devices) {
        if self.kill_at == Some(line) {
            devices.kill(0);
        }
        printed.push(line.to_string());
    }

    /// Whether the guest printed what it should, and ended as it should.
    pub fn judge(&self, printed: &[String], outcome: &Outcome) -> Result<()> {
        ended(outcome, self.expected, printed, self.prints)?;
        // One that was killed has not seen the end.
        let killed = usize::from(self.kill_at.is_some());
        for (index, record) in outcome.records.iter().enumerate().skip(killed) {
            ensure!(
                record.reset_while_suspended(),
                "device {index} was not reset by the driver after its suspend"
            );
        }
        ensure!(
            outcome.is_clean(),
            "violations or a complaint of the kernel"
        );
        Ok(())
    }
}
