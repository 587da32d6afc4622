// SPDX-License-Identifier: GPL-2.0

//! Building the modules, and the index by which `modprobe` finds them in the guest.

use crate::kernel::{Kernel, NOT_STABLE, TRIED};
use crate::process::{announce, output_of, run_logged};
use crate::tree::{make_dir, Tree};
use anyhow::{bail, Context, Result};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules, built.
#[derive(Clone)]
pub struct Modules {
    pub files: Vec<PathBuf>,
    /// What `depmod` makes of them together with the kernel's own, to lie over the latter.
    pub index: PathBuf,
}

/// Builds the modules; a warning is an error.
pub fn build(tree: &Tree, kernel: &Kernel) -> Result<Modules> {
    announce("building the modules", || build_quietly(tree, kernel))
}

pub fn build_quietly(tree: &Tree, kernel: &Kernel) -> Result<Modules> {
    let _lock = tree.lock("modules")?;
    let out = tree.out(&kernel.release)?;
    let log = tree.out("log")?.join("modules.log");
    run_logged(make(tree, kernel, &out).arg("modules"), &log).map_err(|error| {
        match kernel.series() {
            Some(series) if !TRIED.contains(&series.as_str()) => error.context(format!(
                "the modules do not build for Linux {series}: {} have been tried, and \
                 {NOT_STABLE} says what may be different",
                TRIED.join(" and ")
            )),
            _ => error,
        }
    })?;
    let text = fs::read_to_string(&log).context("can't read the log of the build")?;
    if has_warnings(&text) {
        // So that the next build says it again.
        fs::remove_dir_all(&out).context("can't remove what was built")?;
        bail!("the modules build with warnings:\n{text}");
    }
    let mut files = Vec::new();
    find_modules(&out, &mut files)?;
    files.sort();
    let index = index(&out, kernel)?;
    Ok(Modules { files, index })
}

/// `make` for the modules; the caller adds the target.
pub fn make(tree: &Tree, kernel: &Kernel, out: &Path) -> Command {
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(&kernel.build)
        .args(&kernel.make)
        .arg(format!("-j{jobs}"))
        .arg(format!("M={}", tree.root().display()))
        .arg(format!("MO={}", out.display()))
        // What modpost adds to a module is compiled without the flags of Kbuild.
        .arg(format!("KCFLAGS=-ffile-prefix-map={}=.", out.display()));
    make
}

/// Whether some tool warned in the output of a build.
pub fn has_warnings(output: &str) -> bool {
    output.lines().any(is_warning)
}

fn is_warning(line: &str) -> bool {
    line.starts_with("warning: ")
        || line.starts_with("warning[")
        || line.contains(": warning: ")
        || line.starts_with("WARNING: ")
}

fn find_modules(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))? {
        let path = entry.context("can't read a directory")?.path();
        if path.is_dir() && !path.is_symlink() {
            find_modules(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "ko") {
            found.push(path);
        }
    }
    Ok(())
}

/// The modules stay where they were built: depmod calls such a directory "external", and prefers
/// it to the kernel's own.
fn index(out: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let release = &kernel.release;
    let config = out.join("depmod.conf");
    let text = format!(
        // A release is no good here: it would be taken for a regular expression.
        "external * {}\nsearch external built-in\n",
        out.display()
    );
    fs::write(&config, text).with_context(|| format!("can't write {}", config.display()))?;
    let inside = Path::new("lib/modules").join(release);
    let (base, new) = (out.join("index"), out.join("index.new"));
    make_dir(new.join(&inside))?;
    let mut depmod = Command::new("depmod");
    depmod.arg("--config").arg(&config);
    depmod.arg("--basedir").arg(&kernel.root);
    output_of(depmod.arg("--outdir").arg(&new).arg(release))?;
    let dir = make_dir(base.join(&inside))?;
    // A guest may have it, which finds nothing any more if it is replaced.
    if !is_same(&dir, &new.join(&inside))? {
        fs::remove_dir_all(&base).context("can't remove the index of the modules")?;
        fs::rename(&new, &base).context("can't put the index of the modules in place")?;
    } else {
        fs::remove_dir_all(&new).context("can't remove what is there already")?;
    }
    Ok(dir)
}

/// Whether two directories have the same files.
fn is_same(one: &Path, other: &Path) -> Result<bool> {
    Ok(contents(one)? == contents(other)?)
}

/// The files in a directory, and what is in them.
fn contents(dir: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let cant_read = || format!("can't read {}", dir.display());
    fs::read_dir(dir)
        .with_context(cant_read)?
        .map(|entry| {
            let entry = entry.with_context(cant_read)?;
            let bytes = fs::read(entry.path()).with_context(cant_read)?;
            Ok((entry.file_name(), bytes))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_every_tool() {
        for line in [
            "warning: unused variable: `x`",
            "rust/helpers/virtio.c:3:5: warning: unused variable 'x' [-Wunused-variable]",
            "WARNING: modpost: missing MODULE_DESCRIPTION() in x.o",
        ] {
            assert!(is_warning(line), "{line}");
        }
        assert!(!is_warning("  RUSTC [M] rust/kernel/virtio/warning.o"));
    }

    #[test]
    fn directories_are_compared_by_what_is_in_them() {
        let dir = std::env::temp_dir().join(format!("lab-index-{}", std::process::id()));
        let [one, other] = ["one", "other"].map(|name| dir.join(name));
        for path in [&one, &other] {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("modules.dep"), "a.ko:\n").unwrap();
        }
        assert!(is_same(&one, &other).unwrap());
        fs::write(other.join("modules.alias"), "").unwrap();
        assert!(!is_same(&one, &other).unwrap());
        fs::write(one.join("modules.alias"), "").unwrap();
        assert!(is_same(&one, &other).unwrap());
        fs::write(one.join("modules.dep"), "b.ko:\n").unwrap();
        assert!(!is_same(&one, &other).unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}
