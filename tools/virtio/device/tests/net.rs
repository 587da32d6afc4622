// SPDX-License-Identifier: GPL-2.0

//! Two network devices on a cable, driven as QEMU and a driver would.

mod harness;

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use harness::{wait_for, Device, Driver, BASE};
use serde_json::{json, Value};
use virtio::net::F;
use virtio_test_device::net::control::{ERR, OK};
use virtio_test_device::transport::pci_common_config::{reg, DEVICE_OFFSET};
use vmm_sys_util::tempdir::TempDir;

const VERSION_1: u64 = 1 << 32;
const SUSPEND: u64 = 1 << 43;

const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;

/// Entries of each queue, and so buffers.
const SIZE: u16 = 8;
/// Size of a buffer.
const BUFFER: usize = 0x400;
const HEADER: usize = 12;

fn bits(features: F) -> u64 {
    features.bits().to_ne() as u64
}

/// One of the queues, for which this is the driver.
#[derive(Default)]
struct Queue {
    index: u16,
    avail: u16,
    used: u16,
}

impl Queue {
    fn area(&self) -> u64 {
        0x1000 + 0x800 * u64::from(self.index % 3)
    }

    fn buffer(&self, slot: u16) -> u64 {
        0x4000 + 0x4000 * u64::from(self.index % 3) + BUFFER as u64 * u64::from(slot)
    }

    fn set_up(&mut self, driver: &mut Driver, index: u16) {
        *self = Self {
            index,
            ..Self::default()
        };
        let area = self.area();
        driver.store(area, &[0; 0x800]);
        driver.write(reg::QUEUE_SELECT, &index.to_le_bytes());
        driver.write(reg::QUEUE_SIZE, &SIZE.to_le_bytes());
        driver.write(reg::QUEUE_MSIX_VECTOR, &1u16.to_le_bytes());
        driver.write(reg::QUEUE_DESC, &(BASE + area).to_le_bytes());
        driver.write(reg::QUEUE_DRIVER, &(BASE + area + 0x200).to_le_bytes());
        driver.write(reg::QUEUE_DEVICE, &(BASE + area + 0x400).to_le_bytes());
        driver.write(reg::QUEUE_ENABLE, &1u16.to_le_bytes());
    }

    /// Makes a buffer available: `data` to read, then so many bytes to write.
    fn add(&mut self, driver: &mut Driver, data: &[u8], writable: usize) {
        let slot = self.avail % (SIZE / 2);
        let buffer = self.buffer(slot);
        driver.store(buffer, data);
        let first = 2 * slot;
        let mut parts = Vec::new();
        if !data.is_empty() {
            parts.push((buffer, data.len(), 0u16));
        }
        if writable > 0 {
            parts.push((buffer + data.len() as u64, writable, 2));
        }
        for (i, (address, len, flags)) in parts.iter().enumerate() {
            let next = u16::from(i + 1 < parts.len());
            let desc = self.area() + 16 * u64::from(first + i as u16);
            driver.store(desc, &(BASE + address).to_le_bytes());
            driver.store(desc + 8, &(*len as u32).to_le_bytes());
            driver.store(desc + 12, &(flags | next).to_le_bytes());
            driver.store(desc + 14, &(first + 1).to_le_bytes());
        }
        let entry = self.area() + 0x204 + 2 * u64::from(self.avail % SIZE);
        driver.store(entry, &first.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        driver.store(self.area() + 0x202, &self.avail.to_le_bytes());
        driver.notify(self.index);
    }

    /// The next buffer that was used: what was written from its beginning.
    fn used(&mut self, driver: &Driver) -> Option<Vec<u8>> {
        let index = u16::from_le_bytes(driver.load(self.area() + 0x402));
        if index == self.used {
            return None;
        }
        let entry = self.area() + 0x404 + 8 * u64::from(self.used % SIZE);
        let id = u32::from_le_bytes(driver.load(entry)) as u16;
        let len = u32::from_le_bytes(driver.load(entry + 4)) as usize;
        self.used = self.used.wrapping_add(1);
        let bytes: [u8; BUFFER] = driver.load(self.buffer(id / 2));
        Some(bytes[..len].to_vec())
    }
}

/// A device with its driver.
struct End {
    device: Device,
    driver: Driver,
    rx: Queue,
    tx: Queue,
    control: Queue,
}

impl End {
    fn new(cable: &Path, options: &[&str]) -> Self {
        let cable = cable.to_str().unwrap();
        let device = Device::start(&[&["--type", "net", "--cable", cable], options].concat());
        let driver = Driver::connect(&device.socket());
        Self {
            device,
            driver,
            rx: Queue::default(),
            tx: Queue::default(),
            control: Queue::default(),
        }
    }

    /// With these features, live.
    fn live(mut self, features: F) -> Self {
        self.negotiate(bits(features) | SUSPEND, CONTROL);
        self
    }

    fn negotiate(&mut self, features: u64, control: u16) {
        self.driver.set_status(0);
        let features = features | VERSION_1;
        let offered = self.driver.accept(features);
        assert_eq!(offered & features, features, "{offered:#x}");
        self.driver
            .write(reg::CONFIG_MSIX_VECTOR, &0u16.to_le_bytes());
        self.rx.set_up(&mut self.driver, RX);
        self.tx.set_up(&mut self.driver, TX);
        self.control.set_up(&mut self.driver, control);
        self.driver.set_status(0x0f);
    }

    fn report(&mut self) -> Value {
        self.driver.command(json!({"cmd": "device"}))["device"].clone()
    }

    fn change(&mut self, change: Value) -> Value {
        self.driver.command(json!({"cmd": "device", "set": change}))
    }

    fn wait_for_carrier(&mut self, up: bool) {
        wait_for("the carrier", || self.report()["link"] == up);
    }

    /// Sends a frame with this header.
    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let bytes = [&header, frame].concat();
        self.tx.add(&mut self.driver, &bytes, 0);
        assert_eq!(self.tx.used(&self.driver).unwrap().len(), 0);
    }

    fn give(&mut self, count: usize) {
        for _ in 0..count {
            self.rx.add(&mut self.driver, &[], BUFFER);
        }
    }

    /// Waits for a packet, in as many buffers as it says.
    fn receive(&mut self) -> Vec<u8> {
        let mut packet = self.next();
        for _ in 1..u16::from_le_bytes([packet[10], packet[11]]) {
            packet.extend(self.rx.used(&self.driver).unwrap());
        }
        packet
    }

    fn next(&mut self) -> Vec<u8> {
        let mut next = None;
        wait_for("a packet", || {
            next = self.rx.used(&self.driver);
            next.is_some()
        });
        next.unwrap()
    }

    /// Has a command executed, and returns what the device says to it.
    fn command(&mut self, command: &[u8]) -> u8 {
        self.control.add(&mut self.driver, command, 1);
        let used = self.control.used(&self.driver).unwrap();
        assert_eq!(used.len(), 1);
        let slot = self.control.used.wrapping_sub(1) % (SIZE / 2);
        let [ack] = self
            .driver
            .load(self.control.buffer(slot) + command.len() as u64);
        ack
    }

    /// The status in the configuration.
    fn link_status(&mut self) -> u8 {
        let mut data = [0; 2];
        self.driver
            .client
            .region_read(harness::BAR0, DEVICE_OFFSET + 6, &mut data)
            .unwrap();
        data[0]
    }

    fn suspend(&mut self) {
        self.driver.set_status(0x1f);
        assert_eq!(self.driver.status(), 0x1b);
    }

    fn resume(&mut self) {
        self.driver.set_status(0x1f);
        assert_eq!(self.driver.status(), 0x0f);
    }

    fn config_interrupts(&self) -> u64 {
        self.driver.vectors[0].read().unwrap_or(0)
    }
}

/// Two ends with these features.
fn pair(one: F, other: F) -> (End, End, TempDir) {
    let dir = TempDir::new().unwrap();
    let cable = dir.as_path().join("cable");
    let mut one = End::new(&cable, &[]).live(one);
    let mut other = End::new(&cable, &[]).live(other);
    one.wait_for_carrier(true);
    other.wait_for_carrier(true);
    (one, other, dir)
}

fn both(features: F) -> (End, End, TempDir) {
    pair(features, features)
}

fn frame(byte: u8) -> Vec<u8> {
    vec![byte; 60]
}

/// A TCP frame, and the header of a driver that left its checksum, and perhaps its segmentation, to
/// the device.
fn tcp(payload: usize, gso_size: u16) -> ([u8; HEADER], Vec<u8>) {
    let mut data = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 1000, 100)
        .write(&mut data, &vec![0x5a; payload])
        .unwrap();
    // The sum of the pseudo header.
    let length = (data.len() - 34) as u32;
    let sum: u32 = 0x0a00 + 1 + 0x0a00 + 2 + 6 + length;
    data[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
    let [g0, g1] = gso_size.to_le_bytes();
    let kind = u8::from(gso_size > 0);
    ([1, kind, 54, 0, g0, g1, 34, 0, 16, 0, 0, 0], data)
}

/// The length of a TCP segment's payload; panics if its checksum is wrong.
fn checked(frame: &[u8]) -> usize {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        panic!("no TCP");
    };
    let sum = tcp.calc_checksum_ipv4([10, 0, 0, 1], [10, 0, 0, 2]);
    assert_eq!(sum.unwrap(), tcp.checksum());
    tcp.payload().len()
}

const CONTROLLED: F = F::CTRL_VQ
    .union(F::CTRL_RX)
    .union(F::CTRL_VLAN)
    .union(F::CTRL_MAC_ADDR)
    .union(F::GUEST_ANNOUNCE)
    .union(F::STATUS)
    .union(F::MRG_RXBUF);

#[test]
fn frames_go_both_ways_in_order() {
    let (mut one, mut other, _dir) = both(F::STATUS);
    other.give(3);
    one.give(1);
    for byte in 1..=3 {
        one.send([0; HEADER], &frame(byte));
    }
    other.send([0; HEADER], &frame(9));
    for byte in 1..=3 {
        let packet = other.receive();
        assert_eq!(packet[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(packet[HEADER..], frame(byte));
    }
    assert_eq!(one.receive()[HEADER..], frame(9));
    let (one, other) = (one.report(), other.report());
    assert_eq!(
        (&one["tx"]["packets"], &one["tx"]["bytes"]),
        (&json!(3), &json!(180))
    );
    assert_eq!(
        (&other["rx"]["packets"], &other["rx"]["bytes"]),
        (&json!(3), &json!(180))
    );
}

#[test]
fn offloads_are_passed_on_or_done() {
    let all = F::CSUM | F::HOST_TSO4 | F::MRG_RXBUF | F::GUEST_CSUM | F::GUEST_TSO4;
    let (mut one, mut other, _dir) = both(all);
    let (header, data) = tcp(1000, 400);
    // In two buffers.
    other.give(1);
    one.send(header, &data);
    sleep(Duration::from_millis(50));
    assert!(other.rx.used(&other.driver).is_none());
    other.give(1);
    let packet = other.receive();
    assert_eq!(packet[..10], header[..10]);
    assert_eq!((packet[10], &packet[HEADER..]), (2, &data[..]));

    // A receiver without offloads.
    other.negotiate(SUSPEND, CONTROL);
    other.give(4);
    one.send(header, &data);
    let lengths: Vec<usize> = (0..3)
        .map(|_| {
            let packet = other.receive();
            assert_eq!(packet[..10], [0; 10]);
            checked(&packet[HEADER..])
        })
        .collect();
    assert_eq!(lengths, [400, 400, 200]);
    let (header, data) = tcp(77, 0);
    one.send(header, &data);
    assert_eq!(checked(&other.receive()[HEADER..]), 77);

    // A sender that has not negotiated what it does.
    one.negotiate(SUSPEND, CONTROL);
    one.send(header, &data);
    let mut nonsense = header;
    nonsense[1] = 99;
    one.send(nonsense, &data);
    let report = one.report();
    assert_eq!(report["tx"]["malformed"], 2, "{report}");
    assert_eq!(one.driver.status(), 0x0f);
}

#[test]
fn what_arrives_while_suspended_waits() {
    let (mut one, mut other, _dir) = both(F::MRG_RXBUF);
    other.give(2);
    other.suspend();
    for byte in 1..=3 {
        one.send([0; HEADER], &frame(byte));
    }
    wait_for("the frames", || other.report()["waiting"] == 3);
    // V3: no virtqueue is touched.
    assert!(other.rx.used(&other.driver).is_none());
    other.resume();
    assert_eq!(other.receive()[HEADER..], frame(1));
    assert_eq!(other.receive()[HEADER..], frame(2));
    other.give(1);
    assert_eq!(other.receive()[HEADER..], frame(3));
    assert_eq!(other.driver.rules(), [""; 0]);
}

#[test]
fn a_suspend_gives_buffers_back_that_are_too_few() {
    let (mut one, mut other, _dir) = both(F::MRG_RXBUF | F::CSUM | F::GUEST_CSUM);
    let large = vec![7; 1400];
    other.give(1);
    one.send([0; HEADER], &large[..1000]);
    assert_eq!(other.receive().len(), HEADER + 1000);
    other.give(1);
    // It needs two.
    one.tx.avail = 0;
    one.negotiate(SUSPEND | bits(F::MRG_RXBUF), CONTROL);
    send_large(&mut one, &large);
    let taken = |end: &mut End| {
        let stats = end.driver.command(json!({"cmd": "stats"}));
        stats["queues"][0]["in_process"].as_u64().unwrap()
    };
    wait_for("the buffer is taken", || taken(&mut other) == 1);
    // V2: nothing is in process, and the buffer is not used either.
    other.suspend();
    assert_eq!(taken(&mut other), 0);
    assert!(other.rx.used(&other.driver).is_none());
    other.resume();
    other.give(1);
    let packet = other.receive();
    assert_eq!((packet[10], &packet[HEADER..]), (2, &large[..]));
    assert_eq!(other.driver.rules(), [""; 0]);
}

/// Sends a frame that does not fit into one buffer of these tests.
fn send_large(end: &mut End, frame: &[u8]) {
    let bytes = [&[0; HEADER], frame].concat();
    // Slots follow each other in memory, and this is the first.
    assert_eq!(end.tx.avail, 0);
    end.tx.add(&mut end.driver, &bytes, 0);
}

#[test]
fn control_commands() {
    let (mut one, mut other, _dir) = both(CONTROLLED);
    let mac = [2, 0, 0, 0, 0, 9];
    assert_eq!(other.command(&[0, 0, 0]), OK);
    assert_eq!(other.command(&[&[1, 1][..], &mac].concat()), OK);
    assert_eq!(other.command(&[2, 0, 5, 0]), OK);
    let table = [&[1, 0, 0, 0, 0, 0, 1, 0, 0, 0][..], &[0x33; 6]].concat();
    assert_eq!(other.command(&table), OK);
    // What was not negotiated, what is not possible, and what there is not.
    assert_eq!(other.command(&[4, 0, 1, 0]), ERR);
    assert_eq!(other.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), ERR);
    assert_eq!(other.command(&[2, 0, 0, 0x10]), ERR);
    assert_eq!(other.command(&[9, 9, 9]), ERR);
    assert_eq!(other.command(&[0]), ERR);
    let report = other.report();
    assert_eq!(report["filter"]["mac"], "02:00:00:00:00:09");
    assert_eq!(report["filter"]["promiscuous"], false);
    assert_eq!(report["filter"]["multicast"], json!(["33:33:33:33:33:33"]));
    assert_eq!(report["filter"]["vlans"]["first"], json!([5]));
    assert_eq!(report["commands"]["refused"], 5);
    assert_eq!(report["commands"]["mac"], 2);

    // The filter filters, and a suspend does not change it.
    other.give(4);
    other.suspend();
    other.resume();
    let to = |mac: [u8; 6]| [&mac[..], &[1; 54]].concat();
    for target in [[2; 6], [0x33; 6], mac, [0xff; 6]] {
        one.send([0; HEADER], &to(target));
    }
    for target in [[0x33; 6], mac, [0xff; 6]] {
        assert_eq!(other.receive()[HEADER..HEADER + 6], target);
    }
    assert_eq!(other.report()["rx"]["filtered"], 1);
    // A reset does.
    other.negotiate(bits(CONTROLLED) | SUSPEND, CONTROL);
    assert_eq!(other.report()["filter"]["promiscuous"], true);
    assert_ne!(other.report()["filter"]["mac"], "02:00:00:00:00:09");
}

#[test]
fn link_changes_wait_for_the_resume() {
    let (mut one, mut other, _dir) = both(CONTROLLED);
    other.config_interrupts();
    assert_eq!(other.link_status(), 1);
    assert_eq!(other.change(json!({"link": false}))["held"], false);
    assert_eq!(other.config_interrupts(), 1);
    assert_eq!(other.link_status(), 0);
    other.send([0; HEADER], &frame(1));
    one.send([0; HEADER], &frame(2));
    wait_for("the frame", || other.report()["rx"]["link_down"] == 1);
    assert_eq!(other.report()["tx"]["link_down"], 1);

    // V3, V4.
    other.suspend();
    assert_eq!(
        other.change(json!({"link": true, "announce": true}))["held"],
        true
    );
    assert_eq!(other.link_status(), 0);
    assert_eq!(other.config_interrupts(), 0);
    other.resume();
    assert_eq!(other.config_interrupts(), 1);
    assert_eq!(other.link_status(), 3);
    assert_eq!(other.command(&[3, 0]), OK);
    assert_eq!(other.link_status(), 1);
    for change in [
        json!({"mtu": 67}),
        json!({"link": 1}),
        json!({"speed": -1}),
        json!({"x": 1}),
    ] {
        assert_eq!(other.change(change)["ok"], false);
    }
}

#[test]
fn the_other_end_goes_and_comes() {
    let (mut one, mut other, dir) = both(CONTROLLED);
    one.config_interrupts();
    one.suspend();
    assert!(other.device.terminate().success());
    wait_for("the carrier", || one.report()["carrier"] == false);
    // V3.
    assert_eq!((one.link_status(), one.config_interrupts()), (1, 0));
    one.resume();
    assert_eq!((one.link_status(), one.config_interrupts()), (0, 1));
    one.send([0; HEADER], &frame(1));
    assert_eq!(one.report()["tx"]["link_down"], 1);

    let cable = dir.as_path().join("cable");
    let mut other = End::new(&cable, &[]).live(CONTROLLED);
    one.wait_for_carrier(true);
    assert_eq!(one.config_interrupts(), 1);
    other.give(1);
    one.send([0; HEADER], &frame(2));
    assert_eq!(other.receive()[HEADER..], frame(2));
    // That is who looked too early, to see that nothing has changed.
    assert_eq!(one.driver.rules(), ["D12"]);
}

#[test]
fn the_control_queue_comes_after_the_pairs_in_use() {
    let dir = TempDir::new().unwrap();
    let cable = dir.as_path().join("cable");
    let mut end = End::new(&cable, &["--queue-pairs", "4"]).live(CONTROLLED);
    assert_eq!(end.command(&[0, 0, 0]), OK);
    end.negotiate(bits(CONTROLLED | F::MQ), 8);
    assert_eq!(end.command(&[4, 0, 4, 0]), OK);
    assert_eq!(end.report()["pairs"], 4);
    assert_eq!(end.command(&[4, 0, 5, 0]), ERR);
    assert_eq!(end.command(&[4, 0, 0, 0]), ERR);
}

#[test]
fn bit_42_is_not_the_drafts_suspend() {
    let dir = TempDir::new().unwrap();
    let cable = dir.as_path().join("cable");
    let mut end = End::new(&cable, &["--offer", "42"]);
    end.negotiate(1 << 42, CONTROL);
    assert_eq!(
        end.driver.command(json!({"cmd": "info"}))["revision"],
        "none"
    );
    end.driver.set_status(0x1f);
    assert_eq!(end.driver.status() & 0x10, 0);
    assert!(!end.driver.rules().is_empty());
}

#[test]
fn any_seed_leaves_a_device_that_a_reset_gets_going() {
    let (mut one, mut other, _dir) = both(CONTROLLED);
    for seed in 0..40 {
        other.driver.set(json!({"fuzz": seed}));
        other.negotiate(bits(CONTROLLED) | SUSPEND, CONTROL);
        for round in 0..4 {
            other.rx.add(&mut other.driver, &[], BUFFER);
            one.send([0; HEADER], &frame(round));
            other.tx.add(&mut other.driver, &[0; 80], 0);
            other.control.add(&mut other.driver, &[0, 0, 1], 1);
        }
        other.driver.set_status(0x1f);
        other.driver.status();
        other.driver.set_status(0x1f);
    }
    other.driver.set(json!({"fuzz": null}));
    other.negotiate(bits(CONTROLLED) | SUSPEND, CONTROL);
    other.wait_for_carrier(true);
    // Frames that were sent above may still be on the cable, and arrive first.
    one.send([0; HEADER], &frame(9));
    let arrived = (0..64).any(|_| {
        other.give(1);
        other.receive()[HEADER..] == frame(9)
    });
    assert!(arrived, "what was sent last did not arrive");
    assert_eq!(other.command(&[0, 0, 1]), OK);
}

#[test]
fn the_summary_has_the_counts() {
    let (mut one, _other, _dir) = both(CONTROLLED);
    one.send([0; HEADER], &frame(1));
    assert!(one.device.terminate().success());
    let events = one.device.events();
    assert_eq!(events.last().unwrap()["device"]["tx"]["packets"], 1);
}

#[test]
fn options_that_are_not_possible() {
    for (options, message) in [
        (["--mac", "01:00:00:00:00:00"], "unicast"),
        (["--mac", "2:3:4:5:6:7"], "unicast"),
        (["--cable", "/no/such/directory/cable"], "directory"),
        (["--net-without", "toaster"], "mrg_rxbuf"),
        (["--net-without", "csum"], "--net-without leaves a feature"),
        (["--queue-pairs", "0"], "1..="),
        (["--mtu", "67"], "68.."),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_virtio-test-device"))
            .args(["--socket", "/no/such/directory/socket", "--type", "net"])
            .args(options)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(text.contains(message), "{options:?}: {text}");
    }
}
