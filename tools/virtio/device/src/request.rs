// SPDX-License-Identifier: GPL-2.0

//! A request on its way: from a virtqueue to the device type, and back as a completion.

use std::error::Error;

use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::ring::Buffer;

/// A buffer that can't be processed: the driver's mistake or the host's. The device then needs a
/// reset; what a device type has an answer for, such as a status byte, is no such error.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// A segment where no memory is.
    #[error("the buffer is not in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// What the device type says of it.
    #[error(transparent)]
    Device(#[from] Box<dyn Error + Send + Sync>),
}

/// Which request: in ascending order of the moment at which they were taken, and never twice.
pub type Token = u64;

/// A buffer that was taken from a queue.
#[derive(Debug)]
pub struct Request {
    /// The queue.
    pub queue: u16,
    /// What [`Completion`] is to name.
    pub token: Token,
    /// The buffer.
    pub buffer: Buffer,
    /// The device is to answer wrongly, out of this seed: a fault. The answer has to be bounded and
    /// stay inside the buffer.
    pub lie: Option<u64>,
    /// The device is to say that it has written what it has to write, and not to do so: a fault.
    pub is_lost: bool,
}

/// A request is finished.
#[derive(Debug)]
pub struct Completion {
    /// Its queue.
    pub queue: u16,
    /// Which.
    pub token: Token,
    /// How many bytes were written into the buffer.
    pub result: Result<u32, ProcessError>,
}
