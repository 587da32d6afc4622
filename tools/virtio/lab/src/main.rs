// SPDX-License-Identifier: GPL-2.0

//! The lab: builds the modules for Debian's own kernel and runs them in a guest.
//!
//! It runs in the build root that `scripts/lab` makes, as process 1 of a PID namespace: when it
//! ends, for whatever reason, QEMU and the devices end with it.

mod apt;
mod device;
mod guest;
mod init;
mod kernel;
mod klog;
mod modules;
mod process;
mod rust;
mod tree;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use signal_hook::{consts::*, iterator::Signals};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use kernel::Flavour;
use tree::Tree;

/// Builds the modules and runs them in a guest.
///
/// Called through scripts/lab, or the make target of the same name.
#[derive(Parser)]
#[command(name = "lab", max_term_width = 100)]
struct Cli {
    /// Kernel to build for and to boot.
    #[arg(long, env = "KERNEL", value_enum, default_value_t, global = true)]
    kernel: Flavour,

    /// Kernel series, such as 7.3 [default: what Debian's backports recommend].
    #[arg(long, env = "KERNEL_SERIES", global = true)]
    series: Option<String>,

    /// QEMU's accelerator.
    #[arg(long, env = "ACCEL", value_enum, default_value_t, global = true)]
    accel: guest::Accel,

    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Install the kernel and rebuild its Rust metadata; nothing to do if that is done.
    Setup,
    /// Build the modules; a warning is an error.
    Modules,
    /// Run a command in a guest with the modules and the test devices, and return its status.
    Guest {
        /// Test device, as arguments of virtio-test-device; may be repeated [default: two, of
        /// VIRTIO 1.4 and of the draft].
        #[arg(long = "device", value_name = "ARGS")]
        devices: Vec<device::Spec>,

        /// Leave out the modules: the kernel's own drivers bind to the devices.
        #[arg(long)]
        stock_drivers: bool,

        /// Seconds until the guest is stopped.
        #[arg(long, default_value_t = 120)]
        deadline: u64,

        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Start a guest to play in.
    Shell {
        #[arg(long = "device", value_name = "ARGS")]
        devices: Vec<device::Spec>,
    },
    /// Process 1 of the guest.
    #[command(hide = true)]
    Init(init::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Cmd::Init(args) => init::main(&args),
        _ => host(cli),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn host(cli: Cli) -> Result<u8> {
    end_on_signals()?;

    let tree = Tree::at_current_dir()?;
    let kernel = kernel::set_up(&tree, cli.kernel, cli.series.as_deref())?;
    let shared = |devices: Vec<device::Spec>| guest::Config {
        accel: cli.accel,
        devices: match devices.is_empty() {
            true => device::default_pair(),
            false => devices,
        },
        ..guest::Config::default()
    };
    match cli.command {
        Cmd::Setup => println!("Linux {} ({})", kernel.release, kernel.version),
        Cmd::Modules => {
            let modules = modules::build(&tree, &kernel)?;
            for ko in &modules.files {
                println!("{}", ko.display());
            }
        }
        Cmd::Guest {
            devices,
            stock_drivers,
            deadline,
            command,
        } => {
            let modules = match stock_drivers {
                true => None,
                false => Some(modules::build(&tree, &kernel)?),
            };
            let config = guest::Config {
                deadline: Duration::from_secs(deadline),
                modules: modules.map(|m| m.index),
                ..shared(devices)
            };
            let job = init::Job::Command(command);
            let outcome = guest::run(&tree, &kernel, "guest", &config, &job, |line| {
                println!("{line}");
            })?;
            outcome.report();
            return Ok(outcome.status());
        }
        Cmd::Shell { devices } => {
            let modules = modules::build(&tree, &kernel)?;
            let config = guest::Config {
                deadline: Duration::MAX,
                modules: Some(modules.index),
                terminal: guest::Terminal::Interactive,
                ..shared(devices)
            };
            let outcome = guest::run(&tree, &kernel, "shell", &config, &init::shell(), |_| {})?;
            outcome.report();
        }
        Cmd::Init(_) => unreachable!("handled by main"),
    }
    Ok(0)
}

/// Process 1 has no default action for signals.  Ending it ends all others.
fn end_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("can't catch signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// What is kept between runs, in the build root.
fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/lab")
}
