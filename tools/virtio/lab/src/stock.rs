// SPDX-License-Identifier: GPL-2.0

//! Debian's kernel, and what modules for it are built with.
//!
//! It has CONFIG_RUST=y but its headers lack the metadata of the Rust crates. `make prepare` on
//! Debian's source, with Debian's configuration and compiler, makes it again.

use crate::apt::{self, KernelPackages};
use crate::kernel::{self, Arch, Flavour, Kernel};
use crate::process::{output_of, run_logged, Steps};
use crate::tree::{make_dir, Tree, STATE};
use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// What a finished set-up leaves behind, so that the next run need not ask apt.
#[derive(Deserialize, Serialize)]
struct State {
    series: Option<String>,
    kernel: Kernel,
}

/// Installs the kernel and rebuilds its Rust metadata, or finds that done.
pub fn set_up(tree: &Tree, series: Option<&str>) -> Result<Kernel> {
    let dir = make_dir(PathBuf::from(STATE))?;
    let path = dir.join(state_file(series));
    let lock = File::create(dir.join("lock")).context("can't make the lock file")?;
    lock.lock_shared().context("can't lock")?;
    if let Some(kernel) = finished(&path, series) {
        return Ok(kernel);
    }
    lock.unlock().context("can't unlock")?;
    if lock.try_lock().is_err() {
        println!("waiting for another run that sets up the kernel");
        lock.lock().context("can't lock")?;
        if let Some(kernel) = finished(&path, series) {
            return Ok(kernel);
        }
    }
    let kernel = install(&tree.out("log")?, &dir, series)?;
    let state = State {
        series: series.map(str::to_string),
        kernel: kernel.clone(),
    };
    let text = serde_json::to_string_pretty(&state).context("can't encode the state")?;
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("can't write {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("can't write {}", path.display()))?;
    Ok(kernel)
}

/// Each series is kept beside the others.
fn state_file(series: Option<&str>) -> String {
    match series {
        None => "kernel.json".into(),
        Some(series) => format!("kernel-{series}.json"),
    }
}

fn finished(path: &Path, series: Option<&str>) -> Option<Kernel> {
    let state: State = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (state.series.as_deref() == series && state.kernel.image.exists()).then_some(state.kernel)
}

fn install(logs: &Path, dir: &Path, series: Option<&str>) -> Result<Kernel> {
    let mut steps = Steps::new(5);
    let log = |name: &str| logs.join(format!("kernel-{name}.log"));

    let packages = steps.step("choosing a kernel", || {
        run_logged(&mut apt::update(), &log("update"))?;
        apt::choose(series)
    })?;
    let KernelPackages {
        release,
        series,
        version,
    } = &packages;

    steps.step(&format!("installing Linux {release}, {version}"), || {
        run_logged(&mut packages.install(), &log("install"))
    })?;

    let work = make_dir(dir.join(version))?;
    let source = work.join("source");
    let metadata = work.join("metadata");
    let kernel = Kernel {
        release: release.clone(),
        version: version.clone(),
        image: format!("/boot/vmlinuz-{release}").into(),
        build: format!("/lib/modules/{release}/build").into(),
        source: source.clone(),
        flavour: Flavour::Stock,
        make: Vec::new(),
        arch: Arch::default(),
        root: kernel::build_root(),
    };
    check_rustc(&kernel.build)?;

    steps.step("unpacking its source", || {
        once(&source, |new| {
            let tar = format!("/usr/src/linux-source-{series}.tar.xz");
            let mut command = Command::new("tar");
            command.args(["--extract", "--strip-components=1", "--file", &tar]);
            run_logged(command.arg("--directory").arg(new), &log("unpack"))
        })
    })?;

    let metadata_log = log("metadata");
    let what = format!(
        "building its Rust metadata (log: {})",
        metadata_log.display()
    );
    steps.step(&what, || {
        once(&metadata, |new| {
            let config = format!(
                "/usr/src/linux-config-{series}/config.amd64_none_{}.xz",
                apt::FLAVOUR
            );
            let text = output_of(Command::new("xz").args(["-dc", &config]))?;
            fs::write(new.join(".config"), text).context("can't write .config")?;
            let jobs = thread::available_parallelism().map_or(1, |n| n.get());
            let mut make = Command::new("make");
            make.current_dir(&source)
                .arg(format!("O={}", new.display()))
                .arg(format!("-j{jobs}"))
                .args(["olddefconfig", "prepare"]);
            run_logged(&mut make, &metadata_log)
        })
    })?;

    steps.step("adding the metadata to the headers", || {
        add_metadata(&metadata, &kernel.build)
    })?;
    Ok(kernel)
}

/// Makes a directory that exists only when it is complete.
fn once(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let new = dir.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("can't remove {}", new.display()))?;
    }
    fill(&make_dir(new.clone())?)?;
    fs::rename(&new, dir).with_context(|| format!("can't rename {}", new.display()))
}

/// Metadata of one compiler is no good to another.
pub fn check_rustc(build: &Path) -> Result<()> {
    let path = build.join(".config");
    let config =
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let wanted = config
        .lines()
        .find_map(|l| l.strip_prefix("CONFIG_RUSTC_VERSION_TEXT="))
        .context("this kernel was built without Rust")?
        .trim_matches('"');
    let found = output_of(Command::new("rustc").arg("--version"))?;
    let found = found.trim_end();
    ensure!(
        wanted == found,
        "the kernel was built with {wanted}, but the build root has {found}"
    );
    Ok(())
}

fn add_metadata(metadata: &Path, build: &Path) -> Result<()> {
    check_symbols(&metadata.join("rust"), &build.join("Module.symvers"))?;
    let link = build.join("rust");
    if link.is_symlink() {
        fs::remove_file(&link).context("can't replace the link to older metadata")?;
    }
    symlink(metadata.join("rust"), &link)
        .with_context(|| format!("can't link {}", link.display()))?;
    let target = metadata.join("scripts/target.json");
    if target.exists() {
        fs::copy(&target, build.join("scripts/target.json")).context("can't copy target.json")?;
    }
    Ok(())
}

/// Rust mangles a hash of each crate into its symbols.  If those of the new metadata are what the
/// image exports, the modules will load.
pub fn check_symbols(rust: &Path, symvers: &Path) -> Result<()> {
    let text =
        fs::read_to_string(symvers).with_context(|| format!("can't read {}", symvers.display()))?;
    let exported: HashSet<&str> = text.lines().filter_map(|l| l.split('\t').nth(1)).collect();
    let mut count = 0;
    for krate in ["core", "bindings", "kernel"] {
        let path = rust.join(format!("exports_{krate}_generated.h"));
        let text =
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        for symbol in text.lines().filter_map(exported_symbol) {
            ensure!(
                exported.contains(symbol),
                "the image does not export {symbol}: the metadata does not belong to it"
            );
            count += 1;
        }
    }
    ensure!(count > 0, "{} names no symbol", rust.display());
    Ok(())
}

/// The symbol in a line such as `EXPORT_SYMBOL_RUST_GPL(_RNv…);`.
fn exported_symbol(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once('(')?;
    Some(rest.split_once(')')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_of_an_export_header() {
        assert_eq!(
            exported_symbol("EXPORT_SYMBOL_RUST_GPL(_RNvNtCs_4core3fmt);"),
            Some("_RNvNtCs_4core3fmt")
        );
        assert_eq!(exported_symbol("// nothing"), None);
    }
}
