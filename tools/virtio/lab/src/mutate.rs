// SPDX-License-Identifier: GPL-2.0

//! `lab mutate`: breaks the driver in each of the ways of `mutants.toml`, and sees whether a test
//! notices.
//!
//! A mutant is one text in one file and what it becomes. It is made in a copy of the clone, built
//! there, and run by the tests of the clone, and with its test device, unless it is that which is
//! broken. A mutant that does not build, or whose text is not there exactly once, is an error of the
//! list. So is a test that fails without any mutant, which is why all of them are run once before.
//!
//! `mutants/sample` is a test of its own: those few that are marked in the list. It does not run
//! the tests without a mutant, because the others do.

use crate::files::copy;
use crate::guest::{self, Accel, Config};
use crate::init::Job;
use crate::kernel::Kernel;
use crate::ktap::{self, Verdict};
use crate::machine::Machine;
use crate::machines;
use crate::process::run_logged;
use crate::tally::Report;
use crate::tree::{Tree, SELFTESTS};
use crate::{device, libtest, modules, rust, selftests, sleep};
use anyhow::{bail, ensure, Context, Result};
use glob::Pattern;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const LIST: &str = "tools/virtio/lab/mutants.toml";
/// The name of the test that runs a few.
pub const SAMPLE: &str = "mutants/sample";
/// The test device, of which there are mutants, too.
const DEVICE: &str = "tools/virtio/device";
/// The fewest mutants that the list must have.
const FEWEST: usize = 24;
/// Where the copy is, below `out`.
const COPY: &str = "mutate/tree";

/// For boot and shutdown of a guest, and for a program that hangs.
const BOOT: Duration = Duration::from_secs(60);
const PROGRAM: Duration = Duration::from_secs(60);
/// How much longer it may take with QEMU's own devices.
const OWN_QEMU: u32 = 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// A way to break the driver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// What the driver does wrong then, in words.
    breaks: String,
    /// The rule that this is about, if it is about one.
    rule: Option<String>,
    file: PathBuf,
    find: String,
    replace: String,
    /// `host/PACKAGE`, `guest/PROGRAM`, `sleep/PROGRAM`, or `qemu/MACHINE/PROGRAM`.
    suite: String,
    /// Which cases of a program, as patterns [default: all].
    #[serde(default)]
    cases: Vec<String>,
    /// Whether it is one of those that `make test` runs.
    #[serde(default)]
    sample: bool,
}

/// What became of a mutant.
enum Fate {
    KilledBy(String),
    Survived,
}

/// Counts what became of mutants.
#[derive(Default)]
pub struct Tally {
    killed: usize,
    survived: Vec<String>,
    errors: Vec<String>,
}

impl Tally {
    pub fn is_good(&self) -> bool {
        self.survived.is_empty() && self.errors.is_empty()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.survived {
            writeln!(f, "SURVIVED {name}")?;
        }
        for name in &self.errors {
            writeln!(f, "NOT RUN {name}")?;
        }
        write!(
            f,
            "{} killed, {} survived",
            self.killed,
            self.survived.len()
        )?;
        match self.errors.len() {
            0 => Ok(()),
            errors => write!(f, ", {errors} not run"),
        }
    }
}

/// The first failure of a test: there is no need to go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failure(String);

fn parse(text: &str) -> Result<Vec<Mutant>> {
    let list: List = toml::from_str(text).context("can't understand the list of mutants")?;
    let mut names = BTreeSet::new();
    for mutant in &list.mutant {
        let name = &mutant.name;
        ensure!(names.insert(name), "there are two mutants named {name}");
        ensure!(mutant.find != mutant.replace, "{name} changes nothing");
        let known = mutant.suite.starts_with("host/") || program(&mutant.suite).is_some();
        ensure!(known, "{name}: there is no suite {}", mutant.suite);
    }
    ensure!(
        list.mutant.len() >= FEWEST,
        "there are {} mutants, fewer than {FEWEST}",
        list.mutant.len()
    );
    Ok(list.mutant)
}

/// A guest that runs kselftests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Guest {
    /// One with the test devices.
    Any,
    /// The same, which can sleep, and is woken.
    Sleeps,
    /// One with QEMU's own devices.
    Machine(Machine),
}

impl Guest {
    fn suite(self) -> &'static str {
        match self {
            Self::Any => selftests::SUITE,
            Self::Sleeps => sleep::SUITE,
            Self::Machine(machine) => machine.suite(),
        }
    }
}

/// The guest and the kselftest of a suite.
fn program(suite: &str) -> Option<(Guest, &str)> {
    let (guest, program) = suite.rsplit_once('/')?;
    let machines = Machine::ALL.into_iter().map(Guest::Machine);
    let guest = [Guest::Any, Guest::Sleeps]
        .into_iter()
        .chain(machines)
        .find(|known| known.suite() == guest)?;
    Some((guest, program))
}

fn list(tree: &Tree) -> Result<Vec<Mutant>> {
    let path = tree.join(LIST);
    let text =
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    parse(&text)
}

/// What is wrong with the list, without running it.
pub fn check(tree: &Tree) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for mutant in list(tree)? {
        let text = fs::read_to_string(tree.join(&mutant.file)).unwrap_or_default();
        if let Err(error) = mutant.apply(&text) {
            problems.push(format!("{LIST}: {}: {error:#}", mutant.name));
        }
        if let Some((_, program)) = program(&mutant.suite) {
            if !tree.join(SELFTESTS).join(program).exists() {
                problems.push(format!("{LIST}: {}: no {program}", mutant.name));
            }
        }
    }
    Ok(problems)
}

impl Mutant {
    /// The text of its file, broken.
    fn apply(&self, text: &str) -> Result<String> {
        match text.matches(&self.find).count() {
            1 => Ok(text.replacen(&self.find, &self.replace, 1)),
            count => bail!(
                "{} has its text {count} times, not exactly once",
                self.file.display()
            ),
        }
    }
}

/// Runs the mutants, or those that a pattern names.
pub fn run(tree: &Tree, kernel: &Kernel, accel: Accel, only: &[String]) -> Result<Tally> {
    let mut mutants = list(tree)?;
    let mut named = BTreeSet::new();
    for name in only {
        let pattern = Pattern::new(name).with_context(|| format!("{name} is no pattern"))?;
        let matching = mutants.iter().filter(|m| pattern.matches(&m.name));
        let matching: Vec<String> = matching.map(|m| m.name.clone()).collect();
        ensure!(!matching.is_empty(), "no mutant is named {name}");
        named.extend(matching);
    }
    mutants.retain(|m| only.is_empty() || named.contains(&m.name));

    let _lock = tree.lock("mutate")?;
    let config = Config {
        accel,
        ..Config::with(device::of_selftests())
    };
    let lab = Lab::new(tree, kernel, config)?;
    lab.without_mutant(&mutants)?;

    let mut tally = Tally::default();
    for mutant in &mutants {
        let rule = mutant.rule.as_ref().map(|r| format!(" ({r})"));
        let rule = rule.unwrap_or_default();
        println!("{}: {}{rule}", mutant.name, mutant.breaks);
        let start = Instant::now();
        let fate = lab.fate(mutant);
        let seconds = start.elapsed().as_secs();
        match fate {
            Ok(Fate::KilledBy(test)) => {
                println!("    killed by {test}, {seconds} s");
                tally.killed += 1;
            }
            Ok(Fate::Survived) => {
                println!("    SURVIVED, {seconds} s");
                tally.survived.push(mutant.name.clone());
            }
            Err(error) => {
                println!("    NOT RUN: {error:#}");
                tally.errors.push(mutant.name.clone());
            }
        }
    }
    Ok(tally)
}

/// Runs those of the sample, each a case that passes if it is killed.
pub fn sample(tree: &Tree, kernel: &Kernel, config: Config, report: &mut Report) -> Result<()> {
    let _lock = tree.lock("mutate")?;
    let devices = device::of_selftests();
    let lab = Lab::new(tree, kernel, Config { devices, ..config })?;
    let different = lab.different()?;
    for module in &different {
        report.note(format!("{} is different", module.display()));
    }
    report.case(
        "without a mutant, the modules of another clone are the same to the byte",
        match different.is_empty() {
            true => Verdict::Passed,
            false => Verdict::Failed,
        },
    );
    for mutant in list(tree)?.iter().filter(|mutant| mutant.sample) {
        let verdict = match lab.fate(mutant)? {
            Fate::KilledBy(test) => {
                report.note(format!("killed by {test}"));
                Verdict::Passed
            }
            Fate::Survived => Verdict::Failed,
        };
        report.case(&format!("{}: {}", mutant.name, mutant.breaks), verdict);
    }
    Ok(())
}

/// The clone, its copy, and the guest for both.
struct Lab<'a> {
    tree: &'a Tree,
    kernel: &'a Kernel,
    config: Config,
    copy: Tree,
}

impl<'a> Lab<'a> {
    fn new(tree: &'a Tree, kernel: &'a Kernel, config: Config) -> Result<Self> {
        let this = Self {
            tree,
            kernel,
            config,
            copy: Tree::copy_at(tree.out(COPY)?),
        };
        copy(tree.root(), this.copy.root())?;
        Ok(this)
    }

    /// The modules that are not the same in the clone and in its copy, which is in another place.
    fn different(&self) -> Result<Vec<PathBuf>> {
        let built = modules::build_quietly(&self.copy, self.kernel)?;
        ensure!(!built.files.is_empty(), "there are no modules");
        let mut different = Vec::new();
        for file in built.files {
            let module = file
                .strip_prefix(self.copy.root())
                .with_context(|| format!("{} is not in the copy", file.display()))?;
            let read = |path: &Path| {
                fs::read(path).with_context(|| format!("can't read {}", path.display()))
            };
            if read(&file)? != read(&self.tree.join(module))? {
                different.push(module.into());
            }
        }
        Ok(different)
    }

    /// Runs the tests that are to kill mutants with the driver as it is.
    fn without_mutant(&self, mutants: &[Mutant]) -> Result<()> {
        let mut packages = BTreeSet::new();
        // Of each guest, the programs and their cases.
        let mut guests = BTreeMap::<Guest, BTreeMap<&str, BTreeSet<&str>>>::new();
        for mutant in mutants {
            if let Some(package) = mutant.suite.strip_prefix("host/") {
                packages.insert(package);
            } else if let Some((guest, program)) = program(&mutant.suite) {
                let programs = guests.entry(guest).or_default();
                let cases = programs.entry(program).or_default();
                match mutant.cases.is_empty() {
                    true => _ = cases.insert("*"),
                    false => cases.extend(mutant.cases.iter().map(String::as_str)),
                }
            }
        }
        println!("the tests, without a mutant");
        for package in packages {
            if let Fate::KilledBy(test) = self.host(package)? {
                bail!("{test} fails without a mutant");
            }
        }
        // Each of them may take what it may with a mutant of its own.
        let times = u32::try_from(mutants.len())?;
        for (guest, programs) in guests {
            let programs: Vec<(&str, Vec<&str>)> = programs
                .into_iter()
                .map(|(program, cases)| (program, cases.into_iter().collect()))
                .collect();
            if let Fate::KilledBy(test) = self.guest(guest, &programs, PROGRAM * times, None)? {
                bail!("{test} fails without a mutant");
            }
        }
        Ok(())
    }

    fn fate(&self, mutant: &Mutant) -> Result<Fate> {
        let path = self.copy.join(&mutant.file);
        let whole = fs::read_to_string(&path)
            .with_context(|| format!("can't read {}", mutant.file.display()))?;
        let write = |text: &str| fs::write(&path, text).context("can't write to the copy");
        write(&mutant.apply(&whole)?)?;
        let fate = match (mutant.suite.strip_prefix("host/"), program(&mutant.suite)) {
            (Some(package), _) => self.host(package),
            (_, Some((guest, program))) => {
                let cases = mutant.cases.iter().map(String::as_str).collect();
                let device = mutant.file.starts_with(DEVICE).then(|| self.copy.clone());
                self.guest(guest, &[(program, cases)], PROGRAM, device)
            }
            _ => bail!("no suite"),
        };
        write(&whole)?;
        fate
    }

    /// Runs the tests of a package of tools/virtio in the copy.
    fn host(&self, package: &str) -> Result<Fate> {
        let cargo = |args: &[&str]| {
            let mut cargo = rust::cargo(&self.copy);
            // What the packages depend on is built there already.
            cargo
                .env("CARGO_TARGET_DIR", self.tree.join("out/target"))
                .args(["test", "--quiet", "-p", package])
                .args(args)
                .stdin(Stdio::null());
            cargo
        };
        let log = self.tree.out("log")?.join("mutate.log");
        run_logged(&mut cargo(&["--no-run"]), &log)?;
        let output = cargo(&["--no-fail-fast", "--", "--format=pretty", "--color=never"])
            .output()
            .context("can't run cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let failed = text
            .lines()
            .filter_map(libtest::result)
            .find(|(_, verdict)| *verdict == Verdict::Failed);
        Ok(match failed {
            Some((case, _)) => Fate::KilledBy(format!("host/{package}: {case}")),
            None if !output.status.success() => {
                Fate::KilledBy(format!("host/{package} ({})", output.status))
            }
            None => Fate::Survived,
        })
    }

    /// Builds the modules of the copy and runs kselftests of the clone with them, and with the test
    /// device of `device` or else of the clone, up to the first failure, which comes `within` some
    /// time if there is one.
    fn guest(
        &self,
        guest: Guest,
        programs: &[(&str, Vec<&str>)],
        within: Duration,
        device: Option<Tree>,
    ) -> Result<Fate> {
        let modules = modules::build_quietly(&self.copy, self.kernel)?;
        let slowness = self.kernel.flavour.slowness();
        let share = u32::try_from(self.config.share).unwrap_or(u32::MAX);
        let mut config = Config {
            modules: Some(modules),
            device_tree: device,
            deadline: (BOOT + within) * slowness * share,
            ..self.config.clone()
        };

        let suite = guest.suite();
        let mut running = None;
        let on_line = |line: &str, _: &mut device::Devices| {
            if let Some(program) = line.strip_prefix(BEGIN) {
                running = Some(format!("{suite}/{program}"));
            } else if let ktap::Line::Case(Verdict::Failed, case) = ktap::parse(line) {
                let program = running.as_deref().unwrap_or(suite);
                return Err(Failure(format!("{program}: {case}")).into());
            } else if is_skipped(line) {
                // A case, or all of them: nothing is killed by that.
                bail!("skipped: {line}");
            }
            Ok(())
        };
        let (tree, kernel, job) = (self.tree, self.kernel, self.job(programs));
        let outcome = match guest {
            Guest::Any => guest::run(tree, kernel, "mutate", &config, &job, on_line),
            Guest::Sleeps => {
                config.devices = device::that_sleep();
                sleep::run(tree, kernel, "mutate", &mut config, &job, on_line)
            }
            Guest::Machine(machine) => {
                config.deadline *= OWN_QEMU;
                let config = machines::config(tree, machine, &config)?;
                machines::run(tree, kernel, "mutate", &config, &job, on_line)
            }
        };
        let outcome = match outcome {
            Err(error) => {
                return match error.downcast::<Failure>() {
                    Ok(Failure(test)) => Ok(Fate::KilledBy(test)),
                    Err(error) => Err(error),
                }
            }
            Ok(outcome) => outcome,
        };
        let running = running.context("the guest did not get as far as a test")?;
        let why = if let Some(complaint) = outcome.complaints.first() {
            complaint.text.clone()
        } else if outcome.status() != 0 {
            outcome.ending.to_string()
        } else {
            return Ok(Fate::Survived);
        };
        Ok(Fate::KilledBy(format!("{running}: {why}")))
    }

    /// Runs programs one after the other.
    fn job(&self, programs: &[(&str, Vec<&str>)]) -> Job {
        let mut script = String::from("status=0\n");
        for (program, cases) in programs {
            let path = self.tree.join(SELFTESTS).join(program);
            script += &format!("echo '{BEGIN}{program}'\n{}", quoted(path.as_os_str()));
            for case in cases {
                script += " ";
                script += &quoted(case.as_ref());
            }
            script += " || status=1\n";
        }
        script += "exit $status\n";
        Job::Command(["sh", "-c", &script].map(str::to_string).into())
    }
}

/// Announces a program.
const BEGIN: &str = "# program ";

/// Whether a line says that a case is skipped, or all of them. What a test quotes is no case of its
/// own.
fn is_skipped(line: &str) -> bool {
    let skipped = Verdict::Skipped;
    match ktap::parse(line) {
        ktap::Line::Case(verdict, _) | ktap::Line::End { verdict, .. } => verdict == skipped,
        _ => line.trim_start_matches("# ").starts_with("1..0 # SKIP"),
    }
}

/// For a shell.
fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(find: &str) -> Mutant {
        Mutant {
            name: "m".into(),
            breaks: "something".into(),
            rule: None,
            file: "f.rs".into(),
            find: find.into(),
            replace: "x".into(),
            suite: "host/p".into(),
            cases: Vec::new(),
            sample: false,
        }
    }

    #[test]
    fn a_text_must_be_there_exactly_once() {
        assert_eq!(mutant("b").apply("abc").unwrap(), "axc");
        assert!(mutant("d").apply("abc").is_err());
        assert!(mutant("a").apply("aba").is_err());
    }

    #[test]
    fn the_list_fits_the_driver() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let problems = check(&Tree::copy_at(root)).unwrap();
        assert!(problems.is_empty(), "{problems:#?}");
    }

    #[test]
    fn the_guest_of_a_suite() {
        let known = |suite| program(suite).map(|(guest, program)| (guest.suite(), program));
        assert_eq!(known("guest/a.py"), Some(("guest", "a.py")));
        assert_eq!(known("sleep/a.py"), Some(("sleep", "a.py")));
        let machine = Some(("qemu/pci-split", "a.py"));
        assert_eq!(known("qemu/pci-split/a.py"), machine);
        for suite in ["a.py", "nowhere/a.py", "host/p", "qemu/a.py"] {
            assert_eq!(known(suite), None, "{suite}");
        }
    }

    #[test]
    fn a_list_that_is_wrong() {
        let entry = |name: &str, suite: &str, find: &str| {
            format!(
                "[[mutant]]\nname = '{name}'\nbreaks = 'b'\nfile = 'f'\nfind = '{find}'\n\
                 replace = 'r'\nsuite = '{suite}'\n"
            )
        };
        let good: String = (0..FEWEST)
            .map(|i| entry(&i.to_string(), "host/p", "f"))
            .collect();
        assert_eq!(parse(&good).unwrap().len(), FEWEST);
        for bad in [
            entry("0", "host/p", "f"),
            entry("a", "nowhere/p", "f"),
            entry("a", "host/p", "r"),
        ] {
            assert!(parse(&(good.clone() + &bad)).is_err(), "{bad}");
        }
        assert!(parse(&entry("a", "host/p", "f")).is_err());
    }

    #[test]
    fn the_last_line() {
        let mut tally = Tally {
            killed: 2,
            ..Tally::default()
        };
        assert_eq!(tally.to_string(), "2 killed, 0 survived");
        assert!(tally.is_good());
        tally.survived.push("a".into());
        tally.errors.push("b".into());
        let text = "SURVIVED a\nNOT RUN b\n2 killed, 1 survived, 1 not run";
        assert_eq!(tally.to_string(), text);
        assert!(!tally.is_good());
    }

    #[test]
    fn a_case_is_skipped() {
        for line in [
            "# ok 3 packed # SKIP no packed virtqueues",
            "# 1..0 # SKIP needs root",
            "1..0 # SKIP needs root",
            "ok 2 selftests: virtio: net.py # SKIP",
        ] {
            assert!(is_skipped(line), "{line}");
        }
        for line in [
            "# ok 3 packed",
            "# # | ok 3 V2 packed # SKIP no packed virtqueues",
            "# # 2 skipped tests",
        ] {
            assert!(!is_skipped(line), "{line}");
        }
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted(OsStr::new("it's")), r"'it'\''s'");
    }
}
