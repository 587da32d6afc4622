// SPDX-License-Identifier: GPL-2.0

//! Automatic receive steering (VIRTIO 1.4, "Automatic receive steering in multiqueue mode"): a flow
//! is received on the pair that it was last sent on.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// Flows that are told apart.
const FLOWS: usize = 1024;
/// How long a flow has to be idle to change its pair: packets that wait in the old one would be
/// overtaken.
const IDLE: Duration = Duration::from_millis(200);

/// A flow.
#[derive(Clone, Copy, Debug)]
struct Flow {
    pair: u16,
    /// When it was last seen.
    last: Option<Instant>,
}

/// Which pair a flow was sent on.
#[derive(Clone, Debug)]
pub struct Steering {
    pairs: u16,
    flows: Vec<Flow>,
}

impl Default for Steering {
    fn default() -> Self {
        let flow = Flow {
            pair: 0,
            last: None,
        };
        Self {
            pairs: 1,
            flows: vec![flow; FLOWS],
        }
    }
}

impl Steering {
    /// How many pairs are used.
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// The first so many pairs are used from now on.
    pub fn set_pairs(&mut self, pairs: u16) {
        self.pairs = pairs;
    }

    /// A frame was sent on a pair.
    pub fn sent(&mut self, frame: &[u8], pair: u16) {
        if self.pairs > 1 {
            let flow = &mut self.flows[flow(frame)];
            let now = Instant::now();
            if flow.last.is_none_or(|last| now - last > IDLE) {
                flow.pair = pair;
            }
            flow.last = Some(now);
        }
    }

    /// The pair that a frame is received on.
    pub fn pair(&mut self, frame: &[u8]) -> u16 {
        if self.pairs <= 1 {
            return 0;
        }
        let flow = &mut self.flows[flow(frame)];
        flow.last = Some(Instant::now());
        flow.pair % self.pairs
    }
}

/// A number that is the same for both directions of a flow.
fn flow(frame: &[u8]) -> usize {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return 0;
    };
    let (source, target): (IpAddr, IpAddr) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let ip = ip.header();
            (ip.source_addr().into(), ip.destination_addr().into())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let ip = ip.header();
            (ip.source_addr().into(), ip.destination_addr().into())
        }
        _ => return 0,
    };
    let (from, to) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    };
    let mut ends = [(source, from), (target, to)];
    ends.sort_unstable();
    let mut hasher = DefaultHasher::new();
    ends.hash(&mut hasher);
    (hasher.finish() % FLOWS as u64) as usize
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn udp(from: u16, to: u16, back: bool) -> Vec<u8> {
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let builder = match back {
            false => PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4(a, b, 64)
                .udp(from, to),
            true => PacketBuilder::ethernet2([4; 6], [2; 6])
                .ipv4(b, a, 64)
                .udp(to, from),
        };
        let mut frame = Vec::new();
        builder.write(&mut frame, &[1, 2, 3]).unwrap();
        frame
    }

    #[test]
    fn a_busy_flow_stays_where_it_is() {
        let mut steering = Steering::default();
        steering.set_pairs(2);
        steering.sent(&udp(1, 53, false), 1);
        steering.sent(&udp(1, 53, false), 0);
        assert_eq!(steering.pair(&udp(1, 53, true)), 1);
        std::thread::sleep(2 * IDLE);
        steering.sent(&udp(1, 53, false), 0);
        assert_eq!(steering.pair(&udp(1, 53, true)), 0);
    }

    #[test]
    fn the_answer_comes_where_the_question_was_asked() {
        let mut steering = Steering::default();
        steering.set_pairs(4);
        for port in 1..=4 {
            steering.sent(&udp(port, 53, false), port % 4);
        }
        for port in 1..=4 {
            assert_eq!(steering.pair(&udp(port, 53, true)), port % 4);
        }
        // Fewer pairs: never one that is not used.
        steering.set_pairs(2);
        assert!((1..=4).all(|port| steering.pair(&udp(port, 53, true)) < 2));
        steering.set_pairs(1);
        assert!((1..=4).all(|port| steering.pair(&udp(port, 53, true)) == 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(frame in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = flow(&frame);
        }
    }
}
