// SPDX-License-Identifier: GPL-2.0

//! What a device type implements; everything else is the same for all of them.
//!
//! None of them is known here: [`crate::registry`] lists them.

use std::io;

use serde_json::Value;

use crate::features::FeatureSet;
use crate::memory::Memory;
use crate::port::Port;
use crate::request::{Completion, Request, Token};
use crate::settings::Settings;

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
