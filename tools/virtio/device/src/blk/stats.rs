// SPDX-License-Identifier: GPL-2.0

//! What was asked of the device, counted where it is done: for comparison with what the guest says.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use virtio::blk::S;

use super::config::SECTOR;
use super::request::{Kind, Range};

/// How many ranges are remembered.
pub const RANGES: usize = 32;

/// The sum of the CRC32C of every sector of `data`, each preceded by its number as 8 bytes in
/// little-endian order.
///
/// Sums of parts add up to that of the whole, in any order and modulo 2^64, so that it does not
/// matter how a guest splits, merges and orders its requests.
pub fn checksum(sector: u64, data: &[u8]) -> u64 {
    data.chunks(SECTOR as usize)
        .zip(sector..)
        .map(|(data, sector)| {
            let crc = crc32c::crc32c(&sector.to_le_bytes());
            u64::from(crc32c::crc32c_append(crc, data))
        })
        .fold(0, u64::wrapping_add)
}

/// Counts of the requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Those that were answered with OK.
    pub ok: u64,
    /// Those that were answered with IOERR.
    pub ioerr: u64,
    /// Those that were answered with UNSUPP.
    pub unsupp: u64,
    /// Bytes of data, or of the ranges, of those that were answered with OK.
    pub bytes: u64,
    /// Their [`checksum`], for reads and writes.
    pub checksum: u64,
}

/// A range that was discarded, zeroed or erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Done {
    /// By what.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The range.
    #[serde(flatten)]
    pub range: Range,
}

/// What one request came to.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// Its queue.
    pub queue: u16,
    /// What it was.
    pub kind: Kind,
    /// How it was answered.
    pub status: S,
    /// Bytes of data, or of the ranges.
    pub bytes: u64,
    /// Their checksum.
    pub checksum: u64,
    /// The ranges.
    pub ranges: &'a [Range],
    /// It was written, and nothing yet says that it is on the medium.
    pub volatile: bool,
    /// Its ranges were where the device is to write.
    pub misplaced: bool,
}

/// The counts since the last clear.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// By kind; what never came is not there.
    pub requests: BTreeMap<Kind, Count>,
    /// By queue.
    pub queues: Vec<u64>,
    /// Writes since the last flush that are in the volatile cache.
    pub unflushed: u64,
    /// Requests whose ranges were not device-readable, as they should be.
    pub misplaced: u64,
    /// The last [`RANGES`] ranges of discards, write zeroes and secure erases.
    pub ranges: VecDeque<Done>,
}

impl Stats {
    /// A request was executed.
    pub fn count(&mut self, outcome: &Outcome<'_>) {
        let queue = usize::from(outcome.queue);
        if self.queues.len() <= queue {
            self.queues.resize(queue + 1, 0);
        }
        self.queues[queue] += 1;
        let count = self.requests.entry(outcome.kind).or_default();
        match outcome.status {
            S::Ok => {
                count.ok += 1;
                count.bytes += outcome.bytes;
                count.checksum = count.checksum.wrapping_add(outcome.checksum);
            }
            S::Unsupp => count.unsupp += 1,
            _ => count.ioerr += 1,
        }
        if outcome.status != S::Ok {
            return;
        }
        if outcome.kind == Kind::Flush {
            self.unflushed = 0;
        }
        self.unflushed += u64::from(outcome.volatile);
        self.misplaced += u64::from(outcome.misplaced);
        for range in outcome.ranges {
            if self.ranges.len() == RANGES {
                self.ranges.pop_front();
            }
            self.ranges.push_back(Done {
                kind: outcome.kind,
                range: *range,
            });
        }
    }

    /// Forgets all but what is in the cache.
    pub fn clear(&mut self) {
        *self = Self {
            unflushed: self.unflushed,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(kind: Kind, status: S, ranges: &[Range]) -> Outcome<'_> {
        Outcome {
            queue: 2,
            kind,
            status,
            bytes: 512,
            checksum: 5,
            ranges,
            volatile: kind == Kind::Out,
            misplaced: false,
        }
    }

    #[test]
    fn by_kind_and_status() {
        let mut stats = Stats::default();
        stats.count(&outcome(Kind::Out, S::Ok, &[]));
        stats.count(&outcome(Kind::Out, S::Ok, &[]));
        stats.count(&outcome(Kind::Out, S::Ioerr, &[]));
        stats.count(&outcome(Kind::Other, S::Unsupp, &[]));
        let out = &stats.requests[&Kind::Out];
        assert_eq!(
            (out.ok, out.ioerr, out.bytes, out.checksum),
            (2, 1, 1024, 10)
        );
        assert_eq!(stats.requests[&Kind::Other].unsupp, 1);
        assert_eq!(stats.queues, [0, 0, 4]);
        assert_eq!(stats.unflushed, 2);
        stats.clear();
        assert_eq!(stats.unflushed, 2);
        stats.count(&outcome(Kind::Flush, S::Ioerr, &[]));
        assert_eq!(stats.unflushed, 2);
        stats.count(&outcome(Kind::Flush, S::Ok, &[]));
        assert_eq!(stats.unflushed, 0);
    }

    #[test]
    fn the_last_ranges_are_remembered() {
        let mut stats = Stats::default();
        for sector in 0..100 {
            let range = Range {
                sector,
                sectors: 1,
                flags: 0,
            };
            stats.count(&outcome(Kind::Discard, S::Ok, &[range]));
        }
        assert_eq!(stats.ranges.len(), RANGES);
        assert_eq!(stats.ranges[0].range.sector, 100 - RANGES as u64);
        let text = serde_json::to_string(&stats.ranges[0]).unwrap();
        assert_eq!(
            text,
            r#"{"type":"discard","sector":68,"sectors":1,"flags":0}"#
        );
    }

    #[test]
    fn a_sector_counts_with_its_number() {
        // By the definition: CRC32C of the number and the data.
        let mut bytes = 3u64.to_le_bytes().to_vec();
        bytes.extend([7; 512]);
        assert_eq!(checksum(3, &[7; 512]), u64::from(crc32c::crc32c(&bytes)));
        assert_ne!(checksum(3, &[7; 512]), checksum(4, &[7; 512]));
        // The check value of CRC32C.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn splitting_and_order_do_not_matter(
            sector in any::<u32>(), cut in 0usize..=8, byte in any::<u8>(),
        ) {
            let data: Vec<u8> = (0..8 * 512).map(|i| (i / 7) as u8 ^ byte).collect();
            let (first, second) = data.split_at(cut * 512);
            let sector = u64::from(sector);
            let parts = checksum(sector + cut as u64, second).wrapping_add(checksum(sector, first));
            prop_assert_eq!(parts, checksum(sector, &data));
        }
    }
}
