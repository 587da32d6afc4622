// SPDX-License-Identifier: GPL-2.0

//! A disk with a root file system and swap, and the initramfs that goes on there: see
//! [`root_disk`](crate::root_disk).

use crate::initramfs;
use crate::kernel::Kernel;
use crate::modules::Modules;
use crate::process::output_of;
use crate::tree::{make_dir, RunDir, Tree};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

/// The root file system, in the guest.
pub const PARTITION: &str = "/dev/vda1";
/// The disk, among the run's sockets, as the device has it.
pub const DISK: &str = "disk";
pub const MIB: u64 = 1 << 20;
/// Where the partitions begin, and where the last one ends, in MiB.
pub const BOUNDS: [u64; 3] = [1, 385, 641];
/// As a partition table has them.
const LINUX: u8 = 0x83;
const SWAP: u8 = 0x82;

/// Makes the disk, with all that the guest needs, and the initramfs that finds it.
pub fn make(tree: &Tree, kernel: &Kernel, modules: &Modules, run: &RunDir) -> Result<PathBuf> {
    let root = make_dir(run.join("root.d"))?;
    let initramfs = initramfs::make(tree, kernel, modules, run, Some(&root))?;
    let path = run.sockets()?.join(DISK);
    let disk = File::create(&path).context("can't make the disk")?;
    disk.set_len(BOUNDS[2] * MIB)
        .context("can't make the disk")?;
    let mut mkfs = Command::new("mke2fs");
    mkfs.args(["-q", "-t", "ext4", "-E"])
        .arg(format!("offset={}", BOUNDS[0] * MIB))
        .arg("-d")
        .args([&root, &path])
        .arg(format!("{}M", BOUNDS[1] - BOUNDS[0]));
    output_of(&mut mkfs)?;
    disk.write_all_at(&table(), 446)
        .context("can't write the partition table")?;
    fs::remove_dir_all(&root).context("can't remove what the disk is made of")?;
    Ok(initramfs)
}

/// The table of partitions in the first sector, with the signature at its end.
fn table() -> [u8; 66] {
    let mut table = [0; 66];
    for (index, kind) in [LINUX, SWAP].into_iter().enumerate() {
        let sectors = |mib: u64| (mib * MIB / 512) as u32;
        let [begin, end] = [BOUNDS[index], BOUNDS[index + 1]];
        let entry = &mut table[16 * index..][..16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&sectors(begin).to_le_bytes());
        entry[12..].copy_from_slice(&sectors(end - begin).to_le_bytes());
    }
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_of_the_disk() {
        let table = table();
        assert_eq!((table[4], table[20]), (LINUX, SWAP));
        let number = |at: usize| u32::from_le_bytes(table[at..at + 4].try_into().unwrap());
        assert_eq!((number(8), number(12)), (2048, 384 * 2048));
        assert_eq!(number(24), number(8) + number(12));
        assert_eq!(table[32..64], [0; 32]);
    }
}
