// SPDX-License-Identifier: GPL-2.0

//! The system calls that rustix does not have, each in a safe function. All `unsafe` of the program
//! is here and in the allocator.

use std::convert::Infallible;
use std::ffi::{c_int, c_void, CString};
use std::io::{Error, Result};
use std::mem::{size_of, zeroed, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Of <linux/fs.h>: `_IOWR('X', 119, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
/// `_IOWR('X', 120, int)`.
const FITHAW: libc::c_ulong = 0xc004_5878;

/// The address of the host, of <linux/vm_sockets.h>.
pub const CID_HOST: u32 = 2;

fn checked(result: c_int) -> Result<c_int> {
    match result {
        -1 => Err(Error::last_os_error()),
        value => Ok(value),
    }
}

/// A new file descriptor out of what a system call returned.
fn owned(result: c_int) -> Result<OwnedFd> {
    let fd = checked(result)?;
    // SAFETY: The system call has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes out and freezes the file system that the descriptor is on. Returns when nobody writes to
/// it any more, which can't be interrupted.
pub fn freeze(file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: This ioctl does not look at its argument.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), FIFREEZE, 0) }).map(drop)
}

/// Has a frozen file system go on.
pub fn thaw(file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: This ioctl does not look at its argument.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), FITHAW, 0) }).map(drop)
}

/// Blocks signals for the calling thread and returns a descriptor that they can be read from.
pub fn signals(numbers: &[c_int]) -> Result<OwnedFd> {
    // SAFETY: Any bit pattern is a set of signals, and sigemptyset() makes it an empty one.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: `set` is a set of signals for the whole of the call.
    unsafe { libc::sigemptyset(&raw mut set) };
    for number in numbers {
        // SAFETY: As above. A number that is no signal is refused.
        checked(unsafe { libc::sigaddset(&raw mut set, *number) })?;
    }
    // SAFETY: As above; the old set is not asked for.
    checked(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) })?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: As above.
    owned(unsafe { libc::signalfd(-1, &raw const set, flags) })
}

/// Takes a signal from such a descriptor, if there is one.
pub fn next_signal(signals: BorrowedFd<'_>) -> Option<c_int> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` has room for that many bytes.
    let got = unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if usize::try_from(got) != Ok(size) {
        return None;
    }
    // SAFETY: All of it has been written.
    let info = unsafe { info.assume_init() };
    c_int::try_from(info.ssi_signo).ok()
}

/// Gives the calling process a real-time priority, which its children do not inherit.
pub fn set_real_time(priority: c_int) -> Result<()> {
    // SAFETY: The structure consists of integers.
    let mut param: libc::sched_param = unsafe { zeroed() };
    param.sched_priority = priority;
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `param` is there for the whole of the call.
    checked(unsafe { libc::sched_setscheduler(0, policy, &raw const param) }).map(drop)
}

/// How many page faults this process has had: without, and with something to be read from a disk.
pub fn page_faults() -> (i64, i64) {
    // SAFETY: The structure consists of integers.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: `usage` is there for the whole of the call, which can't fail with these arguments.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    (usage.ru_minflt, usage.ru_majflt)
}

/// Maps all of a file for reading and never unmaps it. With `mlockall(MCL_FUTURE)`, or before
/// `mlockall(MCL_CURRENT)`, what is in it stays in memory then.
pub fn map(file: BorrowedFd<'_>, size: usize) -> Result<()> {
    let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_POPULATE);
    // SAFETY: The kernel chooses where, so that nothing that is mapped is replaced. The address is
    // not used for anything.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            protection,
            flags,
            file.as_raw_fd(),
            0,
        )
    };
    match address == libc::MAP_FAILED {
        true => Err(Error::last_os_error()),
        false => Ok(()),
    }
}

/// Becomes the program that is in a file. Returns only if that can't be.
pub fn execute(program: BorrowedFd<'_>, arguments: &[CString]) -> Result<Infallible> {
    let mut argv: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    argv.push(ptr::null());
    let path = c"PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    let envp = [path.as_ptr(), ptr::null()];
    // SAFETY: Both are arrays of strings that end with a null pointer, and outlive the call.
    unsafe { libc::fexecve(program.as_raw_fd(), argv.as_ptr(), envp.as_ptr()) };
    Err(Error::last_os_error())
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: The structure consists of integers.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

const VSOCK_SIZE: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// Listens on a port of virtio-vsock.
pub fn vsock_listen(port: u32) -> Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: There is no pointer among the arguments.
    let socket = owned(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    let pointer = (&raw const address).cast();
    // SAFETY: The address is there for the whole of the call, and has that size.
    checked(unsafe { libc::bind(socket.as_raw_fd(), pointer, VSOCK_SIZE) })?;
    // SAFETY: There is no pointer among the arguments.
    checked(unsafe { libc::listen(socket.as_raw_fd(), 1) })?;
    Ok(socket)
}

/// Takes a connection from such a socket; returns it and the address (CID) of its other end.
pub fn vsock_accept(socket: BorrowedFd<'_>) -> Result<(OwnedFd, u32)> {
    let mut address = vsock_address(0, 0);
    let mut size = VSOCK_SIZE;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let pointer = (&raw mut address).cast();
    // SAFETY: There is room for an address of `size` bytes, and both outlive the call.
    let fd = unsafe { libc::accept4(socket.as_raw_fd(), pointer, &raw mut size, flags) };
    Ok((owned(fd)?, address.svm_cid))
}

/// Writes to so much of the stack, below the caller's, that what is called later finds it there.
#[inline(never)]
pub fn touch_stack() {
    const SIZE: usize = 256 << 10;
    let mut stack = [MaybeUninit::<u8>::uninit(); SIZE];
    let start: *mut c_void = stack.as_mut_ptr().cast();
    for offset in (0..SIZE).step_by(1024) {
        // SAFETY: It is within the array, and volatile, so that it is done.
        unsafe { start.cast::<u8>().add(offset).write_volatile(0) };
    }
}
