// SPDX-License-Identifier: GPL-2.0

//! The block layer.
//!
//! Upstream this would extend `kernel::block`, which hands a driver neither what a request asks for
//! nor its memory, and has no way to let one fail.

#[path = "block/major.rs"]
mod major;
#[path = "block/mq.rs"]
pub mod mq;

pub use self::major::{
    Id,
    IdAllocator,
    IdAllocatorGuard,
    Major, //
};
