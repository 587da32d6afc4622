// SPDX-License-Identifier: GPL-2.0

//! The account: KTAP while it goes on, a table in the end, and one last line.

use std::collections::{BTreeMap, BTreeSet};

use crate::devices::{Device, Revision};
use crate::ktap::{Case, Result};

/// Begins the last line.
pub const NAME: &str = "suspend-kit";

/// What the whole came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    NotOk,
    /// Nothing failed because nothing was tested.
    Skip,
}

/// The last line.
pub fn line(verdict: Verdict, text: &str) -> String {
    let word = match verdict {
        Verdict::Ok => "ok",
        Verdict::NotOk => "not ok",
        Verdict::Skip => "skip",
    };
    format!("{NAME}: {word}: {text}")
}

/// How many cases came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    fn add(&mut self, result: Result) {
        match result {
            Result::Passed => self.passed += 1,
            Result::Failed => self.failed += 1,
            Result::Skipped => self.skipped += 1,
        }
    }

    /// In a cell of the table.
    fn cell(self) -> &'static str {
        match self {
            Self { failed: 1.., .. } => "FAIL",
            Self { passed: 1.., .. } => "ok",
            Self { skipped: 1.., .. } => "skip",
            _ => "-",
        }
    }
}

/// A line of the table.
#[derive(Default)]
struct Row {
    name: String,
    kind: String,
    revision: &'static str,
    rules: BTreeMap<String, Tally>,
    /// Instead of rules.
    note: Option<String>,
}

/// What is under way.
struct Group {
    cases: usize,
    worst: Option<Result>,
    row: Row,
}

#[derive(Default)]
pub struct Report {
    all: Tally,
    groups: usize,
    group: Option<Group>,
    rows: Vec<Row>,
    failed: Vec<String>,
    /// The types of the devices that offer SUSPEND.
    offering: BTreeSet<u32>,
}

impl Report {
    /// Whether a device of that type has been found to offer SUSPEND.
    pub fn is_offered_by(&self, id: u32) -> bool {
        self.offering.contains(&id)
    }

    /// Begins the cases of a device.
    pub fn begin_device(&mut self, device: &Device, revision: Option<Revision>, plan: usize) {
        println!(
            "# {}: {}, {}, SUSPEND: {}",
            device.name,
            device.kind(),
            device.transport,
            Revision::text(revision)
        );
        if revision.is_some() {
            self.offering.insert(device.id);
        }
        self.begin(&device.name, &device.kind(), Revision::text(revision));
        println!("  1..{plan}");
    }

    /// Begins those of a kselftest, which is not about rules.
    pub fn begin_program(&mut self, name: &str) {
        self.begin(name, "kselftest", "");
    }

    fn begin(&mut self, name: &str, kind: &str, revision: &'static str) {
        println!("  KTAP version 1");
        println!("  # Subtest: {name}");
        self.group = Some(Group {
            cases: 0,
            worst: None,
            row: Row {
                name: name.into(),
                kind: kind.into(),
                revision,
                ..Row::default()
            },
        });
    }

    /// A case of what has been begun, and the rule that it is about.
    pub fn case(&mut self, case: &Case, rule: &str) {
        let Some(group) = &mut self.group else { return };
        group.cases += 1;
        for note in &case.notes {
            println!("  # {note}");
        }
        println!("  {}", case.line(group.cases));
        group.worst = group.worst.max(Some(case.result));
        group
            .row
            .rules
            .entry(rule.into())
            .or_default()
            .add(case.result);
        self.all.add(case.result);
        if case.result == Result::Failed {
            self.failed
                .push(format!("{}: {}", group.row.name, case.text));
        }
    }

    /// One that is not told by anybody else.
    pub fn failed_case(&mut self, text: &str, rule: &str) {
        let case = Case {
            result: Result::Failed,
            text: text.into(),
            why: String::new(),
            notes: Vec::new(),
        };
        self.case(&case, rule);
    }

    /// One of which nothing is known. There is nothing to be said for it.
    pub fn missing_case(&mut self, rule: &str, name: &str, why: &str) {
        self.failed_case(&format!("{rule} {name}: {why}"), rule);
    }

    /// Ends what has been begun.
    pub fn end(&mut self, plan_last: bool) {
        let Some(mut group) = self.group.take() else {
            return;
        };
        if plan_last {
            println!("  1..{}", group.cases);
        }
        self.groups += 1;
        let (number, name) = (self.groups, &group.row.name);
        match group.worst {
            Some(Result::Passed) => println!("ok {number} {name}"),
            Some(Result::Skipped) => println!("ok {number} {name} # SKIP each of its cases"),
            Some(Result::Failed) => println!("not ok {number} {name}"),
            // It is no success to have done nothing.
            None => {
                println!("not ok {number} {name}");
                self.all.failed += 1;
                self.failed.push(format!("{name}: it has no cases"));
                group.row.note = Some("FAIL: it has no cases".into());
            }
        }
        self.rows.push(group.row);
    }

    /// A device that is not tested.
    pub fn skip_device(&mut self, device: &Device, why: &str) {
        self.note(Result::Skipped, &device.name, &device.kind(), why);
    }

    /// A device that can't be tested.
    pub fn fail_device(&mut self, device: &Device, why: &str) {
        self.note(Result::Failed, &device.name, &device.kind(), why);
    }

    /// A kselftest that is not run.
    pub fn skip_program(&mut self, name: &str, why: &str) {
        self.note(Result::Skipped, name, "kselftest", why);
    }

    fn note(&mut self, result: Result, name: &str, kind: &str, why: &str) {
        self.groups += 1;
        let number = self.groups;
        let word = match result {
            Result::Failed => {
                println!("# {why}\nnot ok {number} {name}");
                self.failed.push(format!("{name}: {why}"));
                "FAIL"
            }
            Result::Passed | Result::Skipped => {
                println!("ok {number} {name} # SKIP {why}");
                "skip"
            }
        };
        self.all.add(result);
        self.rows.push(Row {
            name: name.into(),
            kind: kind.into(),
            note: Some(format!("{word}: {why}")),
            ..Row::default()
        });
    }

    pub fn verdict(&self) -> Verdict {
        match self.all {
            Tally { failed: 1.., .. } => Verdict::NotOk,
            Tally { passed: 1.., .. } => Verdict::Ok,
            _ => Verdict::Skip,
        }
    }

    pub fn last_line(&self) -> String {
        let Tally {
            passed,
            failed,
            skipped,
        } = self.all;
        let nothing = match self.verdict() {
            Verdict::Skip => "nothing was tested: ",
            _ => "",
        };
        line(
            self.verdict(),
            &format!("{nothing}{passed} passed, {failed} failed, {skipped} skipped"),
        )
    }

    /// What failed once more, and a line for each device, a column for each rule.
    pub fn print_table(&self) {
        for line in self.table() {
            println!("{}", format!("# {line}").trim_end());
        }
    }

    fn table(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.rows.is_empty() {
            return lines;
        }
        if !self.failed.is_empty() {
            lines.push(String::new());
            lines.push("Failed:".into());
            lines.extend(self.failed.iter().map(|text| format!("  {text}")));
        }
        lines.push(String::new());
        let of_devices = |row: &&Row| !row.revision.is_empty();
        let rules: BTreeSet<&str> = self
            .rows
            .iter()
            .filter(of_devices)
            .flat_map(|row| row.rules.keys().map(String::as_str))
            .collect();
        let width = self
            .rows
            .iter()
            .map(|row| row.name.len())
            .max()
            .unwrap_or(0)
            .max(7);
        let mut head = format!("{:width$} {:9} {:14}", "device", "type", "SUSPEND");
        for rule in &rules {
            head += &format!(" {rule:<5}");
        }
        lines.push(head);
        for row in &self.rows {
            let mut line = format!("{:width$} {:9} ", row.name, row.kind);
            match (&row.note, row.revision.is_empty()) {
                (Some(note), _) => line += note,
                (None, true) => {
                    let sum = row
                        .rules
                        .values()
                        .fold(Tally::default(), |sum, tally| Tally {
                            passed: sum.passed + tally.passed,
                            failed: sum.failed + tally.failed,
                            skipped: sum.skipped + tally.skipped,
                        });
                    line += &format!(
                        "{}: {} passed, {} failed, {} skipped",
                        sum.cell(),
                        sum.passed,
                        sum.failed,
                        sum.skipped
                    );
                }
                (None, false) => {
                    line += &format!("{:14}", row.revision);
                    for rule in &rules {
                        let tally = row.rules.get(*rule).copied().unwrap_or_default();
                        line += &format!(" {:<5}", tally.cell());
                    }
                }
            }
            lines.push(line.trim_end().into());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, id: u32) -> Device {
        Device {
            name: name.into(),
            id,
            ..Device::default()
        }
    }

    fn case(text: &str, result: Result) -> Case {
        Case {
            result,
            text: text.into(),
            why: String::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn nothing_is_no_success() {
        let mut report = Report::default();
        assert_eq!(report.verdict(), Verdict::Skip);
        assert!(report.table().is_empty());
        report.skip_device(&device("virtio0", 4), "it does not offer it");
        assert_eq!(report.verdict(), Verdict::Skip);
        assert_eq!(
            report.last_line(),
            "suspend-kit: skip: nothing was tested: 0 passed, 0 failed, 1 skipped"
        );
    }

    #[test]
    fn a_device_without_a_case_has_failed() {
        let mut report = Report::default();
        report.begin_device(&device("virtio0", 4), Some(Revision::V1_4), 0);
        report.end(false);
        assert_eq!(report.verdict(), Verdict::NotOk);
    }

    #[test]
    fn a_table() {
        let mut report = Report::default();
        report.begin_device(&device("virtio0", 4), Some(Revision::V1_4), 3);
        report.case(&case("V1 early: ignored", Result::Passed), "V1");
        report.case(&case("V3 quiet: an interrupt", Result::Failed), "V3");
        report.case(&case("V3 unchanged: as it was", Result::Passed), "V3");
        report.end(false);
        report.begin_device(&device("virtio1", 2), Some(Revision::Draft), 1);
        report.case(&case("V2 drained: all", Result::Passed), "V2");
        report.case(&case("V1 early", Result::Skipped), "V1");
        report.end(false);
        report.skip_device(&device("virtio2", 1), "it does not offer SUSPEND");
        report.begin_program("suspend_basic.py");
        report.case(&case("round trip", Result::Passed), "");
        report.case(&case("draft", Result::Skipped), "");
        // One that passed makes it no skip.
        assert_eq!(
            report.group.as_ref().and_then(|g| g.worst),
            Some(Result::Passed)
        );
        report.end(true);
        assert_eq!(report.verdict(), Verdict::NotOk);
        assert_eq!(
            report.last_line(),
            "suspend-kit: not ok: 4 passed, 1 failed, 3 skipped"
        );
        assert_eq!(
            report.table(),
            [
                "",
                "Failed:",
                "  virtio0: V3 quiet: an interrupt",
                "",
                "device           type      SUSPEND        V1    V2    V3   ",
                "virtio0          entropy   1.4 (bit 43)   ok    -     FAIL",
                "virtio1          block     draft (bit 42) skip  ok    -",
                "virtio2          network   skip: it does not offer SUSPEND",
                "suspend_basic.py kselftest ok: 1 passed, 0 failed, 1 skipped",
            ]
        );
    }

    #[test]
    fn one_success_is_enough() {
        let mut report = Report::default();
        report.begin_device(&device("virtio0", 4), Some(Revision::V1_4), 1);
        report.case(&case("V1 early: ignored", Result::Passed), "V1");
        report.end(false);
        report.skip_device(&device("virtio2", 1), "it does not offer SUSPEND");
        assert_eq!(report.verdict(), Verdict::Ok);
        assert_eq!(
            report.last_line(),
            "suspend-kit: ok: 1 passed, 0 failed, 1 skipped"
        );
        report.fail_device(&device("virtio3", 1), "it can't be bound");
        assert_eq!(report.verdict(), Verdict::NotOk);
    }
}
