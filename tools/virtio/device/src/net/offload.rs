// SPDX-License-Identifier: GPL-2.0

//! What the sending driver left to the hardware, done for a receiving driver that can't take it
//! like that: checksums are filled in, large TCP segments are cut up (VIRTIO 1.4, "Processing of
//! Incoming Packets").

use etherparse::checksum::Sum16BitWords;
use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use thiserror::Error;
use virtio::net::F;

use super::frame::{Frame, Gso, ETHERNET};
use crate::features::FeatureSet;

/// The offloads that a driver may turn on and off, and their bits in GUEST_OFFLOADS_SET, which
/// are those of the features.
pub const GUEST_OFFLOADS: FeatureSet = F::GUEST_CSUM
    .union(F::GUEST_TSO4)
    .union(F::GUEST_TSO6)
    .union(F::GUEST_ECN)
    .bits()
    .to_ne();

/// A frame that is said to be a large TCP segment and is not.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("not a TCP segment that could be cut up")]
pub struct NotTcp;

/// The frames that a driver with these offloads gets for one from the cable.
pub fn for_driver(mut frame: Frame, offloads: FeatureSet) -> Result<Vec<Frame>, NotTcp> {
    let has = |feature: F| offloads & feature.bits().to_ne() != 0;
    let whole = match frame.gso() {
        None => true,
        Some(Gso::Tcp4) => has(F::GUEST_TSO4),
        Some(Gso::Tcp6) => has(F::GUEST_TSO6),
    };
    if !whole || frame.has_ecn() && !has(F::GUEST_ECN) {
        return segment(&frame);
    }
    if !has(F::GUEST_CSUM) {
        fill_checksum(&mut frame);
    }
    Ok(vec![frame])
}

/// Fills in the checksum, which covers everything from where it starts.
fn fill_checksum(frame: &mut Frame) {
    let Some((start, offset)) = frame.checksum() else {
        return;
    };
    let at = start + offset;
    let data = frame.data_mut();
    let sum = Sum16BitWords::new()
        .add_slice(&data[start..])
        .to_ones_complement_with_no_zero();
    data[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    frame.set_checksummed();
}

/// Cuts up a large TCP segment.
fn segment(frame: &Frame) -> Result<Vec<Frame>, NotTcp> {
    let data = frame.data();
    let packet = SlicedPacket::from_ethernet(data).map_err(|_| NotTcp)?;
    let (Some(net), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
        return Err(NotTcp);
    };
    let extensions: usize = packet.link_exts.iter().map(|e| e.header_len()).sum();
    let network = ETHERNET + extensions;
    let transport = data.len() - tcp.slice().len();
    // The lengths in the headers have to be those of the frame, with nothing in between.
    let options = match (net, frame.gso()) {
        (NetSlice::Ipv4(ip), Some(Gso::Tcp4)) => ip.header().slice().len(),
        (NetSlice::Ipv6(ip), Some(Gso::Tcp6)) => ip.header().slice().len(),
        _ => return Err(NotTcp),
    };
    let begins = tcp.slice().as_ptr() as usize - data.as_ptr() as usize;
    if begins != transport
        || network + options != transport
        || frame.checksum().map(|(start, _)| start) != Some(transport)
    {
        return Err(NotTcp);
    }
    let headers = &data[..transport + tcp.header_slice().len()];
    let count = tcp.payload().len().div_ceil(frame.gso_size());
    tcp.payload()
        .chunks(frame.gso_size())
        .enumerate()
        .map(|(index, payload)| {
            let mut segment = [headers, payload].concat();
            let place = Place {
                network,
                transport,
                index,
                offset: index * frame.gso_size(),
                last: index + 1 == count,
            };
            place.patch(&mut segment, net)?;
            Ok(Frame::plain(segment))
        })
        .collect()
}

/// Where a segment is in the large one.
struct Place {
    /// Offset of the IP header.
    network: usize,
    /// Offset of the TCP header.
    transport: usize,
    /// Which segment.
    index: usize,
    /// Where its payload begins.
    offset: usize,
    last: bool,
}

impl Place {
    /// Makes the headers, which are those of the large segment, right for this one.
    fn patch(&self, data: &mut [u8], net: &NetSlice<'_>) -> Result<(), NotTcp> {
        const FIN: u8 = 0x01;
        const PSH: u8 = 0x08;
        const CWR: u8 = 0x80;

        let (transport, len) = (self.transport, data.len());
        let tcp = &mut data[transport..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let sequence = sequence.wrapping_add(self.offset as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if self.index > 0 {
            tcp[13] &= !CWR;
        }
        if !self.last {
            tcp[13] &= !(FIN | PSH);
        }
        let slice = TcpSlice::from_slice(tcp).map_err(|_| NotTcp)?;
        let sum = match net {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                let sum = slice.calc_checksum_ipv4(header.source(), header.destination());
                let mut header = header.to_header();
                header.total_len = (len - self.network) as u16;
                header.identification = header.identification.wrapping_add(self.index as u16);
                header.header_checksum = header.calc_header_checksum();
                data[self.network..transport].copy_from_slice(&header.to_bytes());
                sum
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                let sum = slice.calc_checksum_ipv6(header.source(), header.destination());
                let length = (len - transport) as u16;
                let at = self.network + 4;
                data[at..at + 2].copy_from_slice(&length.to_be_bytes());
                sum
            }
            NetSlice::Arp(_) => return Err(NotTcp),
        };
        let sum = sum.map_err(|_| NotTcp)?;
        data[transport + 16..transport + 18].copy_from_slice(&sum.to_be_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::tests::tcp;
    use super::super::frame::TCP_CHECKSUM;
    use super::*;

    fn bits(features: F) -> FeatureSet {
        features.bits().to_ne()
    }

    /// The TCP header and payload of a frame whose checksums are right.
    fn checked(data: &[u8]) -> (etherparse::TcpHeader, Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(data).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            panic!("no TCP: {data:02x?}");
        };
        let sum = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert_eq!(usize::from(header.total_len), data.len() - 14);
                tcp.calc_checksum_ipv4(header.source, header.destination)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                assert_eq!(usize::from(header.payload_length), data.len() - 54);
                tcp.calc_checksum_ipv6(header.source, header.destination)
            }
            NetSlice::Arp(_) => panic!("ARP"),
        };
        assert_eq!(sum.unwrap(), tcp.checksum());
        (tcp.to_header(), tcp.payload().to_vec())
    }

    /// Leaves the sum of the pseudo header where the checksum goes, as a driver does.
    fn unfinished(mut bytes: Vec<u8>) -> Vec<u8> {
        let (v6, start) = match bytes[12 + 12] {
            0x86 => (true, 12 + 54),
            _ => (false, 12 + 34),
        };
        let length = (bytes.len() - start) as u32;
        let addresses = if v6 {
            12 + 22..12 + 54
        } else {
            12 + 26..12 + 34
        };
        let sum = Sum16BitWords::new()
            .add_slice(&bytes[addresses])
            .add_4bytes(length.to_be_bytes())
            .add_2bytes([0, 6])
            .ones_complement();
        let at = start + TCP_CHECKSUM;
        bytes[at..at + 2].copy_from_slice(&(!sum).to_ne_bytes());
        bytes
    }

    #[test]
    fn left_alone_if_the_driver_can_take_it() {
        let bytes = unfinished(tcp(false, &[7; 3000], 1000, true));
        let frame = Frame::parse(&bytes).unwrap();
        let frames = for_driver(frame, GUEST_OFFLOADS).unwrap();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].to_bytes(0), bytes);
    }

    #[test]
    fn the_checksum_is_filled_in() {
        for v6 in [false, true] {
            let mut bytes = unfinished(tcp(v6, &[9; 101], 1000, false));
            // No GSO, a checksum only.
            bytes[1] = 0;
            let frame = Frame::parse(&bytes).unwrap();
            let untouched = for_driver(frame.clone(), bits(F::GUEST_CSUM)).unwrap();
            assert_eq!(untouched[0].data(), &bytes[12..]);
            let frames = for_driver(frame, 0).unwrap();
            assert_eq!(frames[0].checksum(), None);
            assert_eq!(checked(frames[0].data()).1, [9; 101]);
        }
    }

    #[test]
    fn ecn_goes_with_the_first_segment() {
        let frame = Frame::parse(&tcp(false, &[7; 3000], 1000, true)).unwrap();
        let offloads = GUEST_OFFLOADS & !bits(F::GUEST_ECN);
        let frames = for_driver(frame, offloads).unwrap();
        let flags = |frame: &Frame| {
            let (header, _) = checked(frame.data());
            (header.cwr, header.psh, header.fin)
        };
        let flags: Vec<_> = frames.iter().map(flags).collect();
        assert_eq!(
            flags,
            [
                (true, false, false),
                (false, false, false),
                (false, true, true)
            ]
        );
    }

    #[test]
    fn what_is_not_what_it_says_is_dropped() {
        let bytes = tcp(false, &[7; 3000], 1000, false);
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            for_driver(Frame::parse(&bytes).unwrap(), 0)
        };
        // UDP, IPv6's kind of segmentation, a shorter packet, a checksum elsewhere, no IP.
        for (at, value) in [(12 + 23, 17), (1, 4), (12 + 17, 5), (6, 33), (12 + 12, 7)] {
            assert_eq!(with(at, value).unwrap_err(), NotTcp, "{at}");
        }
        // With a byte behind it.
        let long = [&bytes[..], &[0]].concat();
        assert!(for_driver(Frame::parse(&long).unwrap(), 0).is_err());
    }

    proptest! {
        #[test]
        fn segments_add_up(
            v6 in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 1..5000),
            gso_size in 1u16..2000,
        ) {
            let frame = Frame::parse(&tcp(v6, &payload, gso_size, false)).unwrap();
            let frames = for_driver(frame, bits(F::GUEST_CSUM)).unwrap();
            let mut all = Vec::new();
            for frame in &frames {
                let (header, part) = checked(frame.data());
                prop_assert!(part.len() <= gso_size.into());
                let sequence = 0xffff_fff0u32.wrapping_add(all.len() as u32);
                prop_assert_eq!(header.sequence_number, sequence);
                all.extend(part);
                prop_assert_eq!(header.fin, all.len() == payload.len());
            }
            prop_assert_eq!(all, payload);
        }

        #[test]
        fn anything_that_parses_is_survived(
            mut bytes in (any::<bool>(), 1u16..100, any::<[u8; 20]>())
                .prop_map(|(v6, size, payload)| tcp(v6, &payload, size, false)),
            changes in proptest::collection::vec((0usize..120, any::<u8>()), 0..4),
            offloads in any::<u128>(),
        ) {
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok(frame) = Frame::parse(&bytes) {
                let _ = for_driver(frame, offloads);
            }
        }
    }
}
