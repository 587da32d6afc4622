// SPDX-License-Identifier: GPL-2.0

//! The block device (VIRTIO 1.4, "Block Device"): request queues, served by threads of its own, or
//! by who notifies the device.
//!
//! | module | |
//! |---|---|
//! | [`options`] | what can be said on the command line |
//! | [`config`] | features and limits, and device configuration space |
//! | [`request`] | headers and ranges, parsed and checked |
//! | [`execute`], [`pool`] | a request carried out; the threads that do it |
//! | [`backing`] | the data, which outlives every reset |
//! | [`stats`] | counts, checksums and the last ranges |
//!
//! What is in process when the device is reset is dropped: a thread that has begun with a request
//! finishes it before the reset does, all others never touch memory (see [`crate::port`]).

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use log::info;
use serde_json::{json, Map, Value};

use crate::features::FeatureSet;
use crate::port::Port;
use crate::request::{Completion, Request};
use crate::virtio_device::{Changed, Context, VirtioDevice};

pub mod backing;
pub mod config;
pub mod execute;
pub mod options;
pub mod pool;
pub mod request;
pub mod stats;

use config::{field, Config, Feature, SECTOR};
use execute::{Disk, Executor, Failing};
pub use options::{Options, OptionsError};
use pool::Pool;
use request::Terms;

/// The block device.
pub struct Blk {
    disk: Arc<Disk>,
    /// What the device is from the next reset on.
    next: Config,
    /// What it is, and what the driver has accepted of it.
    terms: Arc<Terms>,
    threads: usize,
    queue_size: u16,
    max_queues: u16,
    /// The threads, once the device is attached, if it has any.
    pool: Option<Pool>,
    /// Carries requests out otherwise.
    executor: Executor,
}

/// A change that was asked for, taken apart.
struct Change {
    config: Config,
    failing: Option<Failing>,
}

impl Blk {
    /// The device that options ask for; an error if they ask for what can't be.
    pub fn build(options: &Options, queue_size: u16) -> Result<Self, OptionsError> {
        let (disk, config, threads) = options.parts(queue_size)?;
        Ok(Self::new(disk, config, threads, queue_size))
    }

    /// A device as `config` has it, with requests carried out by `threads` threads; if that is 0,
    /// before the notification of them is over.
    pub fn new(disk: Disk, config: Config, threads: usize, queue_size: u16) -> Self {
        let terms = Terms {
            config: config.clone(),
            accepted: 0,
        };
        disk.writeback.store(config.writeback, Ordering::Release);
        let disk = Arc::new(disk);
        Self {
            executor: Executor::new(Arc::clone(&disk)),
            disk,
            max_queues: config.queues,
            next: config,
            terms: Arc::new(terms),
            threads,
            queue_size,
            pool: None,
        }
    }

    fn parse(&self, change: &Value) -> Result<Change, String> {
        let mut change: Map<String, Value> = match change {
            Value::Object(change) => change.clone(),
            _ => return Err(config::ConfigError::NoObject.to_string()),
        };
        let failing = change.remove("fail").map(serde_json::from_value);
        let failing = failing.transpose().map_err(|error| error.to_string())?;
        let config = self.next.changed(&Value::Object(change));
        let config = config.map_err(|error| error.to_string())?;
        config
            .check(self.queue_size, self.max_queues)
            .map_err(|error| error.to_string())?;
        Ok(Change { config, failing })
    }
}

impl VirtioDevice for Blk {
    fn id(&self) -> virtio::Id {
        virtio::Id::Block
    }

    fn class(&self) -> u16 {
        // Mass storage, other.
        0x0180
    }

    fn queues(&self) -> u16 {
        self.terms.config.queues()
    }

    fn max_queues(&self) -> u16 {
        self.max_queues
    }

    fn features(&self) -> FeatureSet {
        self.terms.config.bits()
    }

    fn negotiated(&mut self, features: FeatureSet) {
        let terms = Arc::make_mut(&mut self.terms);
        terms.accepted = features & terms.config.bits();
    }

    fn attach(&mut self, port: Port) -> io::Result<()> {
        if self.threads != 0 {
            self.pool = Some(Pool::start(self.threads, &self.disk, &port)?);
        }
        Ok(())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let capacity = self.disk.capacity.load(Ordering::Acquire);
        let writeback = self.disk.writeback.load(Ordering::Acquire);
        let image = self.terms.config.image(capacity, writeback);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // The one field that a driver may write.
        match data {
            [mode] if offset == field::WRITEBACK as u64 && self.terms.has(Feature::ConfigWce) => {
                self.disk.writeback.store(*mode != 0, Ordering::Release);
            }
            _ => info!("a write of {data:02x?} at {offset:#x} of the configuration is ignored"),
        }
    }

    fn parallel(&self) -> usize {
        match self.threads {
            0 => usize::MAX,
            threads => threads,
        }
    }

    fn process(&mut self, request: Request, cx: &mut Context<'_>) {
        match &mut self.pool {
            Some(pool) => pool.push(request, Arc::clone(&self.terms)),
            None => cx.done.push(Completion {
                queue: request.queue,
                token: request.token,
                result: self.executor.execute(&request, &self.terms, cx.mem),
            }),
        }
    }

    fn submit(&mut self) {
        if let Some(pool) = &mut self.pool {
            pool.submit();
        }
    }

    fn reset(&mut self) {
        if let Some(pool) = &self.pool {
            pool.forget(|_| true);
        }
        self.terms = Arc::new(Terms {
            config: self.next.clone(),
            accepted: 0,
        });
        let writeback = self.next.writeback;
        self.disk.writeback.store(writeback, Ordering::Release);
    }

    fn reset_queue(&mut self, queue: u16) {
        if let Some(pool) = &self.pool {
            pool.forget(|request| request.queue == queue);
        }
    }

    fn report(&self) -> Value {
        let stats = self
            .disk
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        json!({
            "capacity": self.disk.capacity.load(Ordering::Acquire),
            "writeback": self.disk.writeback.load(Ordering::Acquire),
            "threads": self.threads,
            "requests": stats.requests,
            "queues": stats.queues,
            "unflushed": stats.unflushed,
            "misplaced": stats.misplaced,
            "ranges": stats.ranges,
            "config": self.terms.config,
            "pending": self.next != self.terms.config,
        })
    }

    fn clear(&mut self) {
        self.disk
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn check(&self, command: &Value) -> Result<(), String> {
        self.parse(command).map(|_| ())
    }

    fn command(&mut self, command: &Value) -> Result<Changed, String> {
        let Change { config, failing } = self.parse(command)?;
        let capacity = config.capacity;
        let bytes = capacity.saturating_mul(SECTOR);
        let reserved = self.disk.backing.reserve(bytes);
        reserved.map_err(|error| error.to_string())?;
        if let Some(failing) = failing {
            self.disk.fail(failing);
        }
        // Capacity and serial take effect at once, all else at the next reset.
        let terms = Arc::make_mut(&mut self.terms);
        terms.config.capacity = capacity;
        terms.config.serial.clone_from(&config.serial);
        self.next = config;
        let before = self.disk.capacity.swap(capacity, Ordering::AcqRel);
        Ok(Changed {
            config: before != capacity,
        })
    }
}
