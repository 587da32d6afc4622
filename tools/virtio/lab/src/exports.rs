// SPDX-License-Identifier: GPL-2.0

//! The symbols that the crate exports, and where they are.
//!
//! An entry of `__ksymtab` is the distance to its symbol. The module loader keeps neither
//! `.modinfo` nor the version table, and frees what is for initialisation: whoever finds a symbol
//! there gets an address outside of the module, which the relocation may not even be able to hold.

use crate::kernel::Kernel;
use crate::modules;
use crate::process::output_of;
use crate::tree::Tree;
use anyhow::{ensure, Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// The module that exports something.
const CRATE: &str = "rust_virtio";

/// What begins the names of the sections that are gone when the module has been loaded.
const GONE: &[&str] = &[".modinfo", "__versions", ".init", ".exit"];

/// The symbols that are exported and should not be, each in a line.
pub fn check(tree: &Tree, kernel: &Kernel) -> Result<Vec<String>> {
    modules::build(tree, kernel)?;
    let out = tree.out(&kernel.release)?;
    let symvers = fs::read_to_string(out.join("Module.symvers"));
    let symvers = symvers.context("can't read what the modules export")?;
    let exported = exported(&symvers);
    ensure!(!exported.is_empty(), "{CRATE} exports nothing");
    let mut nm = Command::new("nm");
    nm.args(["--defined-only", "--format=sysv"])
        .arg(out.join(format!("{CRATE}.ko")));
    let (problems, found) = misplaced(&output_of(&mut nm)?, &exported);
    ensure!(
        found == exported.len(),
        "{CRATE} has {found} of the {} symbols that it exports",
        exported.len()
    );
    Ok(problems)
}

/// The symbols of the crate, out of `Module.symvers`.
fn exported(symvers: &str) -> BTreeSet<&str> {
    symvers
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t').skip(1);
            let symbol = fields.next()?;
            (fields.next()? == CRATE).then_some(symbol)
        })
        .collect()
}

/// Those that are nowhere when the module has been loaded, and how many were found at all.
fn misplaced(nm: &str, exported: &BTreeSet<&str>) -> (Vec<String>, usize) {
    let mut found = 0;
    let mut problems = Vec::new();
    for line in nm.lines() {
        let mut fields = line.split('|').map(str::trim);
        let (Some(symbol), Some(class), Some(section)) =
            (fields.next(), fields.nth(1), fields.nth(3))
        else {
            continue;
        };
        // A local symbol of the same name is another one.
        if !exported.contains(symbol) || class.starts_with(|c: char| c.is_ascii_lowercase()) {
            continue;
        }
        found += 1;
        if GONE.iter().any(|gone| section.starts_with(gone)) {
            problems.push(format!(
                "{CRATE} exports {symbol}, of {section}: see Kbuild"
            ));
        }
    }
    (problems, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_that_the_loader_does_not_keep() {
        let symvers = "0x00000000\tkept\trust_virtio\tEXPORT_SYMBOL_GPL\t\n\
                       0x00000000\tother\tvirtio_blk\tEXPORT_SYMBOL_GPL\t\n\
                       0x00000000\tlost\trust_virtio\tEXPORT_SYMBOL_GPL\t\n";
        let exported = exported(symvers);
        assert_eq!(
            exported.iter().copied().collect::<Vec<_>>(),
            ["kept", "lost"]
        );
        let nm = "Name |Value |Class |Type |Size |Line |Section\n\
                  kept |0000000000000010| T |FUNC|08| |.text\n\
                  lost |0000000000000000| r |OBJECT|08| |.modinfo\n\
                  lost |0000000000000000| R |OBJECT|08| |.modinfo\n\
                  init |0000000000000000| T |FUNC|08| |.init.text\n";
        let (problems, found) = misplaced(nm, &exported);
        assert_eq!(found, 2);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("exports lost, of .modinfo"));
    }
}
