// SPDX-License-Identifier: GPL-2.0

//! `suspend`, `resume` and `run`.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::json;

use crate::audit;
use crate::cli::{Resume, Run, Suspend};
use crate::error::Error;
use crate::handles::{Handles, Step, What};
use crate::hold::{Hold, Report};
use crate::hook::Hook;
use crate::machine::Machine;
use crate::plan::Outcome;
use crate::sysfs::{self, Device, Root};
use crate::topology::User;
use crate::until::Until;
use crate::waiting::{AFile, ALine, ASignal, End, Signals, Source, Time};

/// Says what would be done.
fn rehearse(steps: &[Step], after: &str) {
    let titles: Vec<&str> = steps.iter().map(|step| step.title.as_str()).collect();
    println!("would stop, in this order: {}", titles.join(", "));
    println!("{after}");
}

pub fn suspend(root: &Root, args: &Suspend) -> Result<(), Error> {
    let machine = Machine::look(root);
    let devices = machine.to_suspend(&args.targets, args.force)?;
    let steps = machine.steps(&devices, &args.targets, false)?;
    if args.targets.dry_run {
        rehearse(&steps, "would leave them so");
        return Ok(());
    }
    let signals = Signals::take().map_err(Error::Failed)?;
    let before = failures(&machine.devices);
    let asked = Instant::now();
    audit::asked("suspend", &steps, None);
    let hold = Hold::prepare(root, &steps, &signals).map_err(Error::refused)?;
    let result = verdict(root, &steps, &hold.stop(), &before);
    if result.is_err() {
        // Else the journal may be on what stands still now.
        audit::over(&steps, asked.elapsed(), result.as_ref().err());
    }
    result
}

pub fn resume(root: &Root, args: &Resume) -> Result<(), Error> {
    let machine = Machine::look(root);
    let is_stopped = |device: &Device| {
        let state = device
            .suspend
            .as_ref()
            .map(|suspend| suspend.state.as_str());
        state.is_some_and(|state| state != "running")
    };
    let chosen = match args.targets.all && !machine.devices.iter().any(is_stopped) {
        true => Vec::new(),
        false => machine
            .choose(&args.targets, is_stopped)
            .map_err(not_resumed)?,
    };
    let without: Vec<String> = chosen
        .iter()
        .filter(|device| device.suspend.is_none())
        .map(|device| format!("{}: there is nothing that could resume it", device.title()))
        .collect();
    if !without.is_empty() {
        return Err(not_resumed(Error::Refused(without)));
    }
    let steps = machine.steps(&chosen, &args.targets, false)?;
    if args.targets.dry_run {
        let titles: Vec<&str> = steps.iter().rev().map(|step| step.title.as_str()).collect();
        println!("would resume, in this order: {}", titles.join(", "));
        return Ok(());
    }
    let mut handles = Handles::open(root, &steps).map_err(Error::Failed)?;
    let before = failures(&machine.devices);
    let mut stuck = vec![None; handles.len()];
    let set = handles.set_timeouts(&steps);
    if set.is_ok() {
        handles.assume_stopped(steps.len());
        handles.go_on_all(&mut stuck, Some(Duration::ZERO));
    }
    handles.restore_timeouts();
    set.map_err(Error::Failed)?;
    match stuck_ones(root, &steps, &stuck, &before) {
        lines if lines.is_empty() => Ok(()),
        lines => Err(Error::Stuck(lines.join("\n"))),
    }
}

/// Nothing is suspended by a resume: its refusal is told in other words.
fn not_resumed(error: Error) -> Error {
    match error {
        Error::Refused(reasons) => Error::Failed(reasons.join("\n")),
        other => other,
    }
}

pub fn run(root: &Root, args: &Run) -> Result<(), Error> {
    let machine = Machine::look(root);
    let devices = machine.to_suspend(&args.targets, true)?;
    let steps = machine.steps(&devices, &args.targets, args.fsfreeze)?;
    let limit = args.time.unwrap_or(args.at_most);
    let (hook, mut source) = source(&machine, &devices, args)?;
    if args.targets.dry_run {
        rehearse(
            &steps,
            &format!("would have them go on after {limit} at the latest"),
        );
        return Ok(());
    }
    let signals = Signals::take().map_err(Error::Failed)?;
    let before = failures(&machine.devices);
    let mut hook = hook
        .map(|hook| hook.start(&machine.root))
        .transpose()
        .map_err(Error::refused)?;
    let asked = Instant::now();
    audit::asked("run", &steps, Some(limit.0));
    let hold = Hold::prepare(root, &steps, &signals).map_err(Error::refused)?;
    let report = match &mut hook {
        Some(hook) => hold.run(limit.0, hook),
        None => hold.run(limit.0, &mut *source),
    };
    let hooked = hook.map(|hook| hook.finish(report.end == Some(End::Asked)));
    if args.json {
        println!("{}", in_json(&steps, &report));
    }
    let result = verdict(root, &steps, &report, &before);
    audit::over(&steps, asked.elapsed(), result.as_ref().err());
    result?;
    if report.end == Some(End::Elapsed) && args.time.is_none() {
        let what = format!("what was waited for did not happen within {limit}: all run again");
        return Err(Error::Early(what));
    }
    if !args.json {
        let titles: Vec<&str> = steps.iter().map(|step| step.title.as_str()).collect();
        println!(
            "{} stood still for {:.3} s (allocations: {}, page faults: {})",
            titles.join(", "),
            report.held.as_secs_f64(),
            report.allocations,
            report.faults.0 + report.faults.1,
        );
    }
    hooked.transpose().map_err(Error::Failed).map(drop)
}

/// A hook that has not been started, and what else is waited for.
type Awaited = (Option<Hook>, Box<dyn Source>);

/// What is waited for; refuses what can't be waited for.
fn source(machine: &Machine, devices: &[&Device], args: &Run) -> Result<Awaited, Error> {
    if let Some(command) = &args.exec {
        let hook = Hook::read(command).map_err(Error::refused)?;
        return Ok((Some(hook), Box::new(Time)));
    }
    let source: Box<dyn Source> = match &args.until {
        None => Box::new(Time),
        Some(Until::Signal(number)) => Box::new(ASignal(*number)),
        Some(Until::Line) => {
            let login = |device: &&&Device| {
                let users = machine.topology.users(device);
                users.iter().any(|user| matches!(user, User::Login { .. }))
            };
            if let Some(device) = devices.iter().find(login) {
                let reason = "the line would have to come through it: use --for";
                return Err(Error::refused(format!("{}: {reason}", device.title())));
            }
            Box::new(ALine::new().map_err(Error::refused)?)
        }
        Some(Until::File(path)) => {
            if let Some(device) = machine.holder(devices, path) {
                let reason = "who makes it would wait for the disk: choose one below /run";
                let path = path.display();
                return Err(Error::refused(format!(
                    "{path} is on {}: {reason}",
                    device.title()
                )));
            }
            Box::new(AFile::new(path).map_err(Error::refused)?)
        }
    };
    Ok((None, source))
}

fn in_json(steps: &[Step], report: &Report) -> String {
    let name = |step: &Step| match &step.what {
        What::Device(name) => name.clone(),
        What::FileSystem(path) => path.display().to_string(),
    };
    let titles: Vec<String> = steps.iter().map(name).collect();
    let end = match report.end {
        None => "refused",
        Some(End::Elapsed) => "time",
        Some(End::Asked) => "asked",
        Some(End::HungUp) => "hangup",
        Some(End::Signal(_)) => "signal",
        Some(End::Unguarded) => "watchdog",
    };
    json!({
        "stopped": report.outcome == Outcome::All,
        "steps": titles,
        "end": end,
        "held_ms": u64::try_from(report.held.as_millis()).unwrap_or(u64::MAX),
        "allocations": report.allocations,
        "page_faults": {"minor": report.faults.0, "major": report.faults.1},
    })
    .to_string()
}

/// How often each device has failed.
type Failures = Vec<(String, u64)>;

pub fn failures(devices: &[Device]) -> Failures {
    let count = |device: &Device| {
        device
            .suspend
            .as_ref()
            .map_or(0, |suspend| suspend.failures)
    };
    devices
        .iter()
        .map(|device| (device.name.clone(), count(device)))
        .collect()
}

/// An error of a step in words: the driver's, if it has some for this one.
fn reason(root: &Root, step: &Step, error: Errno, before: &Failures) -> String {
    let plain = io::Error::from(error).to_string();
    let What::Device(name) = &step.what else {
        return plain;
    };
    let dir = root.device(name).join("suspend");
    let now = sysfs::read(&dir.join("failures"))
        .ok()
        .and_then(|text| text.parse().ok());
    let then = before
        .iter()
        .find(|(other, _)| other == name)
        .map(|(_, count)| *count);
    match sysfs::read(&dir.join("last_error")) {
        // A request that is refused before anything is begun is not counted, and leaves no words.
        Ok(words) if now.is_some() && now != then => words,
        _ => plain,
    }
}

fn stuck_ones(
    root: &Root,
    steps: &[Step],
    stuck: &[Option<Errno>],
    before: &Failures,
) -> Vec<String> {
    let pairs = steps.iter().zip(stuck);
    pairs
        .filter_map(|(step, error)| {
            let why = reason(root, step, (*error)?, before);
            Some(format!("{} does not run: {why}", step.title))
        })
        .collect()
}

/// What it came to.
pub fn verdict(
    root: &Root,
    steps: &[Step],
    report: &Report,
    before: &Failures,
) -> Result<(), Error> {
    let stuck = stuck_ones(root, steps, &report.stuck, before);
    if !stuck.is_empty() {
        let text = format!("{}\nthe watchdog goes on trying", stuck.join("\n"));
        return Err(Error::Stuck(text));
    }
    match (report.outcome, report.end) {
        (Outcome::Refused(number, error), _) => {
            let step = &steps[number];
            let why = reason(root, step, error, before);
            let others = match number {
                0 => "nothing else had been stopped",
                _ => "all others run again",
            };
            Err(Error::Undone(format!(
                "{} refused: {why}; {others}",
                step.title
            )))
        }
        (_, Some(End::Signal(number))) => Err(Error::Early(format!(
            "ended by signal {number}: all run again"
        ))),
        (_, Some(End::Unguarded)) => {
            Err(Error::Early("the watchdog is gone: all run again".into()))
        }
        _ => Ok(()),
    }
}
