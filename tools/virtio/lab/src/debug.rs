// SPDX-License-Identifier: GPL-2.0

//! The debug kernel: Debian's source, a small configuration, and the kernel's own checks on.
//!
//! It takes ten minutes or more to build, and is kept: a directory for each source,
//! configuration and compiler. What was interrupted goes on where it was.

use crate::kernel::{Flavour, Kernel};
use crate::process::{output_of, run_logged, Steps};
use crate::tree::{make_dir, Tree};
use anyhow::{ensure, Context, Result};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// The configuration, for `KCONFIG_ALLCONFIG`.
const CONFIG: &str = "scripts/debug.config";

/// KASAN and Rust go together only if the C code is compiled by clang, too.
const MAKE: &str = "LLVM=1";

/// Builds the kernel, or finds that done.
pub fn set_up(tree: &Tree, stock: &Kernel) -> Result<Kernel> {
    let config = tree.join(CONFIG);
    let wanted =
        fs::read_to_string(&config).with_context(|| format!("can't read {}", config.display()))?;
    let work = stock.source.parent().context("the source is nowhere")?;
    let key = key(&[
        &wanted,
        &stock.version,
        &output_of(Command::new("clang").arg("--version"))?,
        &output_of(Command::new("rustc").arg("--version"))?,
    ]);
    let build = make_dir(work.join(format!("debug-{key}")))?;
    let kernel = |release: String| Kernel {
        release,
        image: build.join("arch/x86/boot/bzImage"),
        build: build.clone(),
        flavour: Flavour::Debug,
        make: vec![MAKE.into()],
        ..stock.clone()
    };

    let lock = File::create(build.join("lab.lock")).context("can't make the lock file")?;
    lock.lock().context("can't lock")?;
    let done = build.join("lab.done");
    if let Ok(release) = fs::read_to_string(&done) {
        if modules_of(&release).exists() {
            return Ok(kernel(release));
        }
    }

    let log =
        |name: &str| Ok::<_, anyhow::Error>(tree.out("log")?.join(format!("debug-{name}.log")));
    let make = || {
        let mut make = Command::new("make");
        make.current_dir(&stock.source)
            .arg(MAKE)
            .arg(format!("O={}", build.display()))
            .arg(format!("LOCALVERSION=-debug-{key}"));
        make
    };
    let mut steps = Steps::new(3);

    steps.step("configuring the debug kernel", || {
        let mut configure = make();
        configure
            .arg(format!("KCONFIG_ALLCONFIG={}", config.display()))
            .arg("allnoconfig");
        run_logged(&mut configure, &log("config")?)?;
        let path = build.join(".config");
        let got =
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let missing = missing(&wanted, &got);
        ensure!(
            missing.is_empty(),
            "this kernel can't be configured as {CONFIG} says, it lacks {}",
            missing.join(", ")
        );
        Ok(())
    })?;

    let jobs = thread::available_parallelism().map_or(1, |n| n.get());
    let build_log = log("build")?;
    let what = format!(
        "building it, about 10 minutes on two cores (log: {})",
        build_log.display()
    );
    steps.step(&what, || {
        run_logged(make().arg(format!("-j{jobs}")), &build_log)
    })?;

    let release = fs::read_to_string(build.join("include/config/kernel.release"))
        .context("the kernel has no release")?
        .trim_end()
        .to_string();
    steps.step("installing its modules", || {
        run_logged(make().arg("modules_install"), &log("install")?)
    })?;

    fs::write(&done, &release).with_context(|| format!("can't write {}", done.display()))?;
    Ok(kernel(release))
}

fn modules_of(release: &str) -> PathBuf {
    Path::new("/lib/modules").join(release)
}

/// Tells one build from another.
fn key(parts: &[&str]) -> String {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    format!("{:08x}", hasher.finish() >> 32)
}

/// The options of a fragment that a configuration does not have.
fn missing<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| !got.lines().any(|have| have == *line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_could_not_be_set_is_told() {
        let wanted = "# a comment\nCONFIG_A=y\nCONFIG_B=m\n\nCONFIG_C=12\n";
        let got = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=1\nCONFIG_D=y\n";
        assert_eq!(missing(wanted, got), ["CONFIG_B=m", "CONFIG_C=12"]);
        assert!(missing(wanted, wanted).is_empty());
    }

    #[test]
    fn another_part_is_another_build() {
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["a", "b"]), key(&["ab", ""]));
        assert_eq!(key(&["a"]).len(), 8);
    }
}
