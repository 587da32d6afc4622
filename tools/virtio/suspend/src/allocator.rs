// SPDX-License-Identifier: GPL-2.0

//! The system's allocator, and a count of what it is asked for while nothing may be.
//!
//! Between suspend and resume the program allocates nothing: new memory may have to be made by
//! writing to a disk that stands still. Each report on a suspend has the number, and a test looks
//! at it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The allocator.
pub struct Counting;

static SEALED: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    if SEALED.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: All is done by the system's allocator, with the arguments as they are, and what is done
// beside that allocates nothing and does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: The caller keeps the rules of the trait, which are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: The caller keeps the rules of the trait, which are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: The caller keeps the rules of the trait, which are the same.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: The caller keeps the rules of the trait, which are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// From now on allocations are counted.
pub fn seal() {
    ALLOCATIONS.store(0, Ordering::Relaxed);
    SEALED.store(true, Ordering::Relaxed);
}

/// From now on they are not; returns how many there were.
pub fn unseal() -> u64 {
    SEALED.store(false, Ordering::Relaxed);
    ALLOCATIONS.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Tests run beside each other in one process: that nothing is counted can't be told here.
    #[test]
    fn an_allocation_is_counted_while_it_is_sealed() {
        seal();
        drop(std::hint::black_box(Box::new(1)));
        assert!(unseal() > 0);
    }
}
