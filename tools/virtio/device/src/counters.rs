// SPDX-License-Identifier: GPL-2.0

//! Counts of register accesses, buffers and transitions since the last clear, and the log of
//! status accesses: what makes "one write, one re-read" a measured fact.

use std::collections::VecDeque;

use serde::Serialize;

/// How many status accesses are remembered.
pub const STATUS_LOG: usize = 256;
/// How many changes of the status byte are remembered.
pub const PRESENTED: usize = 64;

/// One status access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StatusAccess {
    /// `"read"` or `"write"`.
    pub op: &'static str,
    /// The value.
    pub value: u8,
    /// When.
    pub t_us: u64,
}

impl StatusAccess {
    /// As `w1f` or `r1b`.
    pub fn compact(&self) -> String {
        let op = if self.op == "write" { 'w' } else { 'r' };
        format!("{op}{:02x}", self.value)
    }
}

/// The counters.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    /// Reads of device_status.
    pub status_reads: u64,
    /// Writes of device_status.
    pub status_writes: u64,
    /// Reads of the other common configuration registers.
    pub common_reads: u64,
    /// Writes of the other common configuration registers.
    pub common_writes: u64,
    /// Reads of device configuration.
    pub config_reads: u64,
    /// Writes of device configuration.
    pub config_writes: u64,
    /// Reads of the ISR status.
    pub isr_reads: u64,
    /// Available-buffer notifications, per queue.
    pub notify: Vec<u64>,
    /// Buffers taken from the queues.
    pub buffers_consumed: u64,
    /// Buffers given back.
    pub buffers_used: u64,
    /// Bytes written into them.
    pub bytes: u64,
    /// Used-buffer notifications sent, per queue.
    pub used_notifications: Vec<u64>,
    /// Configuration change notifications sent.
    pub config_notifications: u64,
    /// Times the suspended condition was presented.
    pub suspends: u64,
    /// Times the resumed condition was presented.
    pub resumes: u64,
    /// Times the driver took SUSPEND back.
    pub cancels: u64,
    /// Times the device refused to suspend.
    pub refusals: u64,
    /// Resets, of whatever kind.
    pub resets: u64,
    /// Times the device did something wrong because it was told to.
    pub faults: u64,
    /// Errors in what the driver put into the rings.
    pub device_errors: u64,
    /// The last values of the status byte, as `0x1b`: each once until it changes.
    #[serde(serialize_with = "hex")]
    pub presented: VecDeque<u8>,
    /// The last status accesses.
    #[serde(skip)]
    pub status_log: VecDeque<StatusAccess>,
}

fn hex<S: serde::Serializer>(values: &VecDeque<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| format!("{value:#04x}")))
}

impl Counters {
    /// Zero, for `queues` queues and a device that presents `status` now.
    pub fn new(queues: usize, status: u8) -> Self {
        Self {
            notify: vec![0; queues],
            used_notifications: vec![0; queues],
            presented: VecDeque::from([status]),
            ..Self::default()
        }
    }

    /// There are `queues` queues from now on.
    pub fn set_queues(&mut self, queues: usize) {
        self.notify.resize(queues, 0);
        self.used_notifications.resize(queues, 0);
    }

    /// A status access; `op` is `"read"` or `"write"`.
    pub fn status_access(&mut self, op: &'static str, value: u8, t_us: u64) {
        if op == "write" {
            self.status_writes += 1;
        } else {
            self.status_reads += 1;
        }
        if self.status_log.len() == STATUS_LOG {
            self.status_log.pop_front();
        }
        self.status_log.push_back(StatusAccess { op, value, t_us });
    }

    /// The device presents `status` from now on.
    pub fn present(&mut self, status: u8) {
        if self.presented.back() == Some(&status) {
            return;
        }
        if self.presented.len() == PRESENTED {
            self.presented.pop_front();
        }
        self.presented.push_back(status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_bounded() {
        let mut counters = Counters::new(1, 0);
        for i in 0..1000u64 {
            counters.status_access("read", (i % 256) as u8, i);
            counters.present((i % 256) as u8);
        }
        assert_eq!(counters.status_reads, 1000);
        assert_eq!(counters.status_log.len(), STATUS_LOG);
        assert_eq!(counters.presented.len(), PRESENTED);
        assert_eq!(counters.status_log.back().unwrap().t_us, 999);
    }

    #[test]
    fn compact_form() {
        let access = |op, value| StatusAccess { op, value, t_us: 0 };
        assert_eq!(access("write", 0x1f).compact(), "w1f");
        assert_eq!(access("read", 0x0b).compact(), "r0b");
    }

    #[test]
    fn a_value_is_presented_once_until_it_changes() {
        let mut counters = Counters::new(1, 0x0f);
        for status in [0x0f, 0x1b, 0x1b, 0x0f] {
            counters.present(status);
        }
        assert_eq!(counters.presented, [0x0f, 0x1b, 0x0f]);
    }
}
