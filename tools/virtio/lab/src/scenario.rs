// SPDX-License-Identifier: GPL-2.0

//! Tests that end their guest.

use crate::guest::{Ending, Outcome};
use crate::klog::Shutdown;
use anyhow::{ensure, Result};
use std::time::Duration;

/// What the guest does first: suspends every device that can be.
const SUSPEND_ALL: &str = "modprobe virtio_rng; \
    set -e; \
    for d in /sys/bus/virtio/devices/*/suspend; do \
        echo suspend >$d/request; \
        echo \"$d is $(cat $d/state)\"; \
    done; ";

pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
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
            end: "busybox reboot -f",
            expected: Ending::Shutdown(Shutdown::Reboot),
            within: Duration::from_secs(30),
        },
        Scenario {
            name: "power-off-suspended",
            what: "a power-off while suspended resets the devices (D13)",
            end: "busybox poweroff -f",
            expected: Ending::Shutdown(Shutdown::PowerOff),
            within: Duration::from_secs(30),
        },
    ]
}

impl Scenario {
    pub fn command(&self) -> Vec<String> {
        let script = format!("{SUSPEND_ALL} {}", self.end);
        ["sh", "-c", &script].map(str::to_string).into()
    }

    /// Whether the guest ended as it should.
    pub fn judge(&self, outcome: &Outcome) -> Result<()> {
        ensure!(
            outcome.ending == self.expected,
            "{}, but expected: {}",
            outcome.ending,
            self.expected
        );
        for (index, record) in outcome.records.iter().enumerate() {
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
