// SPDX-License-Identifier: GPL-2.0

//! Process 1 of the guest.
//!
//! The root file system is the build root, read-only; the clone is shared at its own path,
//! writable.  ttyS0 is the kernel's console, ttyS1 carries what the job prints.  A program of its
//! own, because a shell that starts a dozen others takes ten seconds under emulation.

use anyhow::{ensure, Context, Result};
use rustix::fs::Mode;
use rustix::mount::{mount, mount_remount, MountFlags};
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{symlink, MetadataExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The module that all of ours use.
const CRATE: &str = "rust_virtio";

/// Where a run's directory has the job and its status.
pub const JOB: &str = "job.json";
/// Is there as soon as the job begins.
pub const STARTED: &str = "started";
pub const STATUS: &str = "status";

const TERMINAL: &str = match cfg!(target_arch = "aarch64") {
    true => "/dev/ttyAMA1",
    false => "/dev/ttyS1",
};
/// Begins a line on the terminal that stands for a file in the run's directory: its name and what is
/// in it. For a guest that does not share that directory.
pub const FILE: char = '\u{1}';

/// The operator's command.
pub const COMMAND: &str = "virtio-suspend";

/// What whoever starts first makes in /dev; kselftest's runner writes to /dev/stdout.
const DESCRIPTORS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];
/// The number of ext4, as statfs has it.
const EXT4: rustix::fs::FsWord = 0xef53;
/// Until a disk is there after its driver has been loaded, on any kernel.
const DISK: Duration = Duration::from_secs(30);

/// Where a run's directory has the kselftests, with the kernel's runner.
pub const KSELFTESTS: &str = "kselftest";
/// As the kernel's makefiles call its runner, but that the number of the test is given, too.
const RUN_ONE: &str = r#". "$BASE_DIR/kselftest/runner.sh"
KTAP_TESTNO=$1
cd "$BASE_DIR/virtio" && run_many "./$2""#;
/// How much longer than it gives a program the runner may take.
const RUNNER: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Args {
    /// The clone.
    #[arg(long)]
    tree: PathBuf,

    /// Directory of this run.
    #[arg(long)]
    run: PathBuf,

    /// Index of our modules, to lie over the kernel's own.
    #[arg(long)]
    modules: Option<PathBuf>,

    /// How much slower than usual the kernel is.
    #[arg(long)]
    slowness: u32,

    /// How many guests share the machine.
    #[arg(long)]
    share: usize,

    /// All that there is is the initramfs.
    #[arg(long)]
    alone: bool,

    /// Goes on as what has been written to this disk, if that can be.
    #[arg(long)]
    resume: Option<PathBuf>,

    /// Goes on with this partition as the root file system.
    #[arg(long)]
    root: Option<PathBuf>,
}

impl Args {
    /// Leaves a file for the host.
    fn leave(&self, name: &str, text: &str) -> Result<()> {
        if self.alone {
            let terminal = OpenOptions::new().write(true).open(TERMINAL);
            let mut terminal = terminal.with_context(|| format!("can't open {TERMINAL}"))?;
            let line = format!("{FILE}{name} {text}\n");
            terminal
                .write_all(line.as_bytes())
                .context("can't write to the terminal")?;
            return rustix::termios::tcdrain(&terminal).context("can't write to the terminal");
        }
        let path = self.run.join(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }
}

/// What the guest does.
#[derive(Debug, Deserialize, Serialize)]
pub enum Job {
    /// Runs a command.
    Command(Vec<String>),
    /// Runs kselftests one after the other and reports on them in KTAP.
    Selftests {
        tests: Vec<Selftest>,
        /// Where a directory of a test's name says that some guest has taken it. Without it all of
        /// them are run.
        claims: Option<PathBuf>,
    },
    /// Starts a shell on the terminal.
    Shell { rows: u16, columns: u16 },
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Selftest {
    pub program: PathBuf,
    /// Patterns of the cases that are run; all, if there are none.
    pub cases: Vec<String>,
    pub timeout_s: u64,
}

/// A shell as large as our own terminal.
pub fn shell() -> Job {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout());
    let (rows, columns) = match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    };
    Job::Shell { rows, columns }
}

pub fn main(args: &Args) -> Result<u8> {
    let is_on_disk = args.root.is_some() && is_on_disk();
    let job = || match &args.root {
        Some(root) if !is_on_disk => go_on_with(root),
        _ => prepare(args).and_then(|()| run(args)),
    };
    let status = match job() {
        Ok(status) => status,
        Err(error) => {
            // On the kernel's console, which the host shows.
            eprintln!("init: {error:#}");
            255
        }
    };
    if let Err(error) = args.leave(STATUS, &status.to_string()) {
        eprintln!("init: {error:#}");
    }
    if is_on_disk {
        // Who looks at the disk afterwards finds nothing to be replayed.
        let read_only = MountFlags::RDONLY;
        if let Err(error) = mount_remount("/", read_only, "") {
            eprintln!("init: the root file system is in use: {error}");
        }
    }
    rustix::fs::sync();
    rustix::system::reboot(RebootCommand::PowerOff).context("can't power off")?;
    Ok(0)
}

/// Whether the root file system is the one on the disk, and not the initramfs.
fn is_on_disk() -> bool {
    rustix::fs::statfs("/").is_ok_and(|root| root.f_type == EXT4)
}

/// Has the kernel's own driver find a disk, which virtio_suspend extends, and starts the init that is
/// on it; the files of the initramfs, and the memory for them, are free then.
fn go_on_with(partition: &Path) -> Result<i32> {
    let mount_on = |source: &str, target: &str, kind: &str| {
        mount(source, target, kind, MountFlags::empty(), c"")
            .with_context(|| format!("can't mount {source} on {target}"))
    };
    mount_on("proc", "/proc", "proc")?;
    mount_on("sys", "/sys", "sysfs")?;
    mount_on("dev", "/dev", "devtmpfs")?;
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    // Our modules are preferred to the kernel's, and one has the same name.
    let driver = format!("/usr/lib/modules/{release}/kernel/drivers/block/virtio_blk.ko.xz");
    for words in [
        ["modprobe", "virtio_suspend"],
        ["insmod", &driver],
        ["modprobe", "ext4"],
    ] {
        let status = command(words[0]).arg(words[1]).status();
        let status = status.with_context(|| format!("can't run {}", words[0]))?;
        ensure!(status.success(), "can't load {}: {status}", words[1]);
    }
    wait_for(partition)?;
    mount_on(&partition.display().to_string(), "/mnt", "ext4")?;
    // Our own name is what it starts there.
    let mut switch = Command::new("/usr/bin/busybox");
    switch.args(["switch_root", "/mnt"]);
    let error = switch.args(std::env::args_os()).exec();
    Err(error).context("can't run switch_root")
}

fn prepare(args: &Args) -> Result<()> {
    let directory = |path: &Path| {
        fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))
    };
    let mount = |source: &str, target: &str, kind: &str, data: &CStr| {
        mount(source, target, kind, MountFlags::empty(), data)
            .with_context(|| format!("can't mount {kind} on {target}"))
    };
    mount("proc", "/proc", "proc", c"")?;
    mount("sys", "/sys", "sysfs", c"")?;
    mount("dev", "/dev", "devtmpfs", c"")?;
    for (path, target) in DESCRIPTORS {
        symlink(target, path).with_context(|| format!("can't link {path}"))?;
    }
    directory("/dev/pts".as_ref())?;
    directory("/dev/shm".as_ref())?;
    mount("devpts", "/dev/pts", "devpts", c"mode=620,ptmxmode=666")?;
    mount("shm", "/dev/shm", "tmpfs", c"mode=1777")?;
    mount("debugfs", "/sys/kernel/debug", "debugfs", c"")?;
    mount("tracefs", "/sys/kernel/tracing", "tracefs", c"")?;

    // An initramfs can be written to, and has the clone already, which may be in one of these.
    if !args.alone {
        mount("tmp", "/tmp", "tmpfs", c"mode=1777")?;
        mount("tmp", "/var/tmp", "tmpfs", c"mode=1777")?;
        mount("run", "/run", "tmpfs", c"mode=755")?;
        mount("root", "/root", "tmpfs", c"mode=700")?;
        let tree = args.tree.to_str().context("the clone's path is no UTF-8")?;
        directory(&args.tree)?;
        mount("tree", tree, "virtiofs", c"")?;
    }
    if let Some(index) = &args.modules {
        let status = command("modprobe").arg("overlay").status();
        let status = status.context("can't run modprobe")?;
        ensure!(status.success(), "can't load overlay: {status}");
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        let modules = format!("/usr/lib/modules/{release}");
        let layers = format!("lowerdir={}:{modules}\0", index.display());
        let layers = CStr::from_bytes_with_nul(layers.as_bytes()).context("a NUL in a path")?;
        mount("modules", &modules, "overlay", layers)?;
    }
    rustix::system::sethostname(b"guest").context("can't set the host name")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    std::env::set_current_dir(&args.tree).context("can't enter the clone")?;
    Ok(())
}

/// A program, in a clean environment.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("TERM", "linux")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// One that the job consists of, with what the kselftests want to know.
fn job_command(args: &Args, program: &str) -> Command {
    let mut command = command(program);
    command
        .env("SUSPEND_SLOWNESS", args.slowness.to_string())
        .env("SUSPEND_SHARE", args.share.to_string())
        .env("VIRTIO_SUSPEND_COMMAND", beside_us(COMMAND));
    if args.alone {
        // Who reads there wakes the guest.
        command.env("SUSPEND_WAKER", TERMINAL);
    }
    command
}

/// A program that was built with this one.
pub fn beside_us(name: &str) -> PathBuf {
    std::env::current_exe()
        .unwrap_or_default()
        .with_file_name(name)
}

fn run(args: &Args) -> Result<i32> {
    args.leave(STARTED, "")?;
    if let Some(disk) = &args.resume {
        resume(disk)?;
    }
    let path = args.run.join(JOB);
    let text = fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
    let job: Job = serde_json::from_slice(&text).context("can't understand the job")?;
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open(TERMINAL)
        .with_context(|| format!("can't open {TERMINAL}"))?;
    match job {
        Job::Command(words) => {
            let (program, arguments) = words.split_first().context("an empty command")?;
            let mut child = spawn(job_command(args, program).args(arguments), &terminal)?;
            let status = child.wait().context("can't wait")?;
            Ok(status_of(status))
        }
        Job::Selftests { tests, claims } => {
            selftests(args, &tests, claims.as_deref(), &mut terminal)
        }
        Job::Shell { rows, columns } => {
            let script = format!("stty rows {rows} cols {columns}; exec bash -i");
            let mut shell = job_command(args, "setsid");
            shell.args(["--ctty", "--wait", "sh", "-c", &script]);
            let status = spawn(&mut shell, &terminal)?.wait().context("can't wait")?;
            Ok(status_of(status))
        }
    }
}

/// Has the kernel look for an image on a disk. If there is one, this does not return: the guest goes
/// on where it was.
fn resume(disk: &Path) -> Result<()> {
    let status = command("modprobe").arg("virtio_blk").status();
    ensure!(
        status.context("can't run modprobe")?.success(),
        "can't load virtio_blk"
    );
    wait_for(disk)?;
    let device = fs::metadata(disk).context("can't look at the disk")?.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    fs::write("/sys/power/resume", format!("{major}:{minor}"))
        .with_context(|| format!("there is no image on {}", disk.display()))
}

/// Waits until a disk has been found.
fn wait_for(disk: &Path) -> Result<()> {
    let deadline = Instant::now() + DISK;
    while !disk.exists() {
        ensure!(Instant::now() < deadline, "no {}", disk.display());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts a program on the terminal.
fn spawn(command: &mut Command, terminal: &File) -> Result<Child> {
    let stdio = || Ok::<_, anyhow::Error>(Stdio::from(terminal.try_clone()?));
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(stdio()?)
        .stdout(stdio()?)
        .stderr(stdio()?)
        .spawn()
        .with_context(|| format!("can't run {program}"))
}

/// As a shell says it.
fn status_of(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Runs kselftests by the kernel's runner, those that no other guest has taken.
///
/// The runner takes one at a time, so that two guests can share them. It ends a program by a signal;
/// if that does not end it, it is ended here.
fn selftests(
    args: &Args,
    tests: &[Selftest],
    claims: Option<&Path>,
    out: &mut File,
) -> Result<i32> {
    writeln!(out, "TAP version 13")?;
    let mut failed = false;
    let mut number = 0;
    for test in tests {
        let name = test.program.file_name().unwrap_or_default();
        if let Some(claims) = claims {
            if !claim(&claims.join(name))? {
                continue;
            }
        }
        number += 1;
        let mut runner = job_command(args, "sh");
        runner
            .args(["-c", RUN_ONE, "sh", &number.to_string()])
            .arg(name)
            .env("BASE_DIR", args.run.join(KSELFTESTS))
            .env("kselftest_override_timeout", test.timeout_s.to_string())
            .env("SUSPEND_CASES", test.cases.join("\n"))
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("can't duplicate the terminal")?)
            .stderr(out.try_clone().context("can't duplicate the terminal")?)
            .process_group(0);
        let mut runner = runner.spawn().context("can't run the kernel's runner")?;
        let patience = Duration::from_secs(test.timeout_s) + RUNNER;
        match wait_or_kill(&mut runner, patience)? {
            Some(0) => {}
            Some(_) => failed = true,
            None => {
                failed = true;
                let name = name.to_string_lossy();
                writeln!(out, "not ok {number} selftests: virtio: {name} # KILLED")?;
            }
        }
    }
    // A plan may come last, when it is known.
    writeln!(out, "1..{number}")?;
    look_for_leaks()?;
    Ok(failed.into())
}

/// Whether it is ours: only one of all guests can make it.
fn claim(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("can't make {}", path.display())),
    }
}

/// Has kmemleak look for memory that nobody refers to any more, and puts what it finds into the
/// kernel log, where the host finds it.
fn look_for_leaks() -> Result<()> {
    let path = Path::new("/sys/kernel/debug/kmemleak");
    if !path.exists() {
        return Ok(());
    }
    // A driver that is still loaded refers to what it has; nothing may be left when it is gone.
    let mut rmmod = command("rmmod");
    rmmod.arg("--syslog");
    if let Ok(drivers) = fs::read_dir(format!("/sys/module/{CRATE}/holders")) {
        rmmod.args(drivers.flatten().map(|driver| driver.file_name()));
    }
    let _ = rmmod.arg(CRATE).status();
    // What is younger than five seconds is not looked at, and a pointer may be in a register once.
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(6));
        fs::write(path, "scan").context("can't start kmemleak")?;
    }
    let report = fs::read_to_string(path).context("can't read what kmemleak found")?;
    let mut log = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .context("can't open the kernel log")?;
    for line in report.lines() {
        // One write, one entry.
        log.write_all(format!("kmemleak: {line}\n").as_bytes())
            .context("can't write to the kernel log")?;
    }
    Ok(())
}

/// The status of a program; none if it took too long and was killed, with its process group.
fn wait_or_kill(child: &mut Child, timeout: Duration) -> Result<Option<i32>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().context("can't wait")? {
            return Ok(Some(status_of(status)));
        }
        if Instant::now() > deadline {
            if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            // A task that can't be killed must not stop the others.
            thread::sleep(Duration::from_secs(1));
            let _ = child.try_wait();
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
