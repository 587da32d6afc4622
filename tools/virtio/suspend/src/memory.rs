// SPDX-License-Identifier: GPL-2.0

//! A process that goes on when the disk that it came from, and the swap, stand still.

use std::fs;

use rustix::mm::{mlockall, MlockAllFlags};

use crate::sys;

/// Above what is usual for a program, below the kernel's own interrupt threads (50).
pub const PRIORITY: i32 = 40;

/// Has all of this process in memory, now and later, and makes it the last to be denied memory or
/// a processor.
///
/// Nothing can be suspended if that can't be had, which is the error. What makes it only more
/// likely that all goes well is returned as warnings if it can't be had.
pub fn lock() -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    let mut wanted = |what: &str, result: Result<(), String>| {
        if let Err(error) = result {
            warnings.push(format!("can't {what}: {error}"));
        }
    };
    // Memory gets short when the swap stands still, and this must not be what makes room.
    let adjusted = fs::write("/proc/self/oom_score_adj", "-1000");
    wanted("be kept from the OOM killer", adjusted.map_err(text));
    // What the kernel allocates for us, in a write to sysfs for example, must not wait for a disk:
    // this is what makes PF_MEMALLOC_NOIO of it.
    let flusher = rustix::process::configure_io_flusher_behavior(true);
    wanted("be an I/O flusher", flusher.map_err(text));
    sys::touch_stack();
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
        .map_err(|error| format!("can't lock the program into memory: {error}"))?;
    let real_time = sys::set_real_time(PRIORITY);
    wanted("have a real-time priority", real_time.map_err(text));
    Ok(warnings)
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
