// SPDX-License-Identifier: GPL-2.0

//! `make kit`: leaves in out/kit what tests the virtio devices of any VMM.
//!
//! Debian's kernel as it is, one initramfs with all that there is, and how to boot them. Process 1
//! is tools/virtio/kit. What belongs to an architecture is in [`Arch`].

use crate::command;
use crate::initramfs::{self, Files};
use crate::kernel::{Flavour, Kernel};
use crate::kselftest;
use crate::modules::{self, Modules};
use crate::output::Output;
use crate::process::output_of;
use crate::tree::{make_dir, Tree};
use anyhow::{ensure, Context, Result};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What there is in out/kit.
pub const KERNEL: &str = "vmlinuz";
pub const INITRAMFS: &str = "initramfs";
pub const README: &str = "README";
/// Its source.
pub const README_SOURCE: &str = "tools/virtio/kit/README";

/// The most that the initramfs may have.
const MOST_BYTES: u64 = 60_000_000;

/// Modules of the kernel, by name, with those that they depend on: a transport, drivers, and what
/// tells the VMM of a failure.
const MODULES: &[&str] = &[
    "evdev",
    "ext4",
    "pvpanic-mmio",
    "pvpanic-pci",
    "virtio-rng",
    "virtio_balloon",
    "virtio_blk",
    "virtio_input",
    "virtio_mmio",
    "virtio_net",
    "virtio_scsi",
    "vmw_vsock_virtio_transport",
];

/// What depmod reads.
const INDEX: &[&str] = &[
    "modules.builtin",
    "modules.builtin.modinfo",
    "modules.order",
];

/// What differs between architectures.
struct Arch {
    /// As Rust calls it.
    name: &'static str,
    /// Where Debian has the libraries.
    libraries: &'static str,
}

/// The kit is made on the architecture that it is for.
const ARCHS: &[Arch] = &[Arch {
    name: "x86_64",
    libraries: "/usr/lib/x86_64-linux-gnu",
}];

/// Makes the kit, and returns its directory.
pub fn make(tree: &Tree, kernel: &Kernel, output: &Output) -> Result<PathBuf> {
    ensure!(
        kernel.flavour == Flavour::Stock,
        "the kit has Debian's own kernel"
    );
    let arch = ARCHS
        .iter()
        .find(|arch| arch.name == std::env::consts::ARCH);
    let arch = arch.context("the kit is not made for this architecture yet")?;
    let built = modules::build(tree, kernel)?;
    let _lock = tree.lock("kit")?;
    // Process 1.
    let init = command::build_static(tree, output, "suspend-kit")?;
    command::build(tree, output)?;
    let kit = tree.out("kit")?;
    output.announce("making the kit", || {
        initramfs(tree, kernel, arch, &built, &init, &kit.join(INITRAMFS))?;
        for (from, to) in [
            (kernel.image.clone(), KERNEL),
            (tree.join(README_SOURCE), README),
        ] {
            fs::copy(&from, kit.join(to))
                .with_context(|| format!("can't copy {}", from.display()))?;
        }
        Ok(())
    })?;
    Ok(kit)
}

fn initramfs(
    tree: &Tree,
    kernel: &Kernel,
    arch: &Arch,
    built: &Modules,
    init: &Path,
    image: &Path,
) -> Result<()> {
    let work = tree.join("out/kit.d");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("can't empty {}", work.display()))?;
    }
    let staging = make_dir(work.join("root"))?;
    let mut files = Files::default();
    for path in initramfs::PROGRAMS.iter().chain(initramfs::FILES) {
        files.add(Path::new(path))?;
    }
    // kmod, for modules that are compressed.
    files.add(&Path::new(arch.libraries).join("liblzma.so.5"))?;
    initramfs::add_python(&mut files)?;
    initramfs::add_busybox(&mut files, &staging)?;
    let programs = files.programs()?;
    files.add_libraries(&programs)?;

    stage_modules(kernel, built, &staging)?;
    let installed = work.join("kselftest");
    kselftest::install(tree, kernel, &installed)?;
    fs::rename(&installed, staging.join("kselftest")).context("can't place the kselftests")?;
    initramfs::strip(&[], init, &staging.join("init"))?;
    let tool = tree.join("out/target/release/virtio-suspend");
    initramfs::strip(&[], &tool, &staging.join("usr/bin/virtio-suspend"))?;
    for directory in initramfs::DIRECTORIES {
        make_dir(staging.join(directory))?;
    }

    let new = image.with_extension("new");
    initramfs::write(&new, &files, &staging, MOST_BYTES)?;
    fs::rename(&new, image).context("can't place the initramfs")?;
    fs::remove_dir_all(&work).context("can't remove what the initramfs is made of")
}

/// Modules of the kernel and ours, as they are where `modules_install` puts them, and not
/// compressed: emulated, that takes longer than the rest of loading one.
fn stage_modules(kernel: &Kernel, built: &Modules, staging: &Path) -> Result<()> {
    let below = Path::new("usr/lib/modules").join(&kernel.release);
    let root = Path::new("/").join(&below);
    let target = make_dir(staging.join(below))?;
    let path = root.join("modules.dep");
    let text =
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    for name in MODULES {
        // Some are built in.
        for path in initramfs::with_dependencies(&text, name) {
            let plain = target.join(path.trim_end_matches(".xz"));
            if plain.exists() {
                continue;
            }
            make_dir(plain.parent().context("a module is nowhere")?.into())?;
            decompress(&root.join(path), &plain)?;
        }
    }
    let updates = make_dir(target.join("updates"))?;
    for path in &built.files {
        initramfs::strip(
            &["--strip-debug"],
            path,
            &updates.join(path.file_name().unwrap_or_default()),
        )?;
    }
    for name in INDEX {
        let from = root.join(name);
        fs::copy(&from, target.join(name))
            .with_context(|| format!("can't copy {}", from.display()))?;
    }
    // Where depmod looks, and where programs do in the guest.
    symlink("usr/lib", staging.join("lib")).context("can't link /lib")?;
    let mut depmod = Command::new("depmod");
    depmod.arg("--basedir").arg(staging).arg(&kernel.release);
    output_of(&mut depmod).map(drop)
}

fn decompress(from: &Path, to: &Path) -> Result<()> {
    if from.extension() != Some("xz".as_ref()) {
        return fs::copy(from, to)
            .map(drop)
            .with_context(|| format!("can't copy {}", from.display()));
    }
    let out = File::create(to).with_context(|| format!("can't write {}", to.display()))?;
    let status = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(from)
        .stdin(Stdio::null())
        .stdout(out)
        .status()
        .context("can't run xz")?;
    ensure!(status.success(), "can't decompress {}", from.display());
    Ok(())
}
