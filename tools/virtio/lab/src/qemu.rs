// SPDX-License-Identifier: GPL-2.0

//! QEMU with SUSPEND in its own devices: Debian's source and the series in tools/virtio/qemu.
//!
//! It is built once for each version, series and set of options, and nothing else needs it: its
//! packages are installed, and apt asked for its source, only when it is to be built.

use crate::packages;
use crate::process::{announce, output_of, run_logged, Steps};
use crate::tree::{make_dir, Tree, STATE};
use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

/// Where the series is.
const SERIES: &str = "tools/virtio/qemu";

/// The version of QEMU that it is for.
const VERSION: &str = "10.0.13";

const PACKAGES: &str = "scripts/packages.qemu";

const EMULATOR: &str = "qemu-system-x86_64";

/// The test of the series, and where it is in the build directory.
const TEST: &str = "tests/qtest/virtio-suspend-test";

/// What it is built with, for `configure`.
const OPTIONS: [&str; 11] = [
    "--target-list=x86_64-softmmu",
    "--prefix=/usr",
    "--without-default-features",
    "--enable-tcg",
    "--enable-slirp",
    "--enable-vhost-user",
    "--enable-fdt=system",
    "--enable-linux-aio",
    "--disable-install-blobs",
    "--disable-docs",
    "--disable-tools",
];

/// Directories of firmware, of the packages.
const FIRMWARE: [&str; 2] = ["/usr/share/seabios", "/usr/share/qemu"];

#[derive(clap::Args)]
pub struct Args {
    /// Also apply the series to the pristine source by `git am`, run QEMU's checkpatch.pl on each
    /// patch, and the test that the series brings, and say how long it took.
    #[arg(long)]
    check: bool,
}

/// A QEMU that was built.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Qemu {
    /// Debian's version of its source.
    version: String,
    /// What it was made of.
    key: String,
    dir: PathBuf,
    /// How long it took to build.
    seconds: u64,
}

impl Qemu {
    /// The emulator. It finds its firmware beside it.
    pub fn binary(&self) -> PathBuf {
        self.dir.join("bin").join(EMULATOR)
    }

    fn test(&self) -> PathBuf {
        self.dir.join("libexec/virtio-suspend-test")
    }
}

/// `scripts/lab qemu`.
pub fn run(tree: &Tree, args: &Args) -> Result<u8> {
    let qemu = set_up(tree)?;
    if args.check {
        check(tree, &qemu)?;
    }
    // Where it is for who called us, outside of the build root.
    let root = std::env::var_os("LAB_ROOT").map_or(PathBuf::from("/"), PathBuf::from);
    let binary = qemu.binary();
    let inside = binary.strip_prefix("/").unwrap_or(&binary);
    println!("{}", root.join(inside).display());
    Ok(0)
}

/// Builds it, or finds that done.
pub fn set_up(tree: &Tree) -> Result<Qemu> {
    let dir = make_dir(Path::new(STATE).join("qemu"))?;
    let series = series(tree)?;
    let key = key(&series)?;

    let lock = File::create(dir.join("lock")).context("can't make the lock file")?;
    if lock.try_lock().is_err() {
        println!("waiting for another run that builds QEMU");
        lock.lock().context("can't lock")?;
    }
    let state = dir.join("qemu.json");
    if let Some(qemu) = finished(&state, &key) {
        return Ok(qemu);
    }
    let qemu = build(tree, &dir, &series, &key)?;
    let text = serde_json::to_string_pretty(&qemu).context("can't encode the state")?;
    let new = state.with_extension("new");
    fs::write(&new, text).with_context(|| format!("can't write {}", new.display()))?;
    fs::rename(&new, &state).with_context(|| format!("can't write {}", state.display()))?;
    Ok(qemu)
}

/// Finds it, if it has been built.
pub fn built(tree: &Tree) -> Result<Option<Qemu>> {
    let key = key(&series(tree)?)?;
    Ok(finished(&Path::new(STATE).join("qemu/qemu.json"), &key))
}

fn finished(state: &Path, key: &str) -> Option<Qemu> {
    let qemu: Qemu = serde_json::from_slice(&fs::read(state).ok()?).ok()?;
    (qemu.key == key && qemu.binary().exists()).then_some(qemu)
}

/// The patches, in their order.
fn series(tree: &Tree) -> Result<Vec<PathBuf>> {
    let dir = tree.join(SERIES);
    let mut patches = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("can't read {}", dir.display()))? {
        let path = entry.context("can't read a directory")?.path();
        if path.extension().is_some_and(|e| e == "patch") {
            patches.push(path);
        }
    }
    patches.sort();
    ensure!(!patches.is_empty(), "no patches in {}", dir.display());
    Ok(patches)
}

/// Of what can change without a new version of QEMU's source.
fn key(series: &[PathBuf]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    OPTIONS.hash(&mut hasher);
    for patch in series {
        fs::read(patch)
            .with_context(|| format!("can't read {}", patch.display()))?
            .hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn build(tree: &Tree, dir: &Path, series: &[PathBuf], key: &str) -> Result<Qemu> {
    let logs = tree.out("log")?;
    let log = |name: &str| logs.join(format!("qemu-{name}.log"));
    let mut steps = Steps::new(6);

    steps.step("installing what QEMU is built with", || {
        packages::install(tree, PACKAGES, &log("install"))
    })?;
    let version = steps.step("downloading its source", || download(dir, &log("download")))?;

    let work = dir.join(format!("{}.new", directory_name(&version, key)));
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))?;
    }
    make_dir(work.clone())?;
    let source = work.join("source");
    steps.step(&format!("unpacking {version}"), || {
        unpack(dir, &version, &source, &log("unpack"))
    })?;
    steps.step("applying the series", || {
        let log = log("apply");
        for patch in series {
            apply(patch, &source, &log).with_context(|| does_not_apply(patch, &version))?;
        }
        Ok(())
    })?;

    let objects = make_dir(work.join("build"))?;
    let start = Instant::now();
    let build_log = log("build");
    let what = format!(
        "building it, 3 to 10 minutes on two cores (log: {})",
        build_log.display()
    );
    steps.step(&what, || {
        let mut configure = Command::new(source.join("configure"));
        run_logged(
            configure.current_dir(&objects).args(OPTIONS),
            &log("configure"),
        )?;
        let jobs = thread::available_parallelism().map_or(1, |n| n.get());
        let mut ninja = Command::new("ninja");
        ninja
            .current_dir(&objects)
            .arg(format!("-j{jobs}"))
            .args([EMULATOR, TEST]);
        run_logged(&mut ninja, &build_log)
    })?;
    let seconds = start.elapsed().as_secs();

    let done = dir.join(directory_name(&version, key));
    steps.step("keeping emulator and firmware", || {
        let kept = work.join("kept");
        keep(&objects, &kept)?;
        if done.exists() {
            fs::remove_dir_all(&done).context("can't remove an older build")?;
        }
        fs::rename(&kept, &done).with_context(|| format!("can't rename {}", kept.display()))?;
        fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))
    })?;
    Ok(Qemu {
        version,
        key: key.into(),
        dir: done,
        seconds,
    })
}

fn directory_name(version: &str, key: &str) -> String {
    format!("{}-{key}", version.replace([':', '/'], "_"))
}

fn does_not_apply(patch: &Path, version: &str) -> String {
    format!(
        "{} does not apply: the series in {SERIES} is for QEMU {VERSION}, and apt offers {version}",
        patch
            .file_name()
            .unwrap_or(patch.as_os_str())
            .to_string_lossy()
    )
}

/// apt with the sources of Debian's release, next to its binaries, without a word to the rest.
fn apt_for_source(program: &str, dir: &Path) -> Result<Command> {
    let sources = Path::new("/etc/apt/sources.list");
    let text =
        fs::read_to_string(sources).with_context(|| format!("can't read {}", sources.display()))?;
    let list = dir.join("sources.list");
    fs::write(&list, source_list(&text)?).context("can't write a list of sources")?;
    let lists = make_dir(dir.join("lists/partial"))?;
    let mut apt = Command::new(program);
    apt.arg("--option")
        .arg(format!("Dir::Etc::SourceList={}", list.display()))
        .args(["--option", "Dir::Etc::SourceParts=-", "--option"])
        .arg(format!(
            "Dir::State::Lists={}",
            lists.parent().unwrap_or(&lists).display()
        ));
    Ok(apt)
}

/// The lines of sources.list that are about packages, about their sources.
fn source_list(text: &str) -> Result<String> {
    let list: String = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("deb "))
        .map(|rest| format!("deb-src {rest}\n"))
        .collect();
    ensure!(!list.is_empty(), "the build root has no source of packages");
    Ok(list)
}

/// Downloads the source that apt offers, and tells its version.
fn download(dir: &Path, log: &Path) -> Result<String> {
    run_logged(apt_for_source("apt-get", dir)?.arg("update"), log)?;
    let shown = output_of(apt_for_source("apt-cache", dir)?.args(["showsrc", "qemu"]))?;
    let version = version(&shown).context("apt offers no source of QEMU")?;
    let mut source = apt_for_source("apt-get", dir)?;
    source
        .current_dir(dir)
        .args(["source", "--download-only"])
        .arg(format!("qemu={version}"));
    run_logged(&mut source, log)?;
    Ok(version)
}

/// The first version in what `apt-cache showsrc` prints.
fn version(shown: &str) -> Option<String> {
    shown
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .map(str::to_string)
}

/// Unpacks a source that was downloaded, with Debian's own patches.
fn unpack(dir: &Path, version: &str, source: &Path, log: &Path) -> Result<()> {
    // The epoch is not in the name of a file.
    let plain = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut unpack = Command::new("dpkg-source");
    unpack
        .args(["--no-check", "--extract"])
        .arg(dir.join(format!("qemu_{plain}.dsc")))
        .arg(source);
    run_logged(&mut unpack, log)
}

fn apply(patch: &Path, source: &Path, log: &Path) -> Result<()> {
    let mut command = Command::new("patch");
    command
        .current_dir(source)
        .args(["--strip=1", "--batch", "--forward", "--fuzz=0", "--input"])
        .arg(patch);
    run_logged(&mut command, log)
}

/// Git in a source, without what somebody has configured for themselves.
fn git(source: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(source)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_COMMITTER_NAME", "virtio-suspend")
        .env("GIT_COMMITTER_EMAIL", "virtio-suspend@localhost")
        .env("GIT_AUTHOR_NAME", "virtio-suspend")
        .env("GIT_AUTHOR_EMAIL", "virtio-suspend@localhost");
    git
}

/// Lays it out as if it were installed: so it finds its firmware wherever it is.
fn keep(objects: &Path, to: &Path) -> Result<()> {
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to)
            .with_context(|| format!("can't copy {} to {}", from.display(), to.display()))
    };
    let bin = make_dir(to.join("bin"))?;
    copy(&objects.join(EMULATOR), &bin.join(EMULATOR))?;
    let libexec = make_dir(to.join("libexec"))?;
    copy(&objects.join(TEST), &libexec.join("virtio-suspend-test"))?;
    let share = make_dir(to.join("share/qemu"))?;
    for dir in FIRMWARE {
        let entries = fs::read_dir(dir).with_context(|| format!("can't read {dir}"))?;
        for entry in entries {
            let path = entry.context("can't read a directory")?.path();
            let Some(name) = path.file_name() else {
                continue;
            };
            // The links among them are to each other.
            if is_firmware(&path) && path.is_file() && !share.join(name).exists() {
                copy(&path, &share.join(name))?;
            }
        }
    }
    Ok(())
}

fn is_firmware(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "bin" || e == "rom")
}

/// What a maintainer of QEMU would do with the series.
fn check(tree: &Tree, qemu: &Qemu) -> Result<()> {
    let start = Instant::now();
    let dir = Path::new(STATE).join("qemu");
    let logs = tree.out("log")?;
    let log = |name: &str| logs.join(format!("qemu-check-{name}.log"));
    let series = series(tree)?;
    let source = dir.join("check");
    if source.exists() {
        fs::remove_dir_all(&source).context("can't remove an older source")?;
    }
    announce(&format!("unpacking the pristine {}", qemu.version), || {
        unpack(&dir, &qemu.version, &source, &log("unpack"))
    })?;
    announce("committing it, as what patches are for", || {
        let log = log("commit");
        run_logged(git(&source).args(["init", "--quiet"]), &log)?;
        // Debian's source has files that its .gitignore knows.
        run_logged(git(&source).args(["add", "--force", "--all"]), &log)?;
        let message = format!("QEMU {}", qemu.version);
        run_logged(
            git(&source).args(["commit", "--quiet", "--message", &message]),
            &log,
        )
    })?;
    announce(&format!("git am of {} patches", series.len()), || {
        let log = log("am");
        run_logged(git(&source).arg("am").args(&series), &log)
            .with_context(|| format!("the series in {SERIES} is for QEMU {VERSION}"))?;
        let commits = output_of(git(&source).args(["rev-list", "--count", "HEAD"]))?;
        ensure!(
            commits.trim() == (series.len() + 1).to_string(),
            "git am made {} commits of {} patches",
            commits.trim(),
            series.len()
        );
        Ok(())
    })?;
    announce("checkpatch.pl on each of them", || {
        for patch in &series {
            // Who signs off is whoever sends it.
            let mut checkpatch = Command::new("scripts/checkpatch.pl");
            checkpatch
                .current_dir(&source)
                .arg("--no-signoff")
                .arg(patch);
            let log = log("checkpatch");
            run_logged(&mut checkpatch, &log)?;
            let said = fs::read_to_string(&log).context("can't read what checkpatch said")?;
            if !said.contains("0 errors, 0 warnings") {
                bail!("{}: {said}", patch.display());
            }
        }
        Ok(())
    })?;
    println!(
        "it was built in {} s, when it was built first",
        qemu.seconds
    );
    let test_log = log("qtest");
    announce("the test of the series", || {
        let mut test = Command::new(qemu.test());
        test.env("QTEST_QEMU_BINARY", qemu.binary());
        run_logged(&mut test, &test_log)
    })?;
    let said = fs::read_to_string(&test_log).context("can't read what the test said")?;
    let (passed, skipped) = tap(&said);
    ensure!(passed > 0, "the test has no cases");
    println!("{passed} cases passed, {skipped} skipped");
    fs::remove_dir_all(&source).context("can't remove the source")?;
    println!("all of it took {} s", start.elapsed().as_secs());
    Ok(())
}

/// How many cases passed and how many were skipped, by what GLib's tests print.
fn tap(text: &str) -> (usize, usize) {
    let ok = text.lines().filter(|line| line.starts_with("ok "));
    let (skipped, passed): (Vec<_>, Vec<_>) = ok.partition(|line| line.contains("# SKIP"));
    (passed.len(), skipped.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_packages() {
        let text = "# deb no\ndeb http://mirror/debian trixie main\ndeb-src x y\n";
        assert_eq!(
            source_list(text).unwrap(),
            "deb-src http://mirror/debian trixie main\n"
        );
        assert!(source_list("# nothing\n").is_err());
    }

    #[test]
    fn a_version() {
        let shown = "Package: qemu\nVersion: 1:10.0.13+ds-0+deb13u1\nVersion: 2\n";
        assert_eq!(version(shown).as_deref(), Some("1:10.0.13+ds-0+deb13u1"));
        assert_eq!(directory_name("1:10.0+ds", "ab"), "1_10.0+ds-ab");
    }

    #[test]
    fn cases() {
        let text = "1..3\nok 1 /a\nok 2 /b # SKIP no\nnot ok 3 /c\n";
        assert_eq!(tap(text), (1, 1));
    }
}
