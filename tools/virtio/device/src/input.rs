// SPDX-License-Identifier: GPL-2.0

//! The input device (VIRTIO 1.4, "Input Device"): a keyboard, a mouse and a touch screen in one.
//!
//! Events that find no buffer wait, and so do those that happen while the device is suspended. A
//! reset drops them, and all states of lights and sounds.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{json, Value};

use crate::memory::Memory;
use crate::port::Port;
use crate::request::{Completion, ProcessError, Request};
use crate::ring::cursor::Cursor;
use crate::virtio_device::{Changed, Context, VirtioDevice};

/// The virtqueue of events.
const EVENTS: u16 = 0;
/// Bytes of an event.
const EVENT_BYTES: usize = 8;
/// Most events that wait: the newest are dropped.
const MAX_WAITING: usize = 1 << 16;
/// How many of the events that the driver has sent are remembered.
const STATUS_LOG: usize = 64;

/// Offsets in the configuration space.
mod field {
    pub const SELECT: u64 = 0;
    pub const SUBSEL: u64 = 1;
    pub const SIZE: usize = 2;
    pub const DATA: usize = 8;
    pub const END: usize = DATA + 128;
}

/// What can be selected.
mod select {
    pub const ID_NAME: u8 = 0x01;
    pub const ID_SERIAL: u8 = 0x02;
    pub const ID_DEVIDS: u8 = 0x03;
    pub const PROP_BITS: u8 = 0x10;
    pub const EV_BITS: u8 = 0x11;
    pub const ABS_INFO: u8 = 0x12;
}

/// Types of events, as Linux and VIRTIO number them.
mod kind {
    pub const SYN: u16 = 0x00;
    pub const KEY: u16 = 0x01;
    pub const REL: u16 = 0x02;
    pub const ABS: u16 = 0x03;
    pub const MSC: u16 = 0x04;
    pub const SW: u16 = 0x05;
    pub const LED: u16 = 0x11;
    pub const SND: u16 = 0x12;
    pub const REP: u16 = 0x14;
}

/// Movement along y.
const REL_Y: u16 = 1;

/// An event: type, code and value.
type Event = (u16, u16, i32);

fn event_bytes((kind, code, value): Event) -> [u8; EVENT_BYTES] {
    let mut bytes = [0; EVENT_BYTES];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[2..4].copy_from_slice(&code.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn event_of([t0, t1, c0, c1, v0, v1, v2, v3]: [u8; EVENT_BYTES]) -> Event {
    (
        u16::from_le_bytes([t0, t1]),
        u16::from_le_bytes([c0, c1]),
        i32::from_le_bytes([v0, v1, v2, v3]),
    )
}

/// What is told of a selection, with its size: that is true, unless somebody has changed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Item {
    size: u8,
    data: Vec<u8>,
}

impl Item {
    fn new(data: impl Into<Vec<u8>>) -> Self {
        let data = data.into();
        Self {
            size: u8::try_from(data.len()).unwrap_or(u8::MAX),
            data,
        }
    }

    fn bits(bits: impl IntoIterator<Item = u16>) -> Self {
        let mut data = Vec::new();
        for bit in bits {
            let byte = usize::from(bit / 8);
            if data.len() <= byte {
                data.resize(byte + 1, 0);
            }
            data[byte] |= 1 << (bit % 8);
        }
        Self::new(data)
    }

    fn axis(min: i32, max: i32, fuzz: i32, flat: i32, res: i32) -> Self {
        let values = [min, max, fuzz, flat, res];
        Self::new(values.map(i32::to_le_bytes).concat())
    }
}

/// What the device is, by selection.
type Items = BTreeMap<(u8, u8), Item>;

fn default_items() -> Items {
    let ids = [0x06u16, 0x0627, 0x0003, 0x0002];
    let codes = |kind: u16, bits: Vec<u16>| ((select::EV_BITS, kind as u8), Item::bits(bits));
    let axis = |code: u8, item| ((select::ABS_INFO, code), item);
    Items::from([
        ((select::ID_NAME, 0), Item::new(*b"virtio test input")),
        ((select::ID_SERIAL, 0), Item::new(*b"serial 7")),
        (
            (select::ID_DEVIDS, 0),
            Item::new(ids.map(u16::to_le_bytes).concat()),
        ),
        // Direct: a touch screen.
        ((select::PROP_BITS, 0), Item::bits([1])),
        codes(
            kind::KEY,
            (1..0x80).chain(0x110..0x118).chain([0x14a]).collect(),
        ),
        codes(kind::REL, vec![0, REL_Y, 8]),
        // X, Y; slot, x, y and tracking id of a contact.
        codes(kind::ABS, vec![0x00, 0x01, 0x2f, 0x35, 0x36, 0x39]),
        codes(kind::MSC, vec![4, 5]),
        codes(kind::SW, vec![0]),
        codes(kind::LED, vec![0, 1, 2, 3]),
        codes(kind::SND, vec![0, 1, 2]),
        codes(kind::REP, vec![0, 1]),
        axis(0x00, Item::axis(0, 32767, 4, 8, 12)),
        axis(0x01, Item::axis(-100, 100, 0, 0, 0)),
        axis(0x2f, Item::axis(0, 31, 0, 0, 0)),
        axis(0x35, Item::axis(0, 4095, 0, 0, 10)),
        axis(0x36, Item::axis(0, 2047, 0, 0, 10)),
        axis(0x39, Item::axis(0, 65535, 0, 0, 0)),
    ])
}

/// Events that wait for a buffer.
#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    dropped: u64,
}

impl Waiting {
    fn push(&mut self, event: Event) {
        if self.events.len() < MAX_WAITING {
            self.events.push_back(event);
        } else {
            self.dropped += 1;
        }
    }
}

/// What the thread has to do.
enum Order {
    /// These events happen.
    Inject(Vec<Event>),
    /// So many movements along y, the nth by n, each in a frame of its own, so far apart.
    Stream { count: i32, interval: Duration },
}

/// A change that is asked for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Change {
    Inject(Vec<Event>),
    Stream {
        count: i32,
        interval_us: u64,
    },
    /// What is told from now on: selection, size, data.
    Items(Vec<(u8, u8, u8, Vec<u8>)>),
    /// As the device was at the beginning.
    DefaultItems(()),
}

/// The input device.
pub struct Input {
    items: Items,
    select: (u8, u8),
    waiting: Arc<Mutex<Waiting>>,
    orders: Option<Sender<Order>>,
    delivered: u64,
    malformed: u64,
    /// The last value of what the driver has set, by type and code, since the reset.
    states: BTreeMap<(u16, u16), i32>,
    /// What the driver has sent.
    status: VecDeque<Event>,
    received: u64,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            items: default_items(),
            select: (0, 0),
            waiting: Arc::default(),
            orders: None,
            delivered: 0,
            malformed: 0,
            states: BTreeMap::new(),
            status: VecDeque::new(),
            received: 0,
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has events happen, until the device is gone.
fn happen(orders: &mpsc::Receiver<Order>, waiting: &Mutex<Waiting>, port: &Port) {
    // What is left of a stream: the next value, the last, and how far apart.
    let mut stream: Option<(i32, i32, Duration)> = None;
    loop {
        let order = match stream {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some((_, _, interval)) => orders.recv_timeout(interval),
        };
        match order {
            Ok(Order::Inject(events)) => events.into_iter().for_each(|e| lock(waiting).push(e)),
            Ok(Order::Stream { count, interval }) => {
                stream = (count > 0).then_some((1, count, interval));
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some((next, last, interval)) = stream {
                    let mut waiting = lock(waiting);
                    waiting.push((kind::REL, REL_Y, next));
                    waiting.push((kind::SYN, 0, 0));
                    stream = (next < last).then(|| (next + 1, last, interval));
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        port.look(EVENTS);
    }
}

impl Input {
    /// What the driver reads.
    fn image(&self) -> [u8; field::END] {
        let mut image = [0; field::END];
        image[0] = self.select.0;
        image[1] = self.select.1;
        if let Some(item) = self.items.get(&self.select) {
            let len = item.data.len().min(field::END - field::DATA);
            image[field::SIZE] = item.size;
            image[field::DATA..field::DATA + len].copy_from_slice(&item.data[..len]);
        }
        image
    }

    fn report_event(&mut self, request: &Request, mem: &Memory) -> Result<u32, ProcessError> {
        let Some(event) = lock(&self.waiting).events.pop_front() else {
            return Ok(0);
        };
        self.delivered += 1;
        let bytes = event_bytes(event);
        let written = Cursor::new(&request.buffer.writable).write(mem, &bytes)?;
        Ok(written as u32)
    }

    fn take_status(&mut self, request: &Request, mem: &Memory) -> Result<u32, ProcessError> {
        let mut bytes = [0; EVENT_BYTES];
        let read = Cursor::new(&request.buffer.readable).read(mem, &mut bytes)?;
        if read < EVENT_BYTES {
            self.malformed += 1;
            return Ok(0);
        }
        let (kind, code, value) = event_of(bytes);
        self.received += 1;
        // So many are possible that a driver could fill the host's memory with them.
        if matches!(kind, kind::LED | kind::SND | kind::REP) && code < 64 {
            self.states.insert((kind, code), value);
        }
        if self.status.len() == STATUS_LOG {
            self.status.pop_front();
        }
        self.status.push_back((kind, code, value));
        Ok(0)
    }

    fn parse(change: &Value) -> Result<Change, String> {
        let change = serde_json::from_value(change.clone()).map_err(|error| error.to_string())?;
        if let Change::Items(items) = &change {
            if items.iter().any(|item| item.3.len() > 128) {
                return Err("an item has at most 128 bytes".into());
            }
        }
        Ok(change)
    }

    fn order(&self, order: Order) -> Result<(), String> {
        let orders = self.orders.as_ref().ok_or("the device is not attached")?;
        orders.send(order).map_err(|error| error.to_string())
    }
}

impl VirtioDevice for Input {
    fn id(&self) -> virtio::Id {
        virtio::Id::Input
    }

    fn class(&self) -> u16 {
        // Input device controller, other.
        0x0980
    }

    fn queues(&self) -> u16 {
        2
    }

    fn attach(&mut self, port: Port) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        let waiting = Arc::clone(&self.waiting);
        thread::Builder::new()
            .name("input".into())
            .spawn(move || happen(&receiver, &waiting, &port))?;
        self.orders = Some(sender);
        Ok(())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        for (byte, at) in data.iter_mut().zip(offset..) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (byte, at) in data.iter().zip(offset..) {
            match at {
                field::SELECT => self.select.0 = *byte,
                field::SUBSEL => self.select.1 = *byte,
                _ => {}
            }
        }
    }

    fn wants(&self, queue: u16) -> bool {
        queue != EVENTS || !lock(&self.waiting).events.is_empty()
    }

    fn process(&mut self, request: Request, cx: &mut Context<'_>) {
        let result = match request.queue {
            EVENTS => self.report_event(&request, cx.mem),
            _ => self.take_status(&request, cx.mem),
        };
        cx.done.push(Completion {
            queue: request.queue,
            token: request.token,
            result,
        });
    }

    fn reset(&mut self) {
        self.select = (0, 0);
        self.states.clear();
        lock(&self.waiting).events.clear();
    }

    fn report(&self) -> Value {
        let waiting = lock(&self.waiting);
        let states = self.states.iter();
        let states: Vec<Event> = states.map(|((kind, code), v)| (*kind, *code, *v)).collect();
        json!({
            "waiting": waiting.events.len(),
            "dropped": waiting.dropped,
            "delivered": self.delivered,
            "received": self.received,
            "malformed": self.malformed,
            "states": states,
            "status": self.status,
        })
    }

    fn clear(&mut self) {
        self.delivered = 0;
        self.received = 0;
        self.malformed = 0;
        self.status.clear();
        lock(&self.waiting).dropped = 0;
    }

    fn check(&self, command: &Value) -> Result<(), String> {
        Self::parse(command).map(|_| ())
    }

    fn command(&mut self, command: &Value) -> Result<Changed, String> {
        match Self::parse(command)? {
            Change::Inject(events) => self.order(Order::Inject(events))?,
            Change::Stream { count, interval_us } => self.order(Order::Stream {
                count,
                interval: Duration::from_micros(interval_us),
            })?,
            Change::Items(items) => {
                for (select, subsel, size, data) in items {
                    self.items.insert((select, subsel), Item { size, data });
                }
            }
            Change::DefaultItems(()) => self.items = default_items(),
        }
        Ok(Changed::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(input: &mut Input, what: u8, of: u8) -> Vec<u8> {
        input.write_config(field::SELECT, &[what]);
        input.write_config(field::SUBSEL, &[of]);
        let mut size = [0];
        input.read_config(field::SIZE as u64, &mut size);
        let mut data = vec![0; size[0].into()];
        input.read_config(field::DATA as u64, &mut data);
        data
    }

    #[test]
    fn what_is_selected_is_told() {
        let mut input = Input::default();
        assert_eq!(
            selected(&mut input, select::ID_NAME, 0),
            b"virtio test input"
        );
        assert_eq!(
            selected(&mut input, select::EV_BITS, kind::REL as u8),
            [0x03, 1]
        );
        assert_eq!(
            selected(&mut input, select::ABS_INFO, 1)[..8],
            [0x9c, 0xff, 0xff, 0xff, 100, 0, 0, 0]
        );
        assert!(selected(&mut input, select::ABS_INFO, 2).is_empty());
        input.reset();
        assert_eq!(input.select, (0, 0));
    }

    #[test]
    fn events_keep_their_bytes() {
        for event in [(1, 2, 3), (u16::MAX, 0, i32::MIN), (0, u16::MAX, -1)] {
            assert_eq!(event_of(event_bytes(event)), event);
        }
    }

    #[test]
    fn changes() {
        let mut input = Input::default();
        let lie = json!({"items": [[1, 0, 255, [65]]]});
        input.command(&lie).unwrap();
        assert_eq!(selected(&mut input, select::ID_NAME, 0).len(), 255);
        input.command(&json!({"default_items": null})).unwrap();
        assert_eq!(input.items, default_items());
        // There is no thread yet.
        assert!(input.command(&json!({"inject": [[1, 2, 3]]})).is_err());
        assert!(input.check(&json!({"inject": [[1, 2]]})).is_err());
        assert!(input.check(&json!({"items": [[1, 0, 1, [256]]]})).is_err());
    }

    #[test]
    fn a_stream_counts() {
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (sender, receiver) = mpsc::channel();
        let port = Port::default();
        let thread = {
            let waiting = Arc::clone(&waiting);
            thread::spawn(move || happen(&receiver, &waiting, &port))
        };
        let interval = Duration::from_micros(10);
        sender.send(Order::Stream { count: 3, interval }).unwrap();
        while lock(&waiting).events.len() < 6 {
            thread::sleep(Duration::from_millis(1));
        }
        sender.send(Order::Inject(vec![(1, 2, 1)])).unwrap();
        drop(sender);
        thread.join().unwrap();
        let events = Vec::from(std::mem::take(&mut lock(&waiting).events));
        let (rel, syn) = (kind::REL, (kind::SYN, 0, 0));
        assert_eq!(
            events,
            [
                (rel, 1, 1),
                syn,
                (rel, 1, 2),
                syn,
                (rel, 1, 3),
                syn,
                (1, 2, 1)
            ]
        );
    }
}
