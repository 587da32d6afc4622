// SPDX-License-Identifier: GPL-2.0

//! Has the kernel there that is asked for.

use crate::kernel::{Arch, Flavour, Kernel};
use crate::tree::Tree;
use crate::{arm64, debug, stock};
use anyhow::{bail, Result};

/// Stands for each series that has been tried.
pub const ALL: &str = "all";

/// Installs or builds the kernel, or finds that done.
pub fn set_up(tree: &Tree, arch: Arch, flavour: Flavour, series: Option<&str>) -> Result<Kernel> {
    let stock = stock::set_up(tree, series)?;
    match (arch, flavour) {
        (Arch::X86_64, Flavour::Stock) => Ok(stock),
        (Arch::X86_64, Flavour::Debug) => debug::set_up(tree, &stock),
        (Arch::Arm64, Flavour::Stock) => arm64::set_up(tree, &stock),
        (Arch::Arm64, Flavour::Debug) => bail!("there is no debug kernel for arm64"),
    }
}
