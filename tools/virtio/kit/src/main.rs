// SPDX-License-Identifier: GPL-2.0

//! Process 1 of the kit, which `make kit` leaves in out/kit.
//!
//! It has no disk, no network and nobody to ask: what to do is on the kernel's command line
//! ([`parameters`]), what comes of it is printed on the first console there is ([`console`]), and in
//! the end it ends the machine ([`ending`]). In between it looks for virtio devices ([`devices`]),
//! has module virtio_suspend_test test each of them ([`driver`]), runs the kselftests that are about
//! what is there ([`selftests`]), and keeps account ([`report`]).
//!
//! A device under test may do anything, such as never answer. So whatever waits for one is a
//! process of its own, which is given up after a time ([`child`]).

#![deny(unsafe_code)]

mod child;
mod console;
mod devices;
mod driver;
mod ending;
mod ktap;
mod modules;
mod parameters;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod port;
mod report;
mod selftests;
mod system;

use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use rustix::process::getpid;

use devices::{Device, Sysfs};
use parameters::{Parameters, Selection};
use report::{Report, Verdict};

fn main() -> ExitCode {
    if !getpid().is_init() {
        return child::main();
    }
    let ending = match run() {
        Ok(ending) => ending,
        Err(error) => {
            // Nobody is told where to print.
            println!("{}: {error:#}", report::NAME);
            ending::Ending::default()
        }
    };
    ending.end()
}

/// Does all of it, and returns how the machine is to end.
fn run() -> Result<ending::Ending> {
    system::mount()?;
    let command_line = system::command_line()?;
    let (parameters, mistakes) = Parameters::parse(&command_line);
    let console = console::choose(&Sysfs::default(), &parameters, &command_line);
    let opened = console::open(&console);
    system::describe();
    println!("# talks on {console}");
    if let Err(error) = opened {
        println!("# {error:#}");
    }
    let mut report = Report::default();
    let done = match mistakes.is_empty() {
        true => test(&parameters, &console, &mut report),
        false => {
            parameters::explain(&mistakes);
            Err(anyhow::anyhow!("{}", mistakes.join("; ")))
        }
    };
    report.print_table();
    let verdict = match &done {
        Ok(()) => report.verdict(),
        Err(_) => Verdict::NotOk,
    };
    Ok(ending::Ending {
        exit: parameters.exit,
        port: parameters.exit_port,
        last_line: match &done {
            Ok(()) => report.last_line(),
            Err(error) => report::line(verdict, &format!("{error:#}")),
        },
        verdict,
    })
}

/// Finds the devices, and runs what the command line asks for.
fn test(parameters: &Parameters, console: &str, report: &mut Report) -> Result<()> {
    // PCI is built in. One that finds its devices by ACPI or a device tree is not.
    modules::load("virtio_mmio", &[]).unwrap_or_else(|error| println!("# {error:#}"));
    let sysfs = Sysfs::default();
    let devices = sysfs.devices();
    devices::print(&devices);
    if devices.is_empty() {
        bail!("no virtio device was found");
    }
    let chosen = choose(&devices, parameters)?;
    let plan = Plan::new(parameters);
    println!("KTAP version 1");
    println!("1..{}", plan.count(&chosen));
    if let Some(case) = &plan.driver {
        for device in &chosen {
            if console::is_served_by(console, device) {
                report.skip_device(device, "the kit talks on it: give it another console");
                continue;
            }
            driver::test(&sysfs, device, case.as_deref(), parameters.data, report);
        }
    }
    for program in &plan.programs {
        let named = plan.driver.is_none();
        selftests::run(&sysfs, program, named, parameters.data, report);
    }
    Ok(())
}

/// The devices that are to be tested.
fn choose<'a>(devices: &'a [Device], parameters: &Parameters) -> Result<Vec<&'a Device>> {
    if parameters.devices.is_empty() {
        return Ok(devices.iter().collect());
    }
    let find = |name: &String| {
        let found = devices.iter().find(|device| device.name == *name);
        found.with_context(|| format!("suspend.device={name}: there is no such device"))
    };
    parameters.devices.iter().map(find).collect()
}

/// What is run.
struct Plan {
    /// The case of the driver that tests devices, or all of them.
    driver: Option<Option<String>>,
    programs: Vec<&'static selftests::Selftest>,
}

impl Plan {
    fn new(parameters: &Parameters) -> Self {
        let Selection::Named(name) = &parameters.test else {
            if !driver::is_there() {
                println!("# this kit has no virtio_suspend_test: the kselftests are all there is");
                return Self {
                    driver: None,
                    programs: selftests::ALL.iter().collect(),
                };
            }
            // Which device they take is up to them.
            let all = parameters.devices.is_empty();
            let programs = selftests::ALL.iter().filter(|_| all);
            return Self {
                driver: Some(None),
                programs: programs.collect(),
            };
        };
        if let Some(program) = selftests::find(name) {
            return Self {
                driver: None,
                programs: vec![program],
            };
        }
        Self {
            driver: Some(Some(name.clone())),
            programs: Vec::new(),
        }
    }

    /// How many tests there will be.
    fn count(&self, chosen: &[&Device]) -> usize {
        let devices = self.driver.as_ref().map_or(0, |_| chosen.len());
        devices + self.programs.len()
    }
}
