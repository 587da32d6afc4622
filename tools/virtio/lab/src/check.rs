// SPDX-License-Identifier: GPL-2.0

//! `lab check`: formatting, lints and style, by the kernel's own tools and rules.

use crate::circles;
use crate::conformance;
use crate::exports;
use crate::kernel::Kernel;
use crate::kselftest;
use crate::modules;
use crate::mutate;
use crate::rust;
use crate::series;
use crate::tree::{Tree, SELFTESTS};
use anyhow::{ensure, Context, Result};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the files are that would be the kernel's.
const KERNEL_SIDE: &[&str] = &["rust", "drivers", "samples", "include"];
/// Where the word "unsafe" has no business: drivers are written in safe Rust.
const SAFE_ONLY: &[&str] = &["drivers", "samples"];
const SCRIPTS: &[&str] = &["scripts", "packaging", ".ci"];

/// Does one check; `Ok(false)` if it found something, and said so.
type Check = fn(&Tree, &Kernel) -> Result<bool>;

const CHECKS: &[(&str, Check)] = &[
    ("rustfmt, modules", rustfmt),
    ("clippy, modules", clippy),
    ("examples in the documentation", examples),
    ("exports of the crate", exports),
    ("checkpatch", checkpatch),
    ("no unsafe in drivers and samples", no_unsafe),
    ("conformance", conformance),
    ("mutants", mutants),
    ("no circles between files", circles),
    ("what is brought along of the kernel", brought),
    ("the series for the kernel", series),
    ("shellcheck", shellcheck),
    ("rustfmt, tools", cargo_fmt),
    ("clippy, tools", cargo_clippy),
];

/// Runs all checks; whether none found anything.
pub fn run(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    let mut found = 0;
    for (name, check) in CHECKS {
        println!("{name}");
        std::io::stdout().flush().context("can't print")?;
        if !check(tree, kernel).with_context(|| format!("can't run {name}"))? {
            println!("    FAILED: {name}");
            found += 1;
        }
    }
    println!("{} checks passed, {found} failed", CHECKS.len() - found);
    Ok(found == 0)
}

fn succeeds(command: &mut Command) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status();
    Ok(status
        .with_context(|| format!("can't run {program}"))?
        .success())
}

/// The files below some directories, but for what a build leaves there.
fn files(tree: &Tree, dirs: &[&str], wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))? {
            let path = entry.context("can't read a directory")?.path();
            if path.is_dir() {
                walk(&path, found)?;
            } else {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    for dir in dirs.iter().map(|dir| tree.join(dir)).filter(|d| d.exists()) {
        walk(&dir, &mut found)?;
    }
    found.retain(|path| !is_generated(path) && wanted(path));
    found.sort();
    Ok(found)
}

fn is_generated(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains("_generated.") || name.ends_with(".mod.c")
}

fn has_extension(extensions: &'static [&'static str]) -> impl Fn(&Path) -> bool {
    move |path| {
        let extension = path.extension().and_then(OsStr::to_str);
        extension.is_some_and(|e| extensions.contains(&e))
    }
}

fn rustfmt(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    let files = files(tree, KERNEL_SIDE, has_extension(&["rs"]))?;
    let mut rustfmt = Command::new("rustfmt");
    rustfmt
        .args(["--check", "--edition=2021", "--config-path"])
        .arg(kernel.source.join(".rustfmt.toml"))
        .args(files);
    succeeds(&mut rustfmt)
}

/// The kernel's lints are in the flags that Kbuild passes.
fn clippy(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    let out = tree.out("clippy")?;
    // Make knows no difference between an object built by rustc and one that clippy has seen.
    fs::remove_dir_all(&out).with_context(|| format!("can't empty {}", out.display()))?;
    let out = tree.out("clippy")?;
    let output = modules::make(tree, kernel, &out)
        .args(["CLIPPY=1", "modules"])
        .env("CLIPPY_CONF_DIR", &kernel.source)
        .stdin(Stdio::null())
        .output()
        .context("can't run make")?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let good = output.status.success() && !modules::has_warnings(&text);
    if !good {
        println!("{text}");
    }
    Ok(good)
}

/// The examples in the documentation of the crate compile.
fn examples(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    modules::build(tree, kernel)?;
    let _lock = tree.lock("modules")?;
    let output = modules::make(tree, kernel, &tree.out(&kernel.release)?)
        .args(["VIRTIO_DOCTEST=y", "modules"])
        .stdin(Stdio::null())
        .output()
        .context("can't run make")?;
    if !output.status.success() {
        println!("{}", String::from_utf8_lossy(&output.stdout));
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status.success())
}

/// The crate exports nothing that is gone when it has been loaded.
fn exports(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    report(&exports::check(tree, kernel)?)
}

fn brought(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    kselftest::check(tree, kernel)
}

/// The patches can be made, and apply.
fn series(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    series::check(tree, kernel).map(|()| true)
}

/// Definitions of trace events are laid out as checkpatch does not like it, in the whole kernel.
const TRACE_EVENTS: &str = "include/trace/events";
const TRACE_EVENTS_IGNORE: &str = "--ignore=OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT";

fn checkpatch(tree: &Tree, kernel: &Kernel) -> Result<bool> {
    let mut files = files(tree, KERNEL_SIDE, has_extension(&["rs", "c", "h"]))?;
    files.extend(self::files(tree, &["scripts", SELFTESTS], |path| {
        // What Python leaves where a test was run by hand is no source.
        !path.ends_with("packages") && !path.iter().any(|name| name == "__pycache__")
    })?);
    let trace_events = tree.join(TRACE_EVENTS);
    let (trace, others): (Vec<_>, Vec<_>) = files
        .into_iter()
        .partition(|f| f.starts_with(&trace_events));
    let check = |options: &[&str], files: &[PathBuf]| {
        let mut checkpatch = Command::new(kernel.source.join("scripts/checkpatch.pl"));
        checkpatch
            .args(["--strict", "--no-summary", "--terse", "--show-types"])
            .args(options)
            .arg("--file")
            .args(files)
            .current_dir(&kernel.source);
        Ok::<_, anyhow::Error>(files.is_empty() || succeeds(&mut checkpatch)?)
    };
    let good = check(&[], &others)?;
    Ok(check(&[TRACE_EVENTS_IGNORE], &trace)? && good)
}

fn no_unsafe(tree: &Tree, _: &Kernel) -> Result<bool> {
    let mut good = true;
    for path in files(tree, SAFE_ONLY, has_extension(&["rs"]))? {
        let text = fs::read_to_string(&path).context("can't read a source file")?;
        for (index, line) in text
            .lines()
            .enumerate()
            .filter(|(_, l)| has_word(l, "unsafe"))
        {
            println!("{}:{}: {}", path.display(), index + 1, line.trim());
            good = false;
        }
    }
    Ok(good)
}

/// As `grep -w` does.
fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|w| w == word)
}

/// The table of rules, code and tests names what is there, and all of it.
fn conformance(tree: &Tree, _: &Kernel) -> Result<bool> {
    report(&conformance::check(tree)?)
}

/// The list of mutants fits the driver.
fn mutants(tree: &Tree, _: &Kernel) -> Result<bool> {
    report(&mutate::check(tree)?)
}

/// The files of the tools do not need each other in circles.
fn circles(tree: &Tree, _: &Kernel) -> Result<bool> {
    report(&circles::check(tree)?)
}

fn report(problems: &[String]) -> Result<bool> {
    for problem in problems {
        println!("{problem}");
    }
    Ok(problems.is_empty())
}

fn shellcheck(tree: &Tree, _: &Kernel) -> Result<bool> {
    let is_script = |path: &Path| {
        let text = fs::read(path).unwrap_or_default();
        text.starts_with(b"#!/bin/sh") || text.starts_with(b"#!/bin/bash")
    };
    let files = files(tree, SCRIPTS, is_script)?;
    ensure!(!files.is_empty(), "no scripts found");
    succeeds(Command::new("shellcheck").args(files))
}

fn cargo_fmt(tree: &Tree, _: &Kernel) -> Result<bool> {
    succeeds(rust::cargo(tree).args(["fmt", "--all", "--check"]))
}

fn cargo_clippy(tree: &Tree, _: &Kernel) -> Result<bool> {
    let mut cargo = rust::cargo(tree);
    cargo.args(["clippy", "--quiet", "--workspace", "--all-targets"]);
    succeeds(cargo.args(["--", "-D", "warnings"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert!(has_word("    unsafe { x() }", "unsafe"));
        assert!(has_word("// unsafe, too", "unsafe"));
        assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
    }

    #[test]
    fn generated_files() {
        assert!(is_generated(Path::new("rust/virtio_bindings_generated.rs")));
        assert!(is_generated(Path::new("virtio_rng.mod.c")));
        assert!(!is_generated(Path::new("rust/kernel/virtio.rs")));
    }
}
