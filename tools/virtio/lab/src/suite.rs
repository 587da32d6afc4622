// SPDX-License-Identifier: GPL-2.0

//! `lab test`: all tests, or those that a pattern names.
//!
//! A test has a name of two parts:
//!
//! * `host/PACKAGE`: `cargo test` of a package of tools/virtio;
//! * `guest/PROGRAM`: a kselftest of tools/testing/selftests/virtio; they share guests;
//! * `sleep/PROGRAM`: one that has its guest sleep, which has nothing but an initramfs for that;
//! * `qemu/MACHINE/PROGRAM`: one with QEMU's own devices, which may have its guest go on in another
//!   QEMU;
//! * `boot/SCENARIO`: one that ends its guest, and so has one of its own; or `boot/install`;
//! * `boot/boot_root.py`: a kselftest whose guest has its root on a disk, see [`root_disk`];
//! * `boot/kit`, `qemu/kit-*`: a boot of the kit, see [`kit_boot`];
//! * `mutants/sample`: whether tests notice a driver that is broken, see [`mutate`].
//!
//! A pattern selects by either the whole name or its second part, with or without extension.

use crate::guest::{self, Accel, Config};
use crate::init::Job;
use crate::install;
use crate::kernel::{Arch, Flavour, Kernel};
use crate::kit_boot;
use crate::ktap::Verdict;
use crate::machine::Machine;
use crate::machines;
use crate::output::{Output, Screen};
use crate::process::output_of;
use crate::scenario::{self, Scenario};
use crate::schedule::{self, Durations, Unit};
use crate::selftests::{self, file_name, Selftests};
use crate::tally::{Report, Results, Tally};
use crate::tree::{Tree, SELFTESTS};
use crate::{command, device, libtest, modules, mutate, qemu, root_disk, rust, sleep};
use anyhow::{ensure, Context, Result};
use clap::builder::RangedU64ValueParser;
use glob::Pattern;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

#[derive(clap::Args, Clone)]
pub struct Args {
    /// Only tests of this name, such as sysfs, 'guest/*', 'host/*' or 'boot/reboot*'; several of
    /// them are divided by white space.
    #[arg(long, value_name = "GLOB")]
    filter: Option<String>,

    /// How many tests run at a time.
    #[arg(long, value_name = "N", default_value_t = schedule::slots(),
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    jobs: usize,

    /// Keep how long tests took, for the order in which they are begun.
    #[arg(long)]
    record: bool,
}

/// What is run with each series, if nothing else is asked for: each of our modules is loaded, and
/// suspends something under load.
const SHORT: &str = "suspend_basic suspend_negotiation suspend_queues suspend_input \
                     blk_device blk_remove ext_around";

impl Args {
    /// The same, with a few tests if none are named.
    pub fn or_short(&self) -> Self {
        let mut args = self.clone();
        args.filter.get_or_insert_with(|| SHORT.into());
        args
    }
}

/// Whether one of the patterns, if there are any, selects a test.
fn selects(patterns: Option<&[Pattern]>, whole: &str) -> bool {
    let Some(patterns) = patterns else {
        return true;
    };
    let name = whole.split_once('/').map_or(whole, |(_, name)| name);
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    let names = [whole, name, stem];
    patterns
        .iter()
        .any(|pattern| names.iter().any(|n| pattern.matches(n)))
}

/// What a guest of another architecture runs.
fn is_for_any_arch(name: &str) -> bool {
    name.starts_with(selftests::SUITE) || scenario::all().iter().any(|s| name == boot_name(s.name))
}

pub fn run(tree: &Tree, kernel: &Kernel, accel: Accel, args: &Args) -> Result<Tally> {
    let parse = |text: &str| text.split_whitespace().map(Pattern::new).collect();
    let patterns: Option<Vec<_>> = args.filter.as_deref().map(parse).transpose()?;
    let patterns = patterns.as_deref();

    let packages = packages(tree)?;
    let programs = selftests::programs(tree)?;
    let sleepers = sleep::programs(tree)?;
    let movers = machines::programs(tree)?;
    let movers: Vec<(Machine, &Path)> = Machine::ALL
        .iter()
        .flat_map(|machine| movers.iter().map(|path| (*machine, path.as_path())))
        .collect();
    let scenarios = scenario::all();
    let mut names: BTreeSet<String> = [boot_name(install::NAME)].into();
    names.insert(mutate::SAMPLE.into());
    names.insert(boot_name(root_disk::PROGRAM));
    names.extend(packages.iter().map(host_name));
    names.extend(programs.iter().map(|p| selftests::test_name(file_name(p))));
    names.extend(sleepers.iter().map(|path| sleep_name(path)));
    names.extend(movers.iter().map(|(m, path)| machines::test_name(*m, path)));
    names.extend(scenarios.iter().map(|s| boot_name(s.name)));
    names.extend(kit_boot::ALL.iter().map(|boot| boot.name.to_string()));
    let all = names.clone();
    names.retain(|name| selects(patterns, name));
    if kernel.arch != Arch::default() {
        println!("only guest/* and boot/* are run with another architecture");
        names.retain(|name| is_for_any_arch(name));
    }
    if patterns.is_none() {
        // They need a QEMU that takes long to build.
        names.retain(|name| !name.starts_with(machines::SUITE));
    }
    if patterns.is_none() && kernel.flavour != Flavour::Stock {
        println!("host/* and mutants/* are run with the stock kernel only");
        names.retain(|name| !name.starts_with("host/") && name != mutate::SAMPLE);
    }
    ensure!(
        !names.is_empty(),
        "no test is named {}: see {}/Makefile, or host/* and boot/*",
        args.filter.as_deref().unwrap_or("*"),
        SELFTESTS
    );
    let programs: Vec<PathBuf> = programs
        .into_iter()
        .filter(|path| names.contains(&selftests::test_name(file_name(path))))
        .collect();

    let results = Results::on(Screen::new(Box::new(std::io::stdout())));
    let mut config = Config {
        accel,
        share: args.jobs,
        output: results.between(),
        ..Config::with(Vec::new()).on(kernel)
    };
    let need_modules =
        |name: &String| !name.starts_with("host/") && *name != boot_name(install::NAME);
    if names.iter().any(need_modules) {
        config.modules = Some(modules::build(tree, kernel)?);
        device::build(tree, &Output::Terminal)?;
        command::build_for_guest(tree, kernel, &Output::Terminal)?;
        if names.iter().any(|name| name.starts_with(machines::SUITE)) {
            qemu::set_up(tree)?;
        }
        println!("booting guests with Linux {}", kernel.release);
    }
    let unshared = Unshared {
        config: config.clone(),
        results: &results,
    };
    let mut units = Vec::new();
    for package in &packages {
        units.push(unshared.unit(host_name(package), |report, _| {
            host_tests(tree, package, report)
        }));
    }
    units.push(unshared.unit(boot_name(install::NAME), |report, config| {
        installation(tree, kernel, config, report)
    }));
    units.push(unshared.unit(mutate::SAMPLE.into(), |report, config| {
        mutate::sample(tree, kernel, config, report)
    }));
    for scenario in &scenarios {
        units.push(unshared.unit(boot_name(scenario.name), |report, config| {
            one_boot(tree, kernel, config, scenario, report)
        }));
    }
    for boot in kit_boot::ALL {
        units.push(unshared.unit(boot.name.into(), |report, config| {
            kit_boot::test(tree, kernel, &config, boot, report)
        }));
    }
    units.push(Unit {
        name: boot_name(root_disk::PROGRAM),
        run: Box::new({
            let (config, results) = (&config, &results);
            move || root_disk::test(tree, kernel, config, results)
        }),
    });
    for program in &sleepers {
        let (config, results) = (&config, &results);
        units.push(Unit {
            name: sleep_name(program),
            run: Box::new(move || sleep::test(tree, kernel, config, program, results)),
        });
    }
    for (machine, program) in &movers {
        let (config, results) = (&config, &results);
        units.push(Unit {
            name: machines::test_name(*machine, program),
            run: Box::new(move || machines::test(tree, kernel, config, *machine, program, results)),
        });
    }
    units.retain(|unit| names.contains(&unit.name));

    let mut durations = Durations::of(tree)?;
    durations.sort(&mut units, |unit| unit.name.clone());
    let selftests = Selftests::new(tree, kernel, config.clone(), programs, &durations, &results)?;
    schedule::run(args.jobs, units, &selftests);
    selftests.finish();

    let tally = results.into_tally();
    if args.record && kernel.flavour == Flavour::Stock {
        durations.record(tree, tally.took(), |name| all.contains(name))?;
    }
    println!("what took longest:");
    for line in tally.longest() {
        println!("{line}");
    }
    Ok(tally)
}

fn host_name(package: impl Display) -> String {
    format!("host/{package}")
}

fn sleep_name(program: &Path) -> String {
    format!("{}/{}", sleep::SUITE, file_name(program))
}

fn boot_name(scenario: &str) -> String {
    format!("boot/{scenario}")
}

/// What tests need that share their guest with no other.
struct Unshared<'a> {
    config: Config,
    results: &'a Results,
}

impl Unshared<'_> {
    /// A test; if it returns an error, it has failed.
    fn unit<'a>(
        &'a self,
        name: String,
        run: impl FnOnce(&mut Report, Config) -> Result<()> + Send + 'a,
    ) -> Unit<'a> {
        Unit {
            name: name.clone(),
            run: Box::new(move || {
                let mut report = self.results.report(&name);
                let config = Config {
                    output: report.output().clone(),
                    ..self.config.clone()
                };
                if let Err(error) = run(&mut report, config) {
                    report.case(&format!("{error:#}"), Verdict::Failed);
                }
                report.end();
            }),
        }
    }
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

fn host_tests(tree: &Tree, package: &str, report: &mut Report) -> Result<()> {
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
        match libtest::result(&line) {
            Some((case, verdict)) => report.case(case, verdict),
            None if libtest::is_noise(&line) => {}
            None => report.note(line),
        }
    }
    let status = child.wait().context("can't wait for cargo")?;
    if !status.success() && report.failed() == 0 {
        report.case(&format!("cargo test ({status})"), Verdict::Failed);
    }
    Ok(())
}

fn installation(tree: &Tree, kernel: &Kernel, config: Config, report: &mut Report) -> Result<()> {
    if kernel.flavour != Flavour::Stock {
        report.note("it is about Debian's own kernel");
        report.case(install::WHAT, Verdict::Skipped);
        return Ok(());
    }
    install::run(tree, kernel, config).context(install::WHAT)?;
    report.case(install::WHAT, Verdict::Passed);
    Ok(())
}

fn one_boot(
    tree: &Tree,
    kernel: &Kernel,
    mut config: Config,
    scenario: &Scenario,
    report: &mut Report,
) -> Result<()> {
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
            report.note(line);
            scenario.on_line(line, &mut printed, devices);
            Ok(())
        },
    )?;
    let judged = scenario.judge(&printed, &outcome);
    if judged.is_err() {
        outcome.report(report.output());
    }
    judged.context(scenario.what)?;
    report.case(scenario.what, Verdict::Passed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection() {
        let pattern = |text| Pattern::new(text).unwrap();
        let name = "guest/sysfs.py";
        assert!(selects(None, name));
        for text in ["sysfs", "sysfs.py", "guest/*", "guest/sysfs.py", "sys*"] {
            assert!(selects(Some(&[pattern(text)]), name), "{text}");
        }
        for text in ["host/*", "sys", "guest"] {
            assert!(!selects(Some(&[pattern(text)]), name), "{text}");
        }
        let two = [pattern("host/*"), pattern("sysfs")];
        assert!(selects(Some(&two), name));
        assert!(!selects(Some(&[]), name));
    }
}
