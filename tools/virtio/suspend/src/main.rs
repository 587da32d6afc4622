// SPDX-License-Identifier: GPL-2.0

//! `virtio-suspend`: suspends virtio devices from inside the guest, and resumes them.
//!
//! `run` has to work when what is suspended holds the root file system, the swap, this program and
//! the terminal. So it opens all that it needs ([`handles`]), locks itself into memory ([`memory`]),
//! starts a second process that sees to it that all go on ([`watchdog`]), and only then stops one
//! thing after the other, or none ([`plan`]). From there to the end nothing is opened, allocated or
//! printed ([`hold`], [`waiting`]).

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod allocator;
mod audit;
mod cli;
mod commands;
mod duration;
mod error;
#[cfg(test)]
mod fake;
mod handles;
mod hold;
mod hook;
mod machine;
mod memory;
mod metrics;
mod output;
mod plan;
mod root;
mod serve;
mod settle;
mod status;
#[allow(unsafe_code)]
mod sys;
mod sysfs;
mod targets;
mod topology;
mod trigger;
mod until;
mod waiting;
mod watchdog;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use allocator::Counting;
use cli::{Cli, Command};
use error::Error;
use machine::Machine;
use sysfs::Root;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Who is not root is told so at once, not by some file.
fn need_root() -> Result<(), Error> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(Error::refused(
            "only root can do that; \"list\" and \"status\" are for all",
        )),
    }
}

/// Prints all of it; whoever reads it may have enough before.
fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Error::Failed(format!("can't print: {error}")))
}

fn run(cli: &Cli) -> Result<(), Error> {
    let root = &Root(cli.root.clone());
    match &cli.command {
        Command::List { json: true } => print(&(output::json(&Machine::look(root)) + "\n")),
        Command::List { json: false } => print(&output::table(&Machine::look(root))),
        Command::Status(args) => status::run(root, args),
        Command::Metrics => print(&metrics::text(&sysfs::devices(root))),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "virtio-suspend", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Suspend(args) => need_root().and_then(|()| commands::suspend(root, args)),
        Command::Resume(args) => need_root().and_then(|()| commands::resume(root, args)),
        Command::Run(args) => need_root().and_then(|()| commands::run(root, args)),
        Command::Serve(args) => need_root().and_then(|()| serve::run(root, args)),
        Command::Watchdog { process, steps } => {
            let result = need_root().map(|()| watchdog::main(root, *process, steps));
            result?.map_err(|error| Error::Failed(format!("watchdog: {error}")))
        }
        Command::Hook { program, words } => {
            hook::main(*program, words).map_err(|error| Error::Failed(format!("--exec: {error}")))
        }
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone, which changes nothing.
            let _ = writeln!(io::stderr(), "virtio-suspend: {error}");
            ExitCode::from(&error)
        }
    }
}
