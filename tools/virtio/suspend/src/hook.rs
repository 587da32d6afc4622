// SPDX-License-Identifier: GPL-2.0

//! A program that is run while things stand still: `run --exec`.
//!
//! It is read before, into memory that is locked, and a process waits that becomes it when it is
//! time. So nothing of it comes from a disk, but for what it opens itself. That is only so if all of
//! it is in its one file: a script would need its interpreter, and a program that is linked
//! dynamically the dynamic loader and libraries. Those are refused.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{memfd_create, MemfdFlags};
use rustix::io::{fcntl_setfd, FdFlags};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use rustix::process::{pidfd_open, Pid, PidfdFlags};

use crate::sys;
use crate::sysfs::Root;
use crate::waiting::{End, Source};

/// The largest program that is taken into memory.
const MAX: u64 = 64 << 20;
/// How much of what it prints is shown, afterwards.
const MAX_OUTPUT: u64 = 64 << 10;

const GO: &[u8] = b"G";
const READY: &[u8] = b"R";

/// Why a program can't be held in memory, if it can't.
///
/// `image` is an ELF file of this machine's word size and byte order.
fn objection(image: &[u8]) -> Option<&'static str> {
    let number = |at: usize, size: usize| {
        let bytes = image.get(at..at.checked_add(size)?)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    if image.starts_with(b"#!") {
        return Some("it is a script, whose interpreter would come from a disk");
    }
    // ELFCLASS64, ELFDATA2LSB.
    if !image.starts_with(b"\x7fELF\x02\x01") {
        return Some("it is no program for this machine");
    }
    // Where the program headers are (e_phoff), how large one is, and how many there are.
    let headers = (number(32, 8), number(54, 2), number(56, 2));
    let (Some(start), Some(size @ 56..), Some(count)) = headers else {
        return Some("its program headers make no sense");
    };
    for index in 0..count {
        let at = index
            .checked_mul(size)
            .and_then(|offset| offset.checked_add(start));
        match at.and_then(|at| number(at, 4)) {
            None => return Some("its program headers make no sense"),
            // PT_INTERP.
            Some(3) => {
                return Some("it is linked dynamically, and its libraries would come from a disk")
            }
            Some(_) => {}
        }
    }
    None
}

/// A program in memory.
pub struct Hook {
    words: Vec<String>,
    program: OwnedFd,
    size: usize,
}

impl Hook {
    /// Reads the program that a command begins with, an absolute path.
    pub fn read(command: &str) -> Result<Self, String> {
        let words: Vec<String> = command
            .split_ascii_whitespace()
            .map(str::to_string)
            .collect();
        let path = words.first().map_or(Path::new(""), Path::new);
        let says = |error: &dyn std::fmt::Display| format!("--exec {}: {error}", path.display());
        if !path.is_absolute() {
            return Err(says(&"it has to be an absolute path"));
        }
        let metadata = fs::metadata(path).map_err(|error| says(&error))?;
        if !metadata.is_file() || metadata.len() > MAX {
            return Err(says(&format!("it is no file of at most {MAX} bytes")));
        }
        let image = fs::read(path).map_err(|error| says(&error))?;
        if let Some(reason) = objection(&image) {
            return Err(says(&format!("it can't be held in memory: {reason}")));
        }
        let program = memfd_create("hook", MemfdFlags::CLOEXEC).map_err(|error| says(&error))?;
        let mut file = File::from(program);
        file.write_all(&image).map_err(|error| says(&error))?;
        Ok(Self {
            words,
            size: image.len(),
            program: file.into(),
        })
    }

    /// Starts the process that waits. What is mapped here is locked when this process is.
    pub fn start(self, root: &Root) -> Result<Running, String> {
        let text = |error: &dyn std::fmt::Display| format!("--exec: {error}");
        sys::map(self.program.as_fd(), self.size).map_err(|error| text(&error))?;
        let kind = (
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
        );
        let (socket, theirs) = socketpair(kind.0, kind.1, kind.2, None).map_err(|e| text(&e))?;
        let output = memfd_create("output", MemfdFlags::CLOEXEC).map_err(|error| text(&error))?;
        let copy = || output.try_clone().map_err(|error| text(&error));
        // It has to be there after our own program has been executed again, and is closed then.
        fcntl_setfd(&self.program, FdFlags::empty()).map_err(|error| text(&error))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("virtio-suspend")
            .arg("--root")
            .arg(&root.0)
            .arg("hook")
            .arg(self.program.as_raw_fd().to_string())
            .arg("--")
            .args(&self.words)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(copy()?))
            .stderr(Stdio::from(copy()?));
        let child = command.spawn().map_err(|error| text(&error))?;
        drop(command);
        fcntl_setfd(&self.program, FdFlags::CLOEXEC).map_err(|error| text(&error))?;
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| text(&error))?;
        let mut answer = [0; 1];
        match rustix::io::read(&socket, &mut answer) {
            Ok(1) if answer == READY => {}
            _ => return Err("--exec: the process for it did not get ready".into()),
        }
        Ok(Running {
            socket,
            child,
            ended,
            output: output.into(),
        })
    }
}

/// A process that becomes the program when it is told to.
pub struct Running {
    socket: OwnedFd,
    child: Child,
    ended: OwnedFd,
    output: File,
}

impl Source for Running {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ended.as_fd())
    }

    fn ready(&mut self) -> Option<End> {
        Some(End::Asked)
    }

    fn begun(&mut self, _limit: Duration) {
        // If it is gone, that shows at once.
        let _ = rustix::io::write(&self.socket, GO);
    }
}

impl Running {
    /// Ends it, if it has not `ended`, shows what it has printed, and says what it ended with.
    pub fn finish(mut self, ended: bool) -> Result<(), String> {
        if !ended {
            let _ = self.child.kill();
        }
        drop(self.socket);
        let status = self
            .child
            .wait()
            .map_err(|error| format!("--exec: {error}"))?;
        let mut text = Vec::new();
        let mut start = self
            .output
            .try_clone()
            .map_err(|error| format!("--exec: {error}"))?;
        let _ = std::io::Seek::rewind(&mut start);
        let _ = start.take(MAX_OUTPUT).read_to_end(&mut text);
        let _ = std::io::stderr().write_all(&text);
        match status.success() || !ended {
            true => Ok(()),
            false => Err(format!("--exec: {}", in_words(status))),
        }
    }
}

fn in_words(status: ExitStatus) -> String {
    match status.signal() {
        Some(number) => format!("the program was ended by signal {number}"),
        None => format!("the program ended with {}", status.code().unwrap_or(-1)),
    }
}

/// The process that waits, and becomes the program; standard input is the socket.
pub fn main(program: i32, words: &[String]) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    // Nobody would end it else.
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).map_err(|error| text(&error))?;
    let path = format!("/proc/self/fd/{program}");
    let program = File::open(path).map_err(|error| text(&error))?;
    let words: Result<Vec<CString>, _> = words.iter().map(|w| CString::new(w.as_str())).collect();
    let words = words.map_err(|error| text(&error))?;
    rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT).map_err(|error| text(&error))?;
    let socket = rustix::stdio::stdin();
    rustix::io::write(socket, READY).map_err(|error| text(&error))?;
    let mut answer = [0; 1];
    match rustix::io::read(socket, &mut answer) {
        Ok(1) if answer == GO => match sys::execute(program.as_fd(), &words) {
            Ok(never) => match never {},
            Err(error) => Err(text(&error)),
        },
        // It is not to be run.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// With one program header, of that type.
    fn image(kind: u8) -> Vec<u8> {
        let mut image = vec![0; 64 + 56];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (image[32], image[54], image[56], image[64]) = (64, 56, 1, kind);
        image
    }

    #[test]
    fn what_can_be_held_in_memory() {
        assert_eq!(objection(&image(1)), None);
        assert!(objection(&image(3)).unwrap().contains("dynamically"));
        assert!(objection(b"#!/bin/sh\n").unwrap().contains("script"));
        assert!(objection(b"").unwrap().contains("no program"));
        assert!(objection(&image(1)[..100]).is_none());
        assert!(objection(&image(1)[..60]).unwrap().contains("no sense"));
        assert!(objection(b"\x7fELF\x01\x01")
            .unwrap()
            .contains("no program"));
    }

    #[test]
    fn what_is_refused_before_it_is_read() {
        for command in ["", "true", "./true", "/", "/nowhere/at/all x"] {
            assert!(Hook::read(command).is_err(), "{command}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_does_no_harm(mut bytes in vec(any::<u8>(), 0..300)) {
            objection(&bytes);
            bytes.splice(0..0, *b"\x7fELF\x02\x01");
            objection(&bytes);
        }
    }
}
