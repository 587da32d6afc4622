// SPDX-License-Identifier: GPL-2.0-only

//! Driver for virtio input devices.
//!
//! VIRTIO 1.4, "Input Device". The device has a buffer for each event that it may report before
//! the driver has looked, and gets each of them back at once. What programs want of it, lights for
//! example, goes through the other virtqueue.
//!
//! # Suspend
//!
//! What the device has reported before it is suspended is passed on, and no event is lost: those
//! that it has no buffer for are its own to keep. Lights, sounds and repeat rates that are set
//! meanwhile are set after the resume; of those set more than once, the last counts. What else
//! is sent to the device is lost, as it is if the virtqueue is full. A key that is pressed stays
//! so, and the input core goes on to repeat it.
//!
//! A device that has been reset is told again what lights, sounds and repeat rates were set, and
//! its keys are released, as they are when it has failed for good.
//!
//! Based on the C driver, drivers/virtio/virtio_input.c, by Gerd Hoffmann.

use core::mem::swap;

use kernel::{
    device::{
        Bound,
        Core, //
    },
    devres::Devres,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Full, //
        },
        Arc,
        ArcBorrow, //
    },
};

use virtio::{
    compat::{
        new_spinlock_irq,
        LocalInterruptDisabled,
        SpinLockIrq, //
    },
    config::Fields,
    input::{
        self,
        AbsInfo,
        Builder,
        Event,
        Handler,
        Id,
        Registration, //
    },
    suspend::{
        Native,
        Quiesce, //
    },
    virtio_input::{
        self as wire,
        event_from_bytes,
        event_to_bytes, //
    },
    Buffer,
    Device,
    DeviceId,
    Driver,
    Feature,
    IdTable,
    LendBox,
    VirtQueue,
    VirtQueueGuard, //
};

/// How many events the device can report before the driver has looked.
const MAX_EVENTS: usize = 64;

/// How many states of the device can wait to be set: there are 16 lights, 8 sounds, and the delay
/// and the period of repeating.
const MAX_DUE: usize = 32;

type EventBuffer = LendBox<Buffer>;

/// The virtqueues.
#[derive(Clone, Copy)]
enum Queue {
    Events,
    Status,
}

/// What the device is to do.
#[pin_data]
struct Status {
    queue: Arc<VirtQueue<EventBuffer>>,
    /// Whether the device tells of several contacts at a time.
    has_slots: bool,
    /// What is to be set, and could not be yet. Taken before the lock of `queue`.
    #[pin]
    due: SpinLockIrq<KVec<Event>>,
}

impl Status {
    fn new(queue: Arc<VirtQueue<EventBuffer>>, has_slots: bool) -> Result<Arc<Self>> {
        let due = KVec::with_capacity(MAX_DUE, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                queue,
                has_slots,
                due <- new_spinlock_irq!(due),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds an event to the virtqueue.
    fn add(queue: &mut VirtQueueGuard<'_, EventBuffer>, event: Event) -> Result {
        let mut buffer = Buffer::new(wire::EVENT_BYTES, 0, (), GFP_ATOMIC)?;
        buffer
            .readable_mut()
            .copy_from_slice(&event_to_bytes(event));
        queue.add(buffer).map_err(|refused| refused.error)
    }

    /// Sends what is due, in its order, as far as that is possible now.
    fn flush(&self, due: &mut KVec<Event>) {
        if due.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        let mut is_full = false;
        due.retain(|event| {
            is_full = is_full || Self::add(&mut queue, *event).is_err();
            is_full
        });
        queue.unlock_and_kick();
    }

    /// Takes back what the device has carried out, and sends what has waited for room.
    fn used(&self, irq: &LocalInterruptDisabled) {
        let mut due = self.due.lock_with(irq);
        self.queue.lock().drain(|buffers| buffers.for_each(drop));
        self.flush(&mut due);
    }
}

impl Handler for Status {
    fn event(this: ArcBorrow<'_, Self>, event: Event) -> Result {
        // The core passes it on to programs and to the device. A device that reports what it is
        // sent, and with each frame of contacts there is one, would have frames grow for ever.
        if this.has_slots && event.kind == input::EV_MSC && event.code == input::MSC_TIMESTAMP {
            return Ok(());
        }
        let mut due = this.due.lock();
        if !matches!(event.kind, input::EV_LED | input::EV_SND | input::EV_REP) {
            let mut queue = this.queue.lock();
            let result = Self::add(&mut queue, event);
            queue.unlock_and_kick();
            return result;
        }
        // What it was to be before does not matter any more.
        due.retain(|other| (other.kind, other.code) != (event.kind, event.code));
        due.push_within_capacity(event).map_err(|_| ENOSPC)?;
        this.flush(&mut due);
        Ok(())
    }
}

/// The data of a device.
#[pin_data]
struct InputData {
    events: Arc<VirtQueue<EventBuffer>>,
    /// Buffers that the device can't be given now. Taken before the lock of `events`, and held
    /// while events are reported, so that they are in the order of the device.
    #[pin]
    spare: SpinLockIrq<KVec<EventBuffer>>,
    status: Arc<Status>,
    input: Devres<Registration<Status>>,
    /// Whether the device has been in operation before.
    started: Atomic<bool>,
}

impl InputData {
    /// Reports what has happened.
    fn receive(&self, irq: &LocalInterruptDisabled) {
        let mut spare = self.spare.lock_with(irq);
        loop {
            // Unlocked at the end of the statement: others can be woken by what is reported.
            let used = self.events.lock().get_buf();
            let Some(used) = used else { break };
            let mut bytes = [0; wire::EVENT_BYTES];

            if used.token.copy_written(used.len, 0, &mut bytes) == bytes.len() {
                let event = event_from_bytes(bytes);
                self.input.try_access_with(|input| input.report(event));
            }
            // There is room for all of them.
            let _ = spare.push_within_capacity(used.token);
        }
        self.refill(&mut spare);
    }

    /// Gives the device all buffers that it can be given.
    fn refill(&self, spare: &mut KVec<EventBuffer>) {
        let mut queue = self.events.lock();
        while let Some(buffer) = spare.pop() {
            if let Err(refused) = queue.add(buffer) {
                let _ = spare.push_within_capacity(refused.token);
                break;
            }
        }
        queue.unlock_and_kick();
    }

    /// The device is in operation, and has no buffer.
    fn start(&self) -> Result {
        // CAST: From 32 bits to at least as many.
        let count = MAX_EVENTS.min(self.events.num_free() as usize);
        let mut buffers = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            let buffer = Buffer::new(0, wire::EVENT_BYTES, (), GFP_KERNEL)?;
            buffers.push(buffer, GFP_KERNEL)?;
        }

        let mut spare = self.spare.lock();
        swap(&mut *spare, &mut buffers);
        self.refill(&mut spare);
        drop(spare);
        self.status.flush(&mut self.status.due.lock());
        Ok(())
    }
}

/// Selects what the device is to tell, and calls `read` with how many bytes it tells of it.
fn select<R>(
    dev: &Device<Bound>,
    what: u8,
    of: u8,
    read: impl Fn(&Fields<'_>, usize) -> Result<R>,
) -> Result<R> {
    dev.config().transact(
        |fields| {
            fields.write(&wire::SELECT, what)?;
            fields.write(&wire::SUBSEL, of)
        },
        |fields| {
            let size = fields.read(&wire::SIZE)?;
            read(fields, usize::from(size))
        },
    )
}

/// Reads a string or a bitmap into `data`, and returns it, empty if there is none.
fn read_data<'a>(
    dev: &Device<Bound>,
    what: u8,
    of: u8,
    data: &'a mut [u8; wire::DATA_BYTES],
) -> Result<&'a [u8]> {
    let (bytes, len) = select(dev, what, of, |fields, size| {
        let mut bytes = [0; wire::DATA_BYTES];
        let len = size.min(bytes.len());
        fields.read_first(&wire::DATA, &mut bytes[..len])?;
        Ok((bytes, len))
    })?;
    *data = bytes;
    Ok(&data[..len])
}

/// Reads a string, up to where it is terminated, if it is.
fn read_string(dev: &Device<Bound>, what: u8) -> Result<CString> {
    let mut data = [0; wire::DATA_BYTES];
    let bytes = read_data(dev, what, 0, &mut data)?;
    let mut terminated = [0; wire::DATA_BYTES + 1];
    terminated[..bytes.len()].copy_from_slice(bytes);
    let string = CStr::from_bytes_until_nul(&terminated).map_err(|_| EINVAL)?;
    Ok(CString::try_from(string)?)
}

fn read_id(dev: &Device<Bound>) -> Result<Id> {
    select(dev, wire::CFG_ID_DEVIDS, 0, |fields, size| {
        if size < wire::DEVIDS_BYTES {
            return Ok(Id {
                bustype: input::BUS_VIRTUAL,
                vendor: 0,
                product: 0,
                version: 0,
            });
        }
        Ok(Id {
            bustype: fields.read(&wire::BUSTYPE)?,
            vendor: fields.read(&wire::VENDOR)?,
            product: fields.read(&wire::PRODUCT)?,
            version: fields.read(&wire::VERSION)?,
        })
    })
}

fn read_abs(dev: &Device<Bound>, axis: u8) -> Result<AbsInfo> {
    select(dev, wire::CFG_ABS_INFO, axis, |fields, _| {
        Ok(AbsInfo {
            minimum: fields.read(&wire::ABS_MIN)?,
            maximum: fields.read(&wire::ABS_MAX)?,
            fuzz: fields.read(&wire::ABS_FUZZ)?,
            flat: fields.read(&wire::ABS_FLAT)?,
            resolution: fields.read(&wire::ABS_RES)?,
        })
    })
}

/// Adds the axes. Returns how many contacts the device can tell of at a time, 0 if it does not.
fn add_axes(dev: &Device<Bound>, builder: &mut Builder) -> Result<u32> {
    let mut data = [0; wire::DATA_BYTES];
    // CAST: An event type of the configuration space.
    let axes = read_data(dev, wire::CFG_EV_BITS, input::EV_ABS as u8, &mut data)?;
    if axes.is_empty() {
        return Ok(0);
    }
    builder.add_codes(input::EV_ABS, axes)?;

    let mut slots = 0;
    // CAST: There are 64 axes.
    for axis in 0..input::ABS_CNT as u8 {
        let byte = axes.get(usize::from(axis / 8)).copied().unwrap_or(0);
        if byte & (1 << (axis % 8)) == 0 {
            continue;
        }
        let info = read_abs(dev, axis)?;
        builder.set_abs(usize::from(axis), info)?;
        if usize::from(axis) == input::ABS_MT_SLOT {
            slots = info
                .maximum
                .checked_add(1)
                .and_then(|slots| u32::try_from(slots).ok())
                .ok_or(EINVAL)?;
        }
    }
    builder.init_slots(slots)?;
    Ok(slots)
}

/// Reads what the device is and can do. Returns that, and whether it tells of several contacts.
fn read_device(dev: &Device<Bound>) -> Result<(Builder, bool)> {
    let mut builder = Builder::new()?;
    builder.set_name(read_string(dev, wire::CFG_ID_NAME)?);
    builder.set_uniq(read_string(dev, wire::CFG_ID_SERIAL)?);
    builder.set_phys(CString::try_from_fmt(fmt!("virtio{}/input0", dev.index()))?);
    builder.set_id(read_id(dev)?);

    let mut data = [0; wire::DATA_BYTES];
    builder.add_properties(read_data(dev, wire::CFG_PROP_BITS, 0, &mut data)?);
    for kind in [
        input::EV_KEY,
        input::EV_REL,
        input::EV_MSC,
        input::EV_SW,
        input::EV_LED,
        input::EV_SND,
    ] {
        // CAST: As in `add_axes`.
        let codes = read_data(dev, wire::CFG_EV_BITS, kind as u8, &mut data)?;
        if !codes.is_empty() {
            builder.add_codes(kind, codes)?;
        }
    }
    // CAST: As above.
    if !read_data(dev, wire::CFG_EV_BITS, input::EV_REP as u8, &mut data)?.is_empty() {
        builder.add_type(input::EV_REP)?;
    }
    let slots = add_axes(dev, &mut builder)?;
    Ok((builder, slots > 0))
}

struct InputDriver;

virtio::virtio_device_table!(ID_TABLE, [DeviceId::new(DeviceId::INPUT)]);

impl Driver for InputDriver {
    type Data<'bound> = InputData;
    type Queue = Queue;
    type Suspend = Native;

    const ID_TABLE: IdTable = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        pin_init::pin_init_scope(move || {
            // A legacy device has another configuration space, if any.
            if !dev.has_feature(Feature::VERSION_1) {
                return Err(ENODEV);
            }
            let mut queues = dev.virtqueues::<Self>();
            let events = queues.add(Queue::Events, fmt!("events"))?;
            let status = queues.add(Queue::Status, fmt!("status"))?;
            queues.find()?;

            let (builder, has_slots) = read_device(dev)?;
            let status = Status::new(status, has_slots)?;
            let input = builder.register(dev.as_ref(), status.clone())?;
            Ok(try_pin_init!(InputData {
                events,
                spare <- new_spinlock_irq!(KVec::new()),
                status,
                input,
                started: Atomic::new(false),
            }))
        })
    }

    fn start(dev: &Device<Core<'_>>, this: Pin<&InputData>) -> Result {
        if this.started.xchg(true, Full) {
            // Before the device has a buffer to report anything: a key that is pressed from now on
            // is not released by this.
            this.input.access(dev.as_ref())?.reset();
        }
        this.start()
    }

    fn give_up(dev: &Device<Bound>, this: Pin<&InputData>) {
        // A key that is not released goes on to be repeated.
        if let Ok(input) = this.input.access(dev.as_ref()) {
            input.reset();
        }
    }

    fn used(
        _dev: &Device<Bound>,
        this: Pin<&InputData>,
        queue: Queue,
        irq: &LocalInterruptDisabled,
    ) {
        match queue {
            Queue::Events => this.receive(irq),
            Queue::Status => this.status.used(irq),
        }
    }
}

impl Quiesce for InputDriver {
    /// What is missing, `used` has made available, which is called before this.
    fn ungate(_dev: &Device<Bound>, _this: Pin<&InputData>) {}
}

virtio::module_virtio_driver! {
    type: InputDriver,
    name: "virtio_input",
    authors: ["The virtio-suspend developers"],
    description: "Virtio input device driver",
    license: "GPL",
}
