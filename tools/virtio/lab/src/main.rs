// SPDX-License-Identifier: GPL-2.0

//! The lab: builds the modules for Debian's own kernel and runs them in a guest.
//!
//! It runs in the build root that `scripts/lab` makes, as process 1 of a PID namespace: when it
//! ends, for whatever reason, QEMU and the devices end with it.

mod affinity;
mod analyzer;
mod apt;
mod arm64;
mod bench;
mod check;
mod circles;
mod command;
mod conformance;
mod deb;
mod deb_check;
mod debug;
mod demo;
mod device;
mod docs;
mod exports;
mod files;
mod guest;
mod init;
mod initramfs;
mod install;
mod kernel;
mod kit;
mod kit_boot;
mod klog;
mod kselftest;
mod ktap;
mod libtest;
mod machine;
mod machines;
mod makefile;
mod migrate;
mod modules;
mod mutate;
mod output;
mod packages;
mod picture;
mod process;
mod qemu;
mod qmp;
mod root_disk;
mod root_image;
mod rust;
mod scenario;
mod schedule;
mod selftests;
mod series;
mod setup;
mod sleep;
mod stock;
mod suite;
mod tally;
mod tree;
mod waker;

use anyhow::{ensure, Context, Result};
use clap::{Parser, Subcommand};
use signal_hook::{consts::*, iterator::Signals};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use kernel::{Arch, Flavour, TRIED};
use output::print;
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

    /// Processor of the guest; another one is emulated, and runs tests only.
    #[arg(long, value_enum, default_value_t, global = true)]
    arch: Arch,

    /// Kernel series, such as 7.3 [default: the newest of those that have been tried, which `test`
    /// can go through by `all`].
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
    /// Make HTML of the pages and of the crate, in out/docs; a warning is an error.
    Docs,
    /// Run a command in a guest with the modules and the test devices, and return its status.
    Guest {
        /// Test device, as arguments of virtio-test-device; may be repeated [default: two, of
        /// VIRTIO 1.4 and of the draft].
        #[arg(long = "device", value_name = "ARGS")]
        devices: Vec<device::Spec>,

        /// More arguments of QEMU, divided by white space; may be repeated.
        #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
        qemu: Vec<String>,

        /// Use the QEMU of `lab qemu`, or another one in the build root, with no test device but
        /// devices of its own, which are to be given by --qemu.
        #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true,
              default_missing_value = BUILT, conflicts_with = "devices")]
        own_qemu: Option<PathBuf>,

        /// The same with the devices of a test in `qemu/`, and an initramfs; what the guest asks
        /// for is done.
        #[arg(long, value_enum,
              conflicts_with_all = ["devices", "own_qemu", "initramfs", "stock_drivers"])]
        machine: Option<machine::Machine>,

        /// Leave out the modules: the kernel's own drivers bind to the devices.
        #[arg(long)]
        stock_drivers: bool,

        /// Give the guest nothing but an initramfs for its root, so that it can sleep; it is woken
        /// if a kselftest asks for that.
        #[arg(long, conflicts_with = "stock_drivers")]
        initramfs: bool,

        /// Have its root file system and swap on one disk, as in boot/boot_root.py.
        #[arg(long, conflicts_with_all = ["stock_drivers", "initramfs", "devices", "own_qemu"])]
        root_disk: bool,

        /// Seconds until the guest is stopped.
        #[arg(long, default_value_t = 120)]
        deadline: u64,

        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Run the tests: of the tools on this machine, of the modules in guests.
    Test(suite::Args),
    /// Show a device suspended under I/O, with explanations.
    Demo,
    /// Measure the drivers against the kernel's own, and a suspend against what a guest can do
    /// without it; writes out/bench.json and out/bench.svg.
    Bench(bench::Args),
    /// Check formatting, lints and style.
    Check,
    /// Hold the list of rules, code and tests against the tree.
    Conformance {
        /// Write the table of Documentation/virtio/conformance.rst, too.
        #[arg(long)]
        write: bool,
    },
    /// Break the driver in each of the ways of mutants.toml: some test must notice.
    Mutate {
        /// Only the mutants of this name, such as 'gate-*'; may be repeated.
        #[arg(long, value_name = "GLOB")]
        only: Vec<String>,
    },
    /// Build QEMU with SUSPEND in its own devices (tools/virtio/qemu), and print where it is.
    Qemu(qemu::Args),
    /// Install the kselftests as the kernel does, with its runner, and print where they are.
    Kselftest,
    /// Make the kit that tests the devices of any VMM, in out/kit, and print where it is.
    Kit,
    /// Make the patches by which all of this would go into the kernel, in out/series, and apply them.
    Series(series::Args),
    /// Build the packages for Debian, have lintian check them, and print where they are.
    Deb,
    /// Have apt, dpkg and DKMS install, upgrade and purge those in a Debian of its own; takes minutes.
    DebCheck,
    /// Write rust-project.json, for rust-analyzer.
    RustAnalyzer,
    /// Start a guest to play in.
    Shell {
        /// As in `guest`.
        #[arg(long = "device", value_name = "ARGS")]
        devices: Vec<device::Spec>,
    },
    /// Process 1 of the guest.
    #[command(hide = true)]
    Init(init::Args),
}

/// Stands for the QEMU of `lab qemu`.
const BUILT: &str = "built";

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
    // What needs no kernel.
    match cli.command {
        Cmd::Qemu(args) => return qemu::run(&tree, &args),
        Cmd::Conformance { write } => return conformance::run(&tree, write),
        _ => {}
    }
    if let (Some(setup::ALL), Cmd::Test(args)) = (cli.series.as_deref(), &cli.command) {
        return each_series(&tree, &cli, args);
    }
    let kernel = setup::set_up(&tree, cli.arch, cli.kernel, cli.series.as_deref())?;
    ensure!(
        kernel.arch == Arch::default() || runs_anywhere(&cli.command),
        "this is done for this machine's architecture only"
    );
    // Builds the modules and describes a guest with them.
    let with_modules = |devices: Vec<device::Spec>| {
        Ok::<_, anyhow::Error>(guest::Config {
            accel: cli.accel,
            modules: Some(modules::build(&tree, &kernel)?),
            ..guest_of(&tree, &kernel, devices)?
        })
    };
    match cli.command {
        Cmd::Setup => println!("Linux {} ({})", kernel.release, kernel.version),
        Cmd::Modules => {
            for ko in modules::build(&tree, &kernel)?.files {
                println!("{}", ko.display());
            }
        }
        Cmd::Docs => docs::run(&tree, &kernel)?,
        Cmd::Guest {
            devices,
            qemu,
            own_qemu,
            machine,
            stock_drivers,
            initramfs,
            root_disk,
            deadline,
            command,
        } => {
            let mut config = match stock_drivers {
                true => guest_of(&tree, &kernel, devices)?,
                false => with_modules(devices)?,
            };
            if let Some(path) = own_qemu {
                config.emulator = match path.as_os_str() == BUILT {
                    true => qemu::set_up(&tree)?.binary(),
                    false => path,
                };
                config.devices.clear();
            }
            config.accel = cli.accel;
            config.deadline = Duration::from_secs(deadline);
            config.qemu = qemu
                .iter()
                .flat_map(|args| args.split_whitespace().map(str::to_string))
                .collect();
            let job = init::Job::Command(command);
            if let Some(machine) = machine {
                let config = machines::config(&tree, machine, &config)?;
                let outcome = machines::run(&tree, &kernel, "guest", &config, &job, print)?;
                outcome.report(&config.output);
                return Ok(outcome.status());
            }
            if root_disk {
                command::build(&tree, &output::Output::Terminal)?;
                let outcome = root_disk::run(&tree, &kernel, config, &job, print)?;
                outcome.report(&output::Output::Terminal);
                return Ok(outcome.status());
            }
            let outcome = match initramfs {
                true => sleep::run(&tree, &kernel, "guest", &mut config, &job, print)?,
                false => guest::run(&tree, &kernel, "guest", &config, &job, print)?,
            };
            outcome.report(&config.output);
            return Ok(outcome.status());
        }
        Cmd::Test(args) => {
            let tally = suite::run(&tree, &kernel, cli.accel, &args)?;
            println!("{tally}");
            return Ok(u8::from(!tally.is_good()));
        }
        Cmd::Demo => return demo::run(&tree, &kernel, &with_modules(Vec::new())?),
        Cmd::Bench(args) => {
            let good = bench::run(&tree, &kernel, &with_modules(Vec::new())?, &args)?;
            return Ok(u8::from(!good));
        }
        Cmd::Check => return Ok(u8::from(!check::run(&tree, &kernel)?)),
        Cmd::Mutate { only } => {
            let tally = mutate::run(&tree, &kernel, cli.accel, &only)?;
            println!("{tally}");
            return Ok(u8::from(!tally.is_good()));
        }
        Cmd::Series(args) => series::run(&tree, &kernel, &args)?,
        Cmd::Kselftest => println!("{}", kselftest::run(&tree, &kernel)?.display()),
        Cmd::Kit => println!(
            "{}",
            kit::make(&tree, &kernel, &output::Output::Terminal)?.display()
        ),
        Cmd::Deb => println!("{}", deb::run(&tree, &kernel)?.display()),
        Cmd::DebCheck => deb_check::run(&tree, &kernel)?,
        Cmd::RustAnalyzer => {
            // For the generated bindings.
            modules::build(&tree, &kernel)?;
            println!("written to {}", analyzer::run(&tree, &kernel)?.display());
        }
        Cmd::Shell { devices } => {
            let mut config = with_modules(devices)?;
            config.terminal = guest::Terminal::Interactive;
            let job = init::shell();
            let outcome = guest::run(&tree, &kernel, "shell", &config, &job, print)?;
            outcome.report(&config.output);
        }
        Cmd::Init(_) | Cmd::Qemu(_) | Cmd::Conformance { .. } => unreachable!("handled before"),
    }
    Ok(0)
}

/// A guest with some devices, and what it runs.
fn guest_of(
    tree: &Tree,
    kernel: &kernel::Kernel,
    devices: Vec<device::Spec>,
) -> Result<guest::Config> {
    if kernel.arch != Arch::default() {
        command::build_for_guest(tree, kernel, &output::Output::Terminal)?;
    }
    Ok(guest::Config::with(devices).on(kernel))
}

/// Whether a command can be told another architecture.
fn runs_anywhere(command: &Cmd) -> bool {
    matches!(
        command,
        Cmd::Setup | Cmd::Modules | Cmd::Guest { .. } | Cmd::Shell { .. } | Cmd::Test(_)
    )
}

/// Runs the tests with a kernel of each series that has been tried.
fn each_series(tree: &Tree, cli: &Cli, args: &suite::Args) -> Result<u8> {
    let args = args.or_short();
    let mut sum = tally::Tally::default();
    for series in TRIED {
        let kernel = setup::set_up(tree, cli.arch, cli.kernel, Some(series))?;
        let tally = suite::run(tree, &kernel, cli.accel, &args)?;
        println!("Linux {}: {}", kernel.release, tally.counts());
        sum.join(&kernel.release, tally);
    }
    println!("{sum}");
    Ok(u8::from(!sum.is_good()))
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
