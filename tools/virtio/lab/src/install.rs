// SPDX-License-Identifier: GPL-2.0

//! `boot/install`: what Documentation/admin-guide/virtio-suspend.rst tells an operator to do.
//!
//! DKMS builds the modules for Debian's kernel.  In a guest with nothing of ours it installs them.
//! Then an initramfs is made, and a second guest boots with that, and has to find its disk taken
//! over by the extension.  What takes minutes under emulation, to compile and to make an initramfs,
//! is done in the build root, where the programs are the same.

use crate::device;
use crate::guest::{self, Config, Ending, Root};
use crate::init::Job;
use crate::kernel::Kernel;
use crate::klog::Shutdown;
use crate::process::{output_of, run_logged};
use crate::scenario;
use crate::tree::Tree;
use anyhow::{ensure, Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub const NAME: &str = "install";
pub const WHAT: &str = "the modules are installed with DKMS and loaded from the initramfs";

const SOURCES: &str = "scripts/dkms-tree";
const INSTALL: &str = "tools/virtio/lab/guest/install.sh";
const INITRAMFS: &str = "tools/virtio/lab/guest/initramfs.sh";
const DEADLINE: Duration = Duration::from_secs(600);
/// As scripts/dkms.conf has it.
const PACKAGE: &str = "virtio-suspend/1.0";
/// What is printed of a disk that was suspended and resumed, by either guest.
pub const CYCLE: [&str; 3] = ["revision: 1.4", "state: suspended", "state: running"];

/// With the accelerator and the output of `config`.
pub fn run(tree: &Tree, kernel: &Kernel, config: Config) -> Result<()> {
    let run = tree.run_dir(NAME)?;
    let trees = ["dkms", "src"].map(|name| run.join(name));
    let sources = run.join("sources");
    output_of(Command::new(tree.join(SOURCES)).arg(&sources))?;
    let output = config.output.clone();
    let log = tree.out("log")?.join("dkms.log");
    output.announce("building the modules with DKMS", || {
        for dir in &trees {
            fs::create_dir(dir).with_context(|| format!("can't make {}", dir.display()))?;
        }
        let sources = sources.display().to_string();
        run_logged(&mut dkms(kernel, &trees, "add", &sources), &log)?;
        run_logged(&mut dkms(kernel, &trees, "build", PACKAGE), &log)
    })?;

    let mut config = Config {
        deadline: DEADLINE,
        devices: vec![device::disk()],
        modules: None,
        ..config
    };
    let [dkms, src] = &trees;
    let words = [&tree.join(INSTALL), dkms, src];
    let job = Job::Command(words.map(|path| path.display().to_string()).into());
    let ending = Ending::Status(0);
    boot(tree, kernel, "install-dkms", &config, &job, &CYCLE, ending)?;

    let log = tree.out("log")?.join("initramfs.log");
    output.announce("making an initramfs", || {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--mount", "--propagation", "unchanged"])
            .arg(tree.join(INITRAMFS));
        unshare.args([dkms, src]).arg(&kernel.release).arg(&*run);
        run_logged(&mut unshare, &log)
    })?;
    config.root = Root::Behind(run.join("initramfs"));
    let mut expected = vec!["initramfs: virtio_suspend is loaded"];
    expected.extend(CYCLE);
    let ending = Ending::Shutdown(Shutdown::PowerOff);
    // The job is that of an init that this guest does not get to.
    let job = Job::Command(Vec::new());
    let name = "install-initramfs";
    boot(tree, kernel, name, &config, &job, &expected, ending)
}

fn dkms(kernel: &Kernel, [dkms, src]: &[PathBuf; 2], action: &str, what: &str) -> Command {
    let mut command = Command::new("dkms");
    command
        .args([action, what, "--verbose", "-k", &kernel.release])
        .arg("--dkmstree")
        .arg(dkms)
        .arg("--sourcetree")
        .arg(src);
    command
}

/// Boots a guest, which has to print some lines, in this order, and to end in a certain way.
pub fn boot(
    tree: &Tree,
    kernel: &Kernel,
    name: &str,
    config: &Config,
    job: &Job,
    expected: &[&str],
    ending: Ending,
) -> Result<()> {
    let mut printed = Vec::new();
    let outcome = guest::run(tree, kernel, name, config, job, |line, _| {
        config.output.line(format_args!("            {line}"));
        printed.push(line.to_string());
        Ok(())
    })?;
    if outcome.ending != ending || !outcome.is_clean() {
        outcome.report(&config.output);
    }
    scenario::ended(&outcome, ending, &printed, expected).context(name.to_string())?;
    ensure!(
        outcome.is_clean(),
        "{name}: violations or a complaint of the kernel"
    );
    Ok(())
}
