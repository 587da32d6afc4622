// SPDX-License-Identifier: GPL-2.0

//! What arrives on the cable, until the driver has a buffer for it.
//!
//! While the device is suspended frames wait here, as they do while the driver is out of buffers:
//! at most [`MAX_FRAMES`] and [`MAX_BYTES`]. Beyond that the newest is dropped.

use std::collections::VecDeque;

use serde::Serialize;

use super::cable::{MAX_BYTES, MAX_FRAMES};
use super::filter::{Filter, Mac};
use super::frame::{Frame, FrameError, ETHERNET};
use super::offload::{self, NotTcp};
use super::steering::Steering;
use crate::features::FeatureSet;

/// Frames, and why others were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Received {
    /// Put into the driver's buffers.
    pub packets: u64,
    /// Their bytes, without `struct virtio_net_hdr`.
    pub bytes: u64,
    /// Dropped: not for this driver.
    pub filtered: u64,
    /// Dropped: no driver is there.
    pub not_ready: u64,
    /// Dropped: this end's link is down.
    pub link_down: u64,
    /// Dropped: too many wait already.
    pub full: u64,
    /// Dropped: longer than the MTU, or than the driver's buffers.
    pub too_long: u64,
    /// Dropped: not as its header says.
    pub malformed: u64,
}

/// What the driver has negotiated and asked for, and the frames that wait.
#[derive(Debug)]
pub struct Receiver {
    /// The other end is there.
    pub carrier: bool,
    /// This end is up.
    pub link: bool,
    /// The receive filter.
    pub filter: Filter,
    /// The offloads that the driver can take.
    pub offloads: FeatureSet,
    /// The queue pairs.
    pub steering: Steering,
    /// The counts.
    pub counts: Received,
    /// A driver is there.
    open: bool,
    /// The longest frame that is no large segment.
    longest: usize,
    /// For each pair.
    queues: Vec<VecDeque<Frame>>,
    frames: usize,
    bytes: usize,
}

impl Receiver {
    /// One of so many pairs, without a driver.
    pub fn new(mac: Mac, pairs: u16) -> Self {
        Self {
            carrier: false,
            link: true,
            filter: Filter::new(mac, false),
            offloads: 0,
            steering: Steering::default(),
            counts: Received::default(),
            open: false,
            longest: usize::MAX,
            queues: vec![VecDeque::new(); pairs.into()],
            frames: 0,
            bytes: 0,
        }
    }

    /// A driver is there.
    pub fn open(&mut self, filter: Filter, offloads: FeatureSet, mtu: Option<u16>) {
        self.close(filter.mac);
        self.open = true;
        self.filter = filter;
        self.offloads = offloads;
        // With a VLAN tag.
        self.longest = mtu.map_or(usize::MAX, |mtu| ETHERNET + 4 + usize::from(mtu));
    }

    /// No driver is there any more.
    pub fn close(&mut self, mac: Mac) {
        let mut new = Self::new(mac, self.queues.len() as u16);
        new.carrier = self.carrier;
        new.link = self.link;
        new.counts = self.counts;
        *self = new;
    }

    /// A frame arrives. Returns the pair that it waits for, if it is not dropped.
    pub fn arrive(&mut self, frame: Result<Frame, FrameError>) -> Option<u16> {
        let counts = &mut self.counts;
        let (dropped, frame) = match frame {
            Err(_) => (&mut counts.malformed, None),
            Ok(_) if !self.open => (&mut counts.not_ready, None),
            Ok(_) if !self.link => (&mut counts.link_down, None),
            Ok(frame) if frame.gso().is_none() && frame.data().len() > self.longest => {
                (&mut counts.too_long, None)
            }
            Ok(frame) if !self.filter.accepts(frame.data()) => (&mut counts.filtered, None),
            Ok(frame)
                if self.frames >= MAX_FRAMES || self.bytes + frame.total_len() > MAX_BYTES =>
            {
                (&mut counts.full, None)
            }
            Ok(frame) => (&mut counts.full, Some(frame)),
        };
        let Some(frame) = frame else {
            *dropped += 1;
            return None;
        };
        let pair = self.steering.pair(frame.data());
        self.frames += 1;
        self.bytes += frame.total_len();
        self.queues.get_mut(usize::from(pair))?.push_back(frame);
        Some(pair)
    }

    /// Whether a frame waits for this pair.
    pub fn has(&self, pair: u16) -> bool {
        let queue = self.queues.get(usize::from(pair));
        queue.is_some_and(|queue| !queue.is_empty())
    }

    /// Takes the next frame for a pair, as the driver can take it: one, or its segments.
    pub fn next(&mut self, pair: u16) -> Option<Vec<Frame>> {
        loop {
            let frame = self.queues.get_mut(usize::from(pair))?.pop_front()?;
            self.frames -= 1;
            self.bytes -= frame.total_len();
            match offload::for_driver(frame, self.offloads) {
                Ok(frames) if !frames.is_empty() => return Some(frames),
                Ok(_) | Err(NotTcp) => self.counts.malformed += 1,
            }
        }
    }

    /// How many frames wait.
    pub fn waiting(&self) -> usize {
        self.frames
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::{tcp, TARGET};
    use super::super::frame::MAX_FRAME;
    use super::super::offload::GUEST_OFFLOADS;
    use super::*;

    fn open() -> Receiver {
        let mut receiver = Receiver::new(TARGET, 2);
        receiver.open(Filter::new(TARGET, false), GUEST_OFFLOADS, Some(1500));
        receiver
    }

    fn frame(len: usize) -> Result<Frame, FrameError> {
        Ok(Frame::plain(vec![0; len]))
    }

    #[test]
    fn why_frames_are_dropped() {
        let mut receiver = Receiver::new(TARGET, 1);
        assert_eq!(receiver.arrive(frame(60)), None);
        let mut receiver = open();
        assert_eq!(receiver.arrive(frame(60)), Some(0));
        assert_eq!(receiver.arrive(frame(1518)), Some(0));
        assert_eq!(receiver.arrive(frame(1519)), None);
        assert_eq!(receiver.arrive(Err(FrameError::Length(0))), None);
        receiver.link = false;
        assert_eq!(receiver.arrive(frame(60)), None);
        receiver.link = true;
        receiver.filter.promiscuous = false;
        assert_eq!(receiver.arrive(frame(60)), None);
        let counts = receiver.counts;
        let dropped = [
            counts.too_long,
            counts.malformed,
            counts.link_down,
            counts.filtered,
        ];
        assert_eq!(dropped, [1; 4]);
        assert_eq!(receiver.waiting(), 2);
        receiver.close(TARGET);
        assert_eq!(receiver.arrive(frame(60)), None);
        assert_eq!((receiver.counts.not_ready, receiver.waiting()), (1, 0));
    }

    #[test]
    fn bounded_by_frames_and_by_bytes() {
        let mut receiver = open();
        let fit = (0..2 * MAX_FRAMES).filter(|_| receiver.arrive(frame(60)).is_some());
        assert_eq!(fit.count(), MAX_FRAMES);
        assert_eq!(receiver.counts.full as usize, MAX_FRAMES);
        // One out, one in.
        receiver.next(0).unwrap();
        assert!(receiver.arrive(frame(60)).is_some());
        assert!(receiver.arrive(frame(60)).is_none());
        let mut receiver = open();
        receiver.longest = MAX_FRAME;
        let fit = (0..MAX_FRAMES).filter(|_| receiver.arrive(frame(MAX_FRAME)).is_some());
        assert_eq!(fit.count(), MAX_BYTES / (MAX_FRAME + 12));
    }

    #[test]
    fn in_order_and_as_the_driver_can_take_it() {
        let mut receiver = open();
        let large = Frame::parse(&tcp(false, &[0; 2500], 1000, false));
        receiver.arrive(large.clone());
        receiver.arrive(frame(60));
        receiver.arrive(large.clone());
        receiver.arrive(large);
        assert!(receiver.has(0) && !receiver.has(1) && !receiver.has(2));
        assert_eq!(receiver.next(0).unwrap().len(), 1);
        assert_eq!(receiver.next(0).unwrap()[0].data().len(), 60);
        // Offloads that are turned off count for what waits, too.
        receiver.offloads = 0;
        assert_eq!(receiver.next(0).unwrap().len(), 3);
        receiver.offloads = GUEST_OFFLOADS;
        assert_eq!(receiver.next(0).unwrap().len(), 1);
        assert!(receiver.next(0).is_none());
        assert_eq!((receiver.frames, receiver.bytes), (0, 0));
    }
}
