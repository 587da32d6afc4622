// SPDX-License-Identifier: GPL-2.0

//! What a device type implements; everything else is the same for all of them.

use std::error::Error;
use std::io;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::blk::{self, request::Malformed};
use crate::features::FeatureSet;
use crate::memory::Memory;
use crate::net::{self, Net};
use crate::port::Port;
use crate::ring::Buffer;
use crate::rng::Rng;
use crate::settings::Settings;

/// The device types there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Entropy device.
    #[default]
    Rng,
    /// Block device.
    Blk,
    /// Network device, one end of a cable.
    Net,
}

/// The options of the device types.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Options {
    /// Of a block device.
    #[command(flatten)]
    pub blk: blk::Options,

    /// Of a network device.
    #[command(flatten)]
    pub net: net::Options,
}

impl Kind {
    /// A device of this type, whose queues have at most `queue_size` descriptors; an error if its
    /// options ask for what can't be.
    pub fn build(
        self,
        options: &Options,
        queue_size: u16,
    ) -> Result<Box<dyn VirtioDevice>, Box<dyn Error>> {
        Ok(match self {
            Self::Rng => Box::new(Rng::default()),
            Self::Blk => Box::new(options.blk.build(queue_size)?),
            Self::Net => Box::new(Net::new(&options.net)?),
        })
    }
}

/// A buffer that can't be processed: the driver's mistake or the host's. The device then needs a
/// reset; what a device type has an answer for, such as a status byte, is no such error.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// A segment where no memory is.
    #[error("the buffer is not in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// A block request that has no answer.
    #[error(transparent)]
    Block(#[from] Malformed),
    /// The host gives no random bytes.
    #[error("the host has no random bytes: {0}")]
    Entropy(getrandom::Error),
}

/// Which request: in ascending order of the moment at which they were taken, and never twice.
pub type Token = u64;

/// A buffer that was taken from a queue.
#[derive(Debug)]
pub struct Request {
    /// The queue.
    pub queue: u16,
    /// What [`Completion`] is to name.
    pub token: Token,
    /// The buffer.
    pub buffer: Buffer,
    /// The device is to answer wrongly, out of this seed: a fault. The answer has to be bounded and
    /// stay inside the buffer.
    pub lie: Option<u64>,
}

/// A request is finished.
#[derive(Debug)]
pub struct Completion {
    /// Its queue.
    pub queue: u16,
    /// Which.
    pub token: Token,
    /// How many bytes were written into the buffer.
    pub result: Result<u32, ProcessError>,
}

/// What a device type works with while the device is locked.
#[derive(Debug)]
pub struct Context<'a> {
    /// The guest's memory.
    pub mem: &'a Memory,
    /// The settings.
    pub settings: &'a Settings,
    /// The requests that are finished: they go into the used ring, in this order, when the method
    /// returns.
    pub done: &'a mut Vec<Completion>,
    /// The requests whose buffers are not needed after all, by queue: the last that were taken from
    /// it and are not finished, the oldest first. They are available again, as if never taken.
    pub back: &'a mut Vec<(u16, Token)>,
}

/// What a command of the mailbox has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The driver is to be notified of a configuration change.
    pub config: bool,
}

/// A device type (VIRTIO 1.4, "Device Types").
///
/// Its methods are called under the lock of the device, and must not wait for what may never come.
/// What takes time is done by threads of its own, which reach the device by the [`Port`].
pub trait VirtioDevice: Send {
    /// The type.
    fn id(&self) -> virtio::Id;

    /// PCI class and subclass.
    fn class(&self) -> u16;

    /// How many virtqueues it has. Other than [`VirtioDevice::max_queues`] it may change at a reset.
    fn queues(&self) -> u16;

    /// How many virtqueues it may come to have.
    fn max_queues(&self) -> u16 {
        self.queues()
    }

    /// The features of its own that it offers. They may change at a reset.
    fn features(&self) -> FeatureSet {
        0
    }

    /// The driver has set FEATURES_OK with these features.
    fn negotiated(&mut self, _features: FeatureSet) {}

    /// Whether the type defines feature bit 42, which then can't mean the draft's SUSPEND.
    fn defines_bit_42(&self) -> bool {
        false
    }

    /// The device is there; `port` is for the threads, which are to be started.
    fn attach(&mut self, _port: Port) -> io::Result<()> {
        Ok(())
    }

    /// A virtqueue was enabled, with so many descriptors.
    fn queue_enabled(&mut self, _queue: u16, _size: u16) {}

    /// Fields of the configuration that change by themselves may change now, which they may not
    /// while the device is suspended (V3); [`Port::refresh_config`] asks for this. Returns whether
    /// one did.
    fn refresh_config(&mut self) -> bool {
        false
    }

    /// Reads device configuration; `data` comes zeroed.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// Writes device configuration.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Whether it has a use for a buffer of `queue` now. One that it does not want stays available
    /// in the ring, and the driver is not asked to notify; [`Port::look`] has the device look
    /// again.
    fn wants(&self, _queue: u16) -> bool {
        true
    }

    /// How many requests of a queue it can work on at a time. While there are as many, the driver
    /// is not asked to notify more: the device looks itself when one is finished.
    fn parallel(&self) -> usize {
        usize::MAX
    }

    /// Begins with a request. It is finished by [`Context::done`], in this call or a later one, or
    /// by [`Port::complete`]. The work has to be bounded, whatever the buffer says.
    fn process(&mut self, request: Request, cx: &mut Context<'_>);

    /// All buffers that are available now were passed to [`VirtioDevice::process`].
    fn submit(&mut self) {}

    /// SUSPEND was written: what is in process has to be finished, and nothing more will come. The
    /// suspended condition is presented when every request is finished (V2).
    fn suspend(&mut self, _cx: &mut Context<'_>) {}

    /// The device was reset. Its requests were dropped: [`Port::enter`] refuses them from now on, and
    /// a completion of theirs is ignored.
    fn reset(&mut self) {}

    /// The requests of `queue` were dropped by a reset of that queue.
    fn reset_queue(&mut self, _queue: u16) {}

    /// What it has to say for itself: counts and the like, a JSON object.
    fn report(&self) -> Value {
        Value::Null
    }

    /// Forgets its counts.
    fn clear(&mut self) {}

    /// Whether [`VirtioDevice::command`] would understand this, checked at once even if the change
    /// has to wait for the resume (V3).
    fn check(&self, _command: &Value) -> Result<(), String> {
        Err("this device type has nothing to change".into())
    }

    /// A change that the guest asked for through the mailbox.
    fn command(&mut self, _command: &Value) -> Result<Changed, String> {
        Err("this device type has nothing to change".into())
    }
}
