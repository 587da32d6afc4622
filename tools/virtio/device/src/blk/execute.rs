// SPDX-License-Identifier: GPL-2.0

//! Carries a request out: between the backing and the guest's memory, by way of a buffer that each
//! thread has.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use log::{debug, warn};
use serde::Deserialize;
use virtio::blk::S;

use super::backing::Backing;
use super::config::{Feature, ID_BYTES, SECTOR};
use super::request::{Header, Kind, Malformed, Range, Terms};
use super::stats::{checksum, Outcome, Stats};
use crate::memory::Memory;
use crate::random::Stream;
use crate::request::{ProcessError, Request};
use crate::ring::cursor::Cursor;

/// Data goes through in pieces of this size.
const PIECE: usize = 256 * 1024;

/// Requests that are to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    /// Of this kind.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// With this status.
    pub status: FailStatus,
    /// How many.
    pub count: u64,
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailStatus {
    /// VIRTIO_BLK_S_IOERR
    Ioerr,
    /// VIRTIO_BLK_S_UNSUPP
    Unsupp,
}

/// What all threads share.
#[derive(Debug)]
pub struct Disk {
    /// The data.
    pub backing: Backing,
    /// In sectors.
    pub capacity: AtomicU64,
    /// The cache mode.
    pub writeback: AtomicBool,
    /// The counts.
    pub stats: Mutex<Stats>,
    /// What is to fail; `is_failing` says cheaply whether there is any.
    failing: Mutex<Option<Failing>>,
    is_failing: AtomicBool,
}

impl Disk {
    /// A disk of `capacity` sectors.
    pub fn new(backing: Backing, capacity: u64) -> Self {
        Self {
            backing,
            capacity: AtomicU64::new(capacity),
            writeback: AtomicBool::new(true),
            stats: Mutex::default(),
            failing: Mutex::default(),
            is_failing: AtomicBool::new(false),
        }
    }

    /// The next requests fail.
    pub fn fail(&self, failing: Failing) {
        let mut guard = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        *guard = Some(failing).filter(|failing| failing.count != 0);
        self.is_failing.store(guard.is_some(), Ordering::Release);
    }

    /// How this request fails, if it is to.
    fn failure(&self, kind: Kind) -> Option<S> {
        if !self.is_failing.load(Ordering::Acquire) {
            return None;
        }
        let mut guard = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = guard.as_mut().filter(|failing| failing.kind == kind)?;
        let status = match failing.status {
            FailStatus::Ioerr => S::Ioerr,
            FailStatus::Unsupp => S::Unsupp,
        };
        failing.count -= 1;
        if failing.count == 0 {
            *guard = None;
            self.is_failing.store(false, Ordering::Release);
        }
        Some(status)
    }
}

/// Why a request did not succeed.
enum Failure {
    /// It has a status that says so.
    Status(S),
    /// It can't even have that.
    Malformed(Malformed),
}

impl From<S> for Failure {
    fn from(status: S) -> Self {
        Self::Status(status)
    }
}

impl<E: Into<Malformed>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Malformed(error.into())
    }
}

/// What a request did.
#[derive(Default)]
struct Effect {
    bytes: u64,
    checksum: u64,
    ranges: Vec<Range>,
    volatile: bool,
    misplaced: bool,
}

/// A thread's means to carry requests out.
#[derive(Debug)]
pub struct Executor {
    disk: Arc<Disk>,
    piece: Vec<u8>,
}

impl Executor {
    /// For this disk.
    pub fn new(disk: Arc<Disk>) -> Self {
        Self {
            disk,
            piece: vec![0; PIECE],
        }
    }

    /// Carries a request out; returns how many bytes were written into its buffer.
    pub fn execute(
        &mut self,
        request: &Request,
        terms: &Terms,
        mem: &Memory,
    ) -> Result<u32, ProcessError> {
        let buffer = &request.buffer;
        let room = buffer.head.writable_len;
        if room == 0 {
            return Err(Malformed::NoStatus.into());
        }
        let mut readable = Cursor::new(&buffer.readable);
        let header = Header::read(mem, &mut readable)?;
        let (status, effect) = match self.carry_out(request, &header, terms, mem, readable) {
            Ok(effect) => (S::Ok, effect),
            Err(Failure::Status(status)) => (status, Effect::default()),
            Err(Failure::Malformed(error)) => return Err(error.into()),
        };
        if status != S::Ok {
            debug!(
                "queue {}: {header:?} answered with {status:?}",
                request.queue
            );
        }
        self.disk
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count(&Outcome {
                queue: request.queue,
                kind: header.kind,
                status,
                bytes: effect.bytes,
                checksum: effect.checksum,
                ranges: &effect.ranges,
                volatile: effect.volatile,
                misplaced: effect.misplaced,
            });
        answer(request, mem, status)
    }

    fn carry_out<'a>(
        &mut self,
        request: &'a Request,
        header: &Header,
        terms: &Terms,
        mem: &Memory,
        mut data: Cursor<'a>,
    ) -> Result<Effect, Failure> {
        if let Some(status) = self.disk.failure(header.kind) {
            return Err(status.into());
        }
        let capacity = self.disk.capacity.load(Ordering::Acquire);
        let buffer = &request.buffer;
        match header.kind {
            Kind::In => {
                let len = buffer.head.writable_len - 1;
                terms.check_data(buffer, header, len, capacity)?;
                let checksum =
                    self.read(header.sector, len, mem, &mut Cursor::new(&buffer.writable))?;
                Ok(Effect {
                    bytes: len,
                    checksum,
                    ..Effect::default()
                })
            }
            Kind::Out => {
                let len = data.left();
                terms.check_data(buffer, header, len, capacity)?;
                if request.is_lost {
                    return Ok(Effect::default());
                }
                let checksum = self.write(header.sector, len, mem, &mut data)?;
                let volatile = self.commit(terms)?;
                Ok(Effect {
                    bytes: len,
                    checksum,
                    volatile,
                    ..Effect::default()
                })
            }
            Kind::Flush if terms.has(Feature::Flush) => {
                done("flush", self.disk.backing.sync())?;
                Ok(Effect::default())
            }
            Kind::GetId => {
                let mut id = [0; ID_BYTES];
                let serial = terms.config.serial.as_bytes();
                id[..serial.len()].copy_from_slice(serial);
                let room = (buffer.head.writable_len - 1).min(ID_BYTES as u64) as usize;
                Cursor::new(&buffer.writable).write(mem, &id[..room])?;
                Ok(Effect {
                    bytes: room as u64,
                    ..Effect::default()
                })
            }
            kind @ (Kind::Discard | Kind::WriteZeroes | Kind::SecureErase) => {
                // Linux up to 7.3 at least has it that an even type, which secure erase is, reads
                // from the device, and makes the ranges writable.
                let misplaced = data.left() == 0 && buffer.head.writable_len > 1;
                if misplaced {
                    data = Cursor::new(&buffer.writable);
                    data.truncate(buffer.head.writable_len - 1);
                }
                let ranges = terms.ranges(kind, mem, &mut data, capacity)??;
                for range in &ranges {
                    done("range", self.clear(kind, range, terms))?;
                }
                // A discard promises nothing that a medium would have to keep.
                let volatile = match kind {
                    Kind::Discard => false,
                    _ => self.commit(terms)?,
                };
                Ok(Effect {
                    bytes: ranges.iter().map(Range::bytes).sum(),
                    ranges,
                    volatile,
                    misplaced,
                    ..Effect::default()
                })
            }
            Kind::Flush | Kind::Other => Err(S::Unsupp.into()),
        }
    }

    /// Reads data into the buffer.
    fn read(
        &mut self,
        sector: u64,
        len: u64,
        mem: &Memory,
        buffer: &mut Cursor<'_>,
    ) -> Result<u64, Failure> {
        let mut sum = 0u64;
        for begin in (0..len).step_by(PIECE) {
            let piece = &mut self.piece[..(len - begin).min(PIECE as u64) as usize];
            done(
                "read",
                self.disk.backing.read(sector * SECTOR + begin, piece),
            )?;
            buffer.write(mem, piece)?;
            sum = sum.wrapping_add(checksum(sector + begin / SECTOR, piece));
        }
        Ok(sum)
    }

    /// Writes the buffer's data.
    fn write(
        &mut self,
        sector: u64,
        len: u64,
        mem: &Memory,
        buffer: &mut Cursor<'_>,
    ) -> Result<u64, Failure> {
        let mut sum = 0u64;
        for begin in (0..len).step_by(PIECE) {
            let piece = &mut self.piece[..(len - begin).min(PIECE as u64) as usize];
            buffer.read(mem, piece)?;
            done(
                "write",
                self.disk.backing.write(sector * SECTOR + begin, piece),
            )?;
            sum = sum.wrapping_add(checksum(sector + begin / SECTOR, piece));
        }
        Ok(sum)
    }

    /// A writethrough cache has what was written on the medium before the request is finished.
    /// Returns whether it is in a volatile cache instead.
    fn commit(&self, terms: &Terms) -> Result<bool, Failure> {
        // "Device Operation": without CONFIG_WCE the cache is writeback if and only if the driver
        // can flush.
        let writeback = if terms.has(Feature::ConfigWce) {
            self.disk.writeback.load(Ordering::Acquire)
        } else {
            terms.has(Feature::Flush)
        };
        if !writeback {
            done("write", self.disk.backing.sync())?;
        }
        Ok(writeback)
    }

    fn clear(&self, kind: Kind, range: &Range, terms: &Terms) -> io::Result<()> {
        let backing = &self.disk.backing;
        let (offset, len) = (range.sector * SECTOR, range.bytes());
        match kind {
            Kind::Discard => backing.unmap(offset, len),
            Kind::SecureErase => backing.overwrite(offset, len),
            _ if range.unmaps() && terms.config.write_zeroes_may_unmap => {
                backing.unmap(offset, len)
            }
            _ => backing.zero(offset, len),
        }
    }
}

/// An error of the host's is an error of the medium.
fn done(what: &str, result: io::Result<()>) -> Result<(), S> {
    result.map_err(|error| {
        warn!("{what}: {error}");
        S::Ioerr
    })
}

/// Writes the status, the last byte of the buffer; returns the used length. That is the whole
/// buffer, whatever became of the data: a driver may not look at what is beyond it.
fn answer(request: &Request, mem: &Memory, status: S) -> Result<u32, ProcessError> {
    let mut status = Some(u8::from(status));
    let room = request.buffer.head.writable_len;
    let mut len = u32::try_from(room).unwrap_or(u32::MAX);
    if let Some(seed) = request.lie {
        let mut stream = Stream::new(seed, 0);
        match stream.below(3) {
            0 => status = Some(stream.draw() as u8),
            1 => status = None,
            _ => len = stream.draw() as u32,
        }
    }
    if let Some(status) = status {
        let mut last = Cursor::new(&request.buffer.writable);
        last.skip(room - 1);
        last.write(mem, &[status]).map_err(ProcessError::Memory)?;
    }
    Ok(len)
}
