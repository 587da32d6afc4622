// SPDX-License-Identifier: GPL-2.0

//! What a command installs in the build root besides scripts/packages, which has a list of it.

use crate::process::run_logged;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Installs the packages of a list, or finds that done.
pub fn install(tree: &Tree, list: &str, log: &Path) -> Result<()> {
    let names = self::list(tree, list)?;
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--yes", "--option", "DPkg::Lock::Timeout=600", "install"])
        .args(names);
    run_logged(&mut apt, log)
}

/// Reads a list.
pub fn list(tree: &Tree, list: &str) -> Result<Vec<String>> {
    let path = tree.join(list);
    let text =
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(names(&text).map(str::to_string).collect())
}

/// The names in a list.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(str::split_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packages() {
        let text = "# SPDX\n\n# A comment.\nninja-build\npatch # to apply\n";
        assert_eq!(names(text).collect::<Vec<_>>(), ["ninja-build", "patch"]);
    }
}
