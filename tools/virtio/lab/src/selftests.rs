// SPDX-License-Identifier: GPL-2.0

//! The kselftests: guests that share them.
//!
//! A guest claims a program by making a directory of its name, which nobody else can make then. So
//! one that dies takes only the program with it that it was running.

use crate::device::{self, Devices};
use crate::guest::{self, Config, Ending, Outcome};
use crate::init::{Job, Selftest};
use crate::kernel::Kernel;
use crate::ktap::{self, Verdict};
use crate::makefile;
use crate::schedule::{Durations, Shared};
use crate::tally::{Report, Results};
use crate::tree::{RunDir, Tree, SELFTESTS};
use anyhow::{ensure, Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// For one kselftest, unless its `settings` file says otherwise.
const DEFAULT_TIMEOUT_S: u64 = 45;
/// What looking for leaks takes at most, on a kernel that can.
const LEAK_CHECK: Duration = Duration::from_secs(120);
/// A guest says something more often than this, on the stock kernel: a line for each case.
const SILENCE: Duration = Duration::from_secs(400);
/// A guest is not worth booting for less than this, on the stock kernel.
const WORTH: Duration = Duration::from_secs(40);
/// When as many guests have died, nothing can be learned from more.
const MOST_DEATHS: usize = 4;

/// The kselftests that anybody may run.
pub fn programs(tree: &Tree) -> Result<Vec<PathBuf>> {
    listed(tree, &["TEST_PROGS", "TEST_GEN_PROGS"])
}

/// The kselftests that their Makefile lists in some variables.
pub fn listed(tree: &Tree, variables: &[&str]) -> Result<Vec<PathBuf>> {
    let dir = tree.join(SELFTESTS);
    let path = dir.join("Makefile");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).context("can't read the kselftests' Makefile")?;
    let mut programs = Vec::new();
    for variable in variables {
        for name in makefile::words(&text, variable) {
            let program = dir.join(&name);
            ensure!(
                program.exists(),
                "{} lists {name}, which is not there",
                path.display()
            );
            programs.push(program);
        }
    }
    Ok(programs)
}

pub fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default()
}

/// The suite of those that share guests.
pub const SUITE: &str = "guest";

/// The name of a kselftest as a test.
pub fn test_name(file: &str) -> String {
    format!("{SUITE}/{file}")
}

/// Kselftests, and the guests that run them.
pub struct Selftests<'a> {
    tree: &'a Tree,
    kernel: &'a Kernel,
    config: Config,
    results: &'a Results,
    durations: &'a Durations,
    /// Those that take longest first.
    tests: Vec<Selftest>,
    claims: RunDir,
    guests: AtomicUsize,
    deaths: AtomicUsize,
    /// Those that there is a result of.
    ended: Mutex<BTreeSet<String>>,
}

impl<'a> Selftests<'a> {
    /// `config` need not have devices and a deadline.
    pub fn new(
        tree: &'a Tree,
        kernel: &'a Kernel,
        mut config: Config,
        mut programs: Vec<PathBuf>,
        durations: &'a Durations,
        results: &'a Results,
    ) -> Result<Self> {
        let slowness = kernel.flavour.slowness();
        let timeout_s = makefile::setting(&tree.join(SELFTESTS).join("settings"), "timeout")?
            .unwrap_or(DEFAULT_TIMEOUT_S)
            * u64::from(slowness);
        config.deadline = guest::BOOT * slowness
            + Duration::from_secs(timeout_s + 5) * u32::try_from(programs.len())?
            + LEAK_CHECK;
        config.silence = Some(SILENCE * slowness);
        config.devices = device::of_selftests();
        durations.sort(&mut programs, |path| test_name(file_name(path)));
        let selftest = |program| Selftest {
            program,
            cases: Vec::new(),
            timeout_s,
        };
        Ok(Self {
            tree,
            kernel,
            config,
            results,
            durations,
            tests: programs.into_iter().map(selftest).collect(),
            claims: tree.run_dir("claims")?,
            guests: AtomicUsize::new(0),
            deaths: AtomicUsize::new(0),
            ended: Mutex::default(),
        })
    }

    /// The names of those that no guest has taken.
    fn unclaimed(&self) -> impl Iterator<Item = &str> {
        self.tests
            .iter()
            .map(|test| file_name(&test.program))
            .filter(|name| !self.claims.join(name).exists())
    }

    /// Whoever has no result has failed; called when there are no more guests.
    pub fn finish(self) {
        let ended = self
            .ended
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        for test in &self.tests {
            let name = file_name(&test.program);
            if !ended.contains(name) {
                self.results
                    .report(&test_name(name))
                    .case("not run: too many guests died", Verdict::Failed);
            }
        }
    }

    /// Runs what is left in one guest; returns whether it got to its end or did at least something.
    fn one_guest(&self) -> bool {
        let mut session = Session::new(self.results, SUITE);
        let job = Job::Selftests {
            tests: self.tests.clone(),
            claims: Some(self.claims.to_path_buf()),
        };
        let outcome = guest::run(
            self.tree,
            self.kernel,
            "test",
            &self.config,
            &job,
            |line, devices| session.line(line, devices),
        );
        let ended = session.end(outcome);
        if !ended.good {
            self.deaths.fetch_add(1, Ordering::Relaxed);
        }
        let has_done_something = !ended.programs.is_empty();
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(ended.programs);
        ended.good || has_done_something
    }
}

impl Shared for Selftests<'_> {
    fn is_worth_a_guest(&self) -> bool {
        let left: Duration = self
            .unclaimed()
            .map(|name| self.durations.get(&test_name(name)))
            .sum();
        let first = self.guests.load(Ordering::Relaxed) == 0;
        left > WORTH || (first && !left.is_zero())
    }

    fn run_guest(&self) {
        while self.unclaimed().next().is_some() && self.deaths.load(Ordering::Relaxed) < MOST_DEATHS
        {
            self.guests.fetch_add(1, Ordering::Relaxed);
            if !self.one_guest() {
                break;
            }
        }
    }
}

/// One guest that runs kselftests, as what it prints tells of it.
pub struct Session<'a> {
    results: &'a Results,
    suite: &'static str,
    /// The program that runs, and the report on it.
    running: Option<(String, Report<'a>)>,
    /// The programs that there is a result of.
    ended: Vec<String>,
    /// Those that were counted.
    violations: usize,
}

/// What became of a guest.
pub struct Ended {
    /// The programs that there is a result of.
    pub programs: Vec<String>,
    /// It got to its end.
    pub good: bool,
}

impl<'a> Session<'a> {
    /// `suite` begins the names of the tests.
    pub fn new(results: &'a Results, suite: &'static str) -> Self {
        Self {
            results,
            suite,
            running: None,
            ended: Vec::new(),
            violations: 0,
        }
    }

    pub fn line(&mut self, line: &str, devices: &mut Devices) -> Result<()> {
        match (ktap::parse(line), &mut self.running) {
            (ktap::Line::Frame, _) => {}
            (ktap::Line::Begin(name), _) => {
                let report = self.results.report(&format!("{}/{name}", self.suite));
                self.running = Some((name.into(), report));
            }
            (ktap::Line::Case(verdict, case), Some((_, report))) => report.case(case, verdict),
            (ktap::Line::Other(text), Some((_, report))) => report.note(text),
            (ktap::Line::End { name, verdict, why }, Some((_, report))) => {
                match verdict {
                    // Its cases have said it already.
                    Verdict::Failed if report.failed() > 0 && why == "exit=1" => {}
                    Verdict::Passed if report.cases() > 0 => {}
                    Verdict::Passed => report.case(name, verdict),
                    _ => report.case(&format!("{name} ({why})"), verdict),
                }
                for violation in devices.new_violations()? {
                    self.violations += 1;
                    report.case(&format!("violation: {violation}"), Verdict::Failed);
                }
                self.ended.push(name.into());
                if let Some((_, report)) = self.running.take() {
                    report.end();
                }
            }
            (_, None) => self.results.between().line(line),
        }
        Ok(())
    }

    /// Accounts for what became of the guest.
    pub fn end(mut self, outcome: Result<Outcome>) -> Ended {
        let (ending, outcome) = match outcome {
            // Which program failed is known already.
            Ok(outcome) if matches!(outcome.ending, Ending::Status(0 | 1)) => (None, Some(outcome)),
            Ok(outcome) => (Some(outcome.ending.to_string()), Some(outcome)),
            Err(error) => (Some(format!("{error:#}")), None),
        };
        let mut problems = Vec::new();
        match (&ending, self.running) {
            (None, None) => {}
            (ending, Some((name, mut report))) => {
                let ending = ending.as_deref().unwrap_or("no result");
                report.case(ending, Verdict::Failed);
                self.ended.push(name);
                report.end();
            }
            (Some(ending), None) => problems.push(ending.clone()),
        }
        if let Some(outcome) = &outcome {
            problems.extend(outcome.complaints.iter().map(|c| c.text.clone()));
            let violations: usize = outcome.records.iter().map(|r| r.violations().len()).sum();
            if violations > self.violations {
                let more = violations - self.violations;
                problems.push(format!("{more} violations after the last result"));
            }
            if !problems.is_empty() || ending.is_some() || !outcome.is_clean() {
                let mut report = self.results.report(self.suite);
                for problem in &problems {
                    report.case(problem, Verdict::Failed);
                }
                outcome.report(report.output());
            }
        } else {
            let mut report = self.results.report(self.suite);
            for problem in &problems {
                report.case(problem, Verdict::Failed);
            }
        }
        Ended {
            programs: self.ended,
            good: ending.is_none(),
        }
    }
}
