// SPDX-License-Identifier: GPL-2.0

//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::duration::Span;
use crate::until::Until;

/// Suspend virtio devices from inside the guest, and resume them.
///
/// A device that is suspended stands still, and whoever uses it waits. Nothing is lost. Who may only
/// read can list them; all else is root's.
#[derive(Parser)]
#[command(name = "virtio-suspend", version, max_term_width = 100)]
pub struct Cli {
    /// Where sysfs and procfs are looked for.
    #[arg(long, global = true, hide = true, default_value = "/")]
    pub root: PathBuf,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// List the devices: what they are, whether they can be suspended, and who depends on them.
    List {
        /// In JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say in which state devices are.
    Status(Status),
    /// Suspend devices, all or none, and leave them so.
    Suspend(Suspend),
    /// Resume devices.
    Resume(Resume),
    /// Suspend devices, all or none, wait, and resume them, whatever happens.
    Run(Run),
    /// Do the same whenever the host asks for it.
    Serve(Serve),
    /// Print counters for a monitoring system, as OpenMetrics.
    Metrics,
    /// Print completions for a shell.
    #[command(hide = true)]
    Completion { shell: Shell },
    /// The second process of a run.
    #[command(hide = true)]
    Watchdog { process: i32, steps: String },
    /// The process that becomes the hook of a run.
    #[command(hide = true)]
    Hook { program: i32, words: Vec<String> },
}

/// Which devices.
#[derive(Args, Clone, Debug)]
pub struct Targets {
    /// A device (virtio1), its disk (vda) or its interface (ens3).
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "DEVICE"
    )]
    pub names: Vec<String>,

    /// All devices that can be suspended.
    #[arg(long)]
    pub all: bool,

    /// How long each device may take; 10s, unless its file timeout_ms says otherwise.
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,

    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct Status {
    /// A device, its disk or its interface; all, if none is given.
    #[arg(value_name = "DEVICE")]
    pub names: Vec<String>,

    /// Go on, and print each change.
    #[arg(long)]
    pub follow: bool,

    /// In JSON, an object in each line.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Suspend {
    #[command(flatten)]
    pub targets: Targets,

    /// Also if the root file system, swap, or your login depends on a device.
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Resume {
    #[command(flatten)]
    pub targets: Targets,
}

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    pub targets: Targets,

    /// Resume after this time.
    #[arg(long = "for", value_name = "TIME", required_unless_present_any = ["until", "exec"],
          conflicts_with = "until")]
    pub time: Option<Span>,

    /// Resume when this happens: a file is made (an absolute path), a signal arrives (SIGUSR1,
    /// SIGUSR2), or a line is read from standard input ("line").
    #[arg(long, value_name = "WHAT")]
    pub until: Option<Until>,

    /// Run a program meanwhile, and resume when it ends; it has to be linked statically.
    #[arg(long, value_name = "COMMAND", conflicts_with = "until")]
    pub exec: Option<String>,

    /// Resume after this time, whether that has happened or not.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "60s",
        conflicts_with = "time"
    )]
    pub at_most: Span,

    /// Freeze the file systems on the disks before, and thaw them afterwards.
    #[arg(long)]
    pub fsfreeze: bool,

    /// Say what came of it in JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    pub targets: Targets,

    /// Listen on this port of virtio-vsock.
    #[arg(
        long,
        value_name = "NUMBER",
        required_unless_present = "port",
        conflicts_with = "port"
    )]
    pub vsock: Option<u32>,

    /// The address (CID) that may connect there: the host's.
    #[arg(long, value_name = "CID", default_value_t = crate::sys::CID_HOST)]
    pub peer: u32,

    /// Read from this virtio-serial port, such as /dev/virtio-ports/org.example.suspend.
    #[arg(long, value_name = "PATH")]
    pub port: Option<PathBuf>,

    /// Resume after this time, whatever the host says or does not say.
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub at_most: Span,

    /// Freeze the file systems on the disks before, and thaw them afterwards.
    #[arg(long)]
    pub fsfreeze: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn status(words: &[&str]) -> Option<clap::error::ErrorKind> {
        let words = ["virtio-suspend"].iter().chain(words);
        Cli::try_parse_from(words).err().map(|error| error.kind())
    }

    #[test]
    fn it_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_input() {
        for words in [
            &["suspend"][..],
            &["suspend", "--all", "vda"],
            &["suspend", "vda", "--timeout", "5"],
            &["run", "vda"],
            &["run", "--for", "5s"],
            &["run", "vda", "--for", "0s"],
            &["run", "vda", "--for", "-5s"],
            &["run", "vda", "--for", "5s", "--until", "line"],
            &["run", "vda", "--for", "5s", "--at-most", "5s"],
            &["run", "vda", "--until", "SIGKILL"],
            &["run", "vda", "--until", "relative"],
            &["serve", "vda"],
            &["serve", "vda", "--vsock", "-1"],
            &["serve", "vda", "--vsock", "4294967296"],
            &["serve", "vda", "--vsock", "5", "--port", "/dev/x"],
            &["list", "vda"],
            &["nonsense"],
            &[],
        ] {
            assert!(status(words).is_some(), "{words:?}");
        }
    }

    #[test]
    fn good_input() {
        for words in [
            &["list", "--json"][..],
            &["status"],
            &["status", "vda", "--follow"],
            &["suspend", "vda", "ens3", "--timeout", "500ms"],
            &["resume", "--all"],
            &["run", "vda", "--for", "5s"],
            &[
                "run",
                "--all",
                "--until",
                "/run/go",
                "--at-most",
                "5m",
                "--fsfreeze",
            ],
            &["run", "vda", "--exec", "/sbin/hook a b"],
            &["run", "vda", "--exec", "/sbin/hook", "--for", "5s"],
            &["serve", "--all", "--vsock", "999"],
            &["serve", "vda", "--port", "/dev/virtio-ports/x"],
        ] {
            assert_eq!(status(words), None, "{words:?}");
        }
    }
}
