// SPDX-License-Identifier: GPL-2.0

//! Rust virtio driver sample: the smallest driver whose devices can be suspended.
//!
//! It drives an entropy device, and hands it a buffer when it starts and after each resume. Bind it
//! to a device that no other driver has, and suspend that through sysfs:
//!
//! ```sh
//! echo virtio1 > /sys/bus/virtio/drivers/virtio_rng/unbind
//! modprobe rust_virtio_suspend
//! echo suspend > /sys/bus/virtio/devices/virtio1/suspend/request
//! ```

use kernel::{
    device::{
        Bound,
        Core, //
    },
    device_id::IdArray,
    prelude::*,
    sync::Arc, //
};

use virtio::{
    compat::{
        device_ids,
        LocalInterruptDisabled, //
    },
    suspend::{
        Native,
        Quiesce, //
    },
    Buffer,
    Device,
    DeviceId,
    Driver,
    IdTable,
    LendBox,
    VirtQueue, //
};

struct SampleDriver;

struct SampleData {
    queue: Arc<VirtQueue<LendBox<Buffer>>>,
}

impl SampleData {
    /// Gives the device a buffer unless it has one. Dropped, if the device is suspended.
    fn request(&self, buffer: LendBox<Buffer>) {
        let mut queue = self.queue.lock();
        if queue.outstanding() == 0 && queue.add(buffer).is_ok() {
            queue.kick();
        }
    }
}

// Not `virtio_device_table!`, which would have the sample loaded for every entropy device.
static ID_TABLE: IdArray<DeviceId, (), 1> = device_ids([DeviceId::new(DeviceId::ENTROPY)]);

impl Driver for SampleDriver {
    type Data<'bound> = SampleData;
    type Queue = ();
    type Suspend = Native;
    const ID_TABLE: IdTable = &ID_TABLE;

    fn probe<'bound>(dev: &'bound Device<Core<'_>>) -> impl PinInit<SampleData, Error> + 'bound {
        let mut queues = dev.virtqueues::<Self>();
        let queue = queues.add((), fmt!("input"))?;
        queues.find()?;
        Ok(SampleData { queue })
    }

    fn start(_dev: &Device<Core<'_>>, this: Pin<&SampleData>) -> Result {
        this.request(Buffer::new(0, 64, (), GFP_KERNEL)?);
        Ok(())
    }

    fn used(
        dev: &Device<Bound>,
        this: Pin<&SampleData>,
        _queue: (),
        _irq: &LocalInterruptDisabled,
    ) {
        loop {
            // Unlocked at the end of the statement: in the condition of a loop it would not be.
            let used = this.queue.lock().get_buf();
            let Some(used) = used else { break };
            dev_info!(dev, "received {} bytes\n", used.len);
        }
    }
}

impl Quiesce for SampleDriver {
    fn ungate(_dev: &Device<Bound>, this: Pin<&SampleData>) {
        if let Ok(buffer) = Buffer::new(0, 64, (), GFP_KERNEL) {
            this.request(buffer);
        }
    }
}

virtio::module_virtio_driver! {
    type: SampleDriver,
    name: "rust_virtio_suspend",
    authors: ["The virtio-suspend developers"],
    description: "Rust virtio driver sample that can be suspended",
    license: "GPL",
}
