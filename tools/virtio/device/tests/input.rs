// SPDX-License-Identifier: GPL-2.0

//! An input device, driven as QEMU and a driver would.

mod harness;

use harness::{wait_for, Device, Driver, BAR0, BASE, BUFFER, SIZE};
use serde_json::{json, Value};
use virtio_test_device::transport::pci_common_config::{reg, DEVICE_OFFSET};

const FEATURES: u64 = 1 << 32 | 1 << 43;

/// Where the status queue is, and its one buffer.
const STATUS_DESC: u64 = 0x5000;
const STATUS_AVAIL: u64 = 0x6000;
const STATUS_USED: u64 = 0x7000;
const STATUS_BUFFER: u64 = 0x8000;

fn start() -> (Device, Driver) {
    let device = Device::start(&["--type", "input"]);
    let mut driver = Driver::connect(&device.socket());
    live(&mut driver);
    (device, driver)
}

fn live(driver: &mut Driver) {
    driver.set_status(0);
    let offered = driver.accept(FEATURES);
    assert_eq!(offered & FEATURES, FEATURES, "{offered:#x}");
    driver.set_up_queue();
    driver.store(STATUS_AVAIL, &[0; 4]);
    driver.store(STATUS_USED, &[0; 4]);
    driver.write(reg::QUEUE_SELECT, &1u16.to_le_bytes());
    driver.write(reg::QUEUE_SIZE, &SIZE.to_le_bytes());
    driver.write(reg::QUEUE_DESC, &(BASE + STATUS_DESC).to_le_bytes());
    driver.write(reg::QUEUE_DRIVER, &(BASE + STATUS_AVAIL).to_le_bytes());
    driver.write(reg::QUEUE_DEVICE, &(BASE + STATUS_USED).to_le_bytes());
    driver.write(reg::QUEUE_ENABLE, &1u16.to_le_bytes());
    driver.set_status(0x0f);
}

fn report(driver: &mut Driver) -> Value {
    driver.command(json!({"cmd": "device"}))["device"].clone()
}

fn change(driver: &mut Driver, change: Value) -> Value {
    let reply = driver.command(json!({"cmd": "device", "set": change}));
    assert_eq!(reply["ok"], true, "{reply}");
    reply["held"].clone()
}

fn read(driver: &mut Driver, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    let at = DEVICE_OFFSET + offset;
    driver.client.region_read(BAR0, at, &mut data).unwrap();
    data
}

/// The next event, for which a buffer is available.
fn event(driver: &mut Driver) -> (u16, u16, i32) {
    wait_for("an event", || driver.used() == driver.avail);
    let bytes: [u8; 8] = driver.load(BUFFER);
    (
        u16::from_le_bytes([bytes[0], bytes[1]]),
        u16::from_le_bytes([bytes[2], bytes[3]]),
        i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    )
}

#[test]
fn it_tells_what_is_selected() {
    let (_device, mut driver) = start();
    driver.write(DEVICE_OFFSET, &[1]);
    driver.write(DEVICE_OFFSET + 1, &[0]);
    assert_eq!(read(&mut driver, 2, 1), [17]);
    assert_eq!(read(&mut driver, 8, 17), b"virtio test input");
    // Of no name there is a second one.
    driver.write(DEVICE_OFFSET + 1, &[1]);
    assert_eq!(read(&mut driver, 2, 1), [0]);
    assert!(driver.rules().is_empty());
}

#[test]
fn what_happens_while_suspended_waits() {
    let (_device, mut driver) = start();
    driver.add();
    driver.notify(0);
    driver.set_status(0x1f);
    driver.wait_for_status(0x1b);
    assert_eq!(
        change(
            &mut driver,
            json!({"stream": {"count": 2, "interval_us": 500}})
        ),
        true
    );
    driver.set_status(0x1f);
    driver.wait_for_status(0x0f);
    assert_eq!(event(&mut driver), (2, 1, 1));
    // A stream that has begun goes on.
    assert_eq!(
        change(
            &mut driver,
            json!({"stream": {"count": 3, "interval_us": 50_000}})
        ),
        false
    );
    driver.set_status(0x1f);
    driver.wait_for_status(0x1b);
    let waiting = report(&mut driver)["waiting"].as_u64().unwrap();
    wait_for("a movement", || {
        report(&mut driver)["waiting"].as_u64().unwrap() > waiting
    });
    assert_eq!(driver.used(), driver.avail);
    driver.set_status(0x1f);
    driver.wait_for_status(0x0f);
    driver.add();
    driver.notify(0);
    assert_eq!(event(&mut driver), (0, 0, 0));
    assert!(driver.rules().is_empty(), "{:?}", driver.rules());
}

#[test]
fn what_is_set_is_known_until_a_reset() {
    let (_device, mut driver) = start();
    let led = [0x11, 0, 1, 0, 1, 0, 0, 0];
    driver.store(STATUS_BUFFER, &led);
    driver.store(STATUS_DESC, &(BASE + STATUS_BUFFER).to_le_bytes());
    driver.store(STATUS_DESC + 8, &8u32.to_le_bytes());
    driver.store(STATUS_DESC + 12, &[0; 4]);
    driver.store(STATUS_AVAIL + 2, &1u16.to_le_bytes());
    driver.notify(1);
    wait_for("the light", || {
        report(&mut driver)["states"] == json!([[17, 1, 1]])
    });
    assert_eq!(driver.load(STATUS_USED + 2), 1u16.to_le_bytes());
    live(&mut driver);
    assert_eq!(report(&mut driver)["states"], json!([]));
    assert_eq!(report(&mut driver)["received"], 1);
    assert!(driver.rules().is_empty());
}
