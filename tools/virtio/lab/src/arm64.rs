// SPDX-License-Identifier: GPL-2.0

//! Debian's arm64 kernel, built for with a cross compiler, and what its guest has for a root.
//!
//! The packages are of the version that the kernel of this machine's architecture has, so that
//! there is one source. They are unpacked beside the build root, and nothing of them is run here:
//! programs of arm64 run in the guest.

use crate::kernel::{Arch, Kernel, ARM64_TARGET};
use crate::packages;
use crate::process::{output_of, run_logged, Steps};
use crate::stock;
use crate::tree::{make_dir, Tree};
use anyhow::{Context, Result};
use rustix::mount::mount_bind;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// What is installed in the build root.
const TOOLS: &str = "scripts/packages.arm64";
/// What the guest's root file system is made of.
const GUEST: &str = "scripts/packages.arm64-guest";

const FLAVOUR: &str = "cloud-arm64";
const COMPILER: &str = "aarch64-linux-gnu-";

/// What packages leave to their scripts, and is the same as in the build root.
const FROM_BUILD_ROOT: &[&str] = &[
    "etc/group",
    "etc/nsswitch.conf",
    "etc/passwd",
    "etc/protocols",
    "etc/services",
];

/// Installs the kernel and makes what its modules are built with, or finds that done.
pub fn set_up(tree: &Tree, stock: &Kernel) -> Result<Kernel> {
    let work = stock.source.parent().context("the source is nowhere")?;
    let guest = packages::list(tree, GUEST)?;
    let dir = make_dir(work.join("arm64"))?;
    let kernel = describe(stock, &dir)?;

    let lock = File::create(dir.join("lock")).context("can't make the lock file")?;
    if lock.try_lock().is_err() {
        println!("waiting for another run that sets up the kernel for arm64");
        lock.lock().context("can't lock")?;
    }
    let done = dir.join("done");
    let what = guest.join("\n");
    if fs::read_to_string(&done).is_ok_and(|text| text == what) && emulator_is_there() {
        share_tree(tree, &kernel)?;
        return Ok(kernel);
    }
    install(tree, stock, &kernel, &dir, &guest)?;
    fs::write(&done, what).with_context(|| format!("can't write {}", done.display()))?;
    share_tree(tree, &kernel)?;
    Ok(kernel)
}

fn emulator_is_there() -> bool {
    Path::new("/usr/bin").join(Arch::Arm64.emulator()).exists()
}

fn describe(stock: &Kernel, dir: &Path) -> Result<Kernel> {
    let release = stock
        .release
        .strip_suffix(crate::apt::FLAVOUR)
        .map(|rest| format!("{rest}{FLAVOUR}"))
        .context("the kernel is of no flavour that arm64 has")?;
    let root = dir.join("root");
    Ok(Kernel {
        image: root.join("usr/lib/modules").join(&release).join("vmlinuz"),
        build: dir.join("build"),
        make: vec![
            "ARCH=arm64".into(),
            format!("CROSS_COMPILE={COMPILER}"),
            // Else it is that of a kernel that somebody has built.
            format!("KERNELRELEASE={release}"),
        ],
        arch: Arch::Arm64,
        root,
        release,
        ..stock.clone()
    })
}

fn install(
    tree: &Tree,
    stock: &Kernel,
    kernel: &Kernel,
    dir: &Path,
    guest: &[String],
) -> Result<()> {
    let mut steps = Steps::new(4);
    let logs = tree.out("log")?;
    let log = |name: &str| logs.join(format!("arm64-{name}.log"));
    let Kernel {
        release, version, ..
    } = kernel;
    let series = stock.series().context("the release has no series")?;

    steps.step("installing a cross compiler and an emulator", || {
        packages::install(tree, TOOLS, &log("install"))
    })?;

    let parts = fresh(dir.join("parts"))?;
    steps.step("downloading what is of arm64", || {
        fs::write(dir.join("status"), "").context("can't write an empty list of packages")?;
        run_logged(apt(dir)?.arg("update"), &log("update"))?;
        // To be unpacked, not all to be installed: nothing that they depend on is wanted.
        let mut download = apt(dir)?;
        download
            .current_dir(&parts)
            .arg("download")
            .arg(format!("linux-binary-{release}={version}"))
            .arg(format!("linux-config-{series}={version}"))
            .arg(format!("linux-headers-{release}={version}"))
            .arg(format!("linux-modules-{release}={version}"))
            .arg("libstd-rust-dev/trixie-backports");
        run_logged(&mut download, &log("download"))?;
        let mut closure = apt(dir)?;
        closure
            .args(["--yes", "--download-only", "install"])
            .args(guest);
        run_logged(&mut closure, &log("download"))
    })?;

    steps.step("unpacking it", || {
        let root = fresh(kernel.root.clone())?;
        unpack(&archives(dir), |_| &root)?;
        let rest = fresh(dir.join("rest"))?;
        unpack(&parts, |name| {
            match name.starts_with("linux-binary-") || name.starts_with("linux-modules-") {
                true => &root,
                false => &rest,
            }
        })?;
        complete(&root)?;
        let mut depmod = Command::new("depmod");
        depmod.arg("--basedir").arg(&root).arg(release);
        output_of(&mut depmod).map(drop)
    })?;

    let metadata_log = log("metadata");
    let what = format!(
        "building its Rust metadata (log: {})",
        metadata_log.display()
    );
    steps.step(&what, || {
        let rest = dir.join("rest/usr/src");
        let headers = rest.join(format!("linux-headers-{release}"));
        stock::check_rustc(&headers)?;
        let build = fresh(kernel.build.clone())?;
        let config = rest.join(format!(
            "linux-config-{series}/config.arm64_none_{FLAVOUR}.xz"
        ));
        let text = output_of(Command::new("xz").arg("-dc").arg(&config))?;
        fs::write(build.join(".config"), text).context("can't write .config")?;
        let jobs = thread::available_parallelism().map_or(1, |n| n.get());
        let mut make = Command::new("make");
        make.current_dir(&stock.source)
            .arg(format!("O={}", build.display()))
            .arg(format!("-j{jobs}"))
            .args(&kernel.make)
            .args(["olddefconfig", "prepare", "modules_prepare"]);
        run_logged(&mut make, &metadata_log)?;
        let symvers = build.join("Module.symvers");
        fs::copy(headers.join("Module.symvers"), &symvers)
            .context("can't copy what the kernel exports")?;
        stock::check_symbols(&build.join("rust"), &symvers)
    })
}

/// An empty directory.
fn fresh(dir: PathBuf) -> Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("can't empty {}", dir.display()))?;
    }
    make_dir(dir)
}

fn archives(dir: &Path) -> PathBuf {
    dir.join("archives")
}

/// apt for another architecture, of which nothing is installed, without a word to the build root's
/// own.
fn apt(dir: &Path) -> Result<Command> {
    let lists = dir.join("lists");
    make_dir(lists.join("partial"))?;
    make_dir(archives(dir).join("partial"))?;
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    let status = dir.join("status");
    for (name, value) in [
        ("APT::Architecture", Path::new("arm64")),
        ("APT::Architectures", Path::new("arm64")),
        ("APT::Sandbox::User", Path::new("root")),
        ("Dir::State::Lists", &lists),
        ("Dir::State::status", &status),
        ("Dir::Cache", dir),
        ("Dir::Cache::archives", &archives(dir)),
    ] {
        apt.arg("--option")
            .arg(format!("{name}={}", value.display()));
    }
    Ok(apt)
}

/// Unpacks all packages in a directory, each where it is said to go.
fn unpack<'a>(packages: &Path, to: impl Fn(&str) -> &'a PathBuf) -> Result<()> {
    for entry in fs::read_dir(packages).context("can't read what was downloaded")? {
        let path = entry.context("can't read what was downloaded")?.path();
        if path.extension().is_none_or(|e| e != "deb") {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut unpack = Command::new("dpkg-deb");
        output_of(unpack.arg("--extract").arg(&path).arg(to(&name)))?;
    }
    Ok(())
}

/// Does by hand what is left to do by the scripts of packages.
fn complete(root: &Path) -> Result<()> {
    for file in FROM_BUILD_ROOT {
        let to = root.join(file);
        make_dir(to.parent().unwrap_or(root).into())?;
        fs::copy(Path::new("/").join(file), &to)
            .with_context(|| format!("can't copy {}", to.display()))?;
    }
    let awk = root.join("usr/bin/awk");
    if !awk.exists() {
        symlink("mawk", &awk).context("can't link awk")?;
    }
    for directory in crate::initramfs::DIRECTORIES {
        make_dir(root.join(directory))?;
    }
    Ok(())
}

/// Has the clone at its own path in the guest's root, as in the build root.
fn share_tree(tree: &Tree, kernel: &Kernel) -> Result<()> {
    let path = tree.root();
    let below = path.strip_prefix("/").unwrap_or(path);
    let target = make_dir(kernel.root.join(below))?;
    mount_bind(path, &target).with_context(|| format!("can't mount on {}", target.display()))
}

/// What cargo has to be told, to build a program for the guest.
pub fn cargo_env(kernel: &Kernel) -> Result<[(String, String); 2]> {
    let dir = kernel.root.parent().context("the root is nowhere")?;
    let std = dir.join("rest/usr/lib/rustlib").join(ARM64_TARGET);
    let name = ARM64_TARGET.to_uppercase().replace('-', "_");
    Ok([
        (
            format!("CARGO_TARGET_{name}_LINKER"),
            format!("{COMPILER}gcc"),
        ),
        (
            format!("CARGO_TARGET_{name}_RUSTFLAGS"),
            format!("-L{}", std.join("lib").display()),
        ),
    ])
}
