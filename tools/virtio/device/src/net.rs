// SPDX-License-Identifier: GPL-2.0

//! The network device (VIRTIO 1.4, "Network Device"), one end of a [`cable`].
//!
//! Frames go along the cable as the driver sent them, with their `struct virtio_net_hdr`. What the
//! sending driver left to the hardware is left to the receiving driver, if that has negotiated it, and
//! done by the receiving device if not ([`offload`]). So each device offers its offloads whatever the
//! other one has.
//!
//! While the device is suspended it sends nothing, and what arrives waits ([`receiver`]). Buffers
//! that it took for a frame that needs more of them than there are go back into the ring (V2).

use std::collections::VecDeque;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use virtio::net::F;
use virtio::FeatureBits;

use crate::features::FeatureSet;
use crate::memory::Memory;
use crate::port::Port;
use crate::random::Stream;
use crate::request::{Completion, ProcessError, Request, Token};
use crate::ring::cursor::Cursor;
use crate::ring::Buffer;
use crate::virtio_device::{Changed, Context, VirtioDevice};

pub mod cable;
pub mod config;
pub mod control;
pub mod filter;
pub mod frame;
pub mod offload;
pub mod receiver;
pub mod steering;

use cable::{Cable, Dropped, Plug};
use config::Config;
use control::{Command, Commands, ControlError};
use filter::{Filter, Mac};
use frame::{Frame, FrameError, HEADER, MAX_FRAME};
use offload::GUEST_OFFLOADS;
use receiver::Receiver;

/// What is offered, unless told otherwise.
const FEATURES: F = F::CSUM
    .union(F::GUEST_CSUM)
    .union(F::CTRL_GUEST_OFFLOADS)
    .union(F::MTU)
    .union(F::MAC)
    .union(F::GUEST_TSO4)
    .union(F::GUEST_TSO6)
    .union(F::GUEST_ECN)
    .union(F::HOST_TSO4)
    .union(F::HOST_TSO6)
    .union(F::HOST_ECN)
    .union(F::MRG_RXBUF)
    .union(F::STATUS)
    .union(F::CTRL_VQ)
    .union(F::CTRL_RX)
    .union(F::CTRL_VLAN)
    .union(F::GUEST_ANNOUNCE)
    .union(F::CTRL_MAC_ADDR)
    .union(F::SPEED_DUPLEX);

/// The smallest MTU that there may be: IPv4's.
const MIN_MTU: u16 = 68;
/// Most queue pairs.
const MAX_PAIRS: u16 = 16;

/// Options of the network device.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Network device (--type net)")]
#[group(skip)]
pub struct Options {
    /// Cable to the other network device: a Unix socket
    ///
    /// The device that starts first listens there, the other one connects. Without a cable, or
    /// without the other device, the link is down. A device that is gone may be started again.
    #[arg(long, value_name = "PATH", value_parser = cable_path)]
    pub cable: Option<PathBuf>,

    /// Address [default: 52:54:00 and the process ID]
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    pub mac: Option<Mac>,

    /// Pairs of receive and transmit queues; with more than one, MQ is offered
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_PAIRS)))]
    pub queue_pairs: u16,

    /// Largest MTU
    #[arg(long, value_name = "BYTES", default_value_t = 1500,
        value_parser = clap::value_parser!(u16).range(i64::from(MIN_MTU)..))]
    pub mtu: u16,

    /// Don't offer these features of a network device, such as mrg_rxbuf
    #[arg(long, value_name = "FEATURE,...", value_delimiter = ',',
        value_parser = parse_feature)]
    pub net_without: Vec<F>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cable: None,
            mac: None,
            queue_pairs: 1,
            mtu: 1500,
            net_without: Vec::new(),
        }
    }
}

fn cable_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() || parent.is_dir() => Ok(path.into()),
        _ => Err("its directory does not exist".into()),
    }
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    let parts: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2)
        })
        .collect();
    match parts.map(Mac::try_from) {
        Some(Ok(mac)) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(mac),
        _ => Err("use a unicast address like 52:54:00:12:34:56".into()),
    }
}

fn parse_feature(text: &str) -> Result<F, String> {
    F::from_name(&text.to_uppercase())
        .filter(|feature| FEATURES.union(F::MQ).contains(*feature))
        .ok_or_else(|| {
            let names = FEATURES.union(F::MQ);
            let names: Vec<_> = names.iter_names().map(|(n, _)| n.to_lowercase()).collect();
            format!("use of {}", names.join(", "))
        })
}

/// An address of its own for each process on a machine: both ends differ.
fn own_mac() -> Mac {
    let [.., a, b, c] = std::process::id().to_be_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}

/// What is sent, and why it was not.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Sent {
    /// Put on the cable.
    packets: u64,
    /// Their bytes, without `struct virtio_net_hdr`.
    bytes: u64,
    /// Dropped: this end's link is down, or nobody is at the other one.
    link_down: u64,
    /// Dropped: too many wait already.
    full: u64,
    /// Dropped: a header that can't be, or that was not negotiated.
    malformed: u64,
}

/// A receive queue.
#[derive(Debug, Default)]
struct Receive {
    /// What comes next: a frame, or the segments that are left of one.
    frames: VecDeque<Frame>,
    /// Buffers that were taken for it and are not enough yet.
    buffers: Vec<(Token, Buffer)>,
    /// Size of the virtqueue.
    size: u16,
}

/// What a virtqueue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(u16),
    Transmit(u16),
    Control,
    /// Nothing, with what was negotiated.
    None,
}

/// What the guest can change through the mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    /// The link, up or down.
    link: Option<bool>,
    /// Asks the driver to announce itself.
    announce: Option<bool>,
    mtu: Option<u16>,
    speed: Option<u32>,
    full_duplex: Option<bool>,
}

/// The network device.
pub struct Net {
    mac: Mac,
    features: F,
    /// As the driver reads it.
    config: Config,
    negotiated: FeatureSet,
    receiver: Arc<Mutex<Receiver>>,
    receive: Vec<Receive>,
    path: Option<PathBuf>,
    cable: Option<Cable>,
    sent: Sent,
    commands: Commands,
}

impl Net {
    /// The device that these options ask for.
    pub fn new(options: &Options) -> Result<Self, Box<dyn Error>> {
        let pairs = options.queue_pairs;
        let mut features = FEATURES;
        features.set(F::MQ, pairs > 1);
        for feature in &options.net_without {
            features.remove(*feature);
        }
        if !features.requirements_satisfied() {
            return Err(format!(
                "--net-without leaves a feature that needs one of those left out: {features:?}"
            )
            .into());
        }
        let mac = options.mac.unwrap_or_else(own_mac);
        Ok(Self {
            mac,
            features,
            config: Config {
                mac,
                link: false,
                announce: false,
                pairs,
                mtu: options.mtu,
                speed: 10_000,
                full_duplex: true,
            },
            negotiated: 0,
            receiver: Arc::new(Mutex::new(Receiver::new(mac, pairs))),
            receive: (0..pairs).map(|_| Receive::default()).collect(),
            path: options.cable.clone(),
            cable: None,
            sent: Sent::default(),
            commands: Commands::default(),
        })
    }

    fn receiver(&self) -> MutexGuard<'_, Receiver> {
        lock(&self.receiver)
    }

    fn has(&self, feature: F) -> bool {
        self.negotiated & feature.bits().to_ne() != 0
    }

    fn role(&self, queue: u16) -> Role {
        // "Virtqueues": without MQ the control queue comes after the first pair.
        let pairs = if self.has(F::MQ) {
            self.config.pairs
        } else {
            1
        };
        match queue {
            control if control == 2 * pairs && self.has(F::CTRL_VQ) => Role::Control,
            queue if queue >= 2 * pairs => Role::None,
            queue if queue % 2 == 0 => Role::Receive(queue / 2),
            queue => Role::Transmit(queue / 2),
        }
    }

    /// Puts frames into a pair's buffers, for as long as there are both.
    fn receive(&mut self, pair: u16, lie: Option<u64>, cx: &mut Context<'_>) {
        let mergeable = self.has(F::MRG_RXBUF);
        let mut receiver = lock(&self.receiver);
        let queue = &mut self.receive[usize::from(pair)];
        loop {
            if queue.frames.is_empty() {
                queue
                    .frames
                    .extend(receiver.next(pair).into_iter().flatten());
            }
            let Some(frame) = queue.frames.front() else {
                break;
            };
            let mut room = 0;
            let usable = if mergeable { usize::MAX } else { 1 };
            let count = queue
                .buffers
                .iter()
                .take(usable)
                .position(|(_, buffer)| {
                    room += buffer.head.writable_len;
                    room >= frame.total_len() as u64
                })
                .map(|last| last + 1);
            let Some(count) = count else {
                let all = queue.buffers.len() >= usable.min(queue.size.into());
                if !all {
                    // More of them may come.
                    return;
                }
                receiver.counts.too_long += 1;
                queue.frames.pop_front();
                continue;
            };
            let mut bytes = frame.to_bytes(count as u16);
            if let Some(seed) = lie {
                let mut stream = Stream::new(seed, 0);
                bytes[..HEADER].fill_with(|| stream.draw() as u8);
            }
            let mut rest = &bytes[..];
            for (token, buffer) in queue.buffers.drain(..count) {
                let (now, later) = rest.split_at(rest.len().min(buffer.head.writable_len as usize));
                rest = later;
                let result = Cursor::new(&buffer.writable)
                    .write(cx.mem, now)
                    .map(|written| written as u32)
                    .map_err(ProcessError::Memory);
                cx.done.push(Completion {
                    queue: 2 * pair,
                    token,
                    result,
                });
            }
            receiver.counts.packets += 1;
            receiver.counts.bytes += frame.data().len() as u64;
            queue.frames.pop_front();
        }
        // No frame: the buffers are for the next.
        give_back(pair, queue, cx);
    }

    /// Sends what is in a buffer.
    fn transmit(&mut self, pair: u16, buffer: &Buffer, mem: &Memory) -> Result<(), ProcessError> {
        let bytes = read(buffer, mem, HEADER + MAX_FRAME + 1)?;
        let frame = Frame::parse(&bytes)
            .and_then(|frame| frame.check_negotiated(self.negotiated).map(|()| frame));
        let Ok(frame) = frame else {
            self.sent.malformed += 1;
            return Ok(());
        };
        let len = frame.data().len() as u64;
        let link = {
            let mut receiver = self.receiver();
            receiver.steering.sent(frame.data(), pair);
            receiver.link
        };
        let result = match &self.cable {
            Some(cable) if link => cable.send(frame),
            _ => Err(Dropped::NoCarrier),
        };
        match result {
            Ok(()) => {
                self.sent.packets += 1;
                self.sent.bytes += len;
            }
            Err(Dropped::NoCarrier) => self.sent.link_down += 1,
            Err(Dropped::Full) => self.sent.full += 1,
        }
        Ok(())
    }

    /// Does what a command says, and answers.
    fn control(
        &mut self,
        buffer: &Buffer,
        lie: Option<u64>,
        mem: &Memory,
    ) -> Result<u32, ProcessError> {
        let bytes = read(buffer, mem, control::MAX_COMMAND)?;
        let done = control::parse(&bytes).and_then(|command| self.apply(command));
        let ack = match done {
            _ if lie.is_some() => lie.unwrap_or_default() as u8,
            Ok(()) => control::OK,
            Err(error) => {
                log::debug!("a command is refused: {error}");
                self.commands.refused += 1;
                control::ERR
            }
        };
        let written = Cursor::new(&buffer.writable).write(mem, &[ack])?;
        Ok(written as u32)
    }

    fn apply(&mut self, command: Command) -> Result<(), ControlError> {
        let feature = match command {
            Command::Promiscuous(_) | Command::AllMulticast(_) | Command::MacTable { .. } => {
                F::CTRL_RX
            }
            Command::MacAddress(_) => F::CTRL_MAC_ADDR,
            Command::VlanAdd(_) | Command::VlanDelete(_) => F::CTRL_VLAN,
            Command::AnnounceAck => F::GUEST_ANNOUNCE,
            Command::QueuePairs(_) => F::MQ,
            Command::GuestOffloads(_) => F::CTRL_GUEST_OFFLOADS,
        };
        if !self.has(feature) {
            return Err(ControlError::NotNegotiated);
        }
        let mut receiver = lock(&self.receiver);
        let kind = command.clone();
        match command {
            Command::Promiscuous(on) => receiver.filter.promiscuous = on,
            Command::AllMulticast(on) => receiver.filter.all_multicast = on,
            Command::MacTable { unicast, multicast } => {
                receiver.filter.set_table(unicast, multicast);
            }
            Command::MacAddress(mac) => {
                receiver.filter.mac = mac;
                self.config.mac = mac;
            }
            Command::VlanAdd(vlan) | Command::VlanDelete(vlan) => {
                let add = matches!(kind, Command::VlanAdd(_));
                if !receiver.filter.set_vlan(vlan, add) {
                    return Err(ControlError::Value(vlan.into()));
                }
            }
            Command::AnnounceAck => self.config.announce = false,
            Command::QueuePairs(pairs) => {
                if !(1..=self.config.pairs).contains(&pairs) {
                    return Err(ControlError::Value(pairs.into()));
                }
                receiver.steering.set_pairs(pairs);
            }
            Command::GuestOffloads(bits) => {
                let offloads = FeatureSet::from(bits);
                if offloads & !(self.negotiated & GUEST_OFFLOADS) != 0 {
                    return Err(ControlError::Value(bits));
                }
                receiver.offloads = offloads;
            }
        }
        self.commands.count(&kind);
        Ok(())
    }
}

fn lock(receiver: &Mutex<Receiver>) -> MutexGuard<'_, Receiver> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be read of a buffer, or its first `most` bytes.
fn read(buffer: &Buffer, mem: &Memory, most: usize) -> Result<Vec<u8>, ProcessError> {
    let mut cursor = Cursor::new(&buffer.readable);
    let mut data = vec![0; cursor.left().min(most as u64) as usize];
    cursor.read(mem, &mut data)?;
    Ok(data)
}

/// Gives the buffers back that no frame needs.
fn give_back(pair: u16, queue: &mut Receive, cx: &mut Context<'_>) {
    let tokens = queue.buffers.drain(..).map(|(token, _)| token);
    cx.back.extend(tokens.map(|token| (2 * pair, token)));
}

/// What the guest asks for, if it is possible.
fn parse_change(change: &Value) -> Result<Change, String> {
    let change = Change::deserialize(change).map_err(|error| error.to_string())?;
    match change.mtu {
        Some(mtu) if mtu < MIN_MTU => Err(format!("mtu is {mtu}; use at least {MIN_MTU}")),
        _ => Ok(change),
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> virtio::Id {
        virtio::Id::Net
    }

    fn class(&self) -> u16 {
        // Ethernet controller.
        0x0200
    }

    fn queues(&self) -> u16 {
        2 * self.config.pairs + u16::from(self.features.contains(F::CTRL_VQ))
    }

    fn features(&self) -> FeatureSet {
        self.features.bits().to_ne()
    }

    fn negotiated(&mut self, features: FeatureSet) {
        self.negotiated = features;
        let filter = Filter::new(self.mac, self.has(F::CTRL_VLAN));
        let mtu = self.has(F::MTU).then_some(self.config.mtu);
        self.receiver().open(filter, features & GUEST_OFFLOADS, mtu);
    }

    /// VIRTIO_NET_F_GUEST_RSC6, which is not offered as such.
    fn defines_bit_42(&self) -> bool {
        true
    }

    fn attach(&mut self, port: Port) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let end = End {
            receiver: Arc::clone(&self.receiver),
            port,
            pairs: Vec::new(),
        };
        self.cable = Some(Cable::plug_in(path, end)?);
        Ok(())
    }

    fn queue_enabled(&mut self, queue: u16, size: u16) {
        if let Some(receive) = self.receive.get_mut(usize::from(queue / 2)) {
            if queue.is_multiple_of(2) {
                receive.size = size;
            }
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.config.bytes();
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
        if let Some(rest) = rest {
            let len = rest.len().min(data.len());
            data[..len].copy_from_slice(&rest[..len]);
        }
    }

    fn refresh_config(&mut self) -> bool {
        let link = {
            let receiver = self.receiver();
            receiver.carrier && receiver.link
        };
        std::mem::replace(&mut self.config.link, link) != link
    }

    fn wants(&self, queue: u16) -> bool {
        match self.role(queue) {
            Role::Receive(pair) => {
                let waits = !self.receive[usize::from(pair)].frames.is_empty();
                waits || self.receiver().has(pair)
            }
            Role::Transmit(_) | Role::Control => true,
            Role::None => false,
        }
    }

    fn process(&mut self, request: Request, cx: &mut Context<'_>) {
        let Request {
            queue,
            token,
            buffer,
            lie,
            is_lost: _,
        } = request;
        let result = match self.role(queue) {
            Role::Receive(pair) => {
                self.receive[usize::from(pair)]
                    .buffers
                    .push((token, buffer));
                return self.receive(pair, lie, cx);
            }
            // A lie: it is not sent.
            Role::Transmit(_) if lie.is_some() => Ok(0),
            Role::Transmit(pair) => self.transmit(pair, &buffer, cx.mem).map(|()| 0),
            Role::Control => self.control(&buffer, lie, cx.mem),
            Role::None => Ok(0),
        };
        cx.done.push(Completion {
            queue,
            token,
            result,
        });
    }

    fn suspend(&mut self, cx: &mut Context<'_>) {
        for (pair, queue) in self.receive.iter_mut().enumerate() {
            give_back(pair as u16, queue, cx);
        }
    }

    fn reset(&mut self) {
        self.negotiated = 0;
        self.config.mac = self.mac;
        self.config.announce = false;
        self.commands = Commands::default();
        self.receive.fill_with(Receive::default);
        self.receiver().close(self.mac);
        self.refresh_config();
    }

    fn reset_queue(&mut self, queue: u16) {
        if let Role::Receive(pair) = self.role(queue) {
            self.receive[usize::from(pair)].buffers.clear();
        }
    }

    fn report(&self) -> Value {
        let receiver = self.receiver();
        json!({
            "tx": self.sent,
            "rx": receiver.counts,
            "waiting": receiver.waiting(),
            "carrier": receiver.carrier,
            "link": self.config.link,
            "announce": self.config.announce,
            "mtu": self.config.mtu,
            "speed": self.config.speed,
            "full_duplex": self.config.full_duplex,
            "pairs": receiver.steering.pairs(),
            "offloads": format!("{:#x}", receiver.offloads),
            "filter": receiver.filter.report(),
            "commands": self.commands,
        })
    }

    fn clear(&mut self) {
        self.sent = Sent::default();
        self.commands = Commands::default();
        self.receiver().counts = Default::default();
    }

    fn check(&self, command: &Value) -> Result<(), String> {
        let change = parse_change(command)?;
        if change.announce == Some(true) && !self.has(F::GUEST_ANNOUNCE) {
            return Err("GUEST_ANNOUNCE was not negotiated".into());
        }
        Ok(())
    }

    fn command(&mut self, command: &Value) -> Result<Changed, String> {
        let change = parse_change(command)?;
        let before = self.config;
        if let Some(link) = change.link {
            self.receiver().link = link;
        }
        let config = &mut self.config;
        config.announce = change.announce.unwrap_or(config.announce);
        config.mtu = change.mtu.unwrap_or(config.mtu);
        config.speed = change.speed.unwrap_or(config.speed);
        config.full_duplex = change.full_duplex.unwrap_or(config.full_duplex);
        self.refresh_config();
        Ok(Changed {
            config: self.config != before,
        })
    }
}

/// Where the cable's thread puts what arrives.
struct End {
    receiver: Arc<Mutex<Receiver>>,
    port: Port,
    /// Those that frames have arrived for.
    pairs: Vec<u16>,
}

impl Plug for End {
    fn carrier(&mut self, up: bool) {
        lock(&self.receiver).carrier = up;
        self.port.refresh_config();
    }

    fn arrive(&mut self, frame: Result<Frame, FrameError>) {
        if let Some(pair) = lock(&self.receiver).arrive(frame) {
            if !self.pairs.contains(&pair) {
                self.pairs.push(pair);
            }
        }
    }

    fn arrived(&mut self) {
        for pair in self.pairs.drain(..) {
            self.port.look(2 * pair);
        }
    }
}
