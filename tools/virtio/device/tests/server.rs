// SPDX-License-Identifier: GPL-2.0

//! The program as a whole: its socket, its command line and its event stream.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use virtio_test_device::transport::pci_common_config::NOTIFY_OFFSET;

mod harness;

use harness::{wait_for, Device, Driver, DEADLINE};

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
    driver.set_status(0);
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
fn a_server_that_closes_the_connection_takes_the_next_client() {
    let device = Device::start(&["--fault", "disconnect-on-resume"]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    driver.set_status(0x1f);
    assert_eq!(driver.status(), 0x1b);
    // There is no answer to this write.
    assert!(driver.client.region_write(0, 0x14, &[0x1f]).is_err());
    let mut data = [0];
    assert!(driver.client.region_read(0, 0x14, &mut data).is_err());
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    driver.read_entropy();
    // By a timer, which nobody looks at: at the next access.
    driver.set(json!({"faults": ["disconnect-while-suspended=1"]}));
    driver.set_status(0x1f);
    wait_for("the fault", || {
        device.names().iter().filter(|n| *n == "fault").count() == 2
    });
    assert!(driver.client.region_read(0, 0x14, &mut data).is_err());
}

#[test]
fn a_server_that_exits() {
    // By a timer, with nobody looking.
    let mut device = Device::start(&["--fault", "exit-while-suspended=1"]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    driver.set_status(0x1f);
    assert!(device.exit().success());
    assert!(!device.socket().exists());
    let events = device.events();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["violations"]),
        (&json!("summary"), &json!(0))
    );

    let mut device = Device::start(&[]);
    let mut driver = Driver::connect(&device.socket());
    driver.go_live(43);
    let text = r#"{"cmd":"fault-now","fault":"exit"}"#;
    let mut put = |offset, data: &[u8]| {
        let _ = driver.client.region_write(2, offset, data);
    };
    put(0x1000, text.as_bytes());
    put(8, &(text.len() as u32).to_le_bytes());
    assert!(device.exit().success());
}

#[test]
fn fuzz_replays_from_one_client_to_the_next() {
    let device = Device::start(&["--fuzz", "17"]);
    let session = || {
        let mut driver = Driver::connect(&device.socket());
        assert_eq!(driver.command(json!({"cmd": "info"}))["fuzz"], 17);
        driver.accept(1 << 32 | 1 << 43);
        driver.set_up_queue();
        driver.set_status(0x0f);
        (0..64).map(|_| driver.status()).collect::<Vec<_>>()
    };
    let first = session();
    assert_eq!(session(), first);
    assert!(first.contains(&0x0f) && first.iter().any(|status| *status != 0x0f));
    assert!(device
        .events()
        .iter()
        .any(|e| e["event"] == "fuzz" && e["seed"] == 17));
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
        "--fault",
        "--fuzz",
        "--backing",
        "write-zeroes",
        "--cable",
        "suspend-late[=MS]",
        "needs-reset-MOMENT",
        "while-suspended[=MS]",
    ] {
        assert!(help.contains(part), "{part}");
    }
}
