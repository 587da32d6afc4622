// SPDX-License-Identifier: GPL-2.0

//! Reports: events, violations, and the commands of the mailbox.

use log::{error, warn};
use serde_json::{json, Value};

use super::{hex, Device};
use crate::counters::Counters;
use crate::fault::Name;
use crate::judge::View;
use crate::mailbox::{self, Command};
use crate::queue::Queue;
use crate::settings::Judging;
use crate::status;

/// How many violations a `stats` reply lists.
const STATS_VIOLATIONS: usize = 16;
/// How many status accesses a `stats` reply lists.
const STATS_STATUS_LOG: usize = 64;

impl Device {
    pub(super) fn view(&self) -> View {
        View {
            status: self.machine.status(),
            state: self.machine.state(),
            revision: self.machine.revision(),
            accepted: self.accepted,
            type_defines_bit_42: self.device.defines_bit_42(),
            lies: self.lies(),
            resume_fault: self.has_resume_fault(),
            config_pending: self.config_pending,
            admin_queue: self.admin_queue(),
        }
    }

    pub(super) fn emit(&mut self, event: &str, fields: Value) {
        let now = self.now_us();
        self.events.emit(now, event, fields);
    }

    pub(super) fn flush_violations(&mut self) {
        for violation in self.judge.take_new() {
            error!(
                "violation of {:?}: {}: {}",
                violation.rule, violation.access, violation.what
            );
            self.events
                .emit(violation.time_us, "violation", json!(violation));
        }
    }

    /// Has the judge judge, or not, as the settings say.
    fn switch_judge(&mut self) {
        let on = self.settings.judge == Judging::On;
        self.judge.switch(on);
        let unjudged = self.judge.unjudged();
        self.emit("judge", json!({"on": on, "unjudged": unjudged}));
    }

    /// Has the judge judge, whatever an earlier client has set.
    pub(super) fn judge_again(&mut self) {
        if self.settings.judge != Judging::On {
            self.settings.judge = Judging::On;
            self.switch_judge();
        }
    }

    pub(super) fn queue_report(&self) -> Value {
        let report = |(index, queue): (usize, &Queue)| {
            let mut report = json!({
                "index": index,
                "size": queue.size,
                "enabled": queue.ring.is_some(),
                "in_process": queue.in_process.len(),
            });
            if let (Some(ring), Some(report)) = (&queue.ring, report.as_object_mut()) {
                if let Value::Object(position) = json!(ring.position()) {
                    report.extend(position);
                }
                if let Ok(Some(count)) = ring.wanted_after(self.memory()) {
                    report.insert("wanted_after".into(), count.into());
                }
            }
            report
        };
        self.queues.iter().enumerate().map(report).collect()
    }

    pub(super) fn clear(&mut self) {
        self.flush_violations();
        self.judge.clear();
        self.device.clear();
        self.armed.clear();
        self.counters = Counters::new(self.queues.len(), self.machine.status());
    }

    pub(super) fn execute(&mut self, command: Command) -> Value {
        match command {
            Command::Info {} => self.info(),
            Command::Stats {} => self.stats(),
            Command::Clear {} => {
                self.clear();
                json!({"ok": true})
            }
            Command::Device { set: None } => {
                json!({"ok": true, "held": false, "device": self.device.report()})
            }
            Command::Device { set: Some(change) } => match self.change(change) {
                Ok(held) => json!({"ok": true, "held": held, "device": self.device.report()}),
                Err(error) => mailbox::failure(error),
            },
            Command::ConfigChange {} => {
                let sent = self.config_changed();
                json!({"ok": true, "sent": sent, "held": self.config_held})
            }
            Command::FaultNow { fault } => match self.fault_now(fault) {
                Ok(()) => json!({"ok": true}),
                Err(error) => mailbox::failure(error),
            },
            Command::Set { settings } => match self.settings.patched(&settings) {
                Ok(new) => {
                    let left = self.fault(Name::AvailLeft).is_some();
                    let judged = self.settings.judge != new.judge;
                    self.settings = new;
                    if judged {
                        self.switch_judge();
                    }
                    if settings.sets_fuzz() {
                        self.start_fuzz();
                    }
                    if settings.sets_faults() {
                        self.armed.change(&self.settings);
                        self.faults_changed();
                    }
                    self.release_held();
                    if left && self.fault(Name::AvailLeft).is_none() {
                        self.scan();
                    }
                    json!({
                        "ok": true,
                        "pending": self.settings.pending(&self.active),
                        "settings": self.settings,
                    })
                }
                Err(error) => mailbox::failure(error),
            },
        }
    }

    /// Changes the device type; returns whether that has to wait for the resume (V3).
    fn change(&mut self, change: Value) -> Result<bool, String> {
        self.device.check(&change)?;
        if self.machine.is_frozen() {
            self.held_changes.push(change);
            return Ok(true);
        }
        let changed = self.device.command(&change)?;
        if changed.config {
            self.config_changed();
        }
        Ok(false)
    }

    /// Has the configuration say what has changed by itself, unless that has to wait (V3).
    pub(super) fn refresh_config(&mut self) {
        let may = !self.machine.is_frozen();
        if may && self.port.take_refresh() && self.device.refresh_config() {
            self.config_changed();
        }
    }

    /// Makes the changes that had to wait.
    pub(super) fn make_held_changes(&mut self) {
        self.refresh_config();
        for change in std::mem::take(&mut self.held_changes) {
            if let Err(error) = self.change(change) {
                warn!("a change that waited for the resume is not possible any more: {error}");
            }
        }
    }

    fn info(&self) -> Value {
        let negotiated = if self.machine.status() & status::FEATURES_OK != 0 {
            self.accepted
        } else {
            0
        };
        json!({
            "ok": true,
            "type": self.kind,
            "offer": self.active.offer,
            "ring": self.active.ring,
            "offered": format!("{:#x}", self.offered),
            "negotiated": format!("{negotiated:#x}"),
            "revision": self.machine.revision(),
            "status": hex(self.machine.status()),
            "state": self.machine.state(),
            "fuzz": self.fuzz.as_ref().map(|fuzz| fuzz.seed()),
            "gone": self.overlay.is_gone(),
            "settings": self.settings,
            "pending": self.settings.pending(&self.active),
        })
    }

    fn stats(&self) -> Value {
        let violations = self.judge.violations();
        let log = &self.counters.status_log;
        let skip = log.len().saturating_sub(STATS_STATUS_LOG);
        let status_log: Vec<String> = log.iter().skip(skip).map(|a| a.compact()).collect();
        json!({
            "ok": true,
            "violations": self.judge.total(),
            "unjudged": self.judge.unjudged(),
            "violation_list": violations.get(..STATS_VIOLATIONS).unwrap_or(violations),
            "effective_faults": self.armed.effective(),
            "idle_faults": self.armed.idle(),
            "status_log": status_log,
            "counters": self.counters,
            "queues": self.queue_report(),
        })
    }
}
