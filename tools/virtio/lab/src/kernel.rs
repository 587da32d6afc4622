// SPDX-License-Identifier: GPL-2.0

//! The kernel of the guest.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which kernel to build for and to boot.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
pub enum Flavour {
    /// Debian's own image, unmodified.
    #[default]
    Stock,
    /// Built from the same source with the kernel's checkers.
    Debug,
}

/// A kernel that modules can be built for and that can be booted.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// Debian's version of the packages.
    pub version: String,
    pub image: PathBuf,
    /// The directory to build modules with, `make -C`.
    pub build: PathBuf,
    pub source: PathBuf,
    #[serde(default)]
    pub flavour: Flavour,
    /// What `make` has to be told besides, for the kernel and for its modules.
    #[serde(default)]
    pub make: Vec<String>,
}

impl Flavour {
    /// How much slower than the stock kernel it is, at least for deadlines.
    pub fn slowness(self) -> u32 {
        match self {
            Self::Stock => 1,
            Self::Debug => 5,
        }
    }

    /// The guest's memory, as QEMU wants it.
    pub fn memory(self) -> &'static str {
        match self {
            Self::Stock => "768M",
            Self::Debug => "1536M",
        }
    }
}
