// SPDX-License-Identifier: GPL-2.0

//! What tests came to, counted and printed, while several of them run.

use crate::ktap::Verdict;
use crate::output::{Output, Screen};
use std::fmt;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many of the tests that took longest are named at the end.
const LONGEST: usize = 10;

/// What all tests came to.
#[derive(Debug, Default)]
pub struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
    took: Vec<(String, Duration)>,
}

impl Tally {
    fn add(&mut self, test: &str, case: &str, verdict: Verdict) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Skipped => self.skipped += 1,
            Verdict::Failed => self.failed.push(format!("{test}: {case}")),
        }
    }

    pub fn is_good(&self) -> bool {
        self.failed.is_empty()
    }

    /// Adds what the same tests came to elsewhere.
    pub fn join(&mut self, place: &str, other: Self) {
        self.passed += other.passed;
        self.skipped += other.skipped;
        let failed = other.failed.iter();
        self.failed
            .extend(failed.map(|failed| format!("{place}: {failed}")));
    }

    /// The line that ends every run.
    pub fn counts(&self) -> String {
        let counts = format!("{} passed, {} failed", self.passed, self.failed.len());
        match self.skipped {
            0 => counts,
            skipped => format!("{counts}, {skipped} skipped"),
        }
    }

    /// How long each test took.
    pub fn took(&self) -> &[(String, Duration)] {
        &self.took
    }

    /// What took longest, in lines.
    pub fn longest(&self) -> Vec<String> {
        let mut took: Vec<_> = self.took.iter().collect();
        took.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        took.iter()
            .take(LONGEST)
            .map(|(name, time)| format!("{:7} s  {name}", time.as_secs()))
            .collect()
    }
}

impl Display for Tally {
    /// The failures once more, then the line that ends every run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failed in &self.failed {
            writeln!(f, "FAILED {failed}")?;
        }
        f.write_str(&self.counts())
    }
}

/// Where tests that run at the same time put their results.
pub struct Results {
    screen: Screen,
    tally: Mutex<Tally>,
}

impl Results {
    pub fn on(screen: Screen) -> Self {
        Self {
            screen,
            tally: Mutex::default(),
        }
    }

    /// Begins the report on a test, with its name.
    pub fn report(&self, test: &str) -> Report<'_> {
        let report = self.quiet_report(test);
        report.output().line(test);
        report
    }

    /// The same without a line for its name.
    pub fn quiet_report(&self, test: &str) -> Report<'_> {
        Report {
            results: self,
            test: test.into(),
            output: Output::Block(Arc::new(self.screen.block())),
            begun: Instant::now(),
            cases: 0,
            failed: 0,
        }
    }

    /// For what is said beside the reports.
    pub fn between(&self) -> Output {
        Output::Between(self.screen.clone())
    }

    pub fn into_tally(self) -> Tally {
        self.tally
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The report on one test, printed in one piece, and over when it is dropped.
pub struct Report<'a> {
    results: &'a Results,
    test: String,
    output: Output,
    begun: Instant,
    cases: usize,
    failed: usize,
}

impl Report<'_> {
    pub fn case(&mut self, case: &str, verdict: Verdict) {
        let word = match verdict {
            Verdict::Passed => "ok",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        };
        self.output.line(format_args!("    {word:7} {case}"));
        self.cases += 1;
        self.failed += usize::from(verdict == Verdict::Failed);
        self.results
            .change(|tally| tally.add(&self.test, case, verdict));
    }

    /// Something that a test printed.
    pub fn note(&self, text: impl Display) {
        self.output.line(format_args!("            {text}"));
    }

    pub fn output(&self) -> &Output {
        &self.output
    }

    /// How many cases there were so far.
    pub fn cases(&self) -> usize {
        self.cases
    }

    pub fn failed(&self) -> usize {
        self.failed
    }

    /// Ends it, with how long the test took.
    pub fn end(self) {
        let took = self.begun.elapsed();
        self.results
            .change(|tally| tally.took.push((self.test.clone(), took)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        Results::on(Screen::new(Box::new(std::io::sink())))
    }

    #[test]
    fn the_closing_line() {
        let results = results();
        let mut report = results.report("a");
        report.case("one", Verdict::Passed);
        assert_eq!((report.cases(), report.failed()), (1, 0));
        report.end();
        let tally = results.into_tally();
        assert!(tally.is_good());
        assert_eq!(tally.to_string(), "1 passed, 0 failed");
    }

    #[test]
    fn failures_come_once_more() {
        let results = results();
        let (mut a, mut b) = (results.report("a"), results.report("b"));
        a.case("one", Verdict::Passed);
        b.case("two", Verdict::Failed);
        a.case("three", Verdict::Skipped);
        // One that does not get to its end counts, too.
        drop((a, b));
        let tally = results.into_tally();
        assert_eq!(
            tally.to_string(),
            "FAILED b: two\n1 passed, 1 failed, 1 skipped"
        );
        assert!(!tally.is_good());
        assert!(tally.took().is_empty());
    }

    #[test]
    fn the_sum_of_two_places() {
        let tally = |failed: &[&str]| Tally {
            passed: 2,
            failed: failed.iter().map(|s| s.to_string()).collect(),
            ..Tally::default()
        };
        let mut sum = tally(&[]);
        sum.join("there", tally(&["a: b"]));
        assert_eq!(sum.to_string(), "FAILED there: a: b\n4 passed, 1 failed");
    }

    #[test]
    fn the_longest_comes_first() {
        let seconds = |s: u64| Duration::from_millis(1000 * s + 900);
        let tally = Tally {
            took: (0..20).map(|s| (format!("t{s}"), seconds(s))).collect(),
            ..Tally::default()
        };
        let lines = tally.longest();
        assert_eq!(lines.len(), LONGEST);
        assert_eq!(lines[0], "     19 s  t19");
        assert_eq!(lines[9], "     10 s  t10");
    }
}
