// SPDX-License-Identifier: GPL-2.0

//! `lab series`: the patches by which all of this would go into the kernel.
//!
//! They are made from the clone by a map, tools/virtio/series/map.toml, so that there is one source.
//! Documentation/virtio/upstream.rst tells what is in them, and what has been tried.

mod build;
mod imports;
mod map;
mod patches;
mod rewrite;

use crate::kernel::Kernel;
use crate::packages;
use crate::process::{announce, output_of};
use crate::tree::Tree;
use anyhow::{ensure, Result};
use map::Map;
use std::path::PathBuf;
use std::process::Command;

/// The series that the patches are for.
const SERIES: &str = "7.3";

const PACKAGES: &str = "scripts/packages.series";

#[derive(clap::Args)]
pub struct Args {
    /// Build the kernel after each patch, and check what was built; takes long.
    #[arg(long)]
    check: bool,

    /// Only print which file is in which patch.
    #[arg(long, conflicts_with = "check")]
    list: bool,
}

/// Makes the patches, applies them to the kernel's source, and builds what they make if asked to.
pub fn run(tree: &Tree, kernel: &Kernel, args: &Args) -> Result<()> {
    let map = Map::read(tree)?;
    if args.list {
        for (title, lines) in patches::table(tree, &map)? {
            println!("{title}");
            for line in lines {
                println!("    {line}");
            }
        }
        return Ok(());
    }
    let patches = generate(tree, kernel, &map)?;
    announce("git am, on a repository of the kernel's source", || {
        build::apply(kernel, &map, &patches)
    })?;
    println!(
        "{} patches apply: {}",
        patches.len(),
        tree.join("out/series").display()
    );
    if args.check {
        build::check(tree, kernel, &map, &patches)?;
    }
    Ok(())
}

/// What `make check` does: makes the patches and sees whether they apply.
pub fn check(tree: &Tree, kernel: &Kernel) -> Result<()> {
    if kernel.series().as_deref() != Some(SERIES) {
        println!("left out: the patches are for Linux {SERIES}");
        return Ok(());
    }
    generate(tree, kernel, &Map::read(tree)?).map(drop)
}

fn generate(tree: &Tree, kernel: &Kernel, map: &Map) -> Result<Vec<PathBuf>> {
    ensure!(
        kernel.series().as_deref() == Some(SERIES),
        "the patches are for Linux {SERIES}, and this is {}",
        kernel.release
    );
    if output_of(Command::new("git").arg("--version")).is_err() {
        packages::install(tree, PACKAGES, &tree.out("log")?.join("series-install.log"))?;
    }
    let _lock = tree.lock("series")?;
    let patches = announce("making the patches", || {
        patches::make(tree, map, &kernel.source, &tree.join("out/series"))
    })?;
    announce("trying whether they apply", || {
        patches::check(&kernel.source, map, &patches)
    })?;
    Ok(patches)
}
