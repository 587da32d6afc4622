// SPDX-License-Identifier: GPL-2.0

//! Copies of directories, and links.

use crate::process::output_of;
use crate::tree::make_dir;
use anyhow::{ensure, Context, Result};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// What a copy leaves out: what is built, and the history.
const NOT_COPIED: [&str; 3] = [".git", "out", "target"];

/// Makes a copy of a directory the same as it: what has not changed is left alone, so that it need
/// not be built again. What has is new to make, whatever its age is.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    make_dir(to.into())?;
    let mut rsync = Command::new("rsync");
    rsync
        .args([
            "--recursive",
            "--links",
            "--perms",
            "--checksum",
            "--delete",
        ])
        .args(NOT_COPIED.map(|name| format!("--exclude={name}")))
        // With a slash at its end it is what is in it.
        .arg(from.join(""))
        .arg(to);
    output_of(&mut rsync).map(drop)
}

/// Links to what is there, and makes the directories on the way.
pub fn link(target: &Path, path: &Path) -> Result<()> {
    ensure!(target.exists(), "there is no {}", target.display());
    make_dir(path.parent().context("a path without a directory")?.into())?;
    symlink(target, path).with_context(|| format!("can't link {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_copy_is_made_the_same_but_for_what_is_built() {
        let dir = std::env::temp_dir().join(format!("lab-copy-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        for name in ["src", "out", ".git"] {
            make_dir(from.join(name)).unwrap();
            fs::write(from.join(name).join("a"), name).unwrap();
        }
        copy(&from, &to).unwrap();
        assert!(!to.join("out").exists() && !to.join(".git").exists());
        let age = || fs::metadata(to.join("src/a")).unwrap().modified().unwrap();

        // What is the same is left alone, as is what has been built in the copy.
        let before = age();
        fs::create_dir(to.join("out")).unwrap();
        fs::write(to.join("b"), "b").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(age(), before);
        assert!(to.join("out").exists() && !to.join("b").exists());

        // What was broken is whole again, and not older for that.
        fs::write(to.join("src/a"), "cra").unwrap();
        let broken = age();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("src/a")).unwrap(), "src");
        assert!(age() >= broken);
        fs::remove_dir_all(&dir).unwrap();
    }
}
