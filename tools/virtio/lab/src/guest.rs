// SPDX-License-Identifier: GPL-2.0

//! A guest: QEMU, its file systems, its devices, and how it ended.

use crate::affinity::Apart;
use crate::device::{self, Devices, Record, Spec};
use crate::init::{self, Job, JOB, KSELFTESTS, STARTED, STATUS};
use crate::initramfs;
use crate::kernel::{Arch, Kernel};
use crate::klog::{self, Complaint, Shutdown};
use crate::kselftest;
use crate::migrate::Host;
use crate::modules::Modules;
use crate::output::Output;
use crate::process::{tail, Daemon};
use crate::root_image;
use crate::tree::{RunDir, Tree};
use anyhow::{ensure, Context, Result};
use clap::ValueEnum;
use serde_json::json;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a guest may take to boot, on the stock kernel.
pub const BOOT: Duration = Duration::from_secs(60);
/// How often it is tried.
const BOOTS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(10);
/// What the kernel of arm64 says of the place where it is.
const KASLR: &str = "KASLR enabled";
/// How many of the devices are on the root bus, which has not room for many.
const ON_ROOT_BUS: usize = 16;
/// How much of the kernel log is shown when something went wrong.
const LOG_TAIL: usize = 30;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// Emulation: works everywhere.
    #[default]
    Tcg,
    /// The host's virtualization.
    Kvm,
}

impl Accel {
    fn args(self, board: Board) -> [&'static str; 4] {
        match (self, board) {
            // With atomic instructions, and without pointer authentication, which is slow.
            (_, Board::Virt) => ["-accel", "tcg", "-cpu", "neoverse-n1"],
            // With fewer features than `max`: a C library that finds none of the vector
            // extensions is twice as fast under emulation.
            (Self::Tcg, _) => ["-accel", "tcg", "-cpu", "qemu64"],
            (Self::Kvm, _) => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// What the guest's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The host's.
    Host,
    /// A nanosecond for each instruction, and the host's while the processor, which is the only
    /// one, is idle: what a program costs does not depend on what else the machine does. The
    /// processor has one of the host's for itself, if there are several.
    Instructions,
    /// The same for a processor that is slow next to the devices, and waits at each write to a
    /// register of theirs until it has taken effect: what they do at once is done before the
    /// processor has gone on far.
    SlowInstructions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// The caller gets each line.
    Lines,
    /// It is ours.
    Interactive,
}

/// The machine that QEMU is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Board {
    /// With PCI.
    #[default]
    Q35,
    /// With virtio-mmio, found by ACPI.
    Microvm,
    /// That of arm64, with PCI.
    Virt,
}

impl Board {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Q35 => &[
                "-machine",
                "q35,memory-backend=memory",
                "-serial",
                "chardev:terminal",
            ],
            // It has one serial port by itself.
            Self::Microvm => &[
                "-machine",
                "microvm,acpi=on,memory-backend=memory",
                "-device",
                "isa-serial,index=1,chardev=terminal",
            ],
            Self::Virt => &[
                "-machine",
                "virt,gic-version=3,memory-backend=memory",
                "-serial",
                "chardev:terminal",
            ],
        }
    }

    /// The board that has an architecture's test devices.
    fn of(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self::Q35,
            Arch::Arm64 => Self::Virt,
        }
    }

    /// The kernel's name of the first serial port.
    fn console(self) -> &'static str {
        match self {
            Self::Q35 | Self::Microvm => "ttyS0",
            Self::Virt => "ttyAMA0",
        }
    }

    /// What the kernel has to be told.
    fn kernel_args(self) -> String {
        match self {
            Self::Q35 | Self::Virt => String::new(),
            // It has nothing that the kernel could measure its clock by, which is the host's.
            Self::Microvm => match host_clock_khz() {
                Some(khz) => format!("tsc_early_khz={khz} "),
                None => String::new(),
            },
        }
    }
}

/// How fast the host's time stamp counter is, which is only roughly known.
pub fn host_clock_khz() -> Option<u32> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let mhz: f64 = line.split_once(':')?.1.trim().parse().ok()?;
    Some((mhz * 1000.0) as u32)
}

/// What is the guest's root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Root {
    /// That of the build root, with the clone, shared by virtiofs.
    #[default]
    Shared,
    /// The same, behind an initramfs, which need not go on to our init.
    Behind(PathBuf),
    /// An initramfs of the lab, which is all there is: see [`initramfs`].
    Initramfs {
        /// The guest goes on as what it has written to this disk.
        resume: Option<PathBuf>,
    },
    /// The first partition of the first device, a disk: see [`root_image`].
    Disk,
}

#[derive(Clone)]
pub struct Config {
    pub accel: Accel,
    /// QEMU.
    pub emulator: PathBuf,
    pub board: Board,
    /// Gives the guest QEMU's own devices, and does what it asks for.
    pub host: Option<Host>,
    pub devices: Vec<Spec>,
    /// The clone whose test device it is, if it is another one.
    pub device_tree: Option<Tree>,
    /// More arguments of QEMU.
    pub qemu: Vec<String>,
    /// When the guest is stopped; an interactive one is not.
    pub deadline: Duration,
    /// After how long without a line it is stopped, too.
    pub silence: Option<Duration>,
    pub modules: Option<Modules>,
    pub root: Root,
    /// As QEMU wants it, if it is not what the kernel needs for the tests.
    pub memory: Option<&'static str>,
    pub terminal: Terminal,
    pub clock: Clock,
    /// How many guests share the machine.
    pub share: usize,
    /// Where is said what is being done for the guest.
    pub output: Output,
}

impl Config {
    /// A guest with some devices, or else the default ones, and the kernel's own drivers.
    pub fn with(devices: Vec<Spec>) -> Self {
        Self {
            accel: Accel::default(),
            emulator: "qemu-system-x86_64".into(),
            board: Board::default(),
            host: None,
            devices: match devices.is_empty() {
                true => device::default_pair(),
                false => devices,
            },
            device_tree: None,
            qemu: Vec::new(),
            deadline: Duration::from_secs(120),
            silence: None,
            modules: None,
            root: Root::default(),
            memory: None,
            terminal: Terminal::Lines,
            clock: Clock::Host,
            share: 1,
            output: Output::Terminal,
        }
    }
}

impl Config {
    /// The same, with a machine that a kernel is for.
    pub fn on(mut self, kernel: &Kernel) -> Self {
        self.emulator = kernel.arch.emulator().into();
        self.board = Board::of(kernel.arch);
        self
    }
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The job ended with this status.
    Status(i32),
    /// The job shut the guest down.
    Shutdown(Shutdown),
    /// It went down without a word: a panic, or QEMU itself.
    Died,
    /// It did not end in time.
    Deadline(Duration),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the job ended with status {status}"),
            Self::Shutdown(Shutdown::PowerOff) => f.write_str("the job powered the guest off"),
            Self::Shutdown(Shutdown::Reboot) => f.write_str("the job rebooted the guest"),
            Self::Died => f.write_str("the guest died"),
            Self::Deadline(after) => write!(f, "no end within {} s", after.as_secs()),
        }
    }
}

/// What became of a guest.
pub struct Outcome {
    pub ending: Ending,
    pub complaints: Vec<Complaint>,
    /// What each device saw.
    pub records: Vec<Record>,
    console: PathBuf,
}

impl Outcome {
    /// Nothing is held against kernel and driver.
    pub fn is_clean(&self) -> bool {
        self.complaints.is_empty() && self.records.iter().all(|r| r.violations().is_empty())
    }

    /// With what was found before, of the same guest in another QEMU.
    pub fn after(mut self, mut complaints: Vec<Complaint>, mut records: Vec<Record>) -> Self {
        complaints.append(&mut self.complaints);
        records.append(&mut self.records);
        Self {
            complaints,
            records,
            ..self
        }
    }

    /// An exit status: the job's, unless something else went wrong.
    pub fn status(&self) -> u8 {
        match self.ending {
            Ending::Status(0) if !self.is_clean() => 1,
            Ending::Status(status) => u8::try_from(status).unwrap_or(1),
            _ => 1,
        }
    }

    /// Says what went wrong, and where to read on.
    pub fn report(&self, output: &Output) {
        for (index, record) in self.records.iter().enumerate() {
            let violations = record.violations();
            output.line(format_args!(
                "device {index}: violations: {}",
                violations.len()
            ));
            for violation in violations {
                output.line(format_args!("    {violation}"));
            }
        }
        if !matches!(self.ending, Ending::Status(_)) {
            output.line(format_args!("{}; the end of the kernel log:", self.ending));
            output.line(tail(&self.console, LOG_TAIL));
        }
        if !self.complaints.is_empty() {
            output.line("the kernel complained:");
            for complaint in &self.complaints {
                let path = self.console.display();
                output.line(format_args!("    {path}:{}", complaint.line));
                output.line(format_args!("    {}", complaint.text));
            }
        }
        if self.status() != 0 {
            output.line(format_args!("kernel log: {}", self.console.display()));
        }
    }
}

/// Runs a job in a guest; `on_line` gets each line it prints.
///
/// An emulated processor does not always come up, on a machine that is busy: timers are late. That
/// is before anything of ours runs. A guest that does not get as far as our init is started again.
pub fn run(
    tree: &Tree,
    kernel: &Kernel,
    name: &str,
    config: &Config,
    job: &Job,
    mut on_line: impl FnMut(&str, &mut Devices) -> Result<()>,
) -> Result<Outcome> {
    let run = tree.run_dir(name)?;
    let text = serde_json::to_string(job).context("can't encode the job")?;
    fs::write(run.join(JOB), text).context("can't write the job")?;
    if matches!(job, Job::Selftests { .. }) {
        kselftest::install(tree, kernel, &run.join(KSELFTESTS))?;
    }

    for number in 1.. {
        let outcome = boot(tree, kernel, config, &run, &mut on_line)?;
        let booted = run.join(STARTED).exists() || matches!(outcome.ending, Ending::Shutdown(_));
        if booted || number == BOOTS {
            return Ok(outcome);
        }
        let kept = run.join(format!("console-{number}"));
        config.output.line(format_args!(
            "the guest did not boot, and is started again; its log: {}",
            kept.display()
        ));
        fs::rename(&outcome.console, &kept).context("can't keep the kernel log")?;
    }
    unreachable!("the last boot returns")
}

/// Boots a guest and stays with it until it ends.
fn boot(
    tree: &Tree,
    kernel: &Kernel,
    config: &Config,
    run: &RunDir,
    on_line: &mut impl FnMut(&str, &mut Devices) -> Result<()>,
) -> Result<Outcome> {
    let apart = match config.clock {
        Clock::Host => None,
        Clock::Instructions | Clock::SlowInstructions => Apart::begin()?,
    };
    let shares = match config.root {
        Root::Shared | Root::Behind(_) => vec![
            share("root", &kernel.root, &["--readonly"], run)?,
            share("tree", tree.root(), &[], run)?,
        ],
        Root::Initramfs { .. } | Root::Disk => Vec::new(),
    };
    let modules = config.modules.as_ref();
    let modules = modules.context("a guest with an initramfs needs the modules");
    let initramfs = match &config.root {
        Root::Shared => None,
        Root::Behind(initramfs) => Some(initramfs.clone()),
        Root::Initramfs { .. } => Some(initramfs::make(tree, kernel, modules?, run, None)?),
        // The device finds its disk when it starts.
        Root::Disk => Some(root_image::make(tree, kernel, modules?, run)?),
    };
    let device_tree = config.device_tree.as_ref().unwrap_or(tree);
    let mut devices = Devices::start(device_tree, &config.devices, run, &config.output)?;
    let console = run.join("console");
    let mut qemu = qemu(tree, kernel, config, run, &console);
    if let Some(initramfs) = initramfs {
        qemu.arg("-initrd").arg(initramfs);
    }
    for share in &shares {
        qemu.args(share.qemu_args());
    }
    if config.devices.len() > ON_ROOT_BUS {
        qemu.args(["-device", "pcie-pci-bridge,id=more"]);
    }
    for (index, socket) in devices.sockets().enumerate() {
        let mut device = json!({
            "driver": "vfio-user-pci",
            "socket": {"type": "unix", "path": socket},
            "x-no-posted-writes": config.clock == Clock::SlowInstructions,
        });
        if index >= ON_ROOT_BUS {
            device["bus"] = "more".into();
        }
        qemu.arg("-device").arg(device.to_string());
    }
    qemu.args(&config.qemu);
    let log = run.join("qemu.log");
    if let Some(host) = &config.host {
        host.prepare(&mut qemu, run)?;
    }
    qemu.stderr(fs::File::create(&log).context("can't write the log of QEMU")?);
    let start = Instant::now();
    let in_time = match config.terminal {
        Terminal::Lines => {
            let stdin = match config.host {
                Some(_) => Stdio::piped(),
                None => Stdio::null(),
            };
            let mut child = spawn(qemu.stdin(stdin).stdout(Stdio::piped()))?;
            if let Some(host) = &config.host {
                host.begin(&mut child, &log)?;
            }
            if let Some(apart) = &apart {
                apart.give_to(&mut child)?;
            }
            let limits = Limits {
                started: run.join(STARTED),
                boot: BOOT * kernel.flavour.slowness() * u32::try_from(config.share)?,
                all: config.deadline,
                silence: config.silence,
            };
            let in_time = stream(&mut child, &limits, |line| {
                let Some((before, file)) = line.split_once(init::FILE) else {
                    return on_line(line, &mut devices);
                };
                if !before.is_empty() {
                    on_line(before, &mut devices)?;
                }
                let (name, text) = file.split_once(' ').unwrap_or((file, ""));
                let path = run.join(Path::new(name).file_name().unwrap_or_default());
                fs::write(&path, text).context("can't write for the guest")
            });
            if let Some(host) = &config.host {
                host.end();
            }
            in_time?
        }
        Terminal::Interactive => {
            spawn(&mut qemu)?.wait().context("can't wait for QEMU")?;
            true
        }
    };

    let text = fs::read(&console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let status = fs::read_to_string(run.join(STATUS)).ok();
    let ending = match status.and_then(|s| s.trim().parse().ok()) {
        Some(status) => Ending::Status(status),
        None if !in_time => Ending::Deadline(start.elapsed()),
        None => match klog::shutdown(&text) {
            Some(shutdown) => Ending::Shutdown(shutdown),
            None => Ending::Died,
        },
    };
    if ending == Ending::Died && text.is_empty() {
        anyhow::bail!("QEMU did not start the guest:\n{}", tail(&log, 15));
    }
    ensure!(
        kernel.arch != Arch::Arm64 || ending == Ending::Died || text.contains(KASLR),
        "the guest was started without KASLR, by which modules are put far from the kernel"
    );
    Ok(Outcome {
        ending,
        complaints: klog::complaints(&text),
        records: devices.finish()?,
        console,
    })
}

fn spawn(qemu: &mut Command) -> Result<Child> {
    qemu.spawn().context("can't run QEMU")
}

/// How long a guest may take.
struct Limits {
    /// What is there as soon as our init runs.
    started: PathBuf,
    /// Until then.
    boot: Duration,
    all: Duration,
    /// For a line.
    silence: Option<Duration>,
}

/// Hands on what the guest prints, until it ends or its time is over.
fn stream(
    qemu: &mut Child,
    limits: &Limits,
    mut on_line: impl FnMut(&str) -> Result<()>,
) -> Result<bool> {
    let stdout = qemu.stdout.take().context("QEMU has no standard output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line);
            if sender
                .send(text.trim_end_matches(['\r', '\n']).to_string())
                .is_err()
            {
                break;
            }
            line.clear();
        }
    });
    let start = Instant::now();
    let mut last_line = start;
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                last_line = Instant::now();
                if let Err(error) = on_line(&line) {
                    let _ = qemu.kill();
                    let _ = qemu.wait();
                    return Err(error);
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                qemu.wait().context("can't wait for QEMU")?;
                return Ok(true);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let limit = match limits.started.exists() {
            true => limits.all,
            false => limits.boot.min(limits.all),
        };
        let silent = limits.silence.is_some_and(|s| last_line.elapsed() > s);
        if start.elapsed() > limit || silent {
            let _ = qemu.kill();
            qemu.wait().context("can't wait for QEMU")?;
            return Ok(false);
        }
    }
}

fn qemu(tree: &Tree, kernel: &Kernel, config: &Config, run: &Path, console: &Path) -> Command {
    // virtiofsd writes into the page cache without QEMU knowing. What QEMU has translated from
    // such a page, when it held the code of another file, is executed still, unless the guest
    // writes to it: so it clears what it allocates, as Debian's kernel does anyway.
    let lab = tree.join(kernel.arch.programs()).join("lab");
    let lab = lab.display().to_string();
    let root = match &config.root {
        Root::Shared | Root::Behind(_) => {
            format!("rootfstype=virtiofs root=root ro init={lab}")
        }
        // What is printed while it falls asleep is wanted, too.
        Root::Initramfs { .. } | Root::Disk => "rdinit=/init no_console_suspend".into(),
    };
    let mut append = format!(
        "console={} ignore_loglevel panic=-1 oops=panic no_timer_check init_on_alloc=1 \
         {}devtmpfs.mount=0 {root} -- init --tree={} --run={} --slowness={} --share={}",
        config.board.console(),
        config.board.kernel_args(),
        tree.root().display(),
        run.display(),
        kernel.flavour.slowness(),
        config.share,
    );
    match (&config.root, &config.modules) {
        (Root::Initramfs { resume }, _) => {
            append += " --alone";
            if let Some(disk) = resume {
                append += &format!(" --resume={}", disk.display());
            }
        }
        (Root::Disk, _) => append += &format!(" --alone --root={}", root_image::PARTITION),
        (_, Some(modules)) => append += &format!(" --modules={}", modules.index.display()),
        (_, None) => {}
    }
    let size = config.memory.unwrap_or(kernel.flavour.memory());
    let memory = format!("memory-backend-memfd,id=memory,size={size},share=on");
    let mut qemu = Command::new(&config.emulator);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-m", size, "-object", &memory])
        .args(config.accel.args(config.board))
        .args(["-no-reboot", "-kernel"])
        .arg(&kernel.image)
        .args(["-append", &append])
        .arg("-chardev")
        .arg(format!(
            "file,id=console,append=on,path={}",
            console.display()
        ))
        .args(["-serial", "chardev:console"])
        .args(["-chardev", "stdio,id=terminal,signal=off"])
        .args(config.board.args());
    match config.clock {
        Clock::Host => qemu.args(["-smp", "2"]),
        Clock::Instructions | Clock::SlowInstructions => {
            qemu.args(["-smp", "1", "-icount", "shift=0,sleep=on"])
        }
    };
    if config.clock == Clock::SlowInstructions {
        // Each block of translated code is looked for when it is its turn; nothing is logged.
        qemu.args(["-d", "nochain"]);
    }
    qemu
}

/// A directory shared with the guest.
struct Share {
    tag: &'static str,
    socket: PathBuf,
    _daemon: Daemon,
}

fn share(tag: &'static str, dir: &Path, options: &[&str], run: &RunDir) -> Result<Share> {
    let socket = run.sockets()?.join(format!("{tag}.sock"));
    let _ = fs::remove_file(&socket);
    let mut command = Command::new("/usr/libexec/virtiofsd");
    command
        .args(["--sandbox", "none", "--shared-dir"])
        .arg(dir)
        .arg("--socket-path")
        .arg(&socket)
        .args(options);
    let log = run.join(format!("virtiofsd-{tag}.log"));
    let mut daemon = Daemon::spawn("virtiofsd", &mut command, log)?;
    daemon.wait_for(&socket, PATIENCE)?;
    Ok(Share {
        tag,
        socket,
        _daemon: daemon,
    })
}

impl Share {
    fn qemu_args(&self) -> [String; 4] {
        let tag = self.tag;
        [
            "-chardev".into(),
            format!("socket,id={tag},path={}", self.socket.display()),
            "-device".into(),
            format!("vhost-user-fs-pci,chardev={tag},tag={tag}"),
        ]
    }
}
