// SPDX-License-Identifier: GPL-2.0

//! The program as a whole: its socket, its command line, its event stream, and a small driver that
//! talks to it as QEMU does, through rust-vmm's vfio-user client.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::Client;
use virtio_test_device::common::{reg, NOTIFY_OFFSET};
use virtio_test_device::mailbox;
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

const BAR0: u32 = VFIO_PCI_BAR0_REGION_INDEX;
const BAR2: u32 = VFIO_PCI_BAR2_REGION_INDEX;
const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;
const DEADLINE: Duration = Duration::from_secs(20);

const MEMORY: u64 = 0x10_000;
/// Memory does not begin at 0, nor at the beginning of its file.
const BASE: u64 = 0x4000_0000;
const FILE_OFFSET: u64 = 0x3000;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x4000;
const SIZE: u16 = 8;

/// The program, killed when the test is over.
struct Device {
    child: Child,
    dir: TempDir,
}

impl Device {
    fn start(options: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_virtio-test-device"))
            .arg("--socket")
            .arg(dir.as_path().join("socket"))
            .arg("--events")
            .arg(dir.as_path().join("events"))
            .args(options)
            .spawn()
            .unwrap();
        let device = Self { child, dir };
        wait_for("the socket", || device.socket().exists());
        device
    }

    fn socket(&self) -> PathBuf {
        self.dir.as_path().join("socket")
    }

    fn events(&self) -> Vec<Value> {
        fs::read_to_string(self.dir.as_path().join("events"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let name = |event: &Value| event["event"].as_str().unwrap().to_string();
        self.events().iter().map(name).collect()
    }

    fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the exit", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.exit()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what} did not come");
        sleep(Duration::from_millis(2));
    }
}

/// A driver with one split queue, and what QEMU does for it.
struct Driver {
    client: Client,
    memory: File,
    vectors: [EventFd; 2],
    avail: u16,
}

impl Driver {
    fn connect(socket: &Path) -> Self {
        let mut client = Client::new(socket).unwrap();
        let memory = TempFile::new().unwrap().into_file();
        memory.set_len(FILE_OFFSET + MEMORY).unwrap();
        client
            .dma_map(FILE_OFFSET, BASE, MEMORY, memory.as_raw_fd())
            .unwrap();
        let vectors = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        client
            .set_irqs(
                VFIO_PCI_MSIX_IRQ_INDEX,
                VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD,
                0,
                2,
                &[vectors[0].as_raw_fd(), vectors[1].as_raw_fd()],
            )
            .unwrap();
        let mut driver = Self {
            client,
            memory,
            vectors,
            avail: 0,
        };
        driver.enable_msix();
        driver
    }

    fn config(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.client.region_read(CONFIG, offset, &mut data).unwrap();
        data[0]
    }

    fn enable_msix(&mut self) {
        let mut at = self.config(0x34);
        while self.config(at.into()) != 0x11 {
            at = self.config(u64::from(at) + 1);
            assert_ne!(at, 0, "no MSI-X capability");
        }
        self.client
            .region_write(CONFIG, u64::from(at) + 2, &[0, 0x80])
            .unwrap();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.client.region_write(BAR0, offset, data).unwrap();
    }

    fn set_status(&mut self, value: u8) {
        self.write(reg::DEVICE_STATUS, &[value]);
    }

    fn status(&mut self) -> u8 {
        let mut data = [0];
        self.client
            .region_read(BAR0, reg::DEVICE_STATUS, &mut data)
            .unwrap();
        data[0]
    }

    /// Brings the device to DRIVER_OK with VERSION_1 and feature bit `suspend`.
    fn go_live(&mut self, suspend: u32) {
        for value in [0, 1, 3] {
            self.set_status(value);
        }
        let features: u64 = 1 << 32 | 1 << suspend;
        let mut offered = 0;
        for select in 0..2u32 {
            self.write(reg::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            let mut data = [0; 4];
            self.client
                .region_read(BAR0, reg::DEVICE_FEATURE, &mut data)
                .unwrap();
            offered |= u64::from(u32::from_le_bytes(data)) << (32 * select);
            self.write(reg::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            let window = (features >> (32 * select)) as u32;
            self.write(reg::DRIVER_FEATURE, &window.to_le_bytes());
        }
        assert_eq!(offered & features, features, "offered: {offered:#x}");
        self.set_status(0x0b);
        assert_eq!(self.status(), 0x0b);
        self.write(reg::CONFIG_MSIX_VECTOR, &0u16.to_le_bytes());
        self.write(reg::QUEUE_SELECT, &0u16.to_le_bytes());
        self.write(reg::QUEUE_SIZE, &SIZE.to_le_bytes());
        self.write(reg::QUEUE_MSIX_VECTOR, &1u16.to_le_bytes());
        self.write(reg::QUEUE_DESC, &(BASE + DESC).to_le_bytes());
        self.write(reg::QUEUE_DRIVER, &(BASE + AVAIL).to_le_bytes());
        self.write(reg::QUEUE_DEVICE, &(BASE + USED).to_le_bytes());
        self.write(reg::QUEUE_ENABLE, &1u16.to_le_bytes());
        self.set_status(0x0f);
        assert_eq!(self.status(), 0x0f);
    }

    fn store(&self, address: u64, data: &[u8]) {
        self.memory
            .write_all_at(data, FILE_OFFSET + address)
            .unwrap();
    }

    fn load<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory
            .read_exact_at(&mut data, FILE_OFFSET + address)
            .unwrap();
        data
    }

    /// Has 16 bytes put into the buffer and returns them.
    fn read_entropy(&mut self) -> [u8; 16] {
        self.store(DESC, &(BASE + BUFFER).to_le_bytes());
        self.store(DESC + 8, &16u32.to_le_bytes());
        self.store(DESC + 12, &2u16.to_le_bytes());
        self.store(AVAIL + 4 + 2 * u64::from(self.avail % SIZE), &[0, 0]);
        self.avail = self.avail.wrapping_add(1);
        self.store(AVAIL + 2, &self.avail.to_le_bytes());
        self.write(NOTIFY_OFFSET, &[0, 0]);
        wait_for("the interrupt", || self.vectors[1].read().is_ok());
        assert_eq!(u16::from_le_bytes(self.load(USED + 2)), self.avail);
        self.load(BUFFER)
    }

    fn command(&mut self, command: Value) -> Value {
        let text = command.to_string();
        let mut put = |offset, data: &[u8]| self.client.region_write(BAR2, offset, data).unwrap();
        put(mailbox::COMMAND_OFFSET, text.as_bytes());
        put(
            mailbox::COMMAND_LENGTH_OFFSET,
            &(text.len() as u32).to_le_bytes(),
        );
        let mut length = [0; 4];
        self.client
            .region_read(BAR2, mailbox::REPLY_LENGTH_OFFSET, &mut length)
            .unwrap();
        let mut reply = vec![0; u32::from_le_bytes(length) as usize];
        self.client
            .region_read(BAR2, mailbox::REPLY_OFFSET, &mut reply)
            .unwrap();
        serde_json::from_slice(&reply).unwrap()
    }
}

fn words(values: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (chunk, value) in bytes.chunks_mut(4).zip(values) {
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Suspends and resumes under I/O; the status bytes are as the revision has them, nothing is
/// lost, one write and one read are enough.
fn round_trip(offer: &str, bit: u32, suspended: u8, resume: u8) {
    let mut device = Device::start(&["--offer", offer, "--data", "counter", "--once"]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(bit);
    assert_eq!(driver.read_entropy(), words([0, 1, 2, 3]));
    assert_eq!(driver.command(json!({"cmd": "clear"}))["ok"], true);

    driver.set_status(0x1f);
    assert_eq!(driver.status(), suspended);
    driver.set_status(resume);
    assert_eq!(driver.status(), 0x0f);
    assert_eq!(driver.read_entropy(), words([4, 5, 6, 7]));

    let stats = driver.command(json!({"cmd": "stats"}));
    assert_eq!(stats["violations"], 0, "{stats}");
    let counters = &stats["counters"];
    assert_eq!(counters["status_writes"], 2);
    assert_eq!(counters["status_reads"], 2);
    assert_eq!(counters["suspends"], 1);
    assert_eq!(counters["resumes"], 1);
    assert_eq!(counters["notify"], json!([1]));
    assert_eq!(counters["buffers_used"], 1);
    let hex = format!("{suspended:#04x}");
    assert_eq!(counters["presented"], json!(["0x0f", hex, "0x0f"]));

    drop(driver);
    assert!(device.exit().success());
    assert!(!device.socket().exists());
    let names = device.names();
    for name in [
        "connected",
        "features",
        "queue_enabled",
        "notify",
        "status_write",
        "status_read",
        "suspended",
        "resumed",
        "disconnected",
        "summary",
    ] {
        assert!(
            names.iter().any(|n| n == name),
            "{name} is missing: {names:?}"
        );
    }
    assert!(!names.iter().any(|n| n == "violation"));
}

#[test]
fn ratified_round_trip() {
    round_trip("43", 43, 0x1b, 0x1f);
}

#[test]
fn draft_round_trip() {
    round_trip("42", 42, 0x1f, 0x0f);
}

#[test]
fn delays_are_honoured_while_status_is_answered() {
    let device = Device::start(&["--delay-suspend", "150", "--delay-resume", "100"]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    let start = Instant::now();
    driver.set_status(0x1f);
    let mut reads = 0;
    while driver.status() != 0x1b {
        reads += 1;
        assert!(start.elapsed() < DEADLINE);
    }
    assert!(start.elapsed() >= Duration::from_millis(150));
    assert!(reads > 5, "the device blocked: {reads} reads");

    // The worker presents it, not only the re-read.
    let start = Instant::now();
    driver.set_status(0x1f);
    wait_for("the resume", || {
        let info = driver.command(json!({"cmd": "info"}));
        info["state"] == "running"
    });
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(driver.status(), 0x0f);
    driver.read_entropy();
    let stats = driver.command(json!({"cmd": "stats"}));
    assert_eq!(stats["violations"], 0, "{stats}");
}

#[test]
fn a_deadline_is_honoured_without_any_access() {
    let device = Device::start(&["--delay-suspend", "50"]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    driver.set_status(0x1f);
    wait_for("the event", || {
        device.names().iter().any(|n| n == "suspended")
    });
}

#[test]
fn refusals() {
    let device = Device::start(&["--refuse-suspend", "--offer", "both"]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    driver.set_status(0x1f);
    assert_eq!(driver.status(), 0x4f);
    assert!(driver.vectors[0].read().is_ok());
    driver.avail = 0;
    driver.store(USED, &[0; 4]);
    driver.go_live(42);
    driver.set_status(0x1f);
    assert_eq!(driver.status(), 0x0f);
    driver.set_status(0x0f);
    driver.read_entropy();
    let stats = driver.command(json!({"cmd": "stats"}));
    assert_eq!(stats["violations"], 0, "{stats}");
    assert_eq!(stats["counters"]["refusals"], 2);
}

#[test]
fn violations_reach_the_mailbox_and_the_event_stream() {
    let mut device = Device::start(&["--once"]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    driver.set_status(0x1f);
    driver.write(NOTIFY_OFFSET, &[0, 0]);
    let stats = driver.command(json!({"cmd": "stats"}));
    assert_eq!(stats["violations"], 1);
    assert_eq!(stats["violation_list"][0]["rule"], "D5");
    drop(driver);
    assert!(device.exit().success());
    let events = device.events();
    let violation = events.iter().find(|e| e["event"] == "violation").unwrap();
    assert_eq!(violation["rule"], "D5");
    assert_eq!(violation["access"], "notify queue 0");
    let summary = events.iter().find(|e| e["event"] == "summary").unwrap();
    assert_eq!(summary["violations"], 1);
}

#[test]
fn one_client_after_the_other_until_sigterm() {
    let mut device = Device::start(&[]);
    for _ in 0..3 {
        let mut driver = Driver::connect(&device.socket());
        let info = driver.command(json!({"cmd": "info"}));
        assert_eq!(
            (&info["status"], &info["state"]),
            (&json!("0x00"), &json!("reset"))
        );
        driver.go_live(43);
        driver.read_entropy();
        // Gone in the middle of a suspend.
        driver.set_status(0x1f);
    }
    wait_for("the end of the third connection", || {
        let names = device.names();
        names.iter().filter(|n| *n == "summary").count() == 3
    });
    assert!(device.terminate().success());
    assert!(!device.socket().exists());
}

#[test]
fn a_probe_of_the_socket_is_no_client() {
    let mut device = Device::start(&["--once"]);
    let second = Command::new(env!("CARGO_BIN_EXE_virtio-test-device"))
        .arg("--socket")
        .arg(device.socket())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(message.contains("is in use"), "{message}");
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    drop(driver);
    assert!(device.exit().success());
}

#[test]
fn sigterm_with_a_client() {
    let mut device = Device::start(&[]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    assert!(device.terminate().success());
    assert!(!device.socket().exists());
    assert_eq!(device.names().last().unwrap(), "summary");
}

#[test]
fn help_has_examples() {
    let output = Command::new(env!("CARGO_BIN_EXE_virtio-test-device"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for part in [
        "Examples:",
        "vfio-user-pci",
        "--delay-suspend",
        "memory-backend-memfd",
    ] {
        assert!(help.contains(part), "{part}");
    }
}
