// SPDX-License-Identifier: GPL-2.0

//! What is mounted, and what is swapped to.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// "major:minor", of no block device for some file systems.
    pub device: String,
    pub path: PathBuf,
    /// The name of its type.
    pub of: String,
    pub source: PathBuf,
    /// The address of the server, for file systems that have one.
    pub server: Option<String>,
}

/// A line of /proc/swaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    pub path: PathBuf,
}

/// The kernel writes some characters as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if byte == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

pub fn parse_mounts(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    // There is a number of optional fields before the dash.
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let (device, path) = (before.next()?, before.nth(1)?);
    let mut after = after.split(' ');
    let (of, source) = (after.next()?, after.next()?);
    let mut options = after.next().unwrap_or_default().split(',');
    Some(Mount {
        device: device.into(),
        path: unescape(path),
        of: of.into(),
        source: unescape(source),
        server: options.find_map(|option| option.strip_prefix("addr=").map(str::to_string)),
    })
}

pub fn parse_swaps(text: &str) -> Vec<Swap> {
    let lines = text.lines().skip(1);
    let paths = lines.filter_map(|line| line.split_ascii_whitespace().next());
    paths
        .map(|path| Swap {
            path: unescape(path),
        })
        .collect()
}

/// The mount that a path is in: what is mounted last of those that are nearest.
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let over = mounts.iter().filter(|mount| path.starts_with(&mount.path));
    over.max_by_key(|mount| mount.path.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_that_are_not_understood_are_left_out() {
        let mounts = parse_mounts("garbage\n\n1 2 3:4 / /x\n1 2 3:4 / /x rw - ext4\n");
        assert!(mounts.is_empty(), "{mounts:?}");
        let mount = &parse_mounts("1 2 3:4 / /a\\011b\\134 rw a:1 b:2 - ext4 /dev/x rw")[0];
        assert_eq!(mount.path, Path::new("/a\tb\\"));
        assert_eq!(mount.device, "3:4");
    }

    #[test]
    fn the_last_mount_on_a_place_counts() {
        let line = |of: &str| format!("1 2 3:4 / /x rw - {of} none rw\n");
        let mounts = parse_mounts(&(line("one") + &line("two")));
        assert_eq!(mount_of(&mounts, Path::new("/x/y")).unwrap().of, "two");
        assert!(mount_of(&mounts, Path::new("/xy")).is_none());
    }

    proptest! {
        #[test]
        fn whatever_there_is_does_no_harm(text in "[ \\\\0-7a-f:/,=\n-]{0,200}") {
            parse_mounts(&text);
            parse_swaps(&text);
        }
    }
}
