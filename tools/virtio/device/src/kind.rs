// SPDX-License-Identifier: GPL-2.0

//! What a device type implements; everything else is the same for all of them.

use clap::ValueEnum;
use serde::Serialize;
use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::features::FeatureSet;
use crate::memory::Memory;
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
}

impl Kind {
    /// A device of this type.
    pub fn build(self) -> Box<dyn DeviceType> {
        match self {
            Self::Rng => Box::new(Rng::default()),
        }
    }
}

/// A buffer that can't be processed: the driver's mistake or the host's.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// A segment where no memory is.
    #[error("the buffer is not in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The host gives no random bytes.
    #[error("the host has no random bytes: {0}")]
    Entropy(getrandom::Error),
}

/// A device type (VIRTIO 1.4, "Device Types").
pub trait DeviceType: Send {
    /// The type.
    fn id(&self) -> virtio::Id;

    /// PCI class and subclass.
    fn class(&self) -> u16;

    /// How many virtqueues it has.
    fn queues(&self) -> u16;

    /// The features of its own that it offers.
    fn features(&self) -> FeatureSet {
        0
    }

    /// Whether the type defines feature bit 42, which then can't mean the draft's SUSPEND.
    fn defines_bit_42(&self) -> bool {
        false
    }

    /// Reads device configuration; `data` comes zeroed.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// Writes device configuration.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Handles a buffer of `queue` and returns how many bytes were written into it. The work has
    /// to be bounded, whatever the buffer says.
    fn process(
        &mut self,
        queue: u16,
        buffer: &Buffer,
        mem: &Memory,
        settings: &Settings,
    ) -> Result<u32, ProcessError>;

    /// The device was reset.
    fn reset(&mut self) {}
}
