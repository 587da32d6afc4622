// SPDX-License-Identifier: GPL-2.0

//! The entropy device (VIRTIO 1.4, "Entropy Device"): one queue of device-writable buffers, no
//! configuration, no features.

use crate::memory::Memory;
use crate::request::{Completion, ProcessError, Request};
use crate::ring::cursor::Cursor;
use crate::ring::Buffer;
use crate::settings::{DataKind, Settings};
use crate::virtio_device::{Context, VirtioDevice};

/// Most bytes put into one buffer, however large it is: a driver that wants more comes again.
pub const MAX_FILL: u32 = 64 * 1024;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    /// How many bytes of the counter stream were given out.
    position: u64,
}

impl Rng {
    /// The next bytes of the stream 0, 1, 2, ... of little-endian u32.
    fn count(&mut self, data: &mut [u8]) {
        for byte in data {
            let word = ((self.position / 4) as u32).to_le_bytes();
            *byte = word[(self.position % 4) as usize];
            self.position += 1;
        }
    }

    /// Fills a buffer; returns how many bytes were written.
    fn fill(
        &mut self,
        buffer: &Buffer,
        mem: &Memory,
        settings: &Settings,
    ) -> Result<u32, ProcessError> {
        let cap = settings.max_bytes.unwrap_or(MAX_FILL).min(MAX_FILL);
        let total = buffer.head.writable_len.min(cap.into()) as u32;
        let mut data = vec![0; total as usize];
        match settings.data {
            DataKind::Random => getrandom::fill(&mut data).map_err(no_entropy)?,
            DataKind::Counter => self.count(&mut data),
        }
        Cursor::new(&buffer.writable).write(mem, &data)?;
        Ok(total)
    }
}

fn no_entropy(error: getrandom::Error) -> ProcessError {
    ProcessError::Device(format!("the host has no random bytes: {error}").into())
}

impl VirtioDevice for Rng {
    fn id(&self) -> virtio::Id {
        virtio::Id::Rng
    }

    fn class(&self) -> u16 {
        // Unclassified device.
        0x00ff
    }

    fn queues(&self) -> u16 {
        1
    }

    fn process(&mut self, request: Request, cx: &mut Context<'_>) {
        cx.done.push(Completion {
            queue: request.queue,
            token: request.token,
            result: self.fill(&request.buffer, cx.mem, cx.settings),
        });
    }

    fn reset(&mut self) {
        self.position = 0;
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::ring::{Head, Segment};

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x20000)]).unwrap()
    }

    fn buffer(segments: &[(u64, u32)]) -> Buffer {
        let total = segments.iter().map(|&(_, len)| u64::from(len)).sum();
        Buffer {
            head: Head {
                writable_len: total,
                ..Head::default()
            },
            writable: segments
                .iter()
                .map(|&(addr, len)| Segment { addr, len })
                .collect(),
            ..Buffer::default()
        }
    }

    #[test]
    fn the_counter_stream_goes_on_across_segments_and_buffers() {
        let mem = memory();
        let mut rng = Rng::default();
        let settings = Settings {
            data: DataKind::Counter,
            ..Settings::default()
        };
        let len = rng
            .fill(
                &buffer(&[(0x100, 3), (0x200, 0), (0x300, 3)]),
                &mem,
                &settings,
            )
            .unwrap();
        assert_eq!(len, 6);
        rng.fill(&buffer(&[(0x400, 4)]), &mem, &settings).unwrap();
        let mut bytes = [0; 10];
        mem.read_slice(&mut bytes[..3], GuestAddress(0x100))
            .unwrap();
        mem.read_slice(&mut bytes[3..6], GuestAddress(0x300))
            .unwrap();
        mem.read_slice(&mut bytes[6..], GuestAddress(0x400))
            .unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 1, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn bounded_and_checked() {
        let mem = memory();
        let mut rng = Rng::default();
        let mut settings = Settings::default();
        let huge = buffer(&[(0, u32::MAX)]);
        assert_eq!(rng.fill(&huge, &mem, &settings).unwrap(), MAX_FILL);
        settings.max_bytes = Some(5);
        assert_eq!(rng.fill(&huge, &mem, &settings).unwrap(), 5);
        let bad = buffer(&[(u64::MAX - 1, 16)]);
        assert!(rng.fill(&bad, &mem, &settings).is_err());
        assert_eq!(rng.fill(&buffer(&[]), &mem, &settings).unwrap(), 0);
    }
}
