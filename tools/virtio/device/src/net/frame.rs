// SPDX-License-Identifier: GPL-2.0

//! A frame with its `struct virtio_net_hdr`, as the driver sends it and as it goes along the cable.
//!
//! What a header may say is checked once, when the frame comes from a driver, and again when it
//! comes from the cable: everything behind that can rely on it.

use thiserror::Error;
use virtio::net::{Hdr, HdrF, HdrGso, F};
use zerocopy::{FromBytes, IntoBytes};

use crate::features::FeatureSet;

/// Size of the header; VERSION_1 has it always with `num_buffers`.
pub const HEADER: usize = size_of::<Hdr>();
/// An Ethernet header.
pub const ETHERNET: usize = 14;
/// The largest frame: the largest IP packet behind an Ethernet header with two VLAN tags.
pub const MAX_FRAME: usize = ETHERNET + 2 * 4 + 65535;

const ECN: u8 = HdrGso::Ecn as u8;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;

/// How large frames are segmented, if they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// A header that says what can't be, or a frame of an impossible length.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// No room for the headers, or more than fits.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// A checksum beyond the end.
    #[error(
        "a checksum from byte {start}, to be put at {start} + {offset}, of a frame of {len} bytes"
    )]
    Checksum {
        /// csum_start
        start: u16,
        /// csum_offset
        offset: u16,
        /// Length of the frame.
        len: usize,
    },
    /// A kind of segmentation that there is not.
    #[error("gso_type {0:#x}")]
    GsoType(u8),
    /// Segmentation without a size or without a TCP checksum to fill in.
    #[error("segmentation into {0} bytes each, or without a checksum of TCP")]
    Gso(u16),
    /// What the driver did not negotiate.
    #[error("an offload that was not negotiated: flags {0:#x}, gso_type {1:#x}")]
    NotNegotiated(u8, u8),
}

/// A frame whose header is possible.
#[derive(Clone, Debug)]
pub struct Frame {
    header: Hdr,
    /// From the Ethernet header on.
    data: Vec<u8>,
}

impl Frame {
    /// A frame that needs nothing more done to it.
    pub fn plain(data: Vec<u8>) -> Self {
        Self {
            header: Hdr::default(),
            data,
        }
    }

    /// The frame of these bytes: a header, then the frame itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let length = FrameError::Length(bytes.len().saturating_sub(HEADER));
        let (header, data) = Hdr::read_from_prefix(bytes).map_err(|_| length)?;
        if data.len() < ETHERNET || data.len() > MAX_FRAME {
            return Err(length);
        }
        let mut frame = Self {
            header: Hdr::default(),
            data: data.to_vec(),
        };
        // Of the flags a driver may set this one only, and the rest is not for the other end.
        if header.flags.contains(HdrF::NEEDS_CSUM) {
            frame.header.flags = HdrF::NEEDS_CSUM;
            frame.header.csum_start = header.csum_start;
            frame.header.csum_offset = header.csum_offset;
        }
        frame.header.gso_type = header.gso_type;
        if header.gso_type != HdrGso::None as u8 {
            frame.header.gso_size = header.gso_size;
            let hdr_len = header.hdr_len.to_ne().min(data.len() as u16);
            frame.header.hdr_len = hdr_len.into();
        }
        frame.check()?;
        Ok(frame)
    }

    fn check(&self) -> Result<(), FrameError> {
        let len = self.data.len();
        let header = &self.header;
        let checksum = self.checksum();
        if let Some((start, offset)) = checksum {
            if start < ETHERNET || start + offset + 2 > len {
                return Err(FrameError::Checksum {
                    start: header.csum_start.to_ne(),
                    offset: header.csum_offset.to_ne(),
                    len,
                });
            }
        }
        let gso_type = header.gso_type;
        let is_tcp = [HdrGso::Tcpv4 as u8, HdrGso::Tcpv6 as u8].contains(&(gso_type & !ECN));
        if gso_type != HdrGso::None as u8 {
            if !is_tcp {
                return Err(FrameError::GsoType(gso_type));
            }
            let size = header.gso_size.to_ne();
            if size == 0 || checksum.is_none_or(|(_, offset)| offset != TCP_CHECKSUM) {
                return Err(FrameError::Gso(size));
            }
        }
        Ok(())
    }

    /// Whether the driver may send this, with what it has negotiated.
    pub fn check_negotiated(&self, negotiated: FeatureSet) -> Result<(), FrameError> {
        let has = |feature: F| negotiated & feature.bits().to_ne() != 0;
        let gso = match self.gso() {
            None => true,
            Some(Gso::Tcp4) => has(F::HOST_TSO4),
            Some(Gso::Tcp6) => has(F::HOST_TSO6),
        };
        let checksum = self.checksum().is_none() || has(F::CSUM);
        let ecn = !self.has_ecn() || has(F::HOST_ECN);
        if gso && checksum && ecn {
            return Ok(());
        }
        Err(FrameError::NotNegotiated(
            self.header.flags.bits(),
            self.header.gso_type,
        ))
    }

    /// From the Ethernet header on.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// From the Ethernet header on.
    pub fn data_mut(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }

    /// Length with the header.
    pub fn total_len(&self) -> usize {
        HEADER + self.data.len()
    }

    /// Header and frame in one, with `num_buffers` as given.
    pub fn to_bytes(&self, num_buffers: u16) -> Vec<u8> {
        let header = Hdr {
            num_buffers: num_buffers.into(),
            ..self.header
        };
        [header.as_bytes(), &self.data].concat()
    }

    /// Where the checksum that is missing begins, and where, from there, it goes.
    pub fn checksum(&self) -> Option<(usize, usize)> {
        let header = &self.header;
        header.flags.contains(HdrF::NEEDS_CSUM).then(|| {
            (
                header.csum_start.to_ne().into(),
                header.csum_offset.to_ne().into(),
            )
        })
    }

    /// The checksum is there now.
    pub fn set_checksummed(&mut self) {
        self.header = Hdr::default();
    }

    /// How it is to be segmented.
    pub fn gso(&self) -> Option<Gso> {
        match self.header.gso_type & !ECN {
            kind if kind == HdrGso::Tcpv4 as u8 => Some(Gso::Tcp4),
            kind if kind == HdrGso::Tcpv6 as u8 => Some(Gso::Tcp6),
            _ => None,
        }
    }

    /// How many bytes of payload a segment has.
    pub fn gso_size(&self) -> usize {
        self.header.gso_size.to_ne().into()
    }

    /// It has TCP's CWR bit, which belongs to the first segment alone.
    pub fn has_ecn(&self) -> bool {
        self.header.gso_type & ECN != 0
    }
}

#[cfg(test)]
pub(super) mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    pub const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    pub const TARGET: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// A TCP frame; with `gso_size`, one to be segmented, whose checksum is to be filled in.
    pub fn tcp(v6: bool, payload: &[u8], gso_size: u16, ecn: bool) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(SOURCE, TARGET);
        let ip = match v6 {
            true => link.ipv6([1; 16], [2; 16], 64),
            false => link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
        };
        let mut builder = ip
            .tcp(1000, 2000, 0xffff_fff0, 500)
            .ack(77)
            .psh()
            .fin()
            .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
            .unwrap();
        if ecn {
            builder = builder.cwr();
        }
        let mut data = Vec::new();
        builder.write(&mut data, payload).unwrap();
        let start: u16 = if v6 { 54 } else { 34 };
        let mut gso_type = if v6 { 4 } else { 1 };
        if ecn {
            gso_type |= ECN;
        }
        let header = match gso_size {
            0 => Hdr::default(),
            size => Hdr {
                flags: HdrF::NEEDS_CSUM,
                gso_type,
                hdr_len: (start + 32).into(),
                gso_size: size.into(),
                csum_start: start.into(),
                csum_offset: 16.into(),
                num_buffers: 0.into(),
            },
        };
        [header.as_bytes(), &data].concat()
    }

    #[test]
    fn headers_that_are_possible() {
        let frame = Frame::parse(&tcp(false, &[0; 100], 0, false)).unwrap();
        assert_eq!((frame.gso(), frame.checksum()), (None, None));
        let bytes = tcp(false, &[0; 100], 50, true);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.gso(), Some(Gso::Tcp4));
        assert_eq!(frame.checksum(), Some((34, 16)));
        assert!(frame.has_ecn());
        assert_eq!(frame.to_bytes(0), bytes);
        assert_eq!(frame.to_bytes(3)[10..12], [3, 0]);
        let frame = Frame::parse(&tcp(true, &[0; 100], 50, false)).unwrap();
        assert_eq!(frame.gso(), Some(Gso::Tcp6));
    }

    #[test]
    fn headers_that_are_not() {
        let good = tcp(false, &[0; 100], 50, false);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Frame::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(1, 3), FrameError::GsoType(3));
        assert_eq!(with(1, ECN), FrameError::GsoType(ECN));
        assert_eq!(with(4, 0), FrameError::Gso(0));
        assert_eq!(with(0, 0), FrameError::Gso(50));
        assert_eq!(with(8, 6), FrameError::Gso(50));
        assert!(matches!(with(6, 5), FrameError::Checksum { .. }));
        assert!(matches!(with(7, 5), FrameError::Checksum { .. }));
        assert!(matches!(with(9, 255), FrameError::Checksum { .. }));
        assert!(matches!(
            Frame::parse(&good[..20]),
            Err(FrameError::Length(8))
        ));
        assert!(matches!(Frame::parse(&[0; 3]), Err(FrameError::Length(0))));
        assert!(Frame::parse(&vec![0; HEADER + MAX_FRAME]).is_ok());
        assert!(Frame::parse(&vec![0; HEADER + MAX_FRAME + 1]).is_err());
    }

    #[test]
    fn flags_that_are_not_the_drivers_do_not_pass() {
        let mut bytes = tcp(false, &[0; 10], 0, false);
        // DATA_VALID and RSC_INFO, and fields that mean nothing without a flag.
        bytes[0] = 6;
        bytes[2..10].fill(0xee);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(
            frame.to_bytes(1)[..HEADER],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
        );
    }

    #[test]
    fn only_what_was_negotiated() {
        let bits = |f: F| f.bits().to_ne();
        let ecn = Frame::parse(&tcp(false, &[0; 100], 50, true)).unwrap();
        assert!(ecn.check_negotiated(0).is_err());
        assert!(ecn.check_negotiated(bits(F::CSUM | F::HOST_TSO4)).is_err());
        assert!(ecn
            .check_negotiated(bits(F::CSUM | F::HOST_TSO6 | F::HOST_ECN))
            .is_err());
        assert!(ecn
            .check_negotiated(bits(F::HOST_TSO4 | F::HOST_ECN))
            .is_err());
        let all = bits(F::CSUM | F::HOST_TSO4 | F::HOST_ECN);
        assert!(ecn.check_negotiated(all).is_ok());
        assert!(Frame::plain(vec![0; 60]).check_negotiated(0).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(frame) = Frame::parse(&bytes) {
                // What was accepted once is accepted again, and is the same.
                let again = Frame::parse(&frame.to_bytes(0)).unwrap();
                prop_assert_eq!(again.to_bytes(1), frame.to_bytes(1));
                if let Some((start, offset)) = frame.checksum() {
                    prop_assert!(start + offset + 2 <= frame.data().len());
                }
            }
        }
    }
}
