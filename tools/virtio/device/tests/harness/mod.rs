// SPDX-License-Identifier: GPL-2.0

//! The program, and a small driver that talks to it as QEMU does, through rust-vmm's vfio-user
//! client.

// Each test program uses a part of it.
#![allow(dead_code)]

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
use virtio_test_device::mailbox;
use virtio_test_device::transport::pci_common_config::{reg, NOTIFY_OFFSET};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

/// The virtio structures.
pub const BAR0: u32 = VFIO_PCI_BAR0_REGION_INDEX;
/// The mailbox.
pub const BAR2: u32 = VFIO_PCI_BAR2_REGION_INDEX;
/// PCI configuration space.
pub const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;
/// Nothing takes longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Size of memory.
pub const MEMORY: u64 = 0x10_000;
/// Memory does not begin at 0, nor at the beginning of its file.
pub const BASE: u64 = 0x4000_0000;
/// Where it begins in its file.
pub const FILE_OFFSET: u64 = 0x3000;
/// Descriptor table of queue 0.
pub const DESC: u64 = 0x1000;
/// Its available ring.
pub const AVAIL: u64 = 0x2000;
/// Its used ring.
pub const USED: u64 = 0x3000;
/// The buffer.
pub const BUFFER: u64 = 0x4000;
/// Size of queue 0.
pub const SIZE: u16 = 8;

/// The program, killed when the test is over.
pub struct Device {
    child: Child,
    dir: TempDir,
}

impl Device {
    /// Starts it with these options.
    pub fn start(options: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_virtio-test-device"))
            .arg("--socket")
            .arg(dir.as_path().join("socket"))
            .arg("--events")
            .arg(dir.as_path().join("events"))
            .args(options)
            // It would say of every violation on purpose.
            .env("RUST_LOG", "off")
            .spawn()
            .unwrap();
        let device = Self { child, dir };
        wait_for("the socket", || device.socket().exists());
        device
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.as_path().join("socket")
    }

    /// Its events so far.
    pub fn events(&self) -> Vec<Value> {
        fs::read_to_string(self.dir.as_path().join("events"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        let name = |event: &Value| event["event"].as_str().unwrap().to_string();
        self.events().iter().map(name).collect()
    }

    /// Waits until it has ended.
    pub fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the exit", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Has it ended by SIGTERM.
    pub fn terminate(&mut self) -> ExitStatus {
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

/// Waits until it is done; panics if that takes too long.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what} did not come");
        sleep(Duration::from_millis(2));
    }
}

/// A driver with one split queue, and what QEMU does for it.
pub struct Driver {
    pub client: Client,
    memory: File,
    /// Configuration change and queue 0.
    pub vectors: [EventFd; 2],
    /// The available index of queue 0.
    pub avail: u16,
}

impl Driver {
    /// Attaches, with memory and interrupts.
    pub fn connect(socket: &Path) -> Self {
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

    /// Reads a byte of PCI configuration space.
    pub fn config(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.client.region_read(CONFIG, offset, &mut data).unwrap();
        data[0]
    }

    /// Enables MSI-X.
    pub fn enable_msix(&mut self) {
        let mut at = self.config(0x34);
        while self.config(at.into()) != 0x11 {
            at = self.config(u64::from(at) + 1);
            assert_ne!(at, 0, "no MSI-X capability");
        }
        self.client
            .region_write(CONFIG, u64::from(at) + 2, &[0, 0x80])
            .unwrap();
    }

    /// Writes to BAR 0.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.client.region_write(BAR0, offset, data).unwrap();
    }

    /// Writes status.
    pub fn set_status(&mut self, value: u8) {
        self.write(reg::DEVICE_STATUS, &[value]);
    }

    /// Reads status.
    pub fn status(&mut self) -> u8 {
        let mut data = [0];
        self.client
            .region_read(BAR0, reg::DEVICE_STATUS, &mut data)
            .unwrap();
        data[0]
    }

    /// Brings the device to DRIVER_OK with VERSION_1 and feature bit `suspend`.
    pub fn go_live(&mut self, suspend: u32) {
        let features: u64 = 1 << 32 | 1 << suspend;
        let offered = self.accept(features);
        assert_eq!(offered & features, features, "offered: {offered:#x}");
        assert_eq!(self.status(), 0x0b);
        self.set_up_queue();
        self.set_status(0x0f);
        assert_eq!(self.status(), 0x0f);
    }

    /// Accepts these features, up to FEATURES_OK; returns those that are offered.
    pub fn accept(&mut self, features: u64) -> u64 {
        for value in [0, 1, 3] {
            self.set_status(value);
        }
        self.avail = 0;
        self.store(AVAIL, &[0; 4]);
        self.store(USED, &[0; 4]);
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
        self.set_status(0x0b);
        offered
    }

    /// Sets up queue 0 and enables it.
    pub fn set_up_queue(&mut self) {
        self.write(reg::CONFIG_MSIX_VECTOR, &0u16.to_le_bytes());
        self.write(reg::QUEUE_SELECT, &0u16.to_le_bytes());
        self.write(reg::QUEUE_SIZE, &SIZE.to_le_bytes());
        self.write(reg::QUEUE_MSIX_VECTOR, &1u16.to_le_bytes());
        self.write(reg::QUEUE_DESC, &(BASE + DESC).to_le_bytes());
        self.write(reg::QUEUE_DRIVER, &(BASE + AVAIL).to_le_bytes());
        self.write(reg::QUEUE_DEVICE, &(BASE + USED).to_le_bytes());
        self.write(reg::QUEUE_ENABLE, &1u16.to_le_bytes());
    }

    /// Writes to memory.
    pub fn store(&self, address: u64, data: &[u8]) {
        self.memory
            .write_all_at(data, FILE_OFFSET + address)
            .unwrap();
    }

    /// Reads from memory.
    pub fn load<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory
            .read_exact_at(&mut data, FILE_OFFSET + address)
            .unwrap();
        data
    }

    /// Has 16 bytes put into the buffer and returns them.
    pub fn read_entropy(&mut self) -> [u8; 16] {
        self.add();
        self.notify(0);
        wait_for("the interrupt", || self.vectors[1].read().is_ok());
        assert_eq!(self.used(), self.avail);
        self.load(BUFFER)
    }

    /// Makes the one buffer available, as descriptor 0.
    pub fn add(&mut self) {
        self.store(DESC, &(BASE + BUFFER).to_le_bytes());
        self.store(DESC + 8, &16u32.to_le_bytes());
        self.store(DESC + 12, &2u16.to_le_bytes());
        self.store(AVAIL + 4 + 2 * u64::from(self.avail % SIZE), &[0, 0]);
        self.avail = self.avail.wrapping_add(1);
        self.store(AVAIL + 2, &self.avail.to_le_bytes());
    }

    /// Notifies a queue.
    pub fn notify(&mut self, queue: u16) {
        self.write(NOTIFY_OFFSET + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    /// The used index of queue 0.
    pub fn used(&self) -> u16 {
        u16::from_le_bytes(self.load(USED + 2))
    }

    /// Changes settings of the device.
    pub fn set(&mut self, settings: Value) -> Value {
        let reply = self.command(json!({"cmd": "set", "settings": settings}));
        assert_eq!(reply["ok"], true, "{reply}");
        reply
    }

    /// The rules that were broken so far.
    pub fn rules(&mut self) -> Vec<String> {
        let stats = self.command(json!({"cmd": "stats"}));
        let list = stats["violation_list"].as_array().unwrap();
        assert_eq!(stats["violations"], list.len());
        let rule = |violation: &Value| violation["rule"].as_str().unwrap().to_string();
        list.iter().map(rule).collect()
    }

    /// Reads status until it is this.
    pub fn wait_for_status(&mut self, value: u8) {
        let mut last = 0;
        wait_for("a status", || {
            last = self.status();
            last == value
        });
    }

    /// Executes a command of the mailbox.
    pub fn command(&mut self, command: Value) -> Value {
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
