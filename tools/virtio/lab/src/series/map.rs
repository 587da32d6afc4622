// SPDX-License-Identifier: GPL-2.0

//! tools/virtio/series/map.toml: which file goes where, in which patch.

use crate::tree::Tree;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;

/// Where the map is, and what it names.
pub const DIR: &str = "tools/virtio/series";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// Who the patches are from.
    pub from: String,
    pub cover: Cover,
    /// Files that are in no patch, or directories, with why.
    pub left_out: BTreeMap<String, String>,
    /// Files, or directories, that are elsewhere upstream.
    pub places: BTreeMap<String, String>,
    /// Paths of the crate, without its name, as they are in crate `kernel`; what is empty is gone.
    pub paths: BTreeMap<String, String>,
    /// What is written in another way in any file.
    #[serde(default)]
    pub substitute: Vec<Substitute>,
    /// What is written in another way in one file, as it is in the clone.
    #[serde(default)]
    pub edit: Vec<Edit>,
    pub patch: Vec<Patch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cover {
    pub subject: String,
    pub body: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Substitute {
    /// What the names of the files end with.
    pub files: String,
    pub find: String,
    pub replace: String,
}

/// What is to be found must be there once.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    pub file: String,
    pub find: String,
    pub replace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    pub subject: String,
    pub body: String,
    /// Files of the clone, or directories with all that no other patch names.
    #[serde(default)]
    pub files: Vec<String>,
    /// Files that there are upstream only: of the same path in [`DIR`]/tree.
    #[serde(default)]
    pub only: Vec<String>,
    /// A change of the kernel's own files, in [`DIR`]/patches.
    pub diff: Option<String>,
    /// Changes of the kernel's own files.
    #[serde(default)]
    pub edit: Vec<Edit>,
    /// What has to be built after it, for `make`.
    #[serde(default)]
    pub build: Vec<String>,
}

impl Map {
    pub fn read(tree: &Tree) -> Result<Self> {
        let path = tree.join(DIR).join("map.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is wrong", path.display()))
    }

    /// Where a file is upstream.
    pub fn place(&self, file: &str) -> String {
        let (from, to) = match longest(&self.places, file, '/') {
            Some(found) => found,
            None => return file.into(),
        };
        format!("{to}{}", &file[from.len()..])
    }

    /// Whether a file is left out.
    pub fn leaves_out(&self, file: &str) -> bool {
        longest(&self.left_out, file, '/').is_some()
    }
}

/// The entry for a name, or else for what it is in, however deep.
pub fn longest<'a>(
    entries: &'a BTreeMap<String, String>,
    name: &str,
    divider: char,
) -> Option<(&'a str, &'a str)> {
    entries
        .iter()
        .filter(|(entry, _)| is_in(name, entry, divider))
        .max_by_key(|(entry, _)| entry.len())
        .map(|(entry, value)| (entry.as_str(), value.as_str()))
}

/// Whether a name is another one, or in it.
pub fn is_in(name: &str, other: &str, divider: char) -> bool {
    name.strip_prefix(other)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(divider))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_entry_counts() {
        let entry = |a: &str, b: &str| (a.to_string(), b.to_string());
        let entries = BTreeMap::from([entry("rust/a", "1"), entry("rust/a/b.rs", "2")]);
        let find = |name| longest(&entries, name, '/').map(|(_, value)| value);
        assert_eq!(find("rust/a/b.rs"), Some("2"));
        assert_eq!(find("rust/a/c.rs"), Some("1"));
        assert_eq!(find("rust/ab.rs"), None);
    }
}
