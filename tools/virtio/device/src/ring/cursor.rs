// SPDX-License-Identifier: GPL-2.0

//! Bytes in and out of the pieces of a buffer, wherever the pieces begin and end.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::Segment;
use crate::memory::Memory;

/// How far one is in the segments of a buffer.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    /// The segment one is in, and those after it.
    segments: &'a [Segment],
    /// How far one is in the first.
    offset: u32,
    /// How many bytes are left.
    left: u64,
}

impl<'a> Cursor<'a> {
    /// At the beginning.
    pub fn new(segments: &'a [Segment]) -> Self {
        Self {
            segments,
            offset: 0,
            left: segments.iter().map(|s| u64::from(s.len)).sum(),
        }
    }

    /// How many bytes are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Ends after `bytes` more, if there are as many.
    pub fn truncate(&mut self, bytes: u64) {
        self.left = self.left.min(bytes);
    }

    /// The next piece of at most `most` bytes that is in one segment.
    fn next(&mut self, most: usize) -> Option<(GuestAddress, usize)> {
        while let Some((first, later)) = self.segments.split_first() {
            let rest = first.len - self.offset;
            if rest == 0 {
                self.segments = later;
                self.offset = 0;
                continue;
            }
            let most = self.left.min(most as u64);
            let len = rest.min(u32::try_from(most).unwrap_or(u32::MAX));
            // An address that wraps around is no memory, as the access will tell.
            let addr = first.addr.wrapping_add(self.offset.into());
            self.offset += len;
            self.left -= u64::from(len);
            return (len != 0).then_some((GuestAddress(addr), len as usize));
        }
        None
    }

    /// Reads as much as there is and fits; returns how much that was.
    pub fn read(&mut self, mem: &Memory, data: &mut [u8]) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        while let Some((addr, len)) = self.next(data.len() - done) {
            mem.read_slice(&mut data[done..done + len], addr)?;
            done += len;
        }
        Ok(done)
    }

    /// Writes as much as there is and fits; returns how much that was.
    pub fn write(&mut self, mem: &Memory, data: &[u8]) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        while let Some((addr, len)) = self.next(data.len() - done) {
            mem.write_slice(&data[done..done + len], addr)?;
            done += len;
        }
        Ok(done)
    }

    /// Goes on behind the next `bytes`.
    pub fn skip(&mut self, mut bytes: u64) {
        while bytes != 0 {
            let most = usize::try_from(bytes).unwrap_or(usize::MAX);
            match self.next(most) {
                Some((_, len)) => bytes -= len as u64,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ring::testing::{memory, END};

    proptest! {
        /// Cut into whatever pieces, and read in whatever portions, the bytes are the same.
        #[test]
        fn pieces_do_not_matter(
            cuts in proptest::collection::vec(0u32..40, 0..8),
            portions in proptest::collection::vec(0usize..50, 0..12),
            skipped in 0u64..60,
        ) {
            let mem = memory();
            let mut addr = 0x100;
            let segments: Vec<Segment> = cuts
                .iter()
                .map(|&len| {
                    let segment = Segment { addr, len };
                    addr += u64::from(len) + 3;
                    segment
                })
                .collect();
            let total: u32 = cuts.iter().sum();
            let bytes: Vec<u8> = (0..total as usize).map(|i| i as u8 + 1).collect();
            let mut cursor = Cursor::new(&segments);
            prop_assert_eq!(cursor.left(), u64::from(total));
            prop_assert_eq!(cursor.write(&mem, &bytes).unwrap(), bytes.len());
            prop_assert_eq!((cursor.left(), cursor.write(&mem, &[1]).unwrap()), (0, 0));

            let mut cursor = Cursor::new(&segments);
            cursor.skip(skipped);
            let mut read = bytes[..bytes.len().min(skipped as usize)].to_vec();
            for portion in portions {
                let mut data = vec![0; portion];
                let len = cursor.read(&mem, &mut data).unwrap();
                read.extend(&data[..len]);
            }
            prop_assert_eq!(&read[..], &bytes[..read.len()]);
            cursor.truncate(3);
            prop_assert_eq!(cursor.left(), 3.min(bytes.len() - read.len()) as u64);
            let mut data = [0; 5];
            let len = cursor.read(&mem, &mut data).unwrap();
            read.extend(&data[..len]);
            prop_assert!(len <= 3 && cursor.left() == 0);
            prop_assert_eq!(&read[..], &bytes[..read.len()]);
        }

        #[test]
        fn any_segments_are_survived(
            segments in proptest::collection::vec(
                (prop_oneof![0..END, any::<u64>()], any::<u32>()), 0..4),
        ) {
            let segments: Vec<Segment> =
                segments.into_iter().map(|(addr, len)| Segment { addr, len }).collect();
            let mem = memory();
            let _ = Cursor::new(&segments).read(&mem, &mut [0; 64]);
            let _ = Cursor::new(&segments).write(&mem, &[0; 64]);
            Cursor::new(&segments).skip(u64::MAX);
        }
    }
}
