// SPDX-License-Identifier: GPL-2.0

//! `boot/kit` and `qemu/kit-*`: the kit is booted as its README says, and ends as it should.
//!
//! The command lines are those of the README, with other devices.

use crate::device::{Devices, Spec};
use crate::guest::{self, Accel, Config};
use crate::kernel::{Flavour, Kernel};
use crate::kit;
use crate::ktap::Verdict;
use crate::process::tail;
use crate::qemu;
use crate::tally::Report;
use crate::tree::{RunDir, Tree};
use anyhow::{ensure, Context, Result};
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What the kit says first, and the beginning of what it says last.
const FIRST: &str = "virtio-suspend kit ";
const LAST: &str = "suspend-kit: ";
/// How often it is booted, if the kernel does not get as far as the kit.
const BOOTS: u32 = 3;
/// From there on, on a machine that does nothing else.
const WITHIN: Duration = Duration::from_secs(240);

/// Whose devices are tested.
enum Tested {
    /// Test devices, and the QEMU of the build root.
    Ours(&'static [&'static str]),
    /// Those of the QEMU of `lab qemu`, by its arguments. A disk has `drive=disk`, and a network
    /// device `netdev=net`.
    QemusOwn(&'static [&'static str]),
}

/// What becomes of the file that is behind a disk. A test device has it as `%t/disk`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    /// Nobody has it.
    None,
    /// Not one byte of it changes.
    Kept,
    /// Some do.
    Lost,
}

/// How large the file is.
const DISK_BYTES: usize = 16 << 20;
/// What is in it.
const DISK_BYTE: u8 = 0x5a;

/// A boot of the kit.
pub struct Boot {
    pub name: &'static str,
    pub what: &'static str,
    /// In the README.
    machine: &'static str,
    tested: Tested,
    data: Data,
    /// What the kernel's command line has besides.
    append: &'static str,
    /// What is typed when a line has a text in it.
    typed: Option<(&'static str, &'static str)>,
    /// Of QEMU.
    status: i32,
    /// What lines begin with.
    says: &'static [&'static str],
    /// What lines of the table are, but for the white space.
    rows: &'static [Row],
    /// What the last line begins with, after the name.
    last: &'static str,
}

/// A line of the table, by its first word.
struct Row {
    name: &'static str,
    /// Something in it, and something that is not.
    has: &'static str,
    has_not: &'static str,
}

/// That which is part of `make test`.
pub const SHORT: &str = "boot/kit";

pub const ALL: &[Boot] = &[
    Boot {
        name: SHORT,
        what: "the kit tells a device that keeps the rules from those that break them, and from \
               one that offers nothing, and QEMU's status is 1",
        machine: "q35",
        tested: Tested::Ours(&[
            "--offer 43",
            "--offer 43 --fault suspend-ignored",
            "--offer none",
            "--like crosvm",
            "--like 5bsd",
            "--like qemu-2025",
            "--type blk --backing %t/disk",
        ]),
        data: Data::Kept,
        // Which leaves out the kselftests.
        append: "suspend.device=virtio0,virtio1,virtio2,virtio3,virtio4,virtio5,virtio6",
        typed: None,
        status: 1,
        says: &[
            // Bit 43, INDIRECT_DESC and EVENT_IDX, VERSION_1, RING_RESET.
            "# virtio0: feature bits offered: 0x0000090130000000",
            "# virtio2: feature bits offered: 0x0000010130000000",
            "# virtio3: feature bits offered: 0x0000050130000000",
        ],
        rows: &[
            Row {
                name: "virtio0",
                has: "1.4 (bit 43)",
                has_not: "FAIL",
            },
            Row {
                name: "virtio1",
                has: "FAIL",
                has_not: "skip:",
            },
            Row {
                name: "virtio2",
                has: "skip: it does not offer VIRTIO_F_SUSPEND",
                has_not: "FAIL",
            },
            // The table of Documentation/virtio/device-authors.rst: what is not judged, V1 to V5.
            Row {
                name: "virtio3",
                has: "draft (bit 42) ok ok ok FAIL skip ok",
                has_not: "skip:",
            },
            Row {
                name: "virtio4",
                has: "1.4 (bit 43) ok ok ok ok skip ok",
                has_not: "FAIL",
            },
            Row {
                name: "virtio5",
                has: "1.4 (bit 43) skip ok skip skip skip FAIL",
                has_not: "skip:",
            },
            Row {
                name: "virtio6 block",
                has: "1.4 (bit 43) ok ok ok ok skip ok",
                has_not: "FAIL",
            },
        ],
        last: "not ok: ",
    },
    Boot {
        name: "boot/kit-lost",
        what: "the kit writes to a disk if it is told that the data may be lost",
        machine: "q35",
        tested: Tested::Ours(&["--type blk --backing %t/disk"]),
        data: Data::Lost,
        append: "suspend.test=written-data suspend.data=lost",
        typed: None,
        status: 0,
        says: &[],
        rows: &OF_ONE,
        last: "ok: 1 passed, 0 failed, 0 skipped",
    },
    Boot {
        name: "qemu/kit-q35",
        what: "on q35, with QEMU's own devices: all is well, and QEMU's status is 0",
        machine: "q35",
        tested: Tested::QemusOwn(&[
            "virtio-rng-pci,suspend=1.4",
            "virtio-rng-pci,suspend=1.4,packed=on",
            "virtio-serial-pci,suspend=1.4",
            "virtio-blk-pci,suspend=1.4,drive=disk",
            "virtio-net-pci,suspend=1.4,netdev=net",
        ]),
        data: Data::Kept,
        append: "",
        typed: None,
        status: 0,
        says: &["# virtio0: feature bits offered: 0x"],
        rows: &OF_QEMU,
        last: "ok: ",
    },
    Boot {
        name: "qemu/kit-microvm",
        what: "on microvm, with QEMU's own devices: all is well, and QEMU's status is 0",
        machine: "microvm",
        tested: Tested::QemusOwn(&[
            "virtio-serial-device,suspend=1.4",
            "virtio-rng-device,suspend=1.4,packed=on",
            "virtio-rng-device,suspend=1.4",
            "virtio-blk-device,suspend=1.4,packed=on,drive=disk",
            "virtio-net-device,suspend=1.4,netdev=net",
        ]),
        data: Data::Lost,
        append: "suspend.data=lost",
        typed: None,
        status: 0,
        says: &["# virtio0: feature bits offered: 0x"],
        rows: &OF_QEMU,
        last: "ok: ",
    },
    Boot {
        name: "qemu/kit-shell",
        what: "on microvm: a shell, after which the machine ends as else, and QEMU's status is 0",
        machine: "microvm",
        tested: Tested::QemusOwn(&["virtio-rng-device,suspend=1.4"]),
        data: Data::None,
        append: "suspend.test=suspend suspend.exit=shell",
        typed: Some(("BusyBox", "echo typed $((6 * 7))\nexit\n")),
        status: 0,
        says: &["typed 42", "# the machine ends by powering itself off"],
        rows: &OF_ONE,
        last: "ok: ",
    },
    Boot {
        name: "qemu/kit-reboot",
        what: "on microvm: a case by its name, and a reboot, and QEMU's status is 0",
        machine: "microvm",
        tested: Tested::QemusOwn(&["virtio-rng-device,suspend=1.4"]),
        data: Data::None,
        append: "suspend.test=suspend suspend.exit=reboot",
        typed: None,
        status: 0,
        says: &["# the machine ends by a reboot"],
        rows: &OF_ONE,
        last: "ok: 1 passed, 0 failed, 0 skipped",
    },
    Boot {
        name: "qemu/kit-mistake",
        what: "on microvm: what is wrong on the command line is said, and QEMU's status is 1",
        machine: "microvm",
        tested: Tested::QemusOwn(&["virtio-rng-device,suspend=1.4"]),
        data: Data::None,
        append: "suspend.data=gone suspend.exti=reboot",
        typed: None,
        status: 1,
        says: &[],
        rows: &[],
        last: "not ok: suspend.data=gone: it has to be keep or lost; suspend.exti: there is no",
    },
];

const OF_ONE: [Row; 1] = [Row {
    name: "virtio0",
    has: "1.4 (bit 43) ok",
    has_not: "FAIL",
}];

const OF_QEMU: [Row; 6] = [
    Row {
        name: "virtio0",
        has: "1.4 (bit 43)",
        has_not: "FAIL",
    },
    Row {
        name: "virtio1",
        has: "1.4 (bit 43)",
        has_not: "FAIL",
    },
    Row {
        name: "virtio2",
        has: "1.4 (bit 43)",
        has_not: "FAIL",
    },
    Row {
        name: "virtio3",
        has: "1.4 (bit 43)",
        has_not: "FAIL",
    },
    Row {
        name: "virtio4",
        has: "1.4 (bit 43)",
        has_not: "FAIL",
    },
    Row {
        name: "suspend_basic.py",
        has: "ok: ",
        has_not: "FAIL",
    },
];

/// Boots the kit, and looks at what it prints, and how it ends.
pub fn test(
    tree: &Tree,
    kernel: &Kernel,
    config: &Config,
    boot: &Boot,
    report: &mut Report,
) -> Result<()> {
    if kernel.flavour != Flavour::Stock {
        report.note("the kit has Debian's own kernel");
        report.case(boot.what, Verdict::Skipped);
        return Ok(());
    }
    let kit = kit::make(tree, kernel, report.output())?;
    let readme = fs::read_to_string(kit.join(kit::README)).context("can't read the README")?;
    let words = command_line(&readme, boot.machine)?;
    let run = tree.run_dir(&boot.name.replace('/', "-"))?;
    let share = u32::try_from(config.share)?;
    for number in 1.. {
        let ended = once(tree, config, boot, &kit, &words, &run, report)?;
        let booted = ended.lines.iter().any(|line| line.starts_with(FIRST));
        if booted || number == BOOTS {
            ensure!(ended.in_time, "it did not end within {:?}", WITHIN * share);
            judge(boot, &ended)
                .with_context(|| format!("{}: {}", boot.what, tail(&run.join("qemu.log"), 5)))?;
            break;
        }
        report.note("the kernel did not get as far as the kit, which is booted again");
    }
    report.case(boot.what, Verdict::Passed);
    Ok(())
}

/// What became of it.
struct Ended {
    lines: Vec<String>,
    status: Option<i32>,
    in_time: bool,
}

fn once(
    tree: &Tree,
    config: &Config,
    boot: &Boot,
    kit: &Path,
    words: &[String],
    run: &RunDir,
    report: &mut Report,
) -> Result<Ended> {
    let mut arguments = words.iter().skip(1).cloned().peekable();
    let (specs, own): (Vec<Spec>, &[&str]) = match boot.tested {
        Tested::Ours(specs) => (
            specs.iter().map(|s| s.parse()).collect::<Result<_, _>>()?,
            &[],
        ),
        Tested::QemusOwn(devices) => (Vec::new(), devices),
    };
    let disk = run.sockets()?.join("disk");
    if boot.data != Data::None {
        fs::write(&disk, vec![DISK_BYTE; DISK_BYTES]).context("can't write the disk")?;
    }
    let devices = Devices::start(tree, &specs, run, report.output())?;
    let emulator = match boot.tested {
        Tested::Ours(_) => config.emulator.clone(),
        Tested::QemusOwn(_) => qemu::set_up(tree)?.binary(),
    };
    let mut command = Command::new(emulator);
    command.current_dir(kit);
    while let Some(word) = arguments.next() {
        let next = arguments.peek().cloned().unwrap_or_default();
        match word.as_str() {
            // Ours take its place.
            "-device" if next.starts_with("virtio-") => _ = arguments.next(),
            "-append" => {
                let clock = match (boot.machine, guest::host_clock_khz()) {
                    // As the README has it.
                    ("microvm", Some(khz)) => format!("tsc_early_khz={khz} "),
                    _ => String::new(),
                };
                command
                    .arg(word)
                    .arg(format!("{next} {clock}{}", boot.append));
                arguments.next();
            }
            _ => _ = command.arg(word),
        }
    }
    command.args(match config.accel {
        Accel::Tcg => ["-accel", "tcg"].as_slice(),
        Accel::Kvm => &["-accel", "kvm", "-cpu", "host"],
    });
    if !specs.is_empty() {
        let memory = "memory-backend-memfd,id=kit,size=512M,share=on";
        command.args(["-object", memory, "-machine", "memory-backend=kit"]);
    }
    for socket in devices.sockets() {
        let device = json!({
            "driver": "vfio-user-pci",
            "socket": {"type": "unix", "path": socket},
        });
        command.arg("-device").arg(device.to_string());
    }
    if !own.is_empty() && boot.data != Data::None {
        // It takes all frames, as one that leads nowhere does not.
        command.args(["-netdev", "user,id=net", "-blockdev"]);
        let disk = json!({"driver": "file", "node-name": "disk", "filename": disk});
        command.arg(disk.to_string());
    }
    for device in own {
        command.args(["-device", *device]);
    }
    let log = File::create(run.join("qemu.log")).context("can't write the log of QEMU")?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log);

    let begin = Instant::now();
    let mut child = command.spawn().context("can't run QEMU")?;
    let stdout = child.stdout.take().context("QEMU has no standard output")?;
    let mut stdin = child.stdin.take().filter(|_| boot.typed.is_some());
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_string();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let share = u32::try_from(config.share)?;
    let mut deadline = begin + guest::BOOT * share;
    let mut lines: Vec<String> = Vec::new();
    let mut first_result = None;
    let in_time = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(line) => {
                report.note(&line);
                if line.starts_with(FIRST) {
                    deadline = Instant::now() + WITHIN * share;
                }
                if first_result.is_none() && is_result(&line) {
                    first_result = Some(begin.elapsed());
                }
                let typed = boot.typed.filter(|(at, _)| line.contains(at));
                let typed = typed.and_then(|(_, text)| Some((text, stdin.take()?)));
                if let Some((text, mut stdin)) = typed {
                    stdin.write_all(text.as_bytes()).context("can't type")?;
                }
                lines.push(line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(mpsc::RecvTimeoutError::Timeout) => break false,
        }
    };
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().context("can't wait for QEMU")?.code();
    if let Some(took) = first_result {
        report.note(format_args!(
            "the first result came after {:.1} s",
            took.as_secs_f64()
        ));
    }
    // The driver that tests devices breaks rules on purpose, so their judge is not asked.
    devices.finish()?;
    if boot.data != Data::None {
        let bytes = fs::read(&disk).context("can't read the disk")?;
        ensure!(bytes.len() == DISK_BYTES, "the disk has another size");
        let changed = bytes.iter().filter(|byte| **byte != DISK_BYTE).count();
        report.note(format_args!(
            "bytes of the disk that have changed: {changed}"
        ));
        ensure!(
            (changed != 0) == (boot.data == Data::Lost),
            "bytes of the disk that have changed: {changed}"
        );
    }
    Ok(Ended {
        lines,
        status,
        in_time,
    })
}

/// Of a case, which is indented.
fn is_result(line: &str) -> bool {
    line.starts_with("  ok ") || line.starts_with("  not ok ")
}

fn judge(boot: &Boot, ended: &Ended) -> Result<()> {
    let Ended { lines, status, .. } = ended;
    for text in boot.says {
        let is_said = lines.iter().any(|line| line.starts_with(text));
        ensure!(is_said, "no line begins with '{text}'");
    }
    for row in boot.rows {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut rows = lines.iter().map(|line| words(line));
        // Below the head of the table.
        let mut rows = rows
            .by_ref()
            .skip_while(|line| !line.starts_with("# device type"));
        let line = rows.find(|line| {
            line.strip_prefix("# ")
                .is_some_and(|l| l.starts_with(row.name))
        });
        let line = line.with_context(|| format!("no line of the table for {}", row.name))?;
        ensure!(line.contains(row.has), "no '{}' in: {line}", row.has);
        ensure!(!line.contains(row.has_not), "'{}' in: {line}", row.has_not);
    }
    let last = lines.last().context("it printed nothing")?;
    let said = last.strip_prefix(LAST);
    let said = said.with_context(|| format!("this is no last line: {last}"))?;
    ensure!(said.starts_with(boot.last), "the last line is: {last}");
    ensure!(
        *status == Some(boot.status),
        "QEMU's status is {status:?}, and {} was expected",
        boot.status
    );
    Ok(())
}

/// The words of the README's command line for a machine.
fn command_line(readme: &str, machine: &str) -> Result<Vec<String>> {
    let begin = format!("    qemu-system-x86_64 -machine {machine}");
    let mut lines = readme.lines().skip_while(|line| !line.starts_with(&begin));
    let mut text = String::new();
    for line in lines.by_ref() {
        match line.strip_suffix('\\') {
            Some(line) => text += line,
            None => {
                text += line;
                break;
            }
        }
    }
    ensure!(
        !text.is_empty(),
        "the README has no command line for {machine}"
    );
    let mut words = Vec::new();
    // What is between two quotes is one word.
    for (index, part) in text.split('\'').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_string)),
            _ => words.push(part.into()),
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readme() -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        fs::read_to_string(root.join(kit::README_SOURCE)).unwrap()
    }

    #[test]
    fn the_readme_has_each_machine() {
        for boot in ALL {
            let words = command_line(&readme(), boot.machine).unwrap();
            assert_eq!(words[0], "qemu-system-x86_64");
            let append = words.iter().position(|word| word == "-append").unwrap();
            assert!(words[append + 1].contains("console="), "{words:?}");
            let device = words.last().unwrap();
            assert!(device.starts_with("virtio-rng-"), "{words:?}");
        }
        assert!(command_line(&readme(), "pc98").is_err());
    }

    fn page() -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        fs::read_to_string(root.join("Documentation/virtio/device-authors.rst")).unwrap()
    }

    /// What is said of devices that are like those elsewhere is what the kit is tested to say.
    #[test]
    fn the_table_of_devices_elsewhere() {
        let boot = &ALL[0];
        let Tested::Ours(specs) = boot.tested else {
            panic!("{} has no test devices", boot.name);
        };
        let page = page();
        let mut compared = 0;
        for (spec, row) in specs.iter().zip(boot.rows) {
            let Some(name) = spec.strip_prefix("--like ") else {
                continue;
            };
            let begin = format!("``{name}``");
            let words = |line: &str| line.split_whitespace().map(str::to_string).collect();
            let last = |words: Vec<String>| words[words.len().saturating_sub(5)..].to_vec();
            let verdicts = last(words(row.has));
            let lines = page.lines().filter(|line| line.starts_with(&begin));
            assert_eq!(
                lines.map(|line| last(words(line))).next(),
                Some(verdicts),
                "{name}"
            );
            compared += 1;
        }
        assert_eq!(compared, 3);
    }

    /// The page says by which fault each case fails that is judged.
    #[test]
    fn the_table_of_faults() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let cases = root.join("drivers/virtio/virtio_suspend_test/cases.rs");
        let cases = fs::read_to_string(cases).unwrap();
        let value = |line: &str, field: &str| {
            let rest = line.trim().strip_prefix(field)?;
            Some(rest.trim_matches([':', ' ', '"', ',']).to_string())
        };
        let page = page();
        let table = page
            .split("Which case fails for which fault")
            .nth(1)
            .unwrap();
        let (mut name, mut judged) = (String::new(), 0);
        for line in cases.lines() {
            name = value(line, "name:").unwrap_or(name);
            if value(line, "rule:").is_some_and(|rule| rule.starts_with('V')) {
                assert!(table.contains(&format!("``{name}``")), "{name}");
                judged += 1;
            }
        }
        assert!(judged > 30, "{judged}");
    }

    #[test]
    fn judgement() {
        let boot = &ALL[0];
        let mut lines = boot.says.to_vec();
        let head = lines.len();
        lines.extend([
            "# virtio1 FAIL",
            "# device   type     SUSPEND         -    V1   V2   V3   V4   V5",
            "# virtio0  entropy  1.4 (bit 43)    ok   ok   ok   ok   skip ok",
            "# virtio1  entropy  1.4 (bit 43)    skip ok   skip skip skip FAIL",
            "# virtio2  entropy  skip: it does not offer VIRTIO_F_SUSPEND",
            "# virtio3  entropy  draft (bit 42)  ok   ok   ok   FAIL skip ok",
            "# virtio4  entropy  1.4 (bit 43)    ok   ok   ok   ok   skip ok",
            "# virtio5  entropy  1.4 (bit 43)    skip ok   skip skip skip FAIL",
            "# virtio6  block    1.4 (bit 43)    ok   ok   ok   ok   skip ok",
            "suspend-kit: not ok: 3 passed, 1 failed, 1 skipped",
        ]);
        let ended = |lines: Vec<&str>, status| Ended {
            lines: lines.iter().map(|line| line.to_string()).collect(),
            status: Some(status),
            in_time: true,
        };
        assert!(judge(boot, &ended(lines.clone(), 1)).is_ok());
        assert!(judge(boot, &ended(lines.clone(), 0)).is_err());
        // The last line is the last.
        let more = [&lines[..], &["x"]].concat();
        assert!(judge(boot, &ended(more, 1)).is_err());
        for (index, line) in [
            (0, "# virtio0: feature bits offered: none"),
            (head + 2, "# virtio0 entropy 1.4 (bit 43) ok FAIL"),
            (head + 3, "# virtio1 entropy 1.4 (bit 43) ok ok"),
            (head + 4, "# virtio2 entropy 1.4 (bit 43) ok ok"),
            (
                head + 5,
                "# virtio3 entropy draft (bit 42) ok ok ok ok skip ok",
            ),
            (
                head + 8,
                "# virtio6  block    1.4 (bit 43)    ok   ok   FAIL ok   skip ok",
            ),
            (head + 9, "suspend-kit: ok: 3 passed"),
            (head + 1, "#"),
        ] {
            let mut lines = lines.clone();
            lines[index] = line;
            assert!(judge(boot, &ended(lines, 1)).is_err(), "{line}");
        }
    }
}
