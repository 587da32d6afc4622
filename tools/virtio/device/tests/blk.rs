// SPDX-License-Identifier: GPL-2.0

//! The block device against a driver that needs no kernel: requests, limits, suspend under load,
//! resets with requests in process, and what the mailbox says of all that.

use std::thread::sleep;
use std::time::Duration;

use serde_json::{json, Value};
use virtio::blk::{S, T};
use virtio_test_device::blk::config::{field, Feature};
use virtio_test_device::blk::stats::checksum;
use virtio_test_device::transport::pci_common_config::{reg, DEVICE_OFFSET};

mod harness;

use harness::{wait_for, Device, Driver, BAR0, BASE};

const QUEUES: u16 = 2;
/// Requests of a queue at a time; each has three descriptors.
const SLOTS: u16 = 4;
const SIZE: u16 = 16;
const SECTOR: usize = 512;
const OK: u8 = S::Ok as u8;
const IOERR: u8 = S::Ioerr as u8;
const UNSUPP: u8 = S::Unsupp as u8;
const LIVE: u64 = 1 << 32 | 1 << 43;

/// Where queue `queue` is.
fn area(queue: u16) -> u64 {
    0x5000 + 0x800 * u64::from(queue)
}

const AVAIL: u64 = 0x200;
const USED: u64 = 0x400;

/// Where a request is: header, status, data.
fn places(queue: u16, slot: u16) -> (u64, u64, u64) {
    let index = u64::from(queue * SLOTS + slot);
    (
        0x6000 + 0x20 * index,
        0x7000 + 8 * index,
        0x8000 + 0x1000 * index,
    )
}

/// A disk and its driver.
struct Disk {
    driver: Driver,
    device: Device,
    avail: [u16; QUEUES as usize],
    seen: [u16; QUEUES as usize],
}

impl Disk {
    /// A driver of a device that was started with `options`, live with all that it offers.
    fn start(options: &[&str]) -> Self {
        let mut disk = Self::attach(options);
        disk.go_live(u64::MAX);
        disk
    }

    fn attach(options: &[&str]) -> Self {
        let options = [&["--type", "blk", "--size", "1M", "--queues", "2"], options].concat();
        let device = Device::start(&options);
        Self {
            driver: Driver::connect(&device.socket()),
            device,
            avail: [0; 2],
            seen: [0; 2],
        }
    }

    /// Brings it to DRIVER_OK with those of its device features that are in `wanted`.
    fn go_live(&mut self, wanted: u64) {
        let blk = (1 << 24) - 1;
        let offered = self.driver.accept(LIVE) & blk;
        self.driver.accept(LIVE | offered & wanted);
        assert_eq!(self.driver.status(), 0x0b);
        self.driver.write(reg::CONFIG_MSIX_VECTOR, &[0, 0]);
        for queue in 0..QUEUES {
            self.avail[usize::from(queue)] = 0;
            self.seen[usize::from(queue)] = 0;
            let at = area(queue);
            self.driver.store(at, &[0; 0x800]);
            let driver = &mut self.driver;
            driver.write(reg::QUEUE_SELECT, &queue.to_le_bytes());
            driver.write(reg::QUEUE_SIZE, &SIZE.to_le_bytes());
            driver.write(reg::QUEUE_MSIX_VECTOR, &1u16.to_le_bytes());
            driver.write(reg::QUEUE_DESC, &(BASE + at).to_le_bytes());
            driver.write(reg::QUEUE_DRIVER, &(BASE + at + AVAIL).to_le_bytes());
            driver.write(reg::QUEUE_DEVICE, &(BASE + at + USED).to_le_bytes());
            driver.write(reg::QUEUE_ENABLE, &1u16.to_le_bytes());
        }
        self.driver.set_status(0x0f);
        assert_eq!(self.driver.status(), 0x0f);
    }

    /// Makes a request available: `out` is what the device reads, `room` what it may write before
    /// the status.
    fn add(&mut self, queue: u16, slot: u16, request: u32, sector: u64, out: &[u8], room: u32) {
        let (header, status, data) = places(queue, slot);
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&request.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.store(header, &bytes);
        self.driver.store(status, &[0xee]);
        self.driver.store(data, out);
        let head = 3 * slot;
        let has_data = room != 0 || !out.is_empty();
        let len = if room == 0 { out.len() as u32 } else { room };
        self.desc(
            queue,
            head,
            header,
            16,
            1,
            if has_data { head + 1 } else { head + 2 },
        );
        self.desc(
            queue,
            head + 1,
            data,
            len,
            if room == 0 { 1 } else { 3 },
            head + 2,
        );
        self.desc(queue, head + 2, status, 1, 2, 0);

        let next = &mut self.avail[usize::from(queue)];
        let at = area(queue) + AVAIL + 4 + 2 * u64::from(*next % SIZE);
        self.driver.store(at, &head.to_le_bytes());
        *next = next.wrapping_add(1);
        self.driver
            .store(area(queue) + AVAIL + 2, &next.to_le_bytes());
    }

    fn desc(&mut self, queue: u16, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(BASE + addr).to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = area(queue) + 16 * u64::from(index);
        self.driver.store(at, &bytes);
    }

    /// The slots that came back since the last call, with their used lengths.
    fn used(&mut self, queue: u16) -> Vec<(u16, u32)> {
        let at = area(queue) + USED;
        let index = u16::from_le_bytes(self.driver.load(at + 2));
        let seen = &mut self.seen[usize::from(queue)];
        let mut all = Vec::new();
        while *seen != index {
            let entry: [u8; 8] = self.driver.load(at + 4 + 8 * u64::from(*seen % SIZE));
            let raw = u64::from_le_bytes(entry);
            all.push((raw as u16 / 3, (raw >> 32) as u32));
            *seen = seen.wrapping_add(1);
        }
        all
    }

    fn status_byte(&self, queue: u16, slot: u16) -> u8 {
        self.driver.load::<1>(places(queue, slot).1)[0]
    }

    fn data(&self, queue: u16, slot: u16) -> [u8; 4096] {
        self.driver.load(places(queue, slot).2)
    }

    /// One request, from beginning to end.
    fn request(&mut self, queue: u16, kind: T, sector: u64, out: &[u8], room: u32) -> u8 {
        self.raw(queue, kind as u32, sector, out, room)
    }

    fn raw(&mut self, queue: u16, request: u32, sector: u64, out: &[u8], room: u32) -> u8 {
        self.add(queue, 0, request, sector, out, room);
        self.driver.notify(queue);
        let mut used = Vec::new();
        wait_for("the request", || {
            used.extend(self.used(queue));
            !used.is_empty()
        });
        assert_eq!(used, [(0, room + 1)]);
        self.status_byte(queue, 0)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.request(0, T::Out, sector, data, 0)
    }

    fn read(&mut self, sector: u64) -> [u8; 4096] {
        assert_eq!(self.request(1, T::In, sector, &[], 4096), OK);
        self.data(1, 0)
    }

    /// What the device says for itself.
    fn report(&mut self) -> Value {
        let reply = self.driver.command(json!({"cmd": "device"}));
        assert_eq!(reply["ok"], true, "{reply}");
        reply["device"].clone()
    }

    /// Asks for a change; returns whether it has to wait.
    fn change(&mut self, change: Value) -> bool {
        let reply = self.driver.command(json!({"cmd": "device", "set": change}));
        assert_eq!(reply["ok"], true, "{reply}");
        reply["held"].as_bool().unwrap()
    }

    /// A field of device configuration space.
    fn config<const N: usize>(&mut self, offset: usize) -> [u8; N] {
        let mut data = [0; N];
        self.driver
            .client
            .region_read(BAR0, DEVICE_OFFSET + offset as u64, &mut data)
            .unwrap();
        data
    }

    fn suspend(&mut self) {
        self.driver.set_status(0x1f);
        self.driver.wait_for_status(0x1b);
    }

    fn resume(&mut self) {
        self.driver.set_status(0x1f);
        self.driver.wait_for_status(0x0f);
    }
}

impl Drop for Disk {
    /// Each test ends with a driver that broke no rule, unless it says so.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.driver.rules(), [""; 0]);
        }
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn pattern(seed: u8) -> [u8; 4096] {
    std::array::from_fn(|i| (i / 5) as u8 ^ seed)
}

#[test]
fn what_is_written_can_be_read_and_is_counted() {
    let mut disk = Disk::start(&["--blk", "serial=disk7"]);
    assert_eq!(disk.write(8, &pattern(1)), OK);
    assert_eq!(disk.write(16, &pattern(2)), OK);
    assert_eq!(disk.read(8), pattern(1));
    assert_eq!(disk.report()["unflushed"], 2);
    assert_eq!(disk.request(1, T::Flush, 0, &[], 0), OK);
    assert_eq!(disk.request(0, T::GetId, 0, &[], 20), OK);
    assert_eq!(
        disk.data(0, 0)[..20],
        *b"disk7\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );

    let report = disk.report();
    let written = checksum(8, &pattern(1)).wrapping_add(checksum(16, &pattern(2)));
    let requests = &report["requests"];
    assert_eq!(requests["out"]["ok"], 2);
    assert_eq!(requests["out"]["bytes"], 8192);
    assert_eq!(requests["out"]["checksum"], written);
    assert_eq!(requests["in"]["checksum"], checksum(8, &pattern(1)));
    assert_eq!(
        (&requests["flush"]["ok"], &report["unflushed"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(report["queues"], json!([3, 2]));
    assert_eq!(disk.driver.command(json!({"cmd": "clear"}))["ok"], true);
    assert_eq!(disk.report()["requests"], json!({}));
}

#[test]
fn what_can_not_be_is_refused_and_changes_nothing() {
    let mut disk = Disk::start(&["--blk", "seg_max=2", "--blk", "size_max=2048"]);
    assert_eq!(disk.raw(0, 99, 0, &[], 0), UNSUPP);
    assert_eq!(disk.request(0, T::GetLifetime, 0, &[], 8), UNSUPP);
    let sectors = (1 << 20) / SECTOR as u64;
    for (sector, len) in [
        (sectors, 512),
        (sectors - 1, 1024),
        (u64::MAX, 512),
        (0, 100),
        (0, 0),
    ] {
        assert_eq!(
            disk.write(sector, &vec![0xaa; len]),
            IOERR,
            "{sector} {len}"
        );
        let room = len as u32;
        assert_eq!(disk.request(0, T::In, sector, &[], room), IOERR);
    }
    assert_eq!(disk.write(0, &[0xaa; 4096]), IOERR, "longer than size_max");
    assert_eq!(disk.write(0, &[0xaa; 2048]), OK);
    let requests = &disk.report()["requests"];
    assert_eq!(
        (&requests["out"]["ioerr"], &requests["out"]["ok"]),
        (&json!(6), &json!(1))
    );
    assert_eq!(requests["other"]["unsupp"], 2);
}

#[test]
fn a_request_without_header_or_status_needs_a_reset() {
    for (index, len) in [(0, 15), (2, 0)] {
        let mut disk = Disk::start(&[]);
        disk.add(0, 0, T::Flush as u32, 0, &[], 0);
        let (header, status, _) = places(0, 0);
        let (addr, flags, next) = [(header, 1, 2), (status, 2, 0)][index / 2];
        disk.desc(0, index as u16, addr, len, flags, next);
        disk.driver.notify(0);
        disk.driver.wait_for_status(0x4f);
        disk.driver.set_status(0);
        disk.go_live(u64::MAX);
        assert_eq!(disk.write(0, &pattern(3)), OK);
    }
}

#[test]
fn ranges_arrive() {
    let mut disk = Disk::start(&[]);
    for sector in [0, 8, 16, 24] {
        assert_eq!(disk.write(sector, &[0x55; 4096]), OK);
    }
    let two = [range(0, 4, 0), range(8, 8, 0)].concat();
    assert_eq!(disk.request(0, T::Discard, 0, &two, 0), OK);
    assert_eq!(disk.request(0, T::WriteZeroes, 0, &range(16, 1, 1), 0), OK);
    assert_eq!(disk.request(1, T::SecureErase, 0, &range(24, 8, 0), 0), OK);
    assert_eq!(disk.request(0, T::Discard, 0, &range(0, 8, 1), 0), UNSUPP);
    assert_eq!(disk.request(0, T::Discard, 0, &range(2048, 1, 0), 0), IOERR);
    let report = disk.report();
    assert_eq!(
        report["ranges"],
        json!([
            {"type": "discard", "sector": 0, "sectors": 4, "flags": 0},
            {"type": "discard", "sector": 8, "sectors": 8, "flags": 0},
            {"type": "write-zeroes", "sector": 16, "sectors": 1, "flags": 1},
            {"type": "secure-erase", "sector": 24, "sectors": 8, "flags": 0},
        ])
    );
    assert_eq!(report["requests"]["discard"]["bytes"], 12 * 512);
    assert_eq!(
        (&report["misplaced"], &report["unflushed"]),
        (&json!(0), &json!(6))
    );
    let first = disk.read(0);
    assert!(first[..2048].iter().all(|byte| *byte == 0));
    assert!(first[2048..].iter().all(|byte| *byte == 0x55));
    let third = disk.read(16);
    assert!(third[..512].iter().all(|byte| *byte == 0) && third[512] == 0x55);
    assert_eq!(disk.read(24), [0; 4096]);

    // As Linux has it: the ranges where the device is to write.
    disk.add(0, 0, T::SecureErase as u32, 0, &range(0, 8, 0), 16);
    disk.driver.notify(0);
    wait_for("the request", || !disk.used(0).is_empty());
    assert_eq!((disk.status_byte(0, 0), disk.read(0)), (OK, [0; 4096]));
    assert_eq!(disk.report()["misplaced"], 1);
}

#[test]
fn features_and_limits_can_be_left_out_and_set() {
    let mut disk = Disk::start(&[
        "--without",
        "discard,flush",
        "--read-only",
        "--blk",
        "seg_max=5",
    ]);
    assert_eq!(disk.config(field::SEG_MAX), 5u32.to_le_bytes());
    assert_eq!(disk.config(field::MAX_DISCARD_SECTORS), [0; 4]);
    assert_eq!(disk.request(0, T::Discard, 0, &range(0, 1, 0), 0), UNSUPP);
    assert_eq!(disk.request(0, T::Flush, 0, &[], 0), UNSUPP);
    assert_eq!(disk.write(0, &pattern(1)), IOERR);
    assert_eq!(disk.read(0), [0; 4096]);

    // From the next reset on it is another device.
    disk.change(json!({"features": ["flush", "mq"], "queues": 2}));
    assert_eq!(disk.report()["pending"], true);
    assert_eq!(disk.write(0, &pattern(1)), IOERR);
    disk.go_live(u64::MAX);
    assert_eq!(disk.report()["pending"], false);
    assert_eq!(disk.write(0, &pattern(1)), OK);
    assert_eq!(disk.request(0, T::Flush, 0, &[], 0), OK);
    let wrong = json!({"cmd": "device", "set": {"seg_max": 1000}});
    let reply = disk.driver.command(wrong);
    assert_eq!(reply["ok"], false);
    assert!(reply["error"].as_str().unwrap().contains("use 1 to 62"));
}

#[test]
fn what_the_driver_did_not_accept_is_not_there() {
    let mut disk = Disk::attach(&[]);
    disk.go_live(Feature::Mq.bit() as u64);
    assert_eq!(disk.request(0, T::Discard, 0, &range(0, 1, 0), 0), UNSUPP);
    assert_eq!(disk.request(0, T::Flush, 0, &[], 0), UNSUPP);
    // Who can't flush has a writethrough cache.
    assert_eq!(disk.write(0, &pattern(1)), OK);
    assert_eq!(disk.report()["unflushed"], 0);
}

#[test]
fn the_cache_mode_is_the_drivers() {
    let mut disk = Disk::start(&[]);
    assert_eq!(disk.config(field::WRITEBACK), [1]);
    let at = DEVICE_OFFSET + field::WRITEBACK as u64;
    disk.driver.write(at, &[0]);
    assert_eq!(disk.config(field::WRITEBACK), [0]);
    assert_eq!(disk.write(0, &pattern(1)), OK);
    assert_eq!(disk.report()["unflushed"], 0);
    disk.driver.write(at, &[1]);
    assert_eq!(disk.write(0, &pattern(1)), OK);
    assert_eq!(disk.report()["unflushed"], 1);
    // No other field can be written.
    disk.driver.write(DEVICE_OFFSET, &[0xff; 4]);
    assert_eq!(disk.config(field::CAPACITY), 2048u64.to_le_bytes());
}

#[test]
fn requests_fail_on_demand() {
    let mut disk = Disk::start(&[]);
    disk.change(json!({"fail": {"type": "out", "status": "ioerr", "count": 2}}));
    let answers = [0; 3].map(|_| disk.write(0, &pattern(1)));
    assert_eq!(answers, [IOERR, IOERR, OK]);
    disk.change(json!({"fail": {"type": "flush", "status": "unsupp", "count": 1}}));
    assert_eq!(disk.write(0, &pattern(1)), OK);
    assert_eq!(disk.request(0, T::Flush, 0, &[], 0), UNSUPP);
    assert_eq!(disk.request(0, T::Flush, 0, &[], 0), OK);
}

#[test]
fn the_capacity_changes_with_a_notification() {
    let mut disk = Disk::start(&[]);
    let mut generation = [0];
    let at = reg::CONFIG_GENERATION;
    let mut read = |disk: &mut Disk| {
        let client = &mut disk.driver.client;
        client.region_read(BAR0, at, &mut generation).unwrap();
        generation[0]
    };
    let before = read(&mut disk);
    assert!(!disk.change(json!({"capacity": 4096})));
    assert!(disk.driver.vectors[0].read().is_ok());
    assert_ne!(read(&mut disk), before);
    assert_eq!(disk.config(field::CAPACITY), 4096u64.to_le_bytes());
    assert_eq!(disk.write(4088, &pattern(7)), OK);
    assert_eq!(disk.read(4088), pattern(7));

    // V3, V4: not while suspended.
    disk.suspend();
    assert!(disk.change(json!({"capacity": 1024})));
    assert!(disk.driver.vectors[0].read().is_err());
    assert_eq!(disk.report()["capacity"], 4096);
    disk.resume();
    assert!(disk.driver.vectors[0].read().is_ok());
    assert_eq!(disk.config(field::CAPACITY), 1024u64.to_le_bytes());
    assert_eq!(disk.write(1024, &pattern(1)), IOERR);
    // What is beyond is still there.
    disk.change(json!({"capacity": 4096}));
    assert_eq!(disk.read(4088), pattern(7));
}

#[test]
fn without_threads_the_answer_is_there_when_the_notification_is_over() {
    let mut disk = Disk::start(&["--threads", "0"]);
    for slot in 0..SLOTS {
        let sector = 8 * u64::from(slot);
        disk.add(1, slot, T::Out as u32, sector, &pattern(slot as u8), 0);
    }
    disk.driver.notify(1);
    // This waits for the access before.
    disk.driver.status();
    let all: Vec<_> = (0..SLOTS).map(|slot| (slot, 1)).collect();
    assert_eq!(disk.used(1), all);
    assert!(disk.driver.vectors[1].read().is_ok());
    for slot in 0..SLOTS {
        assert_eq!(disk.read(8 * u64::from(slot)), pattern(slot as u8));
    }
    // What is held is carried out later all the same.
    disk.driver.set(json!({"hold": true}));
    disk.add(0, 0, T::Out as u32, 0, &pattern(9), 0);
    disk.driver.notify(0);
    disk.driver.status();
    assert_eq!(disk.used(0), []);
    disk.driver.set(json!({"hold": false}));
    wait_for("the request", || disk.used(0) == [(0, 1)]);
    assert_eq!(disk.read(0), pattern(9));
}

#[test]
fn a_suspend_waits_for_what_is_in_process() {
    suspend_with_requests_in_process("0");
    suspend_with_requests_in_process("2");
}

fn suspend_with_requests_in_process(threads: &str) {
    let mut disk = Disk::start(&["--threads", threads, "--fault", "hold-ms=150"]);
    disk.add(0, 0, T::Out as u32, 0, &pattern(1), 0);
    disk.add(1, 0, T::Out as u32, 8, &pattern(2), 0);
    disk.driver.notify(0);
    disk.driver.notify(1);
    disk.driver.set_status(0x1f);
    assert_eq!(disk.driver.status(), 0x0f);
    disk.driver.wait_for_status(0x1b);
    // V2: used before the condition is presented.
    assert_eq!((disk.used(0), disk.used(1)), (vec![(0, 1)], vec![(0, 1)]));
    assert!(disk.driver.vectors[1].read().is_ok());
    disk.driver.set(json!({"faults": []}));
    disk.resume();
    assert_eq!((disk.read(0), disk.read(8)), (pattern(1), pattern(2)));
}

#[test]
fn writes_are_lost_on_demand() {
    let mut disk = Disk::start(&[]);
    assert_eq!(disk.write(0, &pattern(1)), OK);
    disk.driver
        .set(json!({"faults": ["writes-lost", "hold-ms=50"]}));
    disk.add(0, 0, T::Out as u32, 0, &pattern(2), 0);
    disk.driver.notify(0);
    disk.suspend();
    assert_eq!((disk.used(0), disk.status_byte(0, 0)), (vec![(0, 1)], OK));
    let stats = disk.driver.command(json!({"cmd": "stats"}));
    assert_eq!(
        stats["effective_faults"],
        json!(["writes-lost", "hold-ms=50"])
    );
    disk.driver.set(json!({"faults": []}));
    disk.resume();
    assert_eq!(disk.read(0), pattern(1));
    assert_eq!(disk.write(0, &pattern(2)), OK);
    assert_eq!(disk.read(0), pattern(2));
}

#[test]
fn a_buffer_left_available_is_finished_after_the_resume() {
    let mut disk = Disk::start(&[]);
    disk.driver.set(json!({"faults": ["avail-left"]}));
    disk.add(0, 0, T::Out as u32, 0, &pattern(1), 0);
    disk.driver.notify(0);
    disk.suspend();
    disk.resume();
    sleep(Duration::from_millis(50));
    let stats = disk.driver.command(json!({"cmd": "stats"}));
    assert_eq!(stats["counters"]["buffers_consumed"], 0);
    assert_eq!(disk.used(0), []);
    // The device does not look by itself.
    disk.driver.notify(0);
    wait_for("the request", || disk.used(0) == [(0, 1)]);
    assert_eq!(disk.read(0), pattern(1));
}

#[test]
fn a_reset_drops_what_is_in_process_and_keeps_the_data() {
    let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let path = dir.as_path().join("disk");
    let options = ["--backing", path.to_str().unwrap()];
    let mut disk = Disk::start(&options);
    assert_eq!(disk.write(0, &pattern(1)), OK);
    disk.driver.set(json!({"hold": true}));
    disk.add(0, 0, T::Out as u32, 0, &pattern(2), 0);
    disk.add(1, 0, T::In as u32, 0, &[0x77; 4096], 4096);
    disk.driver.notify(0);
    disk.driver.notify(1);
    disk.driver.set_status(0);
    assert_eq!(disk.driver.status(), 0);
    disk.driver.set(json!({"hold": false}));
    sleep(Duration::from_millis(50));
    // Neither the rings nor the buffers were touched.
    assert_eq!((disk.used(0), disk.used(1)), (vec![], vec![]));
    assert_eq!(
        (disk.status_byte(0, 0), disk.status_byte(1, 0)),
        (0xee, 0xee)
    );
    assert_eq!(disk.data(1, 0), [0x77; 4096]);
    disk.go_live(u64::MAX);
    assert_eq!(disk.read(0), pattern(1));
    drop(disk);
    // Nor does another process lose them.
    let mut disk = Disk::start(&options);
    assert_eq!(disk.read(0), pattern(1));
}

/// Keeps both queues full and suspends in the middle of it, again and again.
fn load(options: &[&str], rounds: u32) {
    let mut disk = Disk::start(options);
    let mut free = [(); QUEUES as usize].map(|()| (0..SLOTS).collect::<Vec<_>>());
    let (mut added, mut finished) = (0u64, 0u64);
    let mut sum = 0u64;
    for round in 0..rounds {
        for queue in 0..QUEUES {
            let mut slots = std::mem::take(&mut free[usize::from(queue)]);
            for slot in slots.drain(..) {
                let data = pattern((round + u32::from(slot)) as u8);
                let sector = 8 * u64::from(queue * SLOTS + slot);
                disk.add(queue, slot, T::Out as u32, sector, &data, 0);
                sum = sum.wrapping_add(checksum(sector, &data));
                added += 1;
            }
            disk.driver.notify(queue);
        }
        if round % 3 == 0 {
            disk.suspend();
            let before = [disk.seen, [0; 2]];
            for queue in 0..QUEUES {
                let used = disk.used(queue);
                finished += used.len() as u64;
                free[usize::from(queue)].extend(used.iter().map(|(slot, _)| slot));
            }
            // V3: what is not used by now stays so.
            sleep(Duration::from_millis(1));
            assert_eq!(disk.used(0).len() + disk.used(1).len(), 0, "{before:?}");
            disk.resume();
            (0..QUEUES).for_each(|queue| disk.driver.notify(queue));
        }
        wait_for("a request", || {
            for queue in 0..QUEUES {
                let used = disk.used(queue);
                finished += used.len() as u64;
                free[usize::from(queue)].extend(used.iter().map(|(slot, _)| slot));
            }
            free.iter().any(|slots| !slots.is_empty())
        });
    }
    wait_for("the rest", || {
        finished += (0..QUEUES)
            .map(|queue| disk.used(queue).len() as u64)
            .sum::<u64>();
        finished == added
    });
    let report = disk.report();
    let out = &report["requests"]["out"];
    assert_eq!((&out["ok"], &out["checksum"]), (&json!(added), &json!(sum)));
}

#[test]
fn nothing_is_lost_when_it_is_suspended_under_load() {
    load(&["--threads", "0"], 150);
    load(&["--threads", "1"], 150);
    load(&["--threads", "4"], 150);
}

#[test]
fn the_judge_watches_every_queue() {
    let mut disk = Disk::start(&[]);
    disk.suspend();
    disk.add(1, 0, T::Flush as u32, 0, &[], 0);
    disk.driver.notify(1);
    disk.driver.status();
    let mut rules = disk.driver.rules();
    rules.sort();
    assert_eq!(rules, ["D4", "D5"]);
    assert_eq!(disk.driver.command(json!({"cmd": "clear"}))["ok"], true);
}

#[test]
fn every_seed_leaves_a_device_that_a_reset_gets_going_again() {
    let mut disk = Disk::start(&[]);
    for seed in 0..40 {
        disk.driver.set(json!({"fuzz": seed}));
        for round in 0..12u16 {
            let slot = round % SLOTS;
            disk.add(round % 2, slot, T::Out as u32, 0, &pattern(1), 0);
            disk.driver.notify(round % 2);
            if round % 5 == 4 {
                disk.driver.set_status(0x1f);
                disk.driver.status();
                disk.driver.set_status(0x0f);
            }
        }
        disk.driver.set(json!({"fuzz": null}));
        disk.go_live(u64::MAX);
        disk.driver.command(json!({"cmd": "clear"}));
        assert_eq!(disk.write(0, &pattern(9)), OK, "seed {seed}");
        assert_eq!(disk.read(0), pattern(9), "seed {seed}");
    }
}

#[test]
fn wrong_options_are_told() {
    for (options, text) in [
        (&["--blk", "seg_max=1000"][..], "use 1 to 62"),
        (&["--blk", "toaster=1"][..], "toaster"),
        (&["--size", "1000"][..], "sectors of 512"),
        (&["--threads", "65"][..], "0..=64"),
        (&["--backing", "/nonexistent/disk"][..], "/nonexistent/disk"),
        (&["--without", "toast"][..], "possible values"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_virtio-test-device"))
            .args(["--socket", "/nonexistent/socket", "--type", "blk"])
            .args(options)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(text), "{error}");
    }
}

#[test]
fn the_last_word_has_the_counts() {
    let mut disk = Disk::start(&["--once"]);
    assert_eq!(disk.write(0, &pattern(1)), OK);
    assert!(disk.device.terminate().success());
    let events = disk.device.events();
    let last = events.last().unwrap();
    assert_eq!(last["device"]["requests"]["out"]["ok"], 1);
    std::mem::forget(disk);
}
