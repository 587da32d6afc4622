// SPDX-License-Identifier: GPL-2.0

//! Which block devices lie on which.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::sysfs::{self, Root};

/// A device number, "major:minor".
pub type Number = String;

struct Block {
    number: Number,
    /// Its partitions, and what is made of it.
    above: Vec<String>,
    /// What it is, if it is made of others.
    of: Option<String>,
}

/// The block devices of the machine.
pub struct Blocks {
    blocks: BTreeMap<String, Block>,
    root: Root,
}

impl Blocks {
    pub fn read(root: &Root) -> Self {
        let class = root.join("sys/class/block");
        let names = sysfs::names(&class);
        let mut blocks: BTreeMap<String, Block> = names
            .iter()
            .map(|name| (name.clone(), block(&class.join(name))))
            .collect();
        // A loop device does not show among the holders of what its file is on, but its file may be
        // on a file system of a disk.
        for name in &names {
            let lower = loop_file(root, &class.join(name));
            if let Some(lower) = lower.and_then(|lower| blocks.get_mut(&lower)) {
                lower.above.push(name.clone());
            }
        }
        Self {
            blocks,
            root: root.clone(),
        }
    }

    /// The names of a block device, and of all that are on it, each after what it is on.
    fn names_above(&self, disk: &str) -> Vec<String> {
        let mut found = vec![disk.to_string()];
        let mut next = 0;
        while let Some(block) = found.get(next).map(|name| self.blocks.get(name)) {
            for name in block.iter().flat_map(|block| &block.above) {
                if !found.contains(name) {
                    found.push(name.clone());
                }
            }
            next += 1;
        }
        found
    }

    /// The numbers of a block device and of all that are on it.
    pub fn above(&self, disk: &str) -> Vec<Number> {
        let names = self.names_above(disk);
        let blocks = names.iter().filter_map(|name| self.blocks.get(name));
        blocks.map(|block| block.number.clone()).collect()
    }

    /// Those on it that are made of others, with what they are.
    pub fn stacked(&self, disk: &str) -> Vec<(String, String)> {
        let names = self.names_above(disk).into_iter();
        names
            .filter_map(|name| {
                let of = self.blocks.get(&name)?.of.clone()?;
                Some((name, of))
            })
            .collect()
    }

    /// The number of what is at a path such as `/dev/mapper/x`.
    pub fn number_of(&self, path: &Path) -> Option<Number> {
        let rest = path.strip_prefix("/dev").ok()?;
        // What udev makes are links to what the kernel has.
        let real = fs::canonicalize(self.root.join(path)).ok();
        let name = real.as_deref().unwrap_or(rest).file_name()?.to_str()?;
        let by_name = self.blocks.get(name);
        let mapper = rest.strip_prefix("mapper").ok().and_then(Path::to_str);
        let is_mapper = |block: &&Block| {
            let of = block.of.as_deref().and_then(|of| of.split_once(' '));
            mapper.is_some() && of.map(|(_, name)| name) == mapper
        };
        let found = by_name.or_else(|| self.blocks.values().find(is_mapper))?;
        Some(found.number.clone())
    }
}

fn block(dir: &Path) -> Block {
    let mut above = sysfs::names(&dir.join("holders"));
    let children = sysfs::names(dir).into_iter();
    above.extend(children.filter(|name| dir.join(name).join("partition").exists()));
    Block {
        number: sysfs::read(&dir.join("dev")).unwrap_or_default(),
        above,
        of: made_of(dir),
    }
}

fn made_of(dir: &Path) -> Option<String> {
    if let Ok(level) = sysfs::read(&dir.join("md/level")) {
        return Some(level);
    }
    if let Ok(name) = sysfs::read(&dir.join("dm/name")) {
        let uuid = sysfs::read(&dir.join("dm/uuid")).unwrap_or_default();
        let of = match uuid.split_once('-') {
            Some((of, _)) if !of.is_empty() => of,
            _ => "dm",
        };
        return Some(format!("{of} {name}"));
    }
    let file = sysfs::read(&dir.join("loop/backing_file")).ok()?;
    Some(format!("loop {file}"))
}

/// The name of the block device that the file behind a loop device is on.
fn loop_file(root: &Root, dir: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let file = PathBuf::from(sysfs::read(&dir.join("loop/backing_file")).ok()?);
    let device = fs::metadata(root.join(file)).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = fs::read_link(root.join(format!("sys/dev/block/{major}:{minor}"))).ok()?;
    Some(link.file_name()?.to_str()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn a_stack_is_followed_to_its_top_and_circles_end() {
        let fake = Fake::new();
        for (name, number) in [
            ("vda", "1:0"),
            ("dm-0", "2:0"),
            ("dm-1", "2:1"),
            ("vdb", "1:1"),
        ] {
            fake.block(name, number);
        }
        fake.holder("vda", "dm-0");
        fake.holder("dm-0", "dm-1");
        // Which can't be, but is no reason to go round.
        fake.holder("dm-1", "vda");
        fake.holder("dm-1", "gone");
        let blocks = Blocks::read(&fake.root());
        assert_eq!(blocks.above("vda"), ["1:0", "2:0", "2:1"]);
        assert_eq!(blocks.above("vdb"), ["1:1"]);
        assert!(blocks.above("nothing").is_empty());
    }

    #[test]
    fn names_of_the_device_mapper() {
        let fake = Fake::new();
        fake.block("dm-3", "253:3");
        fake.write("sys/class/block/dm-3/dm/name", "root\n");
        fake.write("sys/class/block/dm-3/dm/uuid", "CRYPT-LUKS2-0-root\n");
        let blocks = Blocks::read(&fake.root());
        assert_eq!(
            blocks.stacked("dm-3"),
            [("dm-3".into(), "CRYPT root".into())]
        );
        let number = |path: &str| blocks.number_of(Path::new(path));
        assert_eq!(number("/dev/mapper/root").as_deref(), Some("253:3"));
        assert_eq!(number("/dev/dm-3").as_deref(), Some("253:3"));
        assert_eq!(number("/dev/mapper/other"), None);
        assert_eq!(number("tmpfs"), None);
    }
}
