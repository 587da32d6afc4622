// SPDX-License-Identifier: GPL-2.0

//! The judge judged: a raw driver breaks each rule D1 to D14 on purpose and is caught with just
//! that rule, and keeps each and is left alone. Then the device, held against V1 to V5.

use std::thread::sleep;
use std::time::Duration;

use serde_json::json;
use virtio_test_device::transport::pci_common_config::{reg, DEVICE_OFFSET};

mod harness;

use harness::{wait_for, Device, Driver, BAR0, BUFFER, CONFIG, USED};

const VERSION_1: u64 = 1 << 32;
const ADMIN_VQ: u64 = 1 << 41;

/// A revision of SUSPEND: the feature bit, the suspended condition, the write that resumes.
#[derive(Clone, Copy)]
struct Revision {
    bit: u32,
    suspended: u8,
    resume: u8,
}

const RATIFIED: Revision = Revision {
    bit: 43,
    suspended: 0x1b,
    resume: 0x1f,
};
const DRAFT: Revision = Revision {
    bit: 42,
    suspended: 0x1f,
    resume: 0x0f,
};

/// A driver at work: what is done to break a rule, or to keep it.
struct Case {
    device: Device,
    driver: Driver,
    revision: Revision,
}

impl Case {
    fn new(options: &[&str], revision: Revision) -> Self {
        let bit = revision.bit.to_string();
        let mut all = vec![
            "--offer",
            if options.contains(&"none") {
                "none"
            } else {
                &bit
            },
        ];
        all.extend(options.iter().filter(|option| **option != "none"));
        let device = Device::start(&all);
        let driver = Driver::connect(&device.socket());
        Self {
            device,
            driver,
            revision,
        }
    }

    fn live(&mut self) -> &mut Self {
        self.driver.go_live(self.revision.bit);
        self
    }

    /// Live without SUSPEND.
    fn live_without(&mut self) -> &mut Self {
        self.driver.accept(VERSION_1);
        self.driver.set_up_queue();
        self.status(0x0f)
    }

    fn status(&mut self, value: u8) -> &mut Self {
        self.driver.set_status(value);
        self
    }

    fn suspended(&mut self) -> &mut Self {
        let suspended = self.revision.suspended;
        self.live().status(0x1f).driver.wait_for_status(suspended);
        self
    }

    fn resumed(&mut self) -> &mut Self {
        let resume = self.revision.resume;
        self.status(resume).driver.wait_for_status(0x0f);
        self
    }

    fn io(&mut self) -> &mut Self {
        self.driver.read_entropy();
        self
    }

    fn notify(&mut self, queue: u16) -> &mut Self {
        self.driver.notify(queue);
        self
    }

    fn register(&mut self, offset: u64, value: u16) -> &mut Self {
        self.driver.write(offset, &value.to_le_bytes());
        self
    }

    fn look_at_config(&mut self) -> &mut Self {
        let mut data = [0; 4];
        self.driver
            .client
            .region_read(BAR0, DEVICE_OFFSET, &mut data)
            .unwrap();
        self
    }

    /// The PCI command register.
    fn pci_command(&mut self, value: u8) -> &mut Self {
        self.driver
            .client
            .region_write(CONFIG, 4, &[value, 0])
            .unwrap();
        self
    }

    /// Live with an administration queue, which is where queue 0 would be: nothing is put in.
    fn live_with_admin(&mut self) -> &mut Self {
        let offered = self
            .driver
            .accept(VERSION_1 | ADMIN_VQ | 1 << self.revision.bit);
        assert_ne!(offered & ADMIN_VQ, 0);
        self.driver.set_up_queue();
        self.status(0x0f)
    }
}

type Step = fn(&mut Case);

/// Breaks a rule in each of these ways, on a device of its own each time.
fn broken(rule: &str, options: &[&str], ways: &[Step]) {
    for revision in [RATIFIED, DRAFT] {
        for way in ways {
            let mut case = Case::new(options, revision);
            way(&mut case);
            let rules = case.driver.rules();
            assert!(!rules.is_empty(), "{rule} was broken and not caught");
            assert!(rules.iter().all(|r| r == rule), "{rule}: {rules:?}");
            let event = case.device.events();
            let event = event.iter().find(|e| e["event"] == "violation").unwrap();
            assert_eq!(event["rule"], rule);
            for field in ["what", "access"] {
                assert!(!event[field].as_str().unwrap().is_empty());
            }
            assert!(event["time_us"].as_u64().unwrap() <= event["t_us"].as_u64().unwrap());
        }
    }
}

/// Keeps a rule in each of these ways.
fn kept(rule: &str, options: &[&str], ways: &[Step]) {
    for revision in [RATIFIED, DRAFT] {
        for way in ways {
            let mut case = Case::new(options, revision);
            way(&mut case);
            let rules = case.driver.rules();
            assert!(rules.is_empty(), "{rule} was kept, but: {rules:?}");
        }
    }
}

macro_rules! rules {
    ($($rule:literal $options:expr, $broken:ident: [$($break:expr),+ $(,)?],
       $kept:ident: [$($keep:expr),+ $(,)?];)+) => {
        $(
            #[test]
            fn $broken() {
                broken($rule, &$options, &[$($break),+]);
            }

            #[test]
            fn $kept() {
                kept($rule, &$options, &[$($keep),+]);
            }
        )+

        /// Every rule has its line.
        #[test]
        fn judge_knows_all_rules() {
            let rules = [$($rule),+];
            let all: Vec<String> = (1..=14).map(|n| format!("D{n}")).collect();
            assert_eq!(rules[..], all[..]);
        }
    };
}

rules! {
    "D1" ["none"],
    judge_d01_broken: [
        |case| {
            case.driver.accept(VERSION_1 | 1 << case.revision.bit);
        },
    ],
    judge_d01_kept: [|case| { case.live_without().io(); }];

    "D2" [],
    judge_d02_broken: [
        |case| { case.live_without().status(0x1f); },
        // Before DRIVER_OK.
        |case| {
            case.driver.accept(VERSION_1 | 1 << case.revision.bit);
            case.status(0x1b);
        },
    ],
    judge_d02_kept: [|case| { case.suspended().resumed(); }];

    "D3" ["--delay-suspend", "50"],
    judge_d03_broken: [
        |case| { case.live().status(0x1f).status(0x1f); },
        |case| { case.live().status(0x1f).look_at_config(); },
    ],
    judge_d03_kept: [
        |case| { case.suspended().look_at_config().resumed().io(); },
        // Taken back.
        |case| { case.live().status(0x1f).status(0x0f).io(); },
    ];

    "D4" [],
    judge_d04_broken: [
        |case| {
            case.suspended().driver.add();
            case.driver.status();
        },
        |case| {
            case.suspended().driver.add();
            case.resumed();
        },
    ],
    judge_d04_kept: [|case| { case.suspended().resumed().io(); }];

    "D5" [],
    judge_d05_broken: [|case| { case.suspended().notify(0); }],
    judge_d05_kept: [|case| { case.live().notify(0).suspended().resumed().notify(0); }];

    "D6" [],
    judge_d06_broken: [
        |case| { case.suspended().register(reg::QUEUE_SELECT, 0); },
        |case| { case.suspended().register(reg::CONFIG_MSIX_VECTOR, 0); },
        |case| { case.suspended().register(DEVICE_OFFSET, 0); },
    ],
    judge_d06_kept: [
        |case| { case.suspended().resumed().register(DEVICE_OFFSET, 0); },
    ];

    "D7" [],
    judge_d07_broken: [
        |case| {
            // Without SUSPEND 1.4 is broken, without FEATURES_OK both are.
            case.suspended().status(0x07);
        },
        |case| { case.live().status(0x0b); },
    ],
    judge_d07_kept: [|case| { case.suspended().resumed(); }];

    "D8" ["--delay-resume", "50"],
    judge_d08_broken: [
        |case| {
            let resume = case.revision.resume;
            case.suspended().status(resume).notify(0);
        },
        |case| {
            let resume = case.revision.resume;
            case.suspended().status(resume).register(reg::QUEUE_SELECT, 0);
        },
    ],
    judge_d08_kept: [|case| { case.suspended().resumed().notify(0); }];

    "D9" ["--fault", "needs-reset"],
    judge_d09_broken: [
        |case| {
            case.live().status(0x1f).driver.wait_for_status(0x4f);
            case.notify(0);
        },
        |case| {
            case.live().status(0x1f).driver.wait_for_status(0x4f);
            case.driver.add();
            case.status(0);
        },
        |case| {
            case.live().status(0x1f).driver.wait_for_status(0x4f);
            case.status(0x5f);
        },
    ],
    judge_d09_kept: [
        |case| {
            case.live().status(0x1f).driver.wait_for_status(0x4f);
            case.look_at_config().driver.status();
            case.status(0).live().io();
        },
    ];

    "D10" [],
    judge_d10_broken: [
        |case| {
            case.live().driver.set(json!({"hold": true}));
            case.driver.add();
            case.driver.add();
            case.notify(0);
        },
    ],
    judge_d10_kept: [
        |case| {
            case.live().driver.set(json!({"hold": true}));
            case.driver.add();
            case.notify(0).status(0x1f);
            let suspended = case.revision.suspended;
            case.driver.wait_for_status(suspended);
            assert_eq!(case.driver.used(), 1);
            case.resumed().driver.add();
            case.notify(0);
        },
    ];

    "D11" [],
    judge_d11_broken: [
        |case| { case.suspended().register(reg::QUEUE_RESET, 1); },
        |case| { case.suspended().register(reg::QUEUE_SIZE, 4); },
        |case| { case.suspended().register(reg::QUEUE_ENABLE, 1); },
    ],
    judge_d11_kept: [|case| { case.suspended().resumed().register(reg::QUEUE_RESET, 1); }];

    "D12" ["--fault", "config-change-before-suspend"],
    judge_d12_broken: [|case| { case.suspended().look_at_config(); }],
    judge_d12_kept: [|case| { case.suspended().resumed().look_at_config(); }];

    "D13" [],
    judge_d13_broken: [
        |case| { case.suspended().pci_command(6).pci_command(0); },
        |case| { case.suspended().driver.client.reset().unwrap(); },
    ],
    judge_d13_kept: [
        |case| { case.pci_command(6).suspended().status(0).pci_command(0); },
        |case| { case.suspended().status(0).driver.client.reset().unwrap(); },
        |case| { case.live().pci_command(6).pci_command(0); },
    ];

    "D14" ["--admin-vq"],
    judge_d14_broken: [
        |case| {
            let suspended = case.revision.suspended;
            case.live_with_admin().status(0x1f).driver.wait_for_status(suspended);
            case.notify(1);
        },
    ],
    judge_d14_kept: [
        |case| {
            let suspended = case.revision.suspended;
            case.live_with_admin().notify(1).status(0x1f).driver.wait_for_status(suspended);
            case.resumed().notify(1);
        },
    ];
}

/// D13 of a client that disappears is too late for the mailbox.
#[test]
fn judge_d13_disconnect() {
    for (reset, expected) in [(false, 1), (true, 0)] {
        let mut case = Case::new(&["--once"], RATIFIED);
        case.suspended();
        if reset {
            case.status(0);
        }
        let Case {
            mut device, driver, ..
        } = case;
        drop(driver);
        assert!(device.exit().success());
        let events = device.events();
        let violations = events.iter().filter(|e| e["event"] == "violation");
        assert_eq!(violations.clone().count(), expected);
        assert!(violations.into_iter().all(|v| v["rule"] == "D13"));
        let summary = events.iter().find(|e| e["event"] == "summary").unwrap();
        assert_eq!(summary["violations"], expected);
    }
}

fn each(options: &[&str], test: Step) {
    for revision in [RATIFIED, DRAFT] {
        test(&mut Case::new(options, revision));
    }
}

#[test]
fn device_v1_ignores_suspend_that_was_not_negotiated() {
    each(&[], |case| {
        case.live_without().status(0x1f);
        assert_eq!(case.driver.status(), 0x0f);
        case.io();
    });
}

#[test]
fn device_v1_ignores_suspend_before_driver_ok() {
    each(&[], |case| {
        case.driver.accept(VERSION_1 | 1 << case.revision.bit);
        for value in [0x1b, 0x13, 0x1b] {
            case.status(value);
            assert_eq!(case.driver.status(), 0x0b);
        }
        case.driver.set_up_queue();
        case.status(0x0f).io();
        case.status(0x1f);
        assert_eq!(case.driver.status(), case.revision.suspended);
    });
}

#[test]
fn device_v2_finishes_what_is_in_process_before_it_presents_suspend() {
    each(&["--fault", "hold-ms=80"], |case| {
        case.live().driver.add();
        case.notify(0);
        assert_eq!(case.driver.used(), 0);
        case.status(0x1f);
        let mut early = 0;
        while case.driver.status() == 0x0f {
            early += 1;
        }
        assert!(early > 0, "it was suspended at once");
        assert_eq!(case.driver.status(), case.revision.suspended);
        assert_eq!(case.driver.used(), 1);
        assert!(case.driver.vectors[1].read().is_ok(), "not notified");
    });
}

#[test]
fn device_v2_consumes_nothing_more_after_suspend_was_written() {
    each(&["--delay-suspend", "80"], |case| {
        case.live().status(0x1f).driver.add();
        case.notify(0);
        case.driver.wait_for_status(case.revision.suspended);
        let stats = case.driver.command(json!({"cmd": "stats"}));
        assert_eq!(stats["counters"]["buffers_consumed"], 0);
        assert_eq!(case.driver.used(), 0);
    });
}

#[test]
fn device_v3_does_nothing_while_suspended() {
    each(&[], |case| {
        case.suspended().driver.add();
        let image = |driver: &Driver| (driver.load::<64>(USED), driver.load::<16>(BUFFER));
        let before = image(&case.driver);
        case.notify(0);
        sleep(Duration::from_millis(50));
        assert_eq!(image(&case.driver), before);
        for vector in &case.driver.vectors {
            assert!(vector.read().is_err(), "a notification while suspended");
        }
    });
}

#[test]
fn device_v3_ignores_writes_while_suspended() {
    each(&[], |case| {
        let select = |case: &mut Case| {
            let mut data = [0; 2];
            let client = &mut case.driver.client;
            client
                .region_read(BAR0, reg::QUEUE_SELECT, &mut data)
                .unwrap();
            u16::from_le_bytes(data)
        };
        case.suspended()
            .register(reg::QUEUE_SELECT, 7)
            .register(reg::QUEUE_RESET, 1)
            .register(reg::QUEUE_MSIX_VECTOR, 0);
        assert_eq!(select(case), 0);
        case.resumed().io();
    });
}

#[test]
fn device_v4_notifies_a_change_after_the_resume() {
    each(&[], |case| {
        let generation = |case: &mut Case| {
            let mut data = [0];
            let client = &mut case.driver.client;
            client
                .region_read(BAR0, reg::CONFIG_GENERATION, &mut data)
                .unwrap();
            data[0]
        };
        case.live();
        let before = generation(case);
        case.status(0x1f);
        case.driver.wait_for_status(case.revision.suspended);
        let reply = case.driver.command(json!({"cmd": "config_change"}));
        assert_eq!(reply["held"], true);
        assert!(case.driver.vectors[0].read().is_err());
        assert_eq!(generation(case), before);
        case.resumed();
        assert_ne!(generation(case), before);
        let vectors = &case.driver.vectors;
        wait_for("the notification", || vectors[0].read().is_ok());
        assert!(vectors[0].read().is_err(), "notified twice");
    });
}

#[test]
fn device_v5_suspends_or_needs_a_reset() {
    for (options, suspended, resumed) in [
        (&[][..], 0x1b, 0x0f),
        (&["--refuse-suspend"], 0x4f, 0),
        (&["--fault", "needs-reset-on-suspend"], 0x4f, 0),
        (&["--fault", "needs-reset-on-resume"], 0x1b, 0x5b),
    ] {
        let mut case = Case::new(options, RATIFIED);
        case.live().status(0x1f).driver.wait_for_status(suspended);
        if resumed != 0 {
            case.status(0x1f).driver.wait_for_status(resumed);
        }
        case.status(0);
        assert_eq!(case.driver.status(), 0);
        case.live().io();
        assert!(case.driver.rules().is_empty());
    }
}
