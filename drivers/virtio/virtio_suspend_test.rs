// SPDX-License-Identifier: GPL-2.0

//! A driver that tests whether a device suspends as it should.
//!
//! It does to the device what no good driver does and what every good one relies on, and judges by
//! the rules V1 to V5 of Documentation/virtio/conformance.rst, from the guest's side. It is bound
//! by hand, to the device that it is told:
//!
//! ```sh
//! modprobe virtio_suspend_test device=virtio2
//! echo virtio2 > /sys/bus/virtio/drivers/virtio_net/unbind
//! echo virtio2 > /sys/bus/virtio/drivers/virtio_suspend_test/bind
//! echo all > /sys/kernel/debug/virtio_suspend_test/virtio2/run
//! cat /sys/kernel/debug/virtio_suspend_test/virtio2/results
//! ```
//!
//! See "The driver that tests devices" in Documentation/virtio/device-authors.rst.

use kernel::{
    device::{
        Bound,
        Core, //
    },
    device_id::IdArray,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

use virtio::{
    compat::{
        device_ids,
        LocalInterruptDisabled, //
    },
    suspend,
    Device,
    DeviceId,
    Driver,
    Feature,
    IdTable,
    LendBox,
    Negotiation,
    VirtQueue, //
};

#[path = "virtio_suspend_test/cases.rs"]
mod cases;
#[path = "virtio_suspend_test/files.rs"]
mod files;
#[path = "virtio_suspend_test/report.rs"]
mod report;
#[path = "virtio_suspend_test/rig.rs"]
mod rig;
#[path = "virtio_suspend_test/setup.rs"]
mod setup;
#[path = "virtio_suspend_test/status.rs"]
mod status;
#[path = "virtio_suspend_test/traffic.rs"]
mod traffic;

use self::{
    files::Files,
    traffic::{
        Kind,
        Request, //
    },
};

/// The most virtqueues of a device that are used.
const MAX_QUEUES: usize = 4;

/// What the driver's callbacks leave for those who test.
struct Heard {
    /// How often the device has notified of used buffers, by virtqueue.
    used: [Atomic<u32>; MAX_QUEUES],
    /// How often it has notified of a configuration change.
    changes: Atomic<u32>,
}

impl Heard {
    /// Returns how many used buffer notifications there were, of all virtqueues.
    fn used(&self) -> u32 {
        let counts = self.used.iter().map(|count| count.load(Relaxed));
        counts.fold(0, u32::wrapping_add)
    }

    /// Returns how many configuration change notifications there were. One can stand for several.
    fn changes(&self) -> u32 {
        self.changes.load(Relaxed)
    }
}

/// A virtqueue.
type Queue = Arc<VirtQueue<LendBox<Request>>>;

struct TestData {
    heard: Arc<Heard>,
    _files: Files,
}

struct TestDriver;

// Not `virtio_device_table!`, which would have the module loaded for every device.
static ID_TABLE: IdArray<DeviceId, (), 1> = device_ids([DeviceId::ANY]);

/// Returns whether the data of a disk may be lost.
fn loses_data() -> Result<bool> {
    match parameters::data.value_ref().as_str() {
        "keep" => Ok(false),
        "lost" => Ok(true),
        _ => Err(EINVAL),
    }
}

/// Returns the number of the device to be tested, if there is one.
fn told() -> Option<u32> {
    let name = parameters::device.value_ref().as_str();
    name.strip_prefix("virtio")?.parse().ok()
}

impl Driver for TestDriver {
    type Data<'bound> = TestData;
    type Queue = usize;
    type Suspend = suspend::Unsupported;

    const ID_TABLE: IdTable = &ID_TABLE;
    const BINDS_BY_ITSELF: bool = false;

    fn validate(dev: &Negotiation<'_>) -> Result {
        // The rules are for devices of VIRTIO 1.0 or later.
        if told() != Some(dev.index()) || !dev.has_feature(Feature::VERSION_1) {
            return Err(ENODEV);
        }
        loses_data()?;
        dev.refuse(Feature::ADMIN_VQ);
        Ok(())
    }

    fn probe<'bound>(dev: &'bound Device<Core<'_>>) -> impl PinInit<TestData, Error> + 'bound {
        let kind = Kind::of(dev.device_type());
        let bench = dev.bench()?;
        let mut queues = KVec::new();
        let mut setup = dev.virtqueues::<Self>();
        for index in 0..kind.queues() {
            queues.push(setup.add(index, fmt!("test.{index}"))?, GFP_KERNEL)?;
        }
        setup.find()?;

        let heard = Arc::new(
            Heard {
                used: [const { Atomic::new(0) }; MAX_QUEUES],
                changes: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;
        let files = Files::new(dev.index(), kind, bench, queues, heard.clone())?;
        Ok(TestData {
            heard,
            _files: files,
        })
    }

    /// Buffers are taken back by those who test.
    fn used(
        _dev: &Device<Bound>,
        this: Pin<&TestData>,
        queue: usize,
        _irq: &LocalInterruptDisabled,
    ) {
        if let Some(count) = this.heard.used.get(queue) {
            count.fetch_add(1, Relaxed);
        }
    }

    fn config_changed(_dev: &Device<Bound>, this: Pin<&TestData>) {
        this.heard.changes.fetch_add(1, Relaxed);
    }
}

virtio::module_virtio_driver! {
    type: TestDriver,
    name: "virtio_suspend_test",
    authors: ["The virtio-suspend developers"],
    description: "Tests whether a virtio device suspends as it should",
    license: "GPL",
}

virtio::module_parameters! {
    device: Word {
        default: Word::new(""),
        description: "The device to be tested, such as virtio2",
    },
    data: Word {
        default: Word::new("keep"),
        description: "Whether the data of a disk is kept or lost: written (default: keep)",
    },
    only: Word {
        default: Word::new(""),
        description: "The only case of 'all' (default: all of them)",
    },
    deadline_ms: u32 {
        default: 5000,
        description: "How long the device may take to answer, in milliseconds (default: 5000)",
    },
    still_ms: u32 {
        default: 100,
        description: "How long a suspended device is watched, in milliseconds (default: 100)",
    },
    cycles: u32 {
        default: 1000,
        description: "How many fast cycles there are (default: 1000)",
    },
}
