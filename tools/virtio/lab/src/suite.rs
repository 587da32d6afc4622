// SPDX-License-Identifier: GPL-2.0

//! `lab test`: all tests, or those that a pattern names.
//!
//! A test has a name of two parts:
//!
//! * `host/PACKAGE`: `cargo test` of a package of tools/virtio;
//! * `guest/PROGRAM`: a kselftest of tools/testing/selftests/virtio, all of them in one guest;
//! * `boot/SCENARIO`: one that ends its guest, and so has one of its own; or `boot/install`.
//!
//! A pattern selects by either the whole name or its second part, with or without extension.

use crate::guest::{self, Accel, Config};
use crate::init::{Job, Selftest};
use crate::install;
use crate::kernel::{Flavour, Kernel};
use crate::ktap::{self, Verdict};
use crate::process::output_of;
use crate::scenario::{self, Scenario};
use crate::tree::Tree;
use crate::{device, makefile, modules, rust};
use anyhow::{ensure, Context, Result};
use glob::Pattern;
use serde::Deserialize;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

pub const SELFTESTS: &str = "tools/testing/selftests/virtio";
/// For one kselftest, unless its `settings` file says otherwise.
const DEFAULT_TIMEOUT_S: u64 = 45;
/// What looking for leaks takes at most, on a kernel that can.
const LEAK_CHECK: Duration = Duration::from_secs(120);

/// Counts results as they come.
#[derive(Debug, Default)]
pub struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

impl Tally {
    pub fn add(&mut self, test: &str, case: &str, verdict: Verdict) {
        let word = match verdict {
            Verdict::Passed => "ok",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        };
        println!("    {word:7} {case}");
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Skipped => self.skipped += 1,
            Verdict::Failed => self.failed.push(format!("{test}: {case}")),
        }
    }

    pub fn is_good(&self) -> bool {
        self.failed.is_empty()
    }

    fn total(&self) -> usize {
        self.passed + self.failed.len() + self.skipped
    }

    fn failures_of(&self, test: &str) -> usize {
        let prefix = format!("{test}: ");
        self.failed
            .iter()
            .filter(|f| f.starts_with(&prefix))
            .count()
    }
}

impl fmt::Display for Tally {
    /// The failures once more, then the line that ends every run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failed in &self.failed {
            writeln!(f, "FAILED {failed}")?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed.len())?;
        match self.skipped {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} skipped"),
        }
    }
}

/// Whether a pattern, if there is one, selects a test.
fn selects(pattern: Option<&Pattern>, kind: &str, name: &str) -> bool {
    let Some(pattern) = pattern else { return true };
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    let whole = format!("{kind}/{name}");
    [whole.as_str(), name, stem]
        .iter()
        .any(|n| pattern.matches(n))
}

pub fn run(tree: &Tree, kernel: &Kernel, accel: Accel, filter: Option<&str>) -> Result<Tally> {
    let pattern = filter
        .map(Pattern::new)
        .transpose()
        .context("the filter is no pattern")?;
    let pattern = pattern.as_ref();

    let mut packages = packages(tree)?;
    packages.retain(|name| selects(pattern, "host", name));
    let mut programs = programs(tree)?;
    programs.retain(|path| selects(pattern, "guest", file_name(path)));
    let mut scenarios = scenario::all();
    scenarios.retain(|s| selects(pattern, "boot", s.name));
    let installs = selects(pattern, "boot", install::NAME);
    ensure!(
        !(packages.is_empty() && programs.is_empty() && scenarios.is_empty() && !installs),
        "no test is named {}: see {SELFTESTS}/Makefile, or host/* and boot/*",
        filter.unwrap_or("*")
    );

    let mut tally = Tally::default();
    for package in &packages {
        host_tests(tree, package, &mut tally)?;
    }
    if installs {
        installation(tree, kernel, accel, &mut tally);
    }
    if programs.is_empty() && scenarios.is_empty() {
        return Ok(tally);
    }
    let index = modules::build(tree, kernel)?.index;
    let config = || Config {
        accel,
        modules: Some(index.clone()),
        ..Config::with(Vec::new())
    };
    if !programs.is_empty() {
        selftests(tree, kernel, config(), &programs, &mut tally)?;
    }
    for scenario in &scenarios {
        one_boot(tree, kernel, config(), scenario, &mut tally)?;
    }
    Ok(tally)
}

fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default()
}

/// The packages of the workspace.
fn packages(tree: &Tree) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let text = output_of(rust::cargo(tree).args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("can't read cargo's metadata")?;
    Ok(metadata.packages.into_iter().map(|p| p.name).collect())
}

/// The kselftests that their Makefile lists.
fn programs(tree: &Tree) -> Result<Vec<PathBuf>> {
    let dir = tree.join(SELFTESTS);
    let path = dir.join("Makefile");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).context("can't read the kselftests' Makefile")?;
    let mut programs = Vec::new();
    for variable in ["TEST_PROGS", "TEST_GEN_PROGS"] {
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

fn host_tests(tree: &Tree, package: &str, tally: &mut Tally) -> Result<()> {
    let test = format!("host/{package}");
    println!("{test}");
    let (reader, writer) = std::io::pipe().context("can't make a pipe")?;
    let mut cargo = rust::cargo(tree);
    cargo
        .args(["test", "--quiet", "--no-fail-fast", "-p", package, "--"])
        .args(["--format=pretty", "--color=never"])
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("can't duplicate a pipe")?)
        .stderr(writer);
    let mut child = cargo.spawn().context("can't run cargo")?;
    drop(cargo);
    for line in BufReader::new(reader).lines() {
        let line = line.context("can't read what cargo prints")?;
        match libtest_result(&line) {
            Some((case, verdict)) => tally.add(&test, case, verdict),
            None if is_libtest_noise(&line) => {}
            None => println!("            {line}"),
        }
    }
    let status = child.wait().context("can't wait for cargo")?;
    if !status.success() && tally.failures_of(&test) == 0 {
        tally.add(&test, &format!("cargo test ({status})"), Verdict::Failed);
    }
    Ok(())
}

/// Reads `test NAME ... ok`.
pub fn libtest_result(line: &str) -> Option<(&str, Verdict)> {
    let (case, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let verdict = match result.split([',', ' ']).next()? {
        "ok" => Verdict::Passed,
        "FAILED" => Verdict::Failed,
        "ignored" => Verdict::Skipped,
        _ => return None,
    };
    Some((case, verdict))
}

fn is_libtest_noise(line: &str) -> bool {
    line.is_empty() || line.starts_with("running ") || line.starts_with("test result: ok")
}

/// Runs the kselftests in one guest.
fn selftests(
    tree: &Tree,
    kernel: &Kernel,
    mut config: Config,
    programs: &[PathBuf],
    tally: &mut Tally,
) -> Result<()> {
    let slowness = kernel.flavour.slowness();
    let timeout_s = makefile::setting(&tree.join(SELFTESTS).join("settings"), "timeout")?
        .unwrap_or(DEFAULT_TIMEOUT_S)
        * u64::from(slowness);
    let tests: Vec<Selftest> = programs
        .iter()
        .map(|program| Selftest {
            program: program.clone(),
            timeout_s,
        })
        .collect();
    config.deadline = guest::BOOT * slowness
        + Duration::from_secs(timeout_s + 5) * u32::try_from(tests.len())?
        + LEAK_CHECK;
    config.devices = device::of_selftests();
    println!("booting a guest with Linux {}", kernel.release);

    let mut running = String::from("guest");
    // Counts when the program that runs now started.
    let (mut total_before, mut failed_before) = (0, 0);
    let mut unfinished = tests.len();
    let outcome = guest::run(
        tree,
        kernel,
        "test",
        &config,
        &Job::Selftests(tests),
        |line, devices| {
            match ktap::parse(line) {
                ktap::Line::Begin(name) => {
                    running = format!("guest/{name}");
                    println!("{running}");
                    (total_before, failed_before) = (tally.total(), tally.failed.len());
                }
                ktap::Line::Case(verdict, case) => tally.add(&running, case, verdict),
                ktap::Line::Other(text) => println!("            {text}"),
                ktap::Line::Frame => {}
                ktap::Line::End { name, verdict, why } => {
                    unfinished -= 1;
                    match verdict {
                        // Its cases have said it already.
                        Verdict::Failed
                            if tally.failed.len() > failed_before && why == "exit=1" => {}
                        Verdict::Passed if tally.total() > total_before => {}
                        Verdict::Passed => tally.add(&running, name, verdict),
                        _ => tally.add(&running, &format!("{name} ({why})"), verdict),
                    }
                    for violation in devices.new_violations()? {
                        tally.add(
                            &running,
                            &format!("violation: {violation}"),
                            Verdict::Failed,
                        );
                    }
                }
            }
            Ok(())
        },
    )?;
    if unfinished > 0 {
        let case = format!(
            "{}; programs without a result: {unfinished}",
            outcome.ending
        );
        tally.add(&running, &case, Verdict::Failed);
    }
    for complaint in &outcome.complaints {
        tally.add("guest", &complaint.text, Verdict::Failed);
    }
    if unfinished > 0 || !outcome.is_clean() {
        outcome.report();
    }
    Ok(())
}

fn installation(tree: &Tree, kernel: &Kernel, accel: Accel, tally: &mut Tally) {
    let test = format!("boot/{}", install::NAME);
    println!("{test}");
    if kernel.flavour != Flavour::Stock {
        println!("            it is about Debian's own kernel");
        return tally.add(&test, install::WHAT, Verdict::Skipped);
    }
    match install::run(tree, kernel, accel) {
        Ok(()) => tally.add(&test, install::WHAT, Verdict::Passed),
        Err(error) => {
            let case = format!("{}: {error:#}", install::WHAT);
            tally.add(&test, &case, Verdict::Failed);
        }
    }
}

fn one_boot(
    tree: &Tree,
    kernel: &Kernel,
    mut config: Config,
    scenario: &Scenario,
    tally: &mut Tally,
) -> Result<()> {
    let test = format!("boot/{}", scenario.name);
    println!("{test}");
    config.deadline = (guest::BOOT + scenario.within) * kernel.flavour.slowness();
    let job = Job::Command(scenario.command());
    let mut printed = Vec::new();
    let outcome = guest::run(
        tree,
        kernel,
        scenario.name,
        &config,
        &job,
        |line, devices| {
            println!("            {line}");
            scenario.on_line(line, &mut printed, devices);
            Ok(())
        },
    )?;
    match scenario.judge(&printed, &outcome) {
        Ok(()) => tally.add(&test, scenario.what, Verdict::Passed),
        Err(error) => {
            outcome.report();
            tally.add(
                &test,
                &format!("{}: {error:#}", scenario.what),
                Verdict::Failed,
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_lines() {
        assert_eq!(
            libtest_result("test status::tests::any ... ok"),
            Some(("status::tests::any", Verdict::Passed))
        );
        assert_eq!(
            libtest_result("test slow ... ignored, takes an hour"),
            Some(("slow", Verdict::Skipped))
        );
        assert_eq!(
            libtest_result("test src/lib.rs - add (line 3) ... FAILED"),
            Some(("src/lib.rs - add (line 3)", Verdict::Failed))
        );
        assert_eq!(libtest_result("test result: ok. 3 passed"), None);
    }

    #[test]
    fn selection() {
        let pattern = |text| Pattern::new(text).unwrap();
        assert!(selects(None, "guest", "sysfs.py"));
        for text in ["sysfs", "sysfs.py", "guest/*", "guest/sysfs.py", "sys*"] {
            assert!(selects(Some(&pattern(text)), "guest", "sysfs.py"), "{text}");
        }
        for text in ["host/*", "sys", "guest"] {
            assert!(
                !selects(Some(&pattern(text)), "guest", "sysfs.py"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_closing_line() {
        let mut tally = Tally::default();
        tally.add("a", "one", Verdict::Passed);
        assert_eq!(tally.to_string(), "1 passed, 0 failed");
        tally.add("a", "two", Verdict::Skipped);
        tally.add("a", "three", Verdict::Failed);
        assert_eq!(
            tally.to_string(),
            "FAILED a: three\n1 passed, 1 failed, 1 skipped"
        );
        assert!(!tally.is_good());
    }
}
