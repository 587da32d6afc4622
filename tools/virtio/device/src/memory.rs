// SPDX-License-Identifier: GPL-2.0

//! The guest's memory, as the client maps it (vfio-user DMA_MAP and DMA_UNMAP).

use std::fs::File;

use log::{debug, warn};
use thiserror::Error;
use vfio_user::{DmaMapFlags, DmaUnmapFlags};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

/// The guest's memory. Every access through it is bounds-checked against the present map.
pub type Memory = GuestMemoryMmap<()>;

/// A DMA mapping that can't be made.
#[derive(Debug, Error)]
pub enum DmaError {
    /// It can't be mapped.
    #[error("can't map {size:#x} bytes of guest memory at {address:#x}: {source}; is the guest's memory `memory-backend-memfd,share=on`?")]
    Map {
        /// Where.
        address: u64,
        /// How much.
        size: u64,
        /// Why not.
        source: MmapRegionError,
    },
    /// The file is shorter than the mapping: using the rest would end this process.
    #[error("the client maps {size:#x} bytes at offset {offset:#x} of a file of {len:#x} bytes; it has to be that long")]
    Short {
        /// How much.
        size: u64,
        /// Where in the file.
        offset: u64,
        /// Length of the file.
        len: u64,
    },
    /// The range is impossible or overlaps another.
    #[error("the client maps {size:#x} bytes at {address:#x}, which wraps around or overlaps another mapping; unmap that one first")]
    Range {
        /// Where.
        address: u64,
        /// How much.
        size: u64,
    },
}

/// The map of file descriptors that the client sent.
#[derive(Debug, Default)]
pub struct DmaMap {
    memory: Memory,
}

impl DmaMap {
    /// The memory as it is mapped now.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Maps `size` bytes of `file` at `offset` to guest address `address`.
    ///
    /// What can't be both read and written, or comes without a file, is left out: ROM, and BARs of
    /// other devices. No driver puts a virtqueue or a buffer there, and a write to a read-only
    /// mapping would end this process; to the device it is an address that does not exist.
    pub fn map(
        &mut self,
        flags: DmaMapFlags,
        address: u64,
        size: u64,
        offset: u64,
        file: Option<File>,
    ) -> Result<(), DmaError> {
        let Some(file) = file.filter(|_| flags.contains(DmaMapFlags::READ_WRITE)) else {
            debug!("dma_map {address:#x}+{size:#x} {flags:?}: not RAM, left out");
            return Ok(());
        };
        let range = || DmaError::Range { address, size };
        let length = usize::try_from(size).map_err(|_| range())?;
        // vm-memory leaves that to its caller.
        let len = match file.metadata() {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            _ => u64::MAX,
        };
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(DmaError::Short { size, offset, len });
        }
        let region =
            MmapRegion::from_file(FileOffset::new(file, offset), length).map_err(|source| {
                DmaError::Map {
                    address,
                    size,
                    source,
                }
            })?;
        let region = GuestRegionMmap::new(region, GuestAddress(address)).ok_or_else(range)?;
        self.memory = self
            .memory
            .insert_region(region.into())
            .map_err(|_| range())?;
        debug!("dma_map {address:#x}+{size:#x}");
        Ok(())
    }

    /// Forgets the mappings inside the range, or all.
    pub fn unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) {
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            self.clear();
            return;
        }
        let end = address.saturating_add(size);
        let inside: Vec<(GuestAddress, u64)> = self
            .memory
            .iter()
            .map(|region| (region.start_addr(), region.len()))
            .filter(|(start, len)| start.0 >= address && start.0.saturating_add(*len) <= end)
            .collect();
        for (start, len) in inside {
            match self.memory.remove_region(start, len) {
                Ok((memory, _)) => self.memory = memory,
                Err(error) => warn!("dma_unmap {address:#x}+{size:#x}: {error}"),
            }
        }
        debug!("dma_unmap {address:#x}+{size:#x}");
    }

    /// Forgets all mappings.
    pub fn clear(&mut self) {
        self.memory = Memory::default();
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    fn file(len: u64) -> Option<File> {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(len).unwrap();
        Some(file)
    }

    #[test]
    fn maps_and_unmaps() {
        let mut map = DmaMap::default();
        let rw = DmaMapFlags::READ_WRITE;
        map.map(rw, 0, 0x1000, 0, file(0x1000)).unwrap();
        map.map(rw, 0x1000, 0x1000, 0, file(0x1000)).unwrap();
        // Across the border of two mappings.
        map.memory()
            .write_slice(&[1, 2, 3, 4], GuestAddress(0xffe))
            .unwrap();
        assert!(map.map(rw, 0x1800, 0x1000, 0, file(0x1000)).is_err());
        assert!(map.map(rw, 0x9000, 0x2000, 0, file(0x1000)).is_err());
        assert!(map
            .map(rw, u64::MAX - 0xfff, 0x2000, 0, file(0x2000))
            .is_err());
        map.unmap(DmaUnmapFlags::empty(), 0x1000, 0x1000);
        assert!(map
            .memory()
            .write_slice(&[1], GuestAddress(0x1000))
            .is_err());
        map.unmap(DmaUnmapFlags::UNMAP_ALL, 0, 0);
        assert!(map.memory().write_slice(&[1], GuestAddress(0)).is_err());
    }

    #[test]
    fn rom_and_bars_are_not_memory() {
        let mut map = DmaMap::default();
        map.map(DmaMapFlags::READ, 0, 0x1000, 0, file(0x1000))
            .unwrap();
        map.map(DmaMapFlags::READ_WRITE, 0x1000, 0x1000, 0, None)
            .unwrap();
        assert!(map.memory().read_obj::<u8>(GuestAddress(0)).is_err());
        assert!(map.memory().read_obj::<u8>(GuestAddress(0x1000)).is_err());
    }
}
