// SPDX-License-Identifier: GPL-2.0

//! The device types there are, and their options: the one place that knows them all.

use std::error::Error;

use clap::ValueEnum;
use serde::Serialize;

use crate::blk::{self, Blk};
use crate::input::Input;
use crate::net::{self, Net};
use crate::rng::Rng;
use crate::virtio_device::VirtioDevice;

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
    /// Input device: a keyboard, a mouse and a touch screen in one.
    Input,
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
            Self::Blk => Box::new(Blk::build(&options.blk, queue_size)?),
            Self::Net => Box::new(Net::new(&options.net)?),
            Self::Input => Box::new(Input::default()),
        })
    }
}

/// What `--help` says of their options at its end.
pub fn help() -> String {
    blk::options::help()
}
