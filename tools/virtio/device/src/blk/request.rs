// SPDX-License-Identifier: GPL-2.0

//! What a request asks for (VIRTIO 1.4, "Block Device", "Device Operation"): parsing and checking,
//! and nothing done yet.

use serde::Serialize;
use virtio::blk::{S, T};
use vm_memory::GuestMemoryError;

use super::config::{Config, Feature, SECTOR};
use crate::features::FeatureSet;
use crate::memory::Memory;
use crate::request::ProcessError;
use crate::ring::cursor::Cursor;
use crate::ring::Buffer;

/// Type, I/O priority, sector.
pub const HEADER: usize = 16;
/// Sector, number of sectors, flags.
pub const RANGE: usize = 16;
/// The flag of a range; all others are reserved.
const UNMAP: u32 = 1;

/// What a request does, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Read.
    In,
    /// Write.
    Out,
    /// Flush.
    Flush,
    /// Read the serial.
    GetId,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// Secure erase.
    SecureErase,
    /// Anything else.
    Other,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::In,
        Self::Out,
        Self::Flush,
        Self::GetId,
        Self::Discard,
        Self::WriteZeroes,
        Self::SecureErase,
        Self::Other,
    ];

    fn of(request_type: u32) -> Self {
        match T::try_from(request_type) {
            Ok(T::In) => Self::In,
            Ok(T::Out) => Self::Out,
            Ok(T::Flush) => Self::Flush,
            Ok(T::GetId) => Self::GetId,
            Ok(T::Discard) => Self::Discard,
            Ok(T::WriteZeroes) => Self::WriteZeroes,
            Ok(T::SecureErase) => Self::SecureErase,
            _ => Self::Other,
        }
    }
}

/// A request that does not say what it wants, or has no room for the answer: nothing that a status
/// byte could tell.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It is not in memory.
    #[error("the buffer is not in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// Less than a header.
    #[error("a request with a header of {0} bytes; it has {HEADER}")]
    Header(usize),
    /// No writable byte.
    #[error("a request without room for the status")]
    NoStatus,
}

impl From<Malformed> for ProcessError {
    fn from(error: Malformed) -> Self {
        Self::Device(Box::new(error))
    }
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it does.
    pub kind: Kind,
    /// The type as the driver wrote it.
    pub request_type: u32,
    /// Where, in sectors of 512 bytes.
    pub sector: u64,
}

impl Header {
    /// Reads the header; `readable` is behind it afterwards.
    pub fn read(mem: &Memory, readable: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let mut bytes = [0; HEADER];
        let len = readable.read(mem, &mut bytes)?;
        if len < HEADER {
            return Err(Malformed::Header(len));
        }
        let raw = u128::from_le_bytes(bytes);
        let request_type = raw as u32;
        Ok(Self {
            kind: Kind::of(request_type),
            request_type,
            sector: (raw >> 64) as u64,
        })
    }
}

/// A range to discard, zero or erase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// In sectors of 512 bytes.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// The flags.
    pub flags: u32,
}

impl Range {
    /// As in memory.
    pub fn parse(bytes: &[u8; RANGE]) -> Self {
        let raw = u128::from_le_bytes(*bytes);
        Self {
            sector: raw as u64,
            sectors: (raw >> 64) as u32,
            flags: (raw >> 96) as u32,
        }
    }

    /// Whether the space may be given back.
    pub fn unmaps(&self) -> bool {
        self.flags & UNMAP != 0
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.sectors) * SECTOR
    }
}

/// What the device is while the driver drives it.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What it is.
    pub config: Config,
    /// What the driver has accepted of its features.
    pub accepted: FeatureSet,
}

impl Terms {
    /// Whether a feature was negotiated.
    pub fn has(&self, feature: Feature) -> bool {
        self.accepted & feature.bit() != 0
    }

    /// Whether `sectors` from `sector` on are there.
    fn fits(capacity: u64, sector: u64, sectors: u64) -> bool {
        sector
            .checked_add(sectors)
            .is_some_and(|end| end <= capacity)
    }

    /// The data of a read or write: IOERR unless whole sectors, inside the device and within the
    /// limits that the driver was told.
    pub fn check_data(
        &self,
        buffer: &Buffer,
        header: &Header,
        len: u64,
        capacity: u64,
    ) -> Result<(), S> {
        let whole = len != 0 && len.is_multiple_of(SECTOR);
        if !whole || !Self::fits(capacity, header.sector, len / SECTOR) {
            return Err(S::Ioerr);
        }
        let writes = header.kind == Kind::Out;
        if writes && self.config.has(Feature::Ro) {
            return Err(S::Ioerr);
        }
        let segments = if writes {
            &buffer.readable
        } else {
            &buffer.writable
        };
        // Header and status may have a segment of their own, or share one with the data: a segment
        // count that is one more may be right.
        let most = u64::from(self.config.seg_max) + 1;
        let too_many = self.has(Feature::SegMax) && segments.len() as u64 > most;
        let too_large = self.has(Feature::SizeMax)
            && segments
                .iter()
                .any(|segment| u64::from(segment.len) > u64::from(self.config.size_max) + 16);
        if too_many || too_large {
            return Err(S::Ioerr);
        }
        Ok(())
    }

    /// The most ranges of a request of this kind, and the most sectors of each; none if the feature
    /// was not negotiated, and for a request without ranges.
    pub fn range_limits(&self, kind: Kind) -> Option<(u32, u32)> {
        let config = &self.config;
        let (feature, segments, sectors) = match kind {
            Kind::Discard => (
                Feature::Discard,
                config.max_discard_seg,
                config.max_discard_sectors,
            ),
            Kind::WriteZeroes => (
                Feature::WriteZeroes,
                config.max_write_zeroes_seg,
                config.max_write_zeroes_sectors,
            ),
            Kind::SecureErase => (
                Feature::SecureErase,
                config.max_secure_erase_seg,
                config.max_secure_erase_sectors,
            ),
            _ => return None,
        };
        self.has(feature).then_some((segments, sectors))
    }

    /// Reads the ranges of a request. Bounded by the limit that the driver was told.
    pub fn ranges(
        &self,
        kind: Kind,
        mem: &Memory,
        data: &mut Cursor<'_>,
        capacity: u64,
    ) -> Result<Result<Vec<Range>, S>, GuestMemoryError> {
        let Some((most, most_sectors)) = self.range_limits(kind) else {
            return Ok(Err(S::Unsupp));
        };
        let len = data.left();
        let count = len / RANGE as u64;
        let odd = !len.is_multiple_of(RANGE as u64);
        if count == 0 || odd || count > u64::from(most) || self.config.has(Feature::Ro) {
            return Ok(Err(S::Ioerr));
        }
        let mut ranges = Vec::new();
        let mut answer = Ok(());
        for _ in 0..count {
            let mut bytes = [0; RANGE];
            data.read(mem, &mut bytes)?;
            let range = Range::parse(&bytes);
            // "Device Operation": an unknown flag, and UNMAP where it means nothing, is not
            // supported; it outweighs a range that is out of bounds.
            if range.flags & !UNMAP != 0 || range.unmaps() && kind != Kind::WriteZeroes {
                return Ok(Err(S::Unsupp));
            }
            let fits = Self::fits(capacity, range.sector, range.sectors.into());
            if range.sectors > most_sectors || !fits {
                answer = Err(S::Ioerr);
            }
            ranges.push(range);
        }
        Ok(answer.map(|()| ranges))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::ring::testing::memory;
    use crate::ring::Segment;

    fn terms() -> Terms {
        let config = Config::new(2048, 1, 64);
        let accepted = config.bits();
        Terms { config, accepted }
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE] {
        let mut bytes = [0; RANGE];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    fn ranges(terms: &Terms, kind: Kind, bytes: &[u8]) -> Result<Vec<Range>, S> {
        let mem = memory();
        mem.write_slice(bytes, GuestAddress(0x100)).unwrap();
        let segments = [Segment {
            addr: 0x100,
            len: bytes.len() as u32,
        }];
        let mut cursor = Cursor::new(&segments);
        terms.ranges(kind, &mem, &mut cursor, 2048).unwrap()
    }

    #[test]
    fn ranges_are_checked() {
        let terms = terms();
        let good = [range(0, 8, 0), range(2040, 8, 0)].concat();
        assert_eq!(ranges(&terms, Kind::Discard, &good).unwrap().len(), 2);
        let unmap = range(8, 8, UNMAP);
        assert_eq!(ranges(&terms, Kind::WriteZeroes, &unmap).unwrap().len(), 1);
        let many = [range(0, 1, 0); 17].concat();
        for (kind, bytes, status) in [
            (Kind::Discard, &unmap[..], S::Unsupp),
            (Kind::SecureErase, &unmap[..], S::Unsupp),
            (Kind::WriteZeroes, &range(0, 1, 2)[..], S::Unsupp),
            (Kind::Discard, &range(0, 1, 1 << 31)[..], S::Unsupp),
            (Kind::Discard, &range(2048, 1, 0)[..], S::Ioerr),
            (Kind::Discard, &range(u64::MAX, 1, 0)[..], S::Ioerr),
            (Kind::Discard, &range(0, 2049, 0)[..], S::Ioerr),
            (Kind::Discard, &good[..17], S::Ioerr),
            (Kind::Discard, &good[..15], S::Ioerr),
            (Kind::Discard, &[], S::Ioerr),
            (Kind::Discard, &many[..], S::Ioerr),
            (Kind::WriteZeroes, &good[..], S::Ioerr),
            (Kind::Flush, &good[..], S::Unsupp),
        ] {
            assert_eq!(ranges(&terms, kind, bytes), Err(status), "{kind:?}");
        }
        let mut refused = terms.clone();
        refused.accepted = 0;
        assert_eq!(ranges(&refused, Kind::Discard, &good), Err(S::Unsupp));
        let mut read_only = terms;
        read_only.config.features.insert(Feature::Ro);
        assert_eq!(ranges(&read_only, Kind::Discard, &good), Err(S::Ioerr));
    }

    #[test]
    fn data_is_checked() {
        let mut terms = terms();
        let header = |kind, sector| Header {
            kind,
            request_type: 0,
            sector,
        };
        let mut buffer = Buffer::default();
        let mut check = |terms: &Terms, kind, sector, len: u64| {
            let segment = Segment {
                addr: 0,
                len: len as u32,
            };
            buffer.writable = [segment].into_iter().collect();
            buffer.readable = buffer.writable.clone();
            terms.check_data(&buffer, &header(kind, sector), len, 2048)
        };
        assert_eq!(check(&terms, Kind::In, 0, 512), Ok(()));
        assert_eq!(check(&terms, Kind::Out, 2047, 512), Ok(()));
        for (sector, len) in [
            (0, 0),
            (0, 511),
            (0, 513),
            (2048, 512),
            (2047, 1024),
            (u64::MAX, 512),
        ] {
            assert_eq!(check(&terms, Kind::In, sector, len), Err(S::Ioerr));
        }
        terms.config.size_max = 1024;
        assert_eq!(check(&terms, Kind::In, 0, 1024), Ok(()));
        assert_eq!(check(&terms, Kind::In, 0, 1536), Err(S::Ioerr));
        terms.config.features.insert(Feature::Ro);
        assert_eq!(check(&terms, Kind::Out, 0, 512), Err(S::Ioerr));
        assert_eq!(check(&terms, Kind::In, 0, 512), Ok(()));
    }

    proptest! {
        #[test]
        fn any_header_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            let mem = memory();
            mem.write_slice(&bytes, GuestAddress(0x100)).unwrap();
            let segments = [Segment { addr: 0x100, len: bytes.len() as u32 }];
            match Header::read(&mem, &mut Cursor::new(&segments)) {
                Ok(header) => {
                    prop_assert!(bytes.len() >= HEADER);
                    prop_assert_eq!(header.request_type.to_le_bytes(), &bytes[..4]);
                    prop_assert_eq!(header.sector.to_le_bytes(), &bytes[8..16]);
                }
                Err(_) => prop_assert!(bytes.len() < HEADER),
            }
        }

        /// Whatever the driver says, what comes through is inside the device and the limits.
        #[test]
        fn what_passes_is_in_bounds(
            kind in proptest::sample::select(&Kind::ALL[..]),
            list in proptest::collection::vec(
                (prop_oneof![0u64..4096, any::<u64>()], prop_oneof![0u32..4096, any::<u32>()],
                 prop_oneof![Just(0u32), Just(1), any::<u32>()]), 0..20),
            cut in 0usize..16,
        ) {
            let terms = terms();
            let mut bytes: Vec<u8> =
                list.iter().flat_map(|&(sector, sectors, flags)| range(sector, sectors, flags)).collect();
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Ok(ranges) = ranges(&terms, kind, &bytes) {
                let (most, sectors) = terms.range_limits(kind).unwrap();
                prop_assert!(!ranges.is_empty() && ranges.len() <= most as usize);
                for range in ranges {
                    prop_assert!(range.sectors <= sectors);
                    prop_assert!(range.sector + u64::from(range.sectors) <= 2048);
                    prop_assert!(range.flags & !UNMAP == 0);
                }
            }
        }
    }
}
