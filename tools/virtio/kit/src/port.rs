// SPDX-License-Identifier: GPL-2.0

//! A port of x86. All `unsafe` of the program is here.

use std::arch::asm;
use std::io::{Error, Result};

/// Writes a byte to a port, which the user has said to be one that ends the machine.
pub fn write(port: u16, value: u8) -> Result<()> {
    // SAFETY: It only lets this process use the port.
    if unsafe { libc::ioperm(port.into(), 1, 1) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: The process may use the port. What the device does is not about this process's
    // memory, unless it ends.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
