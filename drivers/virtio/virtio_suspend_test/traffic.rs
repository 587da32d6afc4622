// SPDX-License-Identifier: GPL-2.0

//! What a device of each type is given to do.

use kernel::{
    prelude::*,
    transmute::AsBytes, //
};

use virtio::{
    blk,
    compat::EOPNOTSUPP,
    net,
    DeviceId,
    DmaBytes,
    DmaMemory as _,
    Lend,
    LendBox,
    Parts, //
};

/// What is in memory that the device has not written.
const POISON: u8 = 0xa5;

/// How much entropy is asked for at a time, in bytes.
const ENTROPY_BYTES: usize = 64;

/// How much of a disk is read or written at a time, in bytes: a multiple of any logical block.
const BLOCK_BYTES: usize = 4096;

/// The same, in sectors.
// CAST: It is small.
pub(crate) const BLOCK_SECTORS: u64 = BLOCK_BYTES as u64 / 512;

/// The frame that is sent: of a type for experiments, between stations that nobody has.
const FRAME: [u8; 14] = [
    0x02, 0x53, 0x55, 0x53, 0x50, 0x00, 0x02, 0x53, 0x55, 0x53, 0x50, 0x01, 0x88, 0xb5,
];

/// The shortest frame, in bytes.
const FRAME_BYTES: usize = 60;

/// What is printed on a console.
const LINE: &[u8] = b"virtio_suspend_test\r\n";

/// Room for what is typed, in bytes.
const TYPED_BYTES: usize = 64;

/// Room for any frame, in bytes.
const RECEIVE_BYTES: usize = net::HEADER_BYTES + 1514;

/// A device type, as far as it makes a difference.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Entropy,
    Block,
    Network,
    Console,
    /// One that is given nothing to do.
    Other,
}

impl Kind {
    pub(crate) fn of(device_type: u32) -> Self {
        match device_type {
            DeviceId::ENTROPY => Self::Entropy,
            DeviceId::BLOCK => Self::Block,
            DeviceId::NETWORK => Self::Network,
            DeviceId::CONSOLE => Self::Console,
            _ => Self::Other,
        }
    }

    /// Returns how many virtqueues there are at least.
    pub(crate) const fn queues(self) -> usize {
        match self {
            Self::Network | Self::Console => 2,
            Self::Entropy | Self::Block | Self::Other => 1,
        }
    }

    /// Returns the virtqueue in which requests are made, which the device carries out by itself.
    pub(crate) const fn busy_queue(self) -> Option<usize> {
        match self {
            Self::Entropy | Self::Block => Some(0),
            Self::Network | Self::Console => Some(1),
            Self::Other => None,
        }
    }

    /// Returns the virtqueue in which the device is given buffers to be kept.
    pub(crate) const fn quiet_queue(self) -> Option<usize> {
        match self {
            Self::Entropy | Self::Block | Self::Network | Self::Console => Some(0),
            Self::Other => None,
        }
    }

    /// Returns a request for [`Kind::busy_queue`].
    pub(crate) fn request(self, id: u32) -> Result<LendBox<Request>> {
        match self {
            Self::Entropy => Request::new(id, &[], Body::In(ENTROPY_BYTES), 0),
            Self::Block => {
                let header = blk::Header::new(true, blk::T_IN, 0, 0);
                Request::new(id, header.as_bytes(), Body::In(BLOCK_BYTES), 1)
            }
            Self::Network => {
                let frame = Body::Out(&FRAME, FRAME_BYTES);
                Request::new(id, &[0; net::HEADER_BYTES], frame, 0)
            }
            Self::Console => Request::new(id, &[], Body::Out(LINE, LINE.len()), 0),
            Self::Other => Err(EOPNOTSUPP),
        }
    }

    /// Returns a buffer for [`Kind::quiet_queue`].
    pub(crate) fn quiet(self, id: u32) -> Result<LendBox<Request>> {
        match self {
            Self::Network => Request::new(id, &[], Body::In(RECEIVE_BYTES), 0),
            Self::Console => Request::new(id, &[], Body::In(TYPED_BYTES), 0),
            other => other.request(id),
        }
    }

    /// Returns what is wrong with a request that came back, of which the device says that it has
    /// written `written` bytes.
    pub(crate) fn objection(self, request: &Request, written: usize) -> Option<&'static str> {
        match self {
            Self::Entropy if written == 0 => Some("no entropy"),
            Self::Block if request.tail.as_slice() != [blk::S_OK] => Some("an I/O error"),
            Self::Block if written != request.writable_len() => Some("a used length that is wrong"),
            Self::Block if !request.is_as_expected() => Some("other data than what was written"),
            _ => None,
        }
    }
}

/// What is written to a disk: each word is another one in each place, and for each number.
#[derive(Clone, Copy)]
pub(crate) struct Pattern(u32);

impl Pattern {
    pub(crate) const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the bytes of the `nth` block.
    fn bytes(self, nth: usize) -> impl Iterator<Item = u8> {
        // CAST: Both are small.
        let first = (nth * BLOCK_BYTES / size_of::<u32>()) as u32;
        (first..).flat_map(move |place| {
            let word = (place << 3 | self.0 & 7).wrapping_mul(0x9e37_79b1);
            word.to_le_bytes()
        })
    }

    /// Returns a request that writes the `nth` block.
    pub(crate) fn write(self, id: u32, nth: usize) -> Result<LendBox<Request>> {
        Request::of_block(id, nth, self, true)
    }

    /// Returns a request that reads the `nth` block, which has been written.
    pub(crate) fn read(self, id: u32, nth: usize) -> Result<LendBox<Request>> {
        Request::of_block(id, nth, self, false)
    }
}

/// What is between the header and the status of a request.
enum Body {
    /// Memory for the device to write.
    In(usize),
    /// Bytes for the device to read, followed by zeroes up to a length.
    Out(&'static [u8], usize),
}

/// A request.
pub(crate) struct Request {
    /// By which it is known again.
    pub(crate) id: u32,
    head: DmaBytes,
    body: DmaBytes,
    is_readable: bool,
    tail: DmaBytes,
    /// The pattern, and its block, that is to be read.
    expects: Option<(Pattern, usize)>,
}

impl Request {
    fn new(id: u32, header: &[u8], body: Body, tail: usize) -> Result<LendBox<Self>> {
        LendBox::new(Self::make(id, header, body, tail)?, GFP_KERNEL)
    }

    /// Writes, or reads, a block of a disk.
    fn of_block(id: u32, nth: usize, pattern: Pattern, writes: bool) -> Result<LendBox<Self>> {
        // CAST: It is small.
        let sector = nth as u64 * BLOCK_SECTORS;
        let (kind, body) = match writes {
            true => (blk::T_OUT, Body::Out(&[], BLOCK_BYTES)),
            false => (blk::T_IN, Body::In(BLOCK_BYTES)),
        };
        let header = blk::Header::new(true, kind, 0, sector);
        let mut request = Self::make(id, header.as_bytes(), body, 1)?;
        if writes {
            let bytes = request.body.as_mut_slice().iter_mut();
            for (byte, wanted) in bytes.zip(pattern.bytes(nth)) {
                *byte = wanted;
            }
        } else {
            request.expects = Some((pattern, nth));
        }
        LendBox::new(request, GFP_KERNEL)
    }

    fn make(id: u32, header: &[u8], body: Body, tail: usize) -> Result<Self> {
        let (bytes, len, is_readable) = match body {
            Body::In(len) => (&[] as &[u8], len, false),
            Body::Out(bytes, len) => (bytes, len, true),
        };
        let mut request = Self {
            id,
            head: DmaBytes::new(header.len(), GFP_KERNEL)?,
            body: DmaBytes::new(len, GFP_KERNEL)?,
            is_readable,
            tail: DmaBytes::new(tail, GFP_KERNEL)?,
            expects: None,
        };
        request.head.as_mut_slice().copy_from_slice(header);
        request.tail.as_mut_slice().fill(POISON);
        if is_readable {
            for (byte, from) in request.body.as_mut_slice().iter_mut().zip(bytes) {
                *byte = *from;
            }
        } else {
            request.body.as_mut_slice().fill(POISON);
        }
        Ok(request)
    }

    /// Returns how many bytes the device has to write.
    fn writable_len(&self) -> usize {
        let body = if self.is_readable { 0 } else { self.body.len() };
        body + self.tail.len()
    }

    /// Returns whether the device has read what was written before, if that is known.
    fn is_as_expected(&self) -> bool {
        self.expects.is_none_or(|(pattern, nth)| {
            let wanted = pattern.bytes(nth).take(BLOCK_BYTES);
            self.body.as_slice().iter().copied().eq(wanted)
        })
    }

    /// Returns whether the device has written nothing.
    pub(crate) fn is_untouched(&self) -> bool {
        let is_poison = |bytes: &DmaBytes| bytes.as_slice().iter().all(|byte| *byte == POISON);
        (self.is_readable || is_poison(&self.body)) && is_poison(&self.tail)
    }
}

impl Lend for Request {
    fn lend<'a>(&'a mut self, parts: &mut Parts<'a>) -> Result {
        let (head, body, tail) = (self.head.len(), self.body.len(), self.tail.len());
        parts.readable(&self.head, head)?;
        if self.is_readable {
            parts.readable(&self.body, body)?;
        } else {
            parts.writable(&mut self.body, body)?;
        }
        parts.writable(&mut self.tail, tail)
    }
}
