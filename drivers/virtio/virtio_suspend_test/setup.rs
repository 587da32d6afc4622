// SPDX-License-Identifier: GPL-2.0

//! In which way a device is put into operation.

use virtio::Feature;

/// All virtqueues.
const ALL: usize = usize::MAX;

/// How a device is set up.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    /// Whether SUSPEND is negotiated.
    pub(crate) suspend: bool,
    /// How many virtqueues are enabled, from the first on.
    pub(crate) enabled: usize,
    /// What is negotiated besides.
    pub(crate) accepted: &'a [Feature],
    /// What is not negotiated, although the device offers it.
    pub(crate) refused: &'a [Feature],
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            suspend: true,
            enabled: ALL,
            accepted: &[],
            refused: &[],
        }
    }
}
