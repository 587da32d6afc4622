// SPDX-License-Identifier: GPL-2.0

//! `struct virtio_net_config` (VIRTIO 1.4, "Device configuration layout" of the network device).
//!
//! `virtio-spec` keeps the fields private, so the offsets are written down here and a test holds
//! them against that structure.

use virtio::net::S;

use super::filter::Mac;

/// Offsets of the fields.
pub mod field {
    /// mac
    pub const MAC: usize = 0;
    /// status
    pub const STATUS: usize = 6;
    /// max_virtqueue_pairs
    pub const MAX_VIRTQUEUE_PAIRS: usize = 8;
    /// mtu
    pub const MTU: usize = 10;
    /// speed
    pub const SPEED: usize = 12;
    /// duplex
    pub const DUPLEX: usize = 16;
    /// The fields that the features offered have.
    pub const END: usize = 17;
}

/// The fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address; the driver may change it.
    pub mac: Mac,
    /// The link is up.
    pub link: bool,
    /// The driver is asked to announce itself.
    pub announce: bool,
    /// How many queue pairs there are.
    pub pairs: u16,
    /// The largest MTU.
    pub mtu: u16,
    /// In Mbit/s.
    pub speed: u32,
    /// Full duplex.
    pub full_duplex: bool,
}

impl Config {
    /// As the driver reads it.
    pub fn bytes(&self) -> [u8; field::END] {
        let mut bytes = [0; field::END];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let mut status = S::empty();
        status.set(S::LINK_UP, self.link);
        status.set(S::ANNOUNCE, self.announce);
        put(field::MAC, &self.mac);
        put(field::STATUS, &status.bits().to_ne().to_le_bytes());
        put(field::MAX_VIRTQUEUE_PAIRS, &self.pairs.to_le_bytes());
        put(field::MTU, &self.mtu.to_le_bytes());
        put(field::SPEED, &self.speed.to_le_bytes());
        put(field::DUPLEX, &[self.full_duplex.into()]);
        bytes
    }
}
