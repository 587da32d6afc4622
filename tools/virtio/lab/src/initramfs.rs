// SPDX-License-Identifier: GPL-2.0

//! An initramfs that is all that a guest has for a root file system.
//!
//! A guest whose root is shared by virtiofs can't be frozen, and so neither sleep nor be written to
//! a disk. This one needs nobody but itself. Its files come from the build root, and are where they
//! are there; the kselftests and our modules are where the clone has them. So what runs in one kind
//! of guest runs in the other.
//!
//! Two archives, one behind the other, as the kernel lets them be: what is found in the build root,
//! and what is made for this guest.

use crate::init::{beside_us, COMMAND, JOB, KSELFTESTS};
use crate::kernel::Kernel;
use crate::kselftest;
use crate::modules::Modules;
use crate::process::output_of;
use crate::tree::{make_dir, RunDir, Tree, SELFTESTS};
use anyhow::{ensure, Context, Result};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// A guest has to have room for it.
const MOST_BYTES: u64 = 60 << 20;

const BUSYBOX: &str = "/usr/bin/busybox";

/// What every guest without a disk has, with the libraries that they need. Whatever else busybox
/// has is there, too.
pub const PROGRAMS: &[&str] = &[
    "/usr/bin/ip",
    "/usr/bin/kmod",
    // Of kselftest's runner, which busybox has not all of.
    "/usr/bin/timeout",
    "/usr/sbin/depmod",
    "/usr/sbin/e2fsck",
    "/usr/sbin/ethtool",
    "/usr/sbin/insmod",
    "/usr/sbin/lsmod",
    "/usr/sbin/mke2fs",
    "/usr/sbin/mkfs.ext4",
    "/usr/sbin/modinfo",
    "/usr/sbin/modprobe",
    "/usr/sbin/rmmod",
];

/// What these open by themselves.
pub const FILES: &[&str] = &[
    "/etc/group",
    "/etc/mke2fs.conf",
    "/etc/nsswitch.conf",
    "/etc/passwd",
];

/// What the tests here need besides.
const MORE: &[&str] = &[
    "/usr/bin/ping",
    "/etc/modprobe.d",
    "/etc/protocols",
    "/etc/services",
    // kmod, for modules that are compressed.
    "/usr/lib/x86_64-linux-gnu/liblzma.so.5",
];

/// Python's library, but for what no test needs.
const PYTHON: &str = "/usr/lib/python3.13";
const PYTHON_WITHOUT: &[&str] = &[
    "_pyrepl",
    "curses",
    "dbm",
    "ensurepip",
    "idlelib",
    "pydoc_data",
    "sqlite3",
    "test",
    "tkinter",
    "turtle.py",
    "turtledemo",
    "unittest",
    "venv",
    "wsgiref",
    "xmlrpc",
];
/// The prefixes of its modules in C that are left out: they need large libraries.
const PYTHON_C_WITHOUT: &[&str] = &[
    "_ctypes_test",
    "_curses",
    "_dbm",
    "_hashlib",
    "_sqlite3",
    "_ssl",
    "_test",
    "_tkinter",
    "_xx",
    "readline",
    "xx",
];

/// Modules of the kernel, by name, with those that they depend on.
const MODULES: &[&str] = &[
    // The power button, which wakes a guest from s2idle.
    "button",
    "evdev",
    "ext4",
    "sd_mod",
    "virtio_blk",
    "virtio_console",
    "virtio_input",
    "virtio_mmio",
    "virtio_net",
    "virtio-rng",
    "virtio_scsi",
];

/// Where file systems are mounted, and what has to be there for the tests.
pub const DIRECTORIES: &[&str] = &["dev", "mnt", "proc", "root", "run", "sys", "tmp", "var/tmp"];

/// Makes the initramfs of a guest, with its job.
///
/// A copy of what is in it is made in `copy`, with what a guest needs that goes on there.
pub fn make(
    tree: &Tree,
    kernel: &Kernel,
    modules: &Modules,
    run: &RunDir,
    copy: Option<&Path>,
) -> Result<PathBuf> {
    let staging = make_dir(run.join("initramfs.d"))?;
    let mut files = Files::default();
    for path in PROGRAMS.iter().chain(FILES).chain(MORE) {
        files.add(Path::new(path))?;
    }
    add_python(&mut files)?;
    add_modules(&mut files, kernel, &staging, modules)?;
    files.add(&run.join(JOB))?;
    for program in ["tools/virtio/lab/guest", SELFTESTS, kselftest::BROUGHT] {
        files.add(&tree.join(program))?;
    }
    let installed = run.join(KSELFTESTS);
    if installed.exists() {
        files.add(&installed)?;
    }

    let init = staging.join("init");
    strip(&[], &std::env::current_exe()?, &init)?;
    files.add_libraries(&[&init])?;
    let programs: Vec<PathBuf> = files.programs()?;
    files.add_libraries(&programs)?;
    for directory in DIRECTORIES {
        make_dir(staging.join(directory))?;
    }
    add_busybox(&mut files, &staging)?;

    let image = run.join("initramfs");
    write(&image, &files, &staging, MOST_BYTES)?;
    if let Some(copy) = copy {
        strip(&[], &beside_us(COMMAND), &staging.join(COMMAND))?;
        let mut staged = Files::default();
        staged.add_below(&staging, &staging)?;
        pass(Path::new("/"), files.paths(), copy)?;
        pass(&staging, staged.paths(), copy)?;
    }
    fs::remove_dir_all(&staging).context("can't remove what the initramfs is made of")?;
    Ok(image)
}

/// Writes an initramfs of files that are where they will be, and of what is staged.
pub fn write(image: &Path, files: &Files, staging: &Path, most_bytes: u64) -> Result<()> {
    let out = File::create(image).context("can't write the initramfs")?;
    archive(Path::new("/"), files.paths(), &out)?;
    let mut staged = Files::default();
    staged.add_below(staging, staging)?;
    archive(staging, staged.paths(), &out)?;
    let size = out.metadata().context("can't look at the initramfs")?.len();
    ensure!(
        size < most_bytes,
        "the initramfs has {size} bytes, more than {most_bytes}"
    );
    Ok(())
}

/// Copies a program or a module without what it does not need.
pub fn strip(options: &[&str], from: &Path, to: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    strip.args(options).arg("-o").arg(to).arg(from);
    output_of(&mut strip).map(drop)
}

/// Adds Python, with its library.
pub fn add_python(files: &mut Files) -> Result<()> {
    files.add(Path::new("/usr/bin/python3"))?;
    files.add_but(Path::new(PYTHON), &|path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let in_c = path.parent().is_some_and(|p| p.ends_with("lib-dynload"));
        let top = path.parent() == Some(Path::new(PYTHON));
        (top && PYTHON_WITHOUT.contains(&name))
            || (in_c && PYTHON_C_WITHOUT.iter().any(|p| name.starts_with(p)))
    })
}

/// The modules of the kernel with what they depend on, ours, and the index of all.
fn add_modules(
    files: &mut Files,
    kernel: &Kernel,
    staging: &Path,
    modules: &Modules,
) -> Result<()> {
    let below = Path::new("usr/lib/modules").join(&kernel.release);
    let root = Path::new("/").join(&below);
    let path = root.join("modules.dep");
    let text =
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    for name in MODULES {
        // Some are built in.
        for path in with_dependencies(&text, name) {
            files.add(&root.join(path))?;
        }
    }
    for path in &modules.files {
        let copy = staging.join(path.strip_prefix("/").unwrap_or(path));
        make_dir(copy.parent().context("a module is nowhere")?.into())?;
        strip(&["--strip-debug"], path, &copy)?;
    }
    let target = make_dir(staging.join(below))?;
    for entry in fs::read_dir(&modules.index).context("can't read the index of the modules")? {
        let path = entry.context("can't read the index of the modules")?.path();
        fs::copy(&path, target.join(path.file_name().unwrap_or_default()))
            .with_context(|| format!("can't copy {}", path.display()))?;
    }
    Ok(())
}

/// The paths of a module and what it depends on, by `modules.dep`.
pub fn with_dependencies<'a>(index: &'a str, name: &str) -> Vec<&'a str> {
    let same = |c: char| if c == '-' { '_' } else { c };
    let wanted: String = name.chars().map(same).collect();
    for line in index.lines() {
        let Some((path, depends)) = line.split_once(':') else {
            continue;
        };
        let file = path.rsplit('/').next().unwrap_or(path);
        let stem: String = file
            .split(".ko")
            .next()
            .unwrap_or(file)
            .chars()
            .map(same)
            .collect();
        if stem == wanted {
            return std::iter::once(path)
                .chain(depends.split_whitespace())
                .collect();
        }
    }
    Vec::new()
}

/// Adds busybox, and stages links for what it can do and no program is there for.
pub fn add_busybox(files: &mut Files, staging: &Path) -> Result<()> {
    files.add(Path::new(BUSYBOX))?;
    let bin = make_dir(staging.join("usr/bin"))?;
    for name in output_of(Command::new(BUSYBOX).arg("--list"))?.lines() {
        let there = ["/usr/bin", "/usr/sbin"].map(|dir| Path::new(dir).join(name));
        if there.iter().any(|path| files.0.contains(path)) {
            continue;
        }
        symlink(BUSYBOX, bin.join(name)).with_context(|| format!("can't link {name}"))?;
    }
    Ok(())
}

/// Paths, each after the directories that lead to it.
#[derive(Default)]
pub struct Files(BTreeSet<PathBuf>);

impl Files {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(PathBuf::as_path)
    }

    /// Adds a file or all of a directory, and the symbolic links on the way.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        self.add_but(path, &|_| false)
    }

    fn add_but(&mut self, path: &Path, without: &dyn Fn(&Path) -> bool) -> Result<()> {
        let Some(path) = self.add_way(path)? else {
            return Ok(());
        };
        if !path.is_dir() {
            return Ok(());
        }
        for entry in
            fs::read_dir(&path).with_context(|| format!("can't read {}", path.display()))?
        {
            let path = entry.context("can't read a directory")?.path();
            if !without(&path) {
                self.add_but(&path, without)?;
            }
        }
        Ok(())
    }

    /// Adds what leads to a file, and itself; returns where it is, if it had not been added.
    fn add_way(&mut self, path: &Path) -> Result<Option<PathBuf>> {
        let mut here = PathBuf::from("/");
        let mut new = self.0.insert(here.clone());
        for component in path.components() {
            match component {
                Component::Normal(name) => here.push(name),
                Component::ParentDir => _ = here.pop(),
                _ => continue,
            }
            new = self.0.insert(here.clone());
            let metadata = fs::symlink_metadata(&here)
                .with_context(|| format!("can't add {}", here.display()))?;
            if metadata.is_symlink() {
                let target = fs::read_link(&here).context("can't read a link")?;
                here.pop();
                let target = here.join(target);
                // A link that leads nowhere is added, too.
                if target.exists() {
                    here = match self.add_way(&target)? {
                        Some(path) => path,
                        None => target.canonicalize().context("can't follow a link")?,
                    };
                }
            }
        }
        Ok(new.then_some(here))
    }

    /// Adds all below a directory by names relative to it.
    fn add_below(&mut self, directory: &Path, root: &Path) -> Result<()> {
        for entry in fs::read_dir(directory).context("can't read what is staged")? {
            let path = entry.context("can't read what is staged")?.path();
            self.0
                .insert(path.strip_prefix(root).context("elsewhere")?.into());
            if path.is_dir() && !path.is_symlink() {
                self.add_below(&path, root)?;
            }
        }
        Ok(())
    }

    /// Those that may need libraries.
    pub fn programs(&self) -> Result<Vec<PathBuf>> {
        let mut programs = Vec::new();
        for path in self.paths() {
            if path.is_symlink() || !path.is_file() {
                continue;
            }
            let mut head = [0; 4];
            let mut file =
                File::open(path).with_context(|| format!("can't read {}", path.display()))?;
            let is_elf =
                std::io::Read::read_exact(&mut file, &mut head).is_ok() && head == *b"\x7fELF";
            if is_elf && path.extension() != Some("ko".as_ref()) {
                programs.push(path.into());
            }
        }
        Ok(programs)
    }

    pub fn add_libraries(&mut self, programs: &[impl AsRef<OsStr>]) -> Result<()> {
        // It fails if one of them is static.
        let output = Command::new("ldd").args(programs).output();
        let output = output.context("can't run ldd")?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            self.add(Path::new(library))?;
        }
        Ok(())
    }
}

/// The paths in what `ldd` prints.
fn libraries(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.starts_with('\t'))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// Writes an archive of files, named relative to a directory.
pub fn archive<'a>(root: &Path, paths: impl Iterator<Item = &'a Path>, out: &File) -> Result<()> {
    let mut cpio = Command::new("cpio");
    cpio.args(["--null", "--quiet", "--create", "--format=newc"]);
    cpio.stdout(out.try_clone().context("can't duplicate a descriptor")?);
    run_cpio(&mut cpio, root, paths)
}

/// Copies files, named relative to a directory, to the same places below another one.
fn pass<'a>(root: &Path, paths: impl Iterator<Item = &'a Path>, to: &Path) -> Result<()> {
    let mut cpio = Command::new("cpio");
    cpio.args(["--null", "--quiet", "--pass-through", "--make-directories"]);
    cpio.arg("--unconditional").arg(to);
    run_cpio(&mut cpio, root, paths)
}

/// Has cpio do something with files.
fn run_cpio<'a>(
    cpio: &mut Command,
    root: &Path,
    paths: impl Iterator<Item = &'a Path>,
) -> Result<()> {
    let mut child = cpio
        .current_dir(root)
        .stdin(Stdio::piped())
        .spawn()
        .context("can't run cpio")?;
    let mut names = Vec::new();
    for path in paths {
        let name = path.strip_prefix("/").unwrap_or(path);
        if !name.as_os_str().is_empty() {
            names.extend_from_slice(name.as_os_str().as_bytes());
            names.push(0);
        }
    }
    let mut stdin = child.stdin.take().context("cpio has no standard input")?;
    stdin.write_all(&names).context("can't write to cpio")?;
    drop(stdin);
    let status = child.wait().context("can't wait for cpio")?;
    ensure!(status.success(), "cpio failed ({status})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_bring_what_they_depend_on() {
        let index = "kernel/a/virtio-rng.ko.xz:\n\
                     kernel/n/virtio_net.ko.xz: kernel/n/net_failover.ko.xz kernel/n/failover.ko.xz\n";
        assert_eq!(
            with_dependencies(index, "virtio_net"),
            [
                "kernel/n/virtio_net.ko.xz",
                "kernel/n/net_failover.ko.xz",
                "kernel/n/failover.ko.xz"
            ]
        );
        assert_eq!(
            with_dependencies(index, "virtio_rng"),
            ["kernel/a/virtio-rng.ko.xz"]
        );
        assert!(with_dependencies(index, "net").is_empty());
    }

    #[test]
    fn libraries_of_programs() {
        let text = "/usr/bin/ip:\n\tlinux-vdso.so.1 (0x0)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x2)\n/usr/bin/busybox:\n\
                    \tnot a dynamic executable\n";
        let found: Vec<_> = libraries(text).collect();
        assert_eq!(
            found,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }

    #[test]
    fn links_on_the_way_are_added() {
        let dir = std::env::temp_dir().join(format!("lab-initramfs-{}", std::process::id()));
        let dir = make_dir(dir).unwrap().canonicalize().unwrap();
        fs::create_dir_all(dir.join("usr/lib")).unwrap();
        fs::write(dir.join("usr/lib/a.so.1"), "").unwrap();
        symlink("a.so.1", dir.join("usr/lib/a.so")).unwrap();
        symlink("usr/lib", dir.join("lib")).unwrap();
        let mut files = Files::default();
        files.add(&dir.join("lib/a.so")).unwrap();
        for path in ["lib", "usr", "usr/lib", "usr/lib/a.so", "usr/lib/a.so.1"] {
            assert!(files.0.contains(&dir.join(path)), "{path}");
        }
        assert!(!files.0.contains(&dir.join("lib/a.so")));
        assert!(files.add(&dir.join("nothing")).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
