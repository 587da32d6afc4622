// SPDX-License-Identifier: GPL-2.0

//! Modules of the kernel, with those that they depend on.

use std::process::Command;
use std::time::Duration;

use anyhow::{bail, Result};

use crate::child;

/// Loading one probes devices.
const PATIENCE: Duration = Duration::from_secs(60);

/// Loads a module with parameters, if it is not loaded.
pub fn load(name: &str, parameters: &[String]) -> Result<()> {
    run(
        Command::new("modprobe").arg(name).args(parameters),
        "load",
        name,
    )
}

pub fn unload(name: &str) -> Result<()> {
    run(Command::new("rmmod").arg(name), "unload", name)
}

fn run(command: &mut Command, verb: &str, name: &str) -> Result<()> {
    let ended = child::run(command, PATIENCE, |_| {})?;
    match ended.status {
        Some(0) => Ok(()),
        Some(_) => bail!("can't {verb} {name}: {}", ended.last_words()),
        None => bail!("can't {verb} {name} within {} s", PATIENCE.as_secs()),
    }
}
