// SPDX-License-Identifier: GPL-2.0

//! A repository of the kernel's source, in which the patches are applied, and a kernel built of it.
//!
//! Both are kept beside the source: what a patch doesn't change is not built again.

use super::map::{Map, DIR};
use super::patches::git_in;
use crate::kernel::Kernel;
use crate::modules::has_warnings;
use crate::process::{announce, output_of, run_logged};
use crate::tree::{make_dir, Tree};
use anyhow::{bail, ensure, Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// The state of the repository without a patch.
const BASE: &str = "series-base";

/// What checkpatch is not asked about: who sends a patch signs it, the entry in MAINTAINERS is the
/// last patch, and definitions of trace events are laid out as in the whole kernel.
const CHECKPATCH: [&str; 5] = [
    "--strict",
    "--no-summary",
    "--terse",
    "--no-signoff",
    "--ignore=FILE_PATH_CHANGES,OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT",
];

/// What is looked at once more by clippy, and with W=1.
const LINTED: [&str; 5] = [
    "drivers/virtio/",
    "drivers/char/hw_random/",
    "drivers/block/virtio_blk_rust.o",
    "drivers/input/virtio_input_rust.o",
    "samples/rust/",
];

/// Where both are.
struct Place {
    repository: PathBuf,
    build: PathBuf,
    _lock: File,
}

fn place(kernel: &Kernel, map: &Map) -> Result<Place> {
    let parent = kernel.source.parent().context("the source is nowhere")?;
    let dir = make_dir(parent.join("series"))?;
    let lock = File::create(dir.join("lock")).context("can't make the lock file")?;
    lock.lock().context("can't lock")?;
    let place = Place {
        repository: dir.join("tree"),
        build: make_dir(dir.join("build"))?,
        _lock: lock,
    };
    if tagged(&place.repository, map) {
        return Ok(place);
    }
    // Links: git and make replace a file rather than write to it.
    if !place.repository.exists() {
        let new = dir.join("tree.new");
        if new.exists() {
            fs::remove_dir_all(&new).context("can't remove what was copied")?;
        }
        let mut copy = Command::new("cp");
        output_of(
            copy.args(["--archive", "--link"])
                .arg(&kernel.source)
                .arg(&new),
        )?;
        fs::rename(&new, &place.repository).context("can't rename what was copied")?;
    }
    let git = |args: &[&str]| output_of(git_in(&place.repository, map).args(args)).map(drop);
    git(&["init", "--quiet"])?;
    git(&["config", "core.compression", "1"])?;
    git(&["config", "gc.auto", "0"])?;
    git(&["add", "--all", "--force"])?;
    git(&["commit", "--quiet", "--message", "The kernel's source"])?;
    git(&["tag", "--force", BASE])?;
    Ok(place)
}

fn tagged(repository: &Path, map: &Map) -> bool {
    let mut git = git_in(repository, map);
    git.args(["rev-parse", "--verify", "--quiet", BASE]);
    repository.join(".git").exists() && output_of(&mut git).is_ok()
}

impl Place {
    fn git(&self, map: &Map, args: &[&str]) -> Result<String> {
        output_of(git_in(&self.repository, map).args(args))
    }

    /// Back to the kernel's source.
    fn reset(&self, map: &Map) -> Result<()> {
        // Of one that was stopped.
        let _ = self.git(map, &["am", "--abort"]);
        self.git(map, &["reset", "--quiet", "--hard", BASE])?;
        self.git(map, &["clean", "--quiet", "-d", "--force"])
            .map(drop)
    }

    fn am(&self, map: &Map, patch: &Path) -> Result<()> {
        let mut git = git_in(&self.repository, map);
        git.args(["am", "--quiet", "--whitespace=error-all"])
            .arg(patch);
        output_of(&mut git)
            .map(drop)
            .with_context(|| format!("{} does not apply", name(patch)))
    }

    fn make(&self) -> Command {
        let jobs = thread::available_parallelism().map_or(1, |n| n.get());
        let mut make = Command::new("make");
        make.current_dir(&self.repository)
            .arg(format!("O={}", self.build.display()))
            .arg(format!("-j{jobs}"));
        make
    }

    /// Configures the kernel; what a later patch adds is left out until then.
    fn configure(&self, tree: &Tree, log: &Path) -> Result<()> {
        let mut all = String::new();
        for part in ["config", "config.series"] {
            all += &fs::read_to_string(tree.join(DIR).join(part)).context("can't read a config")?;
        }
        let path = self.build.join("series.allconfig");
        fs::write(&path, all).context("can't write the configuration")?;
        let mut make = self.make();
        make.arg(format!("KCONFIG_ALLCONFIG={}", path.display()))
            .arg("allnoconfig");
        run_logged(&mut make, log)
    }
}

fn name(patch: &Path) -> String {
    patch
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Applies the patches to the repository by `git am`.
pub fn apply(kernel: &Kernel, map: &Map, patches: &[PathBuf]) -> Result<()> {
    let place = place(kernel, map)?;
    place.reset(map)?;
    patches.iter().try_for_each(|patch| place.am(map, patch))
}

/// Applies one patch after the other, and builds what each of them is about; then the rest.
pub fn check(tree: &Tree, kernel: &Kernel, map: &Map, patches: &[PathBuf]) -> Result<()> {
    let place = place(kernel, map)?;
    let logs = make_dir(tree.out("log")?.join("series"))?;
    announce("checkpatch", || checkpatch(&place, patches))?;

    place.reset(map)?;
    announce("the kernel without a patch", || {
        place.configure(tree, &logs.join("config"))?;
        build(&place, &logs.join("base"), &["bzImage"])
    })?;
    for (patch, path) in map.patch.iter().zip(patches) {
        place.am(map, path)?;
        if patch.build.is_empty() {
            continue;
        }
        let log = logs.join(name(path)).with_extension("log");
        announce(&name(path), || {
            place.configure(tree, &logs.join("config"))?;
            let targets: Vec<&str> = patch.build.iter().map(String::as_str).collect();
            build(&place, &log, &targets)
        })?;
    }
    missing(tree, &place)?;
    announce("the kernel with all patches", || {
        build(&place, &logs.join("all"), &["bzImage", "modules"])
    })?;
    announce("rustfmtcheck", || {
        run_logged(place.make().arg("rustfmtcheck"), &logs.join("rustfmt"))
    })?;
    announce("clippy and W=1", || {
        let targets = [&["CLIPPY=1", "W=1"][..], &LINTED[..]].concat();
        build(&place, &logs.join("clippy"), &targets)
    })
}

/// Runs `make`; a warning is an error.
fn build(place: &Place, log: &Path, targets: &[&str]) -> Result<()> {
    run_logged(place.make().args(targets), log)?;
    let text = fs::read_to_string(log).context("can't read the log of the build")?;
    if has_warnings(&text) {
        bail!("there are warnings, see {}", log.display());
    }
    Ok(())
}

/// Whether all that the series adds is in the configuration.
fn missing(tree: &Tree, place: &Place) -> Result<()> {
    let wanted = fs::read_to_string(tree.join(DIR).join("config.series"))
        .context("can't read the configuration")?;
    let got = fs::read_to_string(place.build.join(".config")).context("there is no .config")?;
    for line in wanted.lines().filter(|line| line.starts_with("CONFIG_")) {
        ensure!(
            got.lines().any(|have| have == line),
            "{line} could not be had"
        );
    }
    Ok(())
}

fn checkpatch(place: &Place, patches: &[PathBuf]) -> Result<()> {
    let mut checkpatch = Command::new("scripts/checkpatch.pl");
    checkpatch
        .current_dir(&place.repository)
        .args(CHECKPATCH)
        .args(patches);
    output_of(&mut checkpatch).map(drop)
}
