// SPDX-License-Identifier: GPL-2.0

//! The whole device against a small driver, with a clock that stands still unless told.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::DmaMapFlags;
use vmm_sys_util::tempfile::TempFile;

use serde_json::Value;

use super::*;
use crate::features::{self, Offer, Revision};
use crate::judge::Rule;
use crate::memory::Memory;
use crate::ring::testing::{Driver, Want, DESC, DEVICE, DRIVER, END};
use crate::rng::Rng;
use crate::settings::{DataKind, RingKind};
use crate::transport::pci_common_config::{self as common, reg};

mod faults;

const BAR0: u32 = VFIO_PCI_BAR0_REGION_INDEX;
const BAR2: u32 = VFIO_PCI_BAR2_REGION_INDEX;
const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;
const SIZE: u16 = 8;
const BUFFER: u64 = 0x8000;

/// A guest: memory, a driver of queue 0, interrupts.
struct Guest {
    device: Device,
    mem: Memory,
    driver: Driver,
    /// Configuration change and queue 0.
    vectors: [UnixStream; 2],
}

impl Guest {
    /// A device as `settings` say, its driver not yet there.
    fn new(settings: Settings) -> Self {
        let packed = settings.ring == RingKind::Packed;
        let mut device = Device::new(
            Kind::Rng,
            Box::<Rng>::default(),
            settings,
            SIZE,
            Events::none(),
        )
        .unwrap();
        device.clock = Clock::Manual(0);
        let file = TempFile::new().unwrap().into_file();
        file.set_len(END).unwrap();
        device
            .remap(|dma| dma.map(DmaMapFlags::READ_WRITE, 0, END, 0, Some(file)))
            .unwrap();
        let mem = device.memory().clone();
        let vectors = [0, 1].map(|vector| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let theirs = File::from(OwnedFd::from(theirs));
            let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
            device
                .irqs()
                .set(VFIO_PCI_MSIX_IRQ_INDEX, flags, vector, 1, vec![theirs]);
            ours
        });
        let mut guest = Self {
            device,
            mem,
            driver: Driver::new(packed, SIZE),
            vectors,
        };
        // MSI-X enable; the capability is the first.
        guest.device.region_write(CONFIG, 0x42, &[0x00, 0x80]);
        guest
    }

    /// A device whose driver has accepted all that is offered (but 42 if 43 is) and is live.
    fn live(settings: Settings) -> Self {
        let mut guest = Self::new(settings);
        guest.probe();
        guest
    }

    fn probe(&mut self) {
        self.write_status(0);
        self.driver = Driver::new(self.driver.packed, SIZE);
        self.mem_zero();
        self.write_status(0x01);
        self.write_status(0x03);
        let mut accept = 0;
        for select in 0..2u32 {
            self.write(reg::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            accept |= FeatureSet::from(self.read32(reg::DEVICE_FEATURE)) << (32 * select);
        }
        if accept & features::SUSPEND != 0 {
            accept &= !features::SUSPEND_DRAFT;
        }
        self.driver.packed = accept & features::RING_PACKED != 0;
        self.accept(accept);
        self.write_status(0x0b);
        assert_eq!(self.status(), 0x0b);
        self.set_up_queue();
        self.write_status(0x0f);
        assert_eq!(self.status(), 0x0f);
        assert_eq!(self.rules(), []);
        self.device.clear();
    }

    fn mem_zero(&self) {
        use vm_memory::{Bytes, GuestAddress};
        self.mem
            .write_slice(&vec![0; END as usize], GuestAddress(0))
            .unwrap();
    }

    fn accept(&mut self, features: FeatureSet) {
        for select in 0..2u32 {
            self.write(reg::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            let window = (features >> (32 * select)) as u32;
            self.write(reg::DRIVER_FEATURE, &window.to_le_bytes());
        }
    }

    fn set_up_queue(&mut self) {
        self.write(reg::CONFIG_MSIX_VECTOR, &0u16.to_le_bytes());
        self.write(reg::QUEUE_SELECT, &0u16.to_le_bytes());
        self.write(reg::QUEUE_MSIX_VECTOR, &1u16.to_le_bytes());
        for (offset, area) in [
            (reg::QUEUE_DESC, DESC),
            (reg::QUEUE_DRIVER, DRIVER),
            (reg::QUEUE_DEVICE, DEVICE),
        ] {
            self.write(offset, &(area as u32).to_le_bytes());
            self.write(offset + 4, &0u32.to_le_bytes());
        }
        self.write(reg::QUEUE_ENABLE, &1u16.to_le_bytes());
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.device.region_write(BAR0, offset, data);
    }

    fn read32(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.region_read(BAR0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write_status(&mut self, value: u8) {
        self.write(reg::DEVICE_STATUS, &[value]);
    }

    fn status(&mut self) -> u8 {
        let mut data = [0];
        self.device.region_read(BAR0, reg::DEVICE_STATUS, &mut data);
        data[0]
    }

    fn notify(&mut self) {
        self.write(common::NOTIFY_OFFSET, &0u16.to_le_bytes());
    }

    /// Makes a buffer of 16 bytes available.
    fn add(&mut self) -> u16 {
        self.driver.add(&self.mem, &[(BUFFER, 16, true)], false)
    }

    fn used(&mut self) -> Option<(u16, u32)> {
        self.driver.used(&self.mem)
    }

    /// How often a vector fired since the last call.
    fn fired(&mut self, vector: usize) -> usize {
        let mut bytes = [0; 256];
        self.vectors[vector].read(&mut bytes).unwrap_or(0) / 8
    }

    fn advance(&mut self, ms: u64) {
        let now = self.device.now_us();
        self.device.clock = Clock::Manual(now + ms * 1000);
    }

    fn command(&mut self, text: &str) -> Value {
        self.device
            .region_write(BAR2, mailbox::COMMAND_OFFSET, text.as_bytes());
        let length = (text.len() as u32).to_le_bytes();
        self.device
            .region_write(BAR2, mailbox::COMMAND_LENGTH_OFFSET, &length);
        let mut length = [0; 4];
        self.device
            .region_read(BAR2, mailbox::REPLY_LENGTH_OFFSET, &mut length);
        let mut reply = vec![0; u32::from_le_bytes(length) as usize];
        self.device
            .region_read(BAR2, mailbox::REPLY_OFFSET, &mut reply);
        serde_json::from_slice(&reply).unwrap()
    }

    fn set(&mut self, settings: &str) -> Value {
        let reply = self.command(&format!(r#"{{"cmd":"set","settings":{settings}}}"#));
        assert_eq!(reply["ok"], true, "{reply}");
        reply
    }

    fn rules(&self) -> Vec<Rule> {
        let violations = self.device.judge.violations();
        violations.iter().map(|violation| violation.rule).collect()
    }

    /// The status byte of the suspended condition, and the resume write.
    fn bytes(&self) -> (u8, u8) {
        match self.device.machine.revision() {
            Revision::V1_4 => (0x1b, 0x1f),
            _ => (0x1f, 0x0f),
        }
    }

    fn suspend(&mut self) {
        self.write_status(0x1f);
        assert_eq!(self.status(), self.bytes().0);
    }

    fn resume(&mut self) {
        self.write_status(self.bytes().1);
        assert_eq!(self.status(), 0x0f);
    }
}

fn settings(offer: Offer, ring: RingKind) -> Settings {
    Settings {
        offer,
        ring,
        indirect: true,
        event_idx: true,
        data: DataKind::Counter,
        ..Settings::default()
    }
}

fn ratified() -> Settings {
    settings(Offer::Ratified, RingKind::Split)
}

/// Both revisions, both layouts.
fn each(test: impl Fn(Settings)) {
    for offer in [Offer::Ratified, Offer::Draft, Offer::Both] {
        for ring in [RingKind::Split, RingKind::Packed] {
            test(settings(offer, ring));
        }
    }
}

#[test]
fn one_write_and_one_read_each_way() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        guest.suspend();
        guest.resume();
        let (suspended, resume) = guest.bytes();
        let counters = &guest.device.counters;
        assert_eq!((counters.status_writes, counters.status_reads), (2, 2));
        assert_eq!((counters.suspends, counters.resumes), (1, 1));
        assert_eq!(counters.presented, [0x0f, suspended, 0x0f]);
        assert_eq!(guest.rules(), []);
        let stats = guest.command(r#"{"cmd":"stats"}"#);
        let log = [
            "w1f".into(),
            format!("r{suspended:02x}"),
            format!("w{resume:02x}"),
            "r0f".into(),
        ];
        assert_eq!(stats["status_log"], json!(log));
        assert_eq!(stats["violations"], 0);
    });
}

#[test]
fn buffers_flow_before_and_after() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        for _ in 0..20 {
            guest.driver.want(&guest.mem, Want::Next);
            let id = guest.add();
            guest.notify();
            assert_eq!(guest.fired(1), 1);
            assert_eq!(guest.used(), Some((id, 16)));
            guest.suspend();
            guest.resume();
        }
        assert_eq!(guest.device.counters.bytes, 320);
        assert_eq!(guest.rules(), []);
    });
}

#[test]
fn v1_suspend_is_ignored_unless_negotiated() {
    let mut guest = Guest::live(settings(Offer::None, RingKind::Split));
    guest.write_status(0x1f);
    assert_eq!(guest.status(), 0x0f);
    let id = guest.add();
    guest.notify();
    assert_eq!(guest.used(), Some((id, 16)));
    assert_eq!(guest.rules(), [Rule::D2]);
}

#[test]
fn v2_buffers_in_process_are_finished_before_suspend_is_presented() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        guest.set(r#"{"hold":true,"delay_suspend_ms":10}"#);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), None);
        guest.write_status(0x1f);
        assert_eq!(guest.fired(1), 1);
        assert_eq!(guest.status(), 0x0f);
        assert_eq!(guest.used(), Some((id, 16)));
        guest.advance(10);
        assert_eq!(guest.status(), guest.bytes().0);
        guest.resume();
        assert_eq!(guest.rules(), []);
    });
}

#[test]
fn v3_a_suspended_device_does_nothing() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        guest.suspend();
        guest.add();
        guest.notify();
        assert_eq!(guest.used(), None);
        assert_eq!(guest.fired(1), 0);
        guest.write(reg::QUEUE_SELECT, &5u16.to_le_bytes());
        guest.write(reg::QUEUE_RESET, &1u16.to_le_bytes());
        guest.write(reg::CONFIG_MSIX_VECTOR, &1u16.to_le_bytes());
        guest.write(common::DEVICE_OFFSET, &[1]);
        assert_eq!(guest.device.common.queue_select, 0);
        assert_eq!(guest.device.common.msix_config, 0);
        assert!(guest.device.queues[0].ring.is_some());
        let expected = [Rule::D5, Rule::D6, Rule::D11, Rule::D6, Rule::D6];
        assert_eq!(guest.rules(), expected);
    });
}

#[test]
fn v4_a_configuration_change_waits_for_the_resume() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        let reply = guest.command(r#"{"cmd":"config_change"}"#);
        assert_eq!(
            (&reply["sent"], &reply["held"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(guest.fired(0), 1);

        guest.suspend();
        let generation = guest.device.common.config_generation;
        let reply = guest.command(r#"{"cmd":"config_change"}"#);
        assert_eq!(
            (&reply["sent"], &reply["held"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(guest.fired(0), 0);
        assert_eq!(guest.device.common.config_generation, generation);
        guest.resume();
        assert_eq!(guest.fired(0), 1);
        assert_ne!(guest.device.common.config_generation, generation);

        // Also if the suspend is taken back.
        guest.set(r#"{"delay_suspend_ms":10}"#);
        guest.write_status(0x1f);
        guest.command(r#"{"cmd":"config_change"}"#);
        guest.write_status(0x0f);
        assert_eq!(guest.fired(0), 1);
        assert_eq!(guest.rules(), []);
    });
}

#[test]
fn v5_a_refusal() {
    for ring in [RingKind::Split, RingKind::Packed] {
        let mut guest = Guest::live(settings(Offer::Ratified, ring));
        guest.set(r#"{"refuse_suspend":true}"#);
        guest.write_status(0x1f);
        assert_eq!(guest.fired(0), 1);
        assert_eq!(guest.status(), 0x4f);
        guest.write_status(0);
        assert_eq!(guest.status(), 0);
        assert_eq!(guest.device.counters.refusals, 1);

        let mut guest = Guest::live(settings(Offer::Draft, ring));
        guest.set(r#"{"refuse_suspend":true}"#);
        guest.write_status(0x1f);
        for _ in 0..3 {
            guest.advance(1000);
            assert_eq!(guest.status(), 0x0f);
        }
        guest.write_status(0x0f);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        assert_eq!(guest.rules(), []);
    }
}

#[test]
fn delays() {
    each(|settings| {
        let mut guest = Guest::live(Settings {
            delay_suspend_ms: 100,
            delay_resume_ms: 50,
            ..settings
        });
        let (suspended, resume) = guest.bytes();
        guest.write_status(0x1f);
        assert_eq!(guest.device.next_deadline_us(), Some(100_000));
        assert_eq!(guest.command(r#"{"cmd":"info"}"#)["state"], "suspending");
        guest.advance(99);
        assert_eq!(guest.status(), 0x0f);
        guest.advance(1);
        assert_eq!(guest.status(), suspended);
        assert_eq!(guest.device.next_deadline_us(), None);
        guest.write_status(resume);
        guest.advance(49);
        assert_eq!(guest.status(), suspended);
        assert_eq!(guest.command(r#"{"cmd":"info"}"#)["state"], "resuming");
        guest.advance(1);
        // Nobody looks, but the worker comes.
        guest.device.tick();
        assert_eq!(guest.device.counters.resumes, 1);
        assert_eq!(guest.status(), 0x0f);
        assert_eq!(guest.rules(), []);
    });
}

#[test]
fn a_suspend_can_be_taken_back() {
    each(|settings| {
        let mut guest = Guest::live(Settings {
            delay_suspend_ms: 100,
            ..settings
        });
        guest.write_status(0x1f);
        assert_eq!(guest.status(), 0x0f);
        guest.write_status(0x0f);
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
        guest.advance(1000);
        assert_eq!(guest.status(), 0x0f);
        let counters = &guest.device.counters;
        assert_eq!((counters.cancels, counters.suspends), (1, 0));
        assert_eq!(guest.rules(), []);
    });
}

#[test]
fn what_was_made_available_meanwhile_is_found_after_taking_back() {
    each(|settings| {
        let mut guest = Guest::live(Settings {
            delay_suspend_ms: 100,
            ..settings
        });
        guest.write_status(0x1f);
        let id = guest.add();
        guest.write_status(0x0f);
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn only_a_notification_finds_buffers_after_resume_unless_told() {
    each(|settings| {
        for rescan in [false, true] {
            let mut guest = Guest::live(settings.clone());
            guest.set(&format!(r#"{{"rescan_on_resume":{rescan}}}"#));
            // Available, not notified: the driver has to do that after the resume.
            let id = guest.add();
            guest.suspend();
            guest.resume();
            if !rescan {
                assert_eq!(guest.used(), None);
                guest.notify();
            }
            assert_eq!(guest.used(), Some((id, 16)));
            assert_eq!(guest.rules(), []);
        }
    });
}

#[test]
fn d4_a_buffer_made_available_while_suspended() {
    each(|settings| {
        let mut guest = Guest::live(settings.clone());
        guest.suspend();
        guest.add();
        guest.resume();
        assert_eq!(guest.rules(), [Rule::D4]);

        // Also while suspending, found by the re-read.
        let mut guest = Guest::live(Settings {
            delay_suspend_ms: 100,
            ..settings
        });
        guest.write_status(0x1f);
        guest.add();
        guest.status();
        assert_eq!(guest.rules(), [Rule::D4]);
    });
}

#[test]
fn d1_features_that_were_not_offered() {
    let mut guest = Guest::new(settings(Offer::None, RingKind::Split));
    guest.write_status(0x03);
    guest.accept(features::VERSION_1 | features::SUSPEND);
    guest.write_status(0x0b);
    assert_eq!(guest.status(), 0x03);
    assert_eq!(guest.rules(), [Rule::D1]);
    assert_eq!(guest.command(r#"{"cmd":"info"}"#)["negotiated"], "0x0");
}

#[test]
fn version_1_is_required() {
    let mut guest = Guest::new(ratified());
    guest.write_status(0x03);
    guest.accept(features::SUSPEND);
    guest.write_status(0x0b);
    assert_eq!(guest.status(), 0x03);
}

#[test]
fn holding_and_releasing() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        guest.set(r#"{"hold":true}"#);
        let first = guest.add();
        guest.notify();
        let second = guest.add();
        guest.notify();
        assert_eq!(guest.used(), None);
        let stats = guest.command(r#"{"cmd":"stats"}"#);
        assert_eq!(stats["queues"][0]["in_process"], 2);
        guest.set(r#"{"hold":false}"#);
        assert_eq!(guest.used(), Some((first, 16)));
        assert_eq!(guest.used(), Some((second, 16)));
        assert_eq!(guest.fired(1), 1);
    });
}

#[test]
fn offers_change_at_the_next_reset() {
    let mut guest = Guest::live(ratified());
    let reply = guest.set(r#"{"offer":"42","ring":"packed","delay_resume_ms":1}"#);
    assert_eq!(reply["pending"], json!(["offer", "ring"]));
    guest.suspend();
    guest.write_status(0);
    guest.probe();
    let info = guest.command(r#"{"cmd":"info"}"#);
    assert_eq!(info["revision"], "draft");
    assert_eq!(info["ring"], "packed");
    assert_eq!(info["pending"], json!([]));
    assert_eq!(info["status"], "0x0f");
}

#[test]
fn bad_settings_change_nothing() {
    let mut guest = Guest::live(ratified());
    let before = guest.device.settings.clone();
    for text in [
        r#"{"cmd":"set","settings":{"hold":true,"delay_suspend_ms":99999999}}"#,
        r#"{"cmd":"set","settings":{"hold":true,"speed":1}}"#,
        r#"{"cmd":"set","settings":{"hold":true,"max_bytes":0}}"#,
        r#"{"cmd":"set"}"#,
    ] {
        let reply = guest.command(text);
        assert_eq!(reply["ok"], false);
        assert!(!reply["error"].as_str().unwrap().is_empty());
        assert_eq!(guest.device.settings, before);
    }
}

#[test]
fn the_counter_stream_survives_a_suspend_and_restarts_at_reset() {
    use vm_memory::{Bytes, GuestAddress};
    let mut guest = Guest::live(ratified());
    let mut next = || {
        guest.add();
        guest.notify();
        guest.used().unwrap();
        guest.suspend();
        guest.resume();
        guest.mem.read_obj::<u32>(GuestAddress(BUFFER)).unwrap()
    };
    assert_eq!((next(), next(), next()), (0, 4, 8));
    guest.probe();
    guest.add();
    guest.notify();
    assert_eq!(guest.mem.read_obj::<u32>(GuestAddress(BUFFER)).unwrap(), 0);
}

#[test]
fn a_full_queue_is_finished_by_the_worker() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        for _ in 0..SIZE {
            guest.add();
        }
        guest.notify();
        assert!(guest.device.has_work());
        guest.device.work();
        assert!(!guest.device.has_work());
        for _ in 0..SIZE {
            assert!(guest.used().is_some());
        }
        // The driver was asked to notify the next one.
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn a_broken_buffer_needs_a_reset() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        let nowhere = [(u64::MAX - 7, 16, true)];
        guest.driver.add(&guest.mem, &nowhere, false);
        guest.notify();
        assert_eq!(guest.status(), 0x4f);
        assert_eq!(guest.fired(0), 1);
        assert_eq!(guest.used(), None);
        // Nothing but a reset helps.
        guest.add();
        guest.notify();
        assert_eq!(guest.used(), None);
        guest.write_status(0x5f);
        assert_eq!(guest.status(), 0x4f);
        assert_eq!(guest.rules(), [Rule::D9]);
        guest.device.clear();
        guest.probe();
        let id = guest.add();
        guest.notify();
        assert_eq!(guest.used(), Some((id, 16)));
    });
}

#[test]
fn a_driver_that_gives_more_than_it_has_needs_a_reset() {
    // Split only: a packed ring has no room for more.
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"hold":true}"#);
    guest.add();
    for _ in 1..SIZE {
        guest.driver.publish(&guest.mem, 0);
    }
    guest.notify();
    guest.device.work();
    assert_eq!(guest.status(), 0x0f);
    // Nothing was given back, so this is a descriptor that the device has already.
    guest.driver.publish(&guest.mem, 0);
    guest.notify();
    assert_eq!(guest.status(), 0x4f);
    assert_eq!(guest.device.queues[0].in_process.len(), usize::from(SIZE));
}

#[test]
fn memory_that_disappears_is_survived() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        guest.set(r#"{"hold":true}"#);
        guest.add();
        guest.notify();
        guest.device.remap(DmaMap::clear);
        guest.write_status(0x1f);
        assert_eq!(guest.status(), 0x4f);
        guest.notify();
    });
}

#[test]
fn every_reset_ends_a_suspend() {
    each(|settings| {
        for reset in 0..3 {
            let mut guest = Guest::live(settings.clone());
            guest.suspend();
            match reset {
                0 => guest.write_status(0),
                1 => guest.device.bus_reset(),
                // Initiate FLR in the Advanced Features capability, the last one.
                _ => {
                    let af = guest.device.pci.af_control();
                    guest.device.region_write(CONFIG, af, &[1]);
                }
            }
            assert_eq!(guest.status(), 0);
            assert_eq!(guest.command(r#"{"cmd":"info"}"#)["state"], "reset");
            let expected = if reset == 0 { vec![] } else { vec![Rule::D13] };
            assert_eq!(guest.rules(), expected);
            guest.device.clear();
            guest.device.region_write(CONFIG, 0x42, &[0x00, 0x80]);
            guest.probe();
            assert_eq!(guest.rules(), []);
        }
    });
}

#[test]
fn access_platform_is_offered_on_request_from_the_next_reset_on() {
    let mut guest = Guest::live(ratified());
    assert_eq!(guest.device.offered & features::ACCESS_PLATFORM, 0);
    let change = r#"{"cmd":"set","settings":{"access_platform":true}}"#;
    assert_eq!(guest.command(change)["pending"], json!(["access_platform"]));
    assert_eq!(guest.device.offered & features::ACCESS_PLATFORM, 0);
    guest.write_status(0);
    assert_ne!(guest.device.offered & features::ACCESS_PLATFORM, 0);
}

#[test]
fn what_is_kept_in_d3hot_survives_a_reset_of_the_bus() {
    each(|settings| {
        let mut guest = Guest::live(settings);
        guest.device.add_no_soft_reset();
        let control = guest.device.pci.pm_control();
        guest.device.region_write(CONFIG, 4, &[0b110]);
        guest.suspend();
        let status = guest.status();
        guest.device.region_write(CONFIG, control, &[3]);
        guest.device.bus_reset();
        // QEMU switches bus mastering off, and the function on, before it resets it.
        guest.device.region_write(CONFIG, 4, &[0b010]);
        guest.device.region_write(CONFIG, control, &[0]);
        guest.device.bus_reset();
        guest.device.region_write(CONFIG, 4, &[0b110]);
        assert_eq!(guest.status(), status);
        guest.resume();
        assert_eq!(guest.rules(), []);
        // When it has been switched on again, it is reset like any other.
        guest.device.bus_reset();
        assert_eq!(guest.status(), 0);
    });
}

#[test]
fn the_pci_cfg_window_reaches_the_status() {
    let mut guest = Guest::live(ratified());
    let window = guest.device.pci.window_offset();
    guest.device.region_write(CONFIG, window + 4, &[0]);
    let place = [reg::DEVICE_STATUS as u8, 0, 0, 0];
    guest.device.region_write(CONFIG, window + 8, &place);
    guest
        .device
        .region_write(CONFIG, window + 12, &[1, 0, 0, 0]);
    let mut data = [0; 1];
    guest.device.region_read(CONFIG, window + 16, &mut data);
    assert_eq!(data, [0x0f]);
    guest.device.region_write(CONFIG, window + 16, &[0x1f]);
    guest.device.region_read(CONFIG, window + 16, &mut data);
    assert_eq!(data, [0x1b]);
    assert_eq!(guest.rules(), []);
}

#[test]
fn without_msix_the_isr_says_why() {
    let mut guest = Guest::live(ratified());
    guest.device.region_write(CONFIG, 0x42, &[0, 0]);
    guest.add();
    guest.notify();
    guest.command(r#"{"cmd":"config_change"}"#);
    let mut isr = [0; 1];
    guest.device.region_read(BAR0, common::ISR_OFFSET, &mut isr);
    assert_eq!(isr, [0b11]);
    guest.device.region_read(BAR0, common::ISR_OFFSET, &mut isr);
    assert_eq!(isr, [0]);
}

#[test]
fn queue_reset() {
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"hold":true}"#);
    guest.add();
    guest.notify();
    guest.write(reg::QUEUE_RESET, &1u16.to_le_bytes());
    assert_eq!(guest.read32(reg::QUEUE_ENABLE) as u16, 0);
    guest.set(r#"{"hold":false}"#);
    guest.driver = Driver::new(false, SIZE);
    guest.mem_zero();
    guest.set_up_queue();
    let id = guest.add();
    guest.notify();
    assert_eq!(guest.used(), Some((id, 16)));
    assert_eq!(guest.rules(), []);
}

#[test]
fn a_judge_that_is_off_counts_only_and_goes_on_to_follow() {
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"judge":"off"}"#);
    guest.suspend();
    guest.notify();
    assert_eq!(guest.rules(), []);
    let stats = guest.command(r#"{"cmd":"stats"}"#);
    assert_eq!(
        (&stats["violations"], &stats["unjudged"]),
        (&json!(0), &json!(1))
    );

    // It knows that the device is suspended.
    guest.set(r#"{"judge":"on"}"#);
    guest.notify();
    assert_eq!(guest.rules(), [Rule::D5]);
    guest.command(r#"{"cmd":"clear"}"#);
    let stats = guest.command(r#"{"cmd":"stats"}"#);
    assert_eq!(
        (&stats["violations"], &stats["unjudged"]),
        (&json!(0), &json!(0))
    );
}

#[test]
fn a_judge_does_not_stay_off_for_the_next_client() {
    let mut guest = Guest::live(ratified());
    guest.set(r#"{"judge":"off"}"#);
    guest.device.disconnected();
    guest.device.connected();
    let info = guest.command(r#"{"cmd":"info"}"#);
    assert_eq!(info["settings"]["judge"], "on");
    assert!(!guest.device.judge.is_off());
}

#[test]
fn the_longest_stats_fit_into_the_mailbox() {
    let mut guest = Guest::live(ratified());
    for _ in 0..300 {
        guest.suspend();
        guest.write_status(0x0f);
        guest.notify();
        guest.write(reg::CONFIG_MSIX_VECTOR, &0u16.to_le_bytes());
        guest.add();
        guest.status();
    }
    guest.write_status(0);
    for ms in 3_000_000..3_000_100 {
        let fault = format!("features-ok-dropped-while-suspended={ms}");
        guest.set(&format!(r#"{{"faults":["{fault}"]}}"#));
    }
    let stats = guest.command(r#"{"cmd":"stats"}"#);
    assert_eq!(stats["ok"], true, "{stats}");
    assert_eq!(stats["idle_faults"].as_array().unwrap().len(), 16);
    assert_eq!(stats["violation_list"].as_array().unwrap().len(), 16);
    assert!(stats["violations"].as_u64().unwrap() > 300);
    assert_eq!(stats["status_log"].as_array().unwrap().len(), 64);

    guest.command(r#"{"cmd":"clear"}"#);
    let stats = guest.command(r#"{"cmd":"stats"}"#);
    assert_eq!(stats["violations"], 0);
    assert_eq!(stats["status_log"], json!([]));
    assert_eq!(stats["counters"]["status_reads"], 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any driver: random accesses anywhere, random bytes in memory. The device answers them all,
    /// and a reset followed by a proper driver always gets it going again.
    #[test]
    fn any_driver_is_survived(
        packed in any::<bool>(),
        accesses in proptest::collection::vec(
            (
                prop_oneof![Just(BAR0), Just(BAR0), Just(BAR0), Just(BAR2), Just(CONFIG), 0u32..12],
                prop_oneof![
                    0u64..0x40,
                    Just(reg::DEVICE_STATUS),
                    Just(common::NOTIFY_OFFSET),
                    0u64..0x4100,
                    any::<u64>(),
                ],
                prop_oneof![Just(1usize), Just(2), Just(4), Just(8), 0usize..17],
                prop_oneof![
                    Just(0x0fu64), Just(0x1f), Just(0x0b), 0u64..256, 0u64..END, any::<u64>(),
                ],
                any::<bool>(),
                0u64..END,
                0u64..3,
            ),
            0..80,
        ),
    ) {
        let ring = if packed { RingKind::Packed } else { RingKind::Split };
        let mut guest = Guest::live(settings(Offer::Both, ring));
        for (region, offset, len, value, write, address, ms) in accesses {
            use vm_memory::{Bytes, GuestAddress};
            let mut data = vec![0; len];
            for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
                *byte = from;
            }
            let _ = guest.mem.write_slice(&data, GuestAddress(DESC + address / 8));
            if write {
                guest.device.region_write(region, offset, &data);
            } else {
                guest.device.region_read(region, offset, &mut data);
            }
            guest.advance(ms);
            guest.device.tick();
            guest.device.work();
        }
        guest.device.function_reset("test");
        guest.device.settings = settings(Offer::Both, ring);
        guest.device.region_write(CONFIG, 0x42, &[0x00, 0x80]);
        guest.write_status(0);
        guest.device.clear();
        guest.probe();
        let id = guest.add();
        guest.notify();
        prop_assert_eq!(guest.used(), Some((id, 16)));
        guest.suspend();
        guest.resume();
        prop_assert_eq!(guest.rules(), []);
    }
}
