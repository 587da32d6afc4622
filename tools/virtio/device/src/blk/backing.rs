// SPDX-License-Identifier: GPL-2.0

//! What holds the data: a file, or memory in the shape of one.
//!
//! It is read and written at offsets, never mapped: an error of the host's is then a status byte and
//! not a signal. The data outlives every reset of the device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{fallocate, memfd_create, FallocateFlags, MemfdFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::config::SECTOR;

/// Zeroes are written in pieces of this size where the host can't do it itself.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// The backing can't be had.
#[derive(Debug, Error)]
pub enum BackingError {
    /// The file can't be opened.
    #[error("can't open the backing {}: {source}; --backing takes a file that can be read and written", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It can't have that size.
    #[error("can't make the backing {size} bytes large: {source}")]
    Size {
        /// The size.
        size: u64,
        /// Why not.
        source: io::Error,
    },
    /// Neither a file nor a size that is a number of sectors.
    #[error("the backing is {0} bytes large; use a multiple of {SECTOR} greater than 0 (--size)")]
    Sectors(u64),
}

/// The data.
#[derive(Debug)]
pub struct Backing {
    file: File,
    /// Whether there is a medium on which the data has to arrive.
    medium: bool,
}

impl Backing {
    /// The file at `path`, made `size` bytes large if that is given and it is smaller; memory of
    /// that size if there is no path. Returns the size it has, too.
    pub fn open(path: Option<&Path>, size: Option<u64>) -> Result<(Self, u64), BackingError> {
        let file = match path {
            Some(path) => OpenOptions::new()
                .read(true)
                .write(true)
                .create(size.is_some())
                .truncate(false)
                .open(path)
                .map_err(|source| BackingError::Open {
                    path: path.into(),
                    source,
                })?,
            None => memfd_create("virtio-blk", MemfdFlags::CLOEXEC)
                .map_err(|errno| BackingError::Size {
                    size: size.unwrap_or(0),
                    source: errno.into(),
                })?
                .into(),
        };
        let backing = Self {
            file,
            medium: path.is_some(),
        };
        let len = match path {
            Some(_) => backing.len(size.unwrap_or(0))?,
            None => 0,
        };
        let size = size.unwrap_or(len).max(len);
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(BackingError::Sectors(size));
        }
        backing.reserve(size)?;
        Ok((backing, size))
    }

    fn len(&self, size: u64) -> Result<u64, BackingError> {
        let metadata = self.file.metadata();
        metadata
            .map(|metadata| metadata.len())
            .map_err(|source| BackingError::Size { size, source })
    }

    /// Makes it at least `size` bytes large; it never shrinks, so that no data is lost.
    pub fn reserve(&self, size: u64) -> Result<(), BackingError> {
        if self.len(size)? >= size {
            return Ok(());
        }
        self.file
            .set_len(size)
            .map_err(|source| BackingError::Size { size, source })
    }

    /// Reads all of `data`.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    /// Writes all of `data`.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Has everything written so far arrive on the medium.
    pub fn sync(&self) -> io::Result<()> {
        if self.medium {
            self.file.sync_data()
        } else {
            Ok(())
        }
    }

    /// Zeroes a range and gives the space back, if the host can.
    pub fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.zero_by(flags, offset, len)
    }

    /// Zeroes a range and keeps the space.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero_by(FallocateFlags::ZERO_RANGE, offset, len)
    }

    fn zero_by(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match fallocate(&self.file, flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.overwrite(offset, len),
            result => Ok(result?),
        }
    }

    /// Writes zeroes over a range.
    pub fn overwrite(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZEROES.len() as u64);
            self.write(offset + done, &ZEROES[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn exercise(backing: &Backing) {
        let mut data = [0; 4096];
        backing.write(4096, &[0xaa; 12288]).unwrap();
        backing.unmap(4096, 4096).unwrap();
        backing.zero(8192, 512).unwrap();
        backing.overwrite(8704, 512).unwrap();
        backing.unmap(0, 0).unwrap();
        backing.sync().unwrap();
        backing.read(4096, &mut data).unwrap();
        assert_eq!(data, [0; 4096]);
        backing.read(8192, &mut data).unwrap();
        assert!(data[..1024].iter().all(|byte| *byte == 0));
        assert!(data[1024..].iter().all(|byte| *byte == 0xaa));
    }

    #[test]
    fn memory_and_files_do_the_same() {
        let (memory, size) = Backing::open(None, Some(1 << 20)).unwrap();
        assert_eq!(size, 1 << 20);
        exercise(&memory);
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("disk");
        let (file, size) = Backing::open(Some(&path), Some(1 << 20)).unwrap();
        assert_eq!(size, 1 << 20);
        exercise(&file);

        // It persists, and is as large as it is; a smaller size does not cut it.
        for size in [None, Some(512)] {
            let (again, size) = Backing::open(Some(&path), size).unwrap();
            assert_eq!(size, 1 << 20);
            let mut data = [0; 1];
            again.read(16383, &mut data).unwrap();
            assert_eq!(data, [0xaa]);
        }
        file.reserve(2 << 20).unwrap();
        let (_, size) = Backing::open(Some(&path), None).unwrap();
        assert_eq!(size, 2 << 20);
    }

    #[test]
    fn what_can_not_be_is_said() {
        let dir = TempDir::new().unwrap();
        let missing = dir.as_path().join("missing");
        let open = |path: Option<&Path>, size| Backing::open(path, size).unwrap_err();
        assert!(matches!(
            open(Some(&missing), None),
            BackingError::Open { .. }
        ));
        assert!(matches!(
            open(None, Some(1000)),
            BackingError::Sectors(1000)
        ));
        assert!(matches!(open(None, Some(0)), BackingError::Sectors(0)));
        assert!(matches!(
            open(Some(dir.as_path()), Some(512)),
            BackingError::Open { .. }
        ));
    }
}
