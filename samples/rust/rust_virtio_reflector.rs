// SPDX-License-Identifier: GPL-2.0

//! Rust virtio driver sample: buffers of several parts, on several virtqueues, and a driver that
//! polls.
//!
//! It drives a network device, and sends each frame back that is addressed to it, as a reflector of
//! a network does. There is no network interface. A buffer is a header and a list of pages; the
//! device writes a frame into it, and then reads as much of it as there was. The device notifies of
//! the first frame that it receives, and then the driver looks by itself until there are no more,
//! as a driver with NAPI does.
//!
//! With the parameter `stations` it answers for other stations, too, as that of a host of virtual
//! machines would: the device is told of their addresses, in a command that it reads, a list of
//! pages in the middle, and writes its answer into.
//!
//! ```sh
//! echo virtio2 > /sys/bus/virtio/drivers/virtio_net/unbind
//! modprobe rust_virtio_reflector
//! ```
//!
//! # Suspend
//!
//! A frame that has been received before the device is suspended is sent back after the resume, and
//! what is received meanwhile the device keeps. The network may drop it.

use kernel::{
    device::{
        Bound,
        Core, //
    },
    device_id::IdArray,
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

use virtio::{
    compat::{
        device_ids,
        LocalInterruptDisabled,
        EOPNOTSUPP, //
    },
    net,
    suspend::{
        Native,
        Quiesce, //
    },
    AddError,
    Device,
    DeviceId,
    DmaBytes,
    DmaMemory as _,
    DmaPages,
    Driver,
    Feature,
    IdTable,
    Lend,
    LendBox,
    Negotiation,
    Parts,
    Used,
    VirtQueue,
    VirtQueueGuard, //
};

/// The largest frame without its Ethernet header, in bytes.
const MAX_MTU: u16 = 9000;

/// The Ethernet header: destination, source, and a type.
const ETHERNET_BYTES: usize = 2 * net::MAC_BYTES + 2;

/// The largest frame.
const FRAME_BYTES: usize = MAX_MTU as usize + ETHERNET_BYTES;

/// How many frames there are.
const MAX_FRAMES: usize = 64;

/// How many descriptors a frame needs without indirect ones: a header, and pages of 4 KiB.
const DESCRIPTORS: usize = 1 + FRAME_BYTES.div_ceil(4096);

/// How many frames are looked at with the virtqueues locked.
const BUDGET: usize = 16;

/// The most stations that there can be besides the device's own.
const MAX_STATIONS: u16 = 4096;

/// The group that all stations belong to.
const GROUP: [u8; net::MAC_BYTES] = [0x03, b'S', b'T', b'A', 0xff, 0xff];

/// Returns the address of a station. A group has a bit in the first byte, and so none of these.
fn station(number: u16) -> [u8; net::MAC_BYTES] {
    let [high, low] = number.to_be_bytes();
    [0x02, b'S', b'T', b'A', high, low]
}

/// What the device is to do with a frame.
enum Way {
    Receive,
    /// Send so many bytes of it.
    Transmit(usize),
}

struct Frame {
    header: DmaBytes,
    data: DmaPages,
    way: Way,
}

impl Lend for Frame {
    fn lend<'a>(&'a mut self, parts: &mut Parts<'a>) -> Result {
        match self.way {
            Way::Receive => {
                parts.writable(&mut self.header, net::HEADER_BYTES)?;
                parts.writable(&mut self.data, FRAME_BYTES)
            }
            Way::Transmit(len) => {
                parts.readable(&self.header, net::HEADER_BYTES)?;
                parts.readable(&self.data, len)
            }
        }
    }
}

impl Frame {
    fn new() -> Result<LendBox<Self>> {
        let frame = Self {
            header: DmaBytes::new(net::HEADER_BYTES, GFP_KERNEL)?,
            data: DmaPages::new(FRAME_BYTES, GFP_KERNEL)?,
            way: Way::Receive,
        };
        LendBox::new(frame, GFP_KERNEL)
    }

    /// Makes an answer of a frame that has been received, if `is_ours` says so of the address that
    /// it is for.
    fn reflect(&mut self, written: usize, is_ours: impl Fn(&[u8; net::MAC_BYTES]) -> bool) {
        let len = written.saturating_sub(net::HEADER_BYTES);
        let begin = self.data.written(len).next().unwrap_or_default();
        if begin.len() < ETHERNET_BYTES || !begin.first_chunk().is_some_and(is_ours) {
            return;
        }
        let Some((destination, rest)) = self
            .data
            .page_mut(0)
            .and_then(|page| page.split_first_chunk_mut::<{ net::MAC_BYTES }>())
        else {
            return;
        };
        let Some(source) = rest.first_chunk_mut() else {
            return;
        };
        core::mem::swap(destination, source);
        // Nothing is left to the device to do.
        self.header.as_mut_slice().fill(0);
        self.way = Way::Transmit(len);
    }
}

/// Has the device receive what is for the stations, and for their group.
struct Stations {
    /// The command, and how many stations there are.
    header: DmaBytes,
    addresses: DmaPages,
    /// How many groups there are, and their addresses.
    groups: DmaBytes,
    answer: DmaBytes,
}

impl Lend for Stations {
    fn lend<'a>(&'a mut self, parts: &mut Parts<'a>) -> Result {
        parts.readable(&self.header, self.header.len())?;
        parts.readable(&self.addresses, self.addresses.len())?;
        parts.readable(&self.groups, self.groups.len())?;
        parts.writable(&mut self.answer, 1)
    }
}

impl Stations {
    fn new(count: u16) -> Result<LendBox<Self>> {
        let mut this = Self {
            header: DmaBytes::new(net::COMMAND_BYTES + size_of::<u32>(), GFP_KERNEL)?,
            addresses: DmaPages::new(usize::from(count) * net::MAC_BYTES, GFP_KERNEL)?,
            groups: DmaBytes::new(size_of::<u32>() + net::MAC_BYTES, GFP_KERNEL)?,
            answer: DmaBytes::new(1, GFP_KERNEL)?,
        };
        if let Some((command, len)) = this.header.as_mut_slice().split_first_chunk_mut() {
            *command = net::SET_MAC_TABLE;
            len.copy_from_slice(&u32::from(count).to_le_bytes());
        }
        if let Some((len, group)) = this.groups.as_mut_slice().split_first_chunk_mut() {
            *len = 1u32.to_le_bytes();
            group.copy_from_slice(&GROUP);
        }
        // An address may begin on one page and end on the next.
        let mut bytes = (0..count).flat_map(station);
        for page in 0..this.addresses.len().div_ceil(PAGE_SIZE) {
            for byte in this.addresses.page_mut(page).into_iter().flatten() {
                *byte = bytes.next().unwrap_or_default();
            }
        }
        LendBox::new(this, GFP_KERNEL)
    }
}

type Queue<'a> = VirtQueueGuard<'a, LendBox<Frame>>;

/// The virtqueues.
#[derive(Clone, Copy)]
enum Direction {
    Receive,
    Transmit,
    Control,
}

#[pin_data]
struct Reflector {
    /// Locked before `transmit`.
    receive: Arc<VirtQueue<LendBox<Frame>>>,
    transmit: Arc<VirtQueue<LendBox<Frame>>>,
    /// [`None`] if the device takes no such commands.
    control: Option<Arc<VirtQueue<LendBox<Stations>>>>,
    mac: [u8; net::MAC_BYTES],
    /// How many there are besides.
    stations: u16,
    /// Frames that the device can't be given now, in their order. Taken before the virtqueues, and
    /// with room for all frames.
    #[pin]
    kept: Mutex<KVec<LendBox<Frame>>>,
}

/// Gives the device a frame. Returns it if the device can't be given any now.
fn give(
    frame: LendBox<Frame>,
    receive: &mut Queue<'_>,
    transmit: &mut Queue<'_>,
) -> Result<(), LendBox<Frame>> {
    let result = match frame.way {
        Way::Receive => receive.add(frame),
        Way::Transmit(_) => transmit.add(frame),
    };
    let Err(AddError { mut token, error }) = result else {
        return Ok(());
    };
    if error == EBUSY || error == ENODEV {
        return Err(token);
    }
    // A network may lose frames. There is room, and memory, for all to be received.
    token.way = Way::Receive;
    receive.add(token).map_err(|refused| refused.token)
}

impl Reflector {
    fn is_ours(&self, address: &[u8; net::MAC_BYTES]) -> bool {
        let [.., high, low] = *address;
        let number = u16::from_be_bytes([high, low]);
        *address == self.mac || number < self.stations && *address == station(number)
    }

    /// Tells the device of the stations.
    fn tell_stations(&self) -> Result {
        if self.stations == 0 {
            return Ok(());
        }
        let control = self.control.as_ref().ok_or(EOPNOTSUPP)?;
        let stations = Stations::new(self.stations)?;
        let mut queue = control.lock();
        // What is refused is freed when the queue is unlocked.
        let result = queue.add(stations);
        queue.unlock_and_kick();
        result.map_err(|refused| refused.error)
    }

    /// The device has answered.
    fn answered(&self, dev: &Device<Bound>) {
        let Some(control) = &self.control else { return };
        // Not with the queue locked.
        let used = control.lock().get_buf();
        if let Some(Used { token, len }) = used {
            if token.answer.written(len) != [net::COMMAND_OK] {
                dev_err!(dev, "the device does not take the addresses\n");
            }
        }
    }

    /// Looks at some of the frames. Returns whether the device notifies of the next.
    fn turn(&self, kept: &mut KVec<LendBox<Frame>>) -> bool {
        // Both, because what leaves one goes into the other.
        let mut receive = self.receive.lock();
        let mut transmit = self.transmit.lock();

        while let Ok(frame) = kept.remove(0) {
            if let Err(frame) = give(frame, &mut receive, &mut transmit) {
                let _ = kept.insert_within_capacity(0, frame);
                break;
            }
        }
        let mut left = BUDGET;
        while left > 0 && kept.is_empty() {
            let Some(used) = receive.get_buf() else { break };
            left -= 1;
            let mut frame = used.token;
            frame.reflect(used.len, |address| self.is_ours(address));
            if let Err(frame) = give(frame, &mut receive, &mut transmit) {
                let _ = kept.push_within_capacity(frame);
            }
        }
        while let Some(used) = transmit.get_buf() {
            let mut frame = used.token;
            frame.way = Way::Receive;
            if let Err(frame) = give(frame, &mut receive, &mut transmit) {
                let _ = kept.push_within_capacity(frame);
            }
        }

        // Nobody waits for what has been sent. While some are kept the device is suspended, or not
        // in operation: this is called again when it is.
        let done = !kept.is_empty()
            || left > 0 && receive.enable_callbacks() && transmit.enable_callbacks_delayed();
        if !done {
            receive.disable_callbacks();
            transmit.disable_callbacks();
        }
        transmit.unlock_and_kick();
        receive.unlock_and_kick();
        done
    }
}

struct ReflectorDriver;

// Not `virtio_device_table!`, which would have the sample loaded for every network device.
static ID_TABLE: IdArray<DeviceId, (), 1> = device_ids([DeviceId::new(DeviceId::NETWORK)]);

impl Driver for ReflectorDriver {
    type Data<'bound> = Reflector;
    type Queue = Direction;
    type Suspend = Native;

    const ID_TABLE: IdTable = &ID_TABLE;

    const FEATURES: &'static [Feature] = &[net::F_MTU, net::F_MAC, net::F_CTRL_VQ, net::F_CTRL_RX];

    fn validate(dev: &Negotiation<'_>) -> Result {
        // The header of a legacy device is shorter.
        if !dev.has_feature(Feature::VERSION_1) || !dev.has_feature(net::F_MAC) {
            return Err(ENODEV);
        }
        // Who accepts the MTU has room for such frames.
        if dev.has_feature(net::F_MTU) && dev.read(&net::MTU)? > MAX_MTU {
            dev.refuse(net::F_MTU);
        }
        Ok(())
    }

    fn probe<'bound>(dev: &'bound Device<Core<'_>>) -> impl PinInit<Reflector, Error> + 'bound {
        pin_init::pin_init_scope(move || {
            let mut queues = dev.virtqueues::<Self>();
            let receive = queues.add(Direction::Receive, fmt!("input.0"))?;
            let transmit = queues.add(Direction::Transmit, fmt!("output.0"))?;
            let control = if dev.has_feature(net::F_CTRL_VQ) && dev.has_feature(net::F_CTRL_RX) {
                Some(queues.add(Direction::Control, fmt!("control"))?)
            } else {
                None
            };
            queues.find()?;
            let mac = dev.config().read(&net::MAC)?;
            let stations = *parameters::stations.value_ref();

            Ok(try_pin_init!(Reflector {
                receive,
                transmit,
                control,
                mac,
                stations: MAX_STATIONS.min(u16::try_from(stations).unwrap_or(u16::MAX)),
                kept <- new_mutex!(KVec::new()),
            }))
        })
    }

    fn start(dev: &Device<Core<'_>>, this: Pin<&Reflector>) -> Result {
        // CAST: From 32 bits to at least as many.
        let room = this.receive.num_free().min(this.transmit.num_free()) as usize;
        let count = MAX_FRAMES.min(room / DESCRIPTORS);
        let mut frames = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            frames.push(Frame::new()?, GFP_KERNEL)?;
        }
        // Whatever the device had has been dropped.
        *this.kept.lock() = frames;
        dev.schedule_poll();
        // A reset has had the device forget them.
        this.tell_stations()
    }

    fn used(
        dev: &Device<Bound>,
        this: Pin<&Reflector>,
        queue: Direction,
        _irq: &LocalInterruptDisabled,
    ) {
        let queue = match queue {
            Direction::Receive => &this.receive,
            Direction::Transmit => &this.transmit,
            Direction::Control => return this.answered(dev),
        };
        queue.lock().disable_callbacks();
        dev.schedule_poll();
    }

    fn poll(dev: &Device<Bound>, this: Pin<&Reflector>) {
        if !this.turn(&mut this.kept.lock()) {
            dev.schedule_poll();
        }
    }
}

impl Quiesce for ReflectorDriver {
    /// `used` is called before this, and goes on with what has been kept.
    fn ungate(_dev: &Device<Bound>, _this: Pin<&Reflector>) {}
}

virtio::module_virtio_driver! {
    type: ReflectorDriver,
    name: "rust_virtio_reflector",
    authors: ["The virtio-suspend developers"],
    description: "Rust virtio driver sample with buffers of several parts",
    license: "GPL",
}

virtio::module_parameters! {
    stations: u32 {
        default: 0,
        description: "How many other stations it answers for",
    },
}
