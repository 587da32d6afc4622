// SPDX-License-Identifier: GPL-2.0

//! `make deb-check`: apt, dpkg and DKMS do with the packages what they do on an operator's machine.
//!
//! In a Debian of its own, made by debootstrap: the packages are installed, the kernel is upgraded, first
//! without what its modules are built with and then with it, a guest boots the kernel and the initramfs
//! that came of it, and the packages are removed and purged. After each step it has to be as the table
//! says: the status, the modules that are there, and what is left of dpkg's work.

use crate::apt;
use crate::deb;
use crate::device;
use crate::guest::{Config, Ending, Root};
use crate::init::Job;
use crate::install;
use crate::kernel::Kernel;
use crate::klog::Shutdown;
use crate::packages;
use crate::process::{announce, output_of, run_logged, tail};
use crate::tree::{make_dir, Tree, STATE};
use anyhow::{ensure, Context, Result};
use rustix::mount::{mount, MountFlags};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const PACKAGES: &str = "scripts/packages.deb-check";
const REPORT: &str = "tools/virtio/lab/guest/initramfs-report";
/// The series from which the kernel is upgraded.
const OLDER: &str = "7.2";
const KEPT: &str = "var/lib/virtio-suspend";
/// What names the packages that are missing.
const MISSING: &str = "the modules can't be built without: apt install ";
/// What purging need not remove: logs, and what was downloaded.
const NOT_OURS: [&str; 3] = ["proc", "root", "var/log"];

/// The machine, and what has been done with it.
struct Machine {
    root: PathBuf,
    log: PathBuf,
    older: String,
    newer: String,
}

/// For which kernels the modules have to be there: the older one, the newer one.
type Built = (bool, bool);

pub fn run(tree: &Tree, kernel: &Kernel) -> Result<()> {
    let built = deb::run(tree, kernel)?;
    let logs = tree.out("log")?;
    packages::install(tree, PACKAGES, &logs.join("deb-check-install.log"))?;
    let machine = Machine {
        root: PathBuf::from(STATE).join("deb-check"),
        log: logs.join("deb-check.log"),
        older: apt::choose(Some(OLDER))?.release,
        newer: kernel.release.clone(),
    };
    announce("making a Debian", || machine.make(tree, &built))?;
    let Machine { older, newer, .. } = &machine;

    let kernels = |action: &str, release: &str| {
        format!("apt-get {action} linux-image-{release} linux-headers-{release}")
    };
    let ours = "virtio-suspend virtio-suspend-dkms";
    let install = "install -t trixie-backports";
    machine.step(
        "a kernel is installed",
        &format!("{} initramfs-tools", kernels(install, older)),
        (false, false),
    )?;
    let said = machine.step(
        "the packages are installed",
        "apt-get install /root/virtio-suspend_*.deb /root/virtio-suspend-dkms_*.deb",
        (false, false),
    )?;
    ensure!(said.contains(MISSING), "it is not said what is missing");
    let said = machine.step(
        "a newer kernel is installed, without what its modules are built with",
        &kernels(install, newer),
        (false, false),
    )?;
    let line = said
        .lines()
        .find(|line| line.contains(MISSING) && line.contains(newer));
    let line = line.context("it is not said what is missing")?;
    let (_, missing) = line.split_once(MISSING).unwrap_or_default();
    machine.step(
        "what is named is installed",
        &format!("apt-get install {missing}"),
        (false, true),
    )?;
    ensure!(machine.keeps(newer), "the metadata is not kept");
    announce("a guest boots with the newer kernel", || {
        machine.boot(tree, kernel)
    })?;
    machine.step(
        "the newer kernel is purged",
        &kernels("purge", newer),
        (false, false),
    )?;
    machine.step(
        "it is installed again, with what its modules are built with",
        &kernels(install, newer),
        (false, true),
    )?;
    machine.step(
        "the packages are removed",
        &format!("apt-get remove {ours}"),
        (false, false),
    )?;
    ensure!(
        !machine.initramfs_has_it(newer)?,
        "the initramfs has the module of a package that was removed"
    );
    machine.step(
        "the packages are purged",
        &format!("apt-get purge {ours}"),
        (false, false),
    )?;
    let left = machine.left()?;
    ensure!(left.is_empty(), "purging leaves {left:?}");
    fs::remove_dir_all(&machine.root).context("can't remove the Debian")?;
    Ok(())
}

impl Machine {
    fn make(&self, tree: &Tree, built: &Path) -> Result<()> {
        if self.root.exists() {
            fs::remove_dir_all(&self.root).context("can't remove an older Debian")?;
        }
        let list = fs::read_to_string("/etc/apt/sources.list").context("no sources of apt")?;
        let mirror = list.split_whitespace().nth(1).context("no mirror")?;
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include=ca-certificates", "trixie"]);
        run_logged(debootstrap.arg(&self.root).arg(mirror), &self.log)?;
        for file in [
            "etc/resolv.conf",
            "etc/ssl/certs/ca-certificates.crt",
            "etc/apt/apt.conf.d/80proxy-of-host",
            "etc/apt/sources.list.d/backports.list",
        ] {
            let from = Path::new("/").join(file);
            if from.exists() {
                fs::copy(&from, self.root.join(file)).with_context(|| format!("no {file}"))?;
            }
        }
        let options = "APT::Get::Assume-Yes \"true\";\nAPT::Install-Recommends \"false\";\n";
        fs::write(self.root.join("etc/apt/apt.conf.d/90lab"), options)?;
        fs::write(
            self.root.join("etc/dpkg/dpkg.cfg.d/lab"),
            "force-unsafe-io\n",
        )?;
        // This namespace ends with us.
        for (kind, at) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev")] {
            mount(kind, self.root.join(at), kind, MountFlags::empty(), c"")
                .with_context(|| format!("can't mount {kind}"))?;
        }
        for entry in fs::read_dir(built).context("no packages")? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                let name = path.file_name().unwrap_or_default();
                fs::copy(&path, self.root.join("root").join(name)).context("can't copy")?;
            }
        }
        let scripts = "etc/initramfs-tools/scripts/init-premount";
        let scripts = make_dir(self.root.join(scripts))?;
        fs::copy(tree.join(REPORT), scripts.join("report")).context("can't copy")?;
        run_logged(&mut self.inside("apt-get update"), &self.log)
    }

    /// A command of a shell in there.
    fn inside(&self, command: &str) -> Command {
        let mut chroot = Command::new("chroot");
        chroot.arg(&self.root).args(["sh", "-c", command]);
        chroot.env_clear().envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            ("DEBIAN_FRONTEND", "noninteractive"),
        ]);
        chroot
    }

    /// Does one step, and returns what was printed. It has to succeed, to leave no package half
    /// configured, and to have built the modules for certain kernels.
    fn step(&self, what: &str, command: &str, built: Built) -> Result<String> {
        announce(what, || {
            let log = File::create(&self.log).context("can't write the log")?;
            let mut inside = self.inside(command);
            inside
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
            let status = inside.status().context("can't run chroot")?;
            let end = || tail(&self.log, 25);
            ensure!(status.success(), "{command}: {status}\n{}", end());
            let audit = output_of(&mut self.inside("dpkg --audit"))?;
            ensure!(audit.is_empty(), "{command} leaves:\n{audit}");
            let found = (self.has_modules(&self.older), self.has_modules(&self.newer));
            ensure!(
                found == built,
                "modules for {}, {}: {found:?}, not {built:?}\n{}",
                self.older,
                self.newer,
                end()
            );
            fs::read_to_string(&self.log).context("can't read the log")
        })
    }

    fn has_modules(&self, release: &str) -> bool {
        let dir = self
            .root
            .join("lib/modules")
            .join(release)
            .join("updates/dkms");
        ["rust_virtio", "virtio_suspend"].iter().all(|name| {
            let file = |end: &str| dir.join(format!("{name}.ko{end}")).exists();
            ["", ".xz", ".zst"].iter().any(|end| file(end))
        })
    }

    fn keeps(&self, release: &str) -> bool {
        let kept = self.root.join(KEPT).join("kernels").join(release);
        kept.join("rust/libkernel.rmeta").exists()
    }

    fn initramfs_has_it(&self, release: &str) -> Result<bool> {
        let list = format!("lsinitramfs /boot/initrd.img-{release}");
        Ok(output_of(&mut self.inside(&list))?.contains("virtio_suspend.ko"))
    }

    /// The initramfs suspends a disk: the module has been loaded before the driver.
    fn boot(&self, tree: &Tree, kernel: &Kernel) -> Result<()> {
        device::build(tree, &crate::output::Output::Terminal)?;
        let release = &self.newer;
        let kernel = Kernel {
            image: self.root.join(format!("boot/vmlinuz-{release}")),
            ..kernel.clone()
        };
        let config = Config {
            deadline: Duration::from_secs(300),
            root: Root::Behind(self.root.join(format!("boot/initrd.img-{release}"))),
            ..Config::with(vec![device::disk()]).on(&kernel)
        };
        let mut expected = vec!["initramfs: virtio_suspend is loaded"];
        expected.extend(install::CYCLE);
        let ending = Ending::Shutdown(Shutdown::PowerOff);
        let job = Job::Command(Vec::new());
        install::boot(tree, &kernel, "deb-check", &config, &job, &expected, ending)
    }

    /// What is of ours by its name, and what is where DKMS keeps something.
    fn left(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut todo = vec![self.root.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).with_context(|| format!("no {}", dir.display()))? {
                let path = entry?.path();
                let name = path.strip_prefix(&self.root).unwrap_or(&path);
                if NOT_OURS
                    .iter()
                    .chain(&["sys", "dev"])
                    .any(|dir| name == Path::new(dir))
                {
                    continue;
                }
                let text = path.file_name().unwrap_or_default().to_string_lossy();
                if ["virtio-suspend", "virtio_suspend", "rust_virtio"]
                    .iter()
                    .any(|ours| text.contains(ours))
                {
                    found.push(name.display().to_string());
                }
                if path.is_dir() && !path.is_symlink() {
                    todo.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }
}
