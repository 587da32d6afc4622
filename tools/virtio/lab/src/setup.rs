// SPDX-License-Identifier: GPL-2.0

//! Has the kernel there that is asked for.

use crate::kernel::{Flavour, Kernel};
use crate::tree::Tree;
use crate::{debug, stock};
use anyhow::Result;

/// Installs or builds the kernel, or finds that done.
pub fn set_up(tree: &Tree, flavour: Flavour, series: Option<&str>) -> Result<Kernel> {
    let stock = stock::set_up(tree, series)?;
    match flavour {
        Flavour::Stock => Ok(stock),
        Flavour::Debug => debug::set_up(tree, &stock),
    }
}
