// SPDX-License-Identifier: GPL-2.0

//! Waiting while things stand still, without allocating, opening or printing anything.

use std::ffi::c_int;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::sys;
use crate::watchdog::{timespec, Watchdog};

/// Why it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The time is over.
    Elapsed,
    /// What was waited for has happened.
    Asked,
    /// Who could have asked is gone.
    HungUp,
    /// A signal that ends the program.
    Signal(c_int),
    /// There is no watchdog any more.
    Unguarded,
}

/// What is waited for.
pub trait Source {
    /// What becomes readable then.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// It is readable: is it over? What is there has to be taken, or it has to be over: this is
    /// asked again at once else, by a process that lets no other run.
    fn ready(&mut self) -> Option<End>;

    /// All stand still, for as long as this.
    fn begun(&mut self, _limit: Duration) {}

    /// Whether it is this signal that is waited for.
    fn is_signal(&self, _number: c_int) -> bool {
        false
    }
}

/// The signals that mean something to us, and those that would stop us.
const SIGNALS: &[c_int] = &[
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Those signals, which are read from now on and have no other effect.
pub struct Signals(OwnedFd);

impl Signals {
    pub fn take() -> Result<Self, String> {
        sys::signals(SIGNALS)
            .map(Self)
            .map_err(|error| format!("can't have signals read: {error}"))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes the next that ends something, or is waited for.
    pub fn next(&self, source: Option<&dyn Source>) -> Option<End> {
        while let Some(number) = sys::next_signal(self.0.as_fd()) {
            if source.is_some_and(|source| source.is_signal(number)) {
                return Some(End::Asked);
            }
            if [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT].contains(&number) {
                return Some(End::Signal(number));
            }
        }
        None
    }
}

/// Waits until it is over, which it is after `limit`.
pub fn wait(
    signals: &Signals,
    watchdog: &Watchdog,
    source: &mut dyn Source,
    limit: Duration,
) -> End {
    let end = Instant::now() + limit;
    loop {
        let left = timespec(end.saturating_duration_since(Instant::now()));
        let is_ready = {
            let fds = [Some(signals.fd()), Some(watchdog.fd()), source.fd()];
            let fds = fds.each_ref().map(|fd| fd.unwrap_or(signals.fd()));
            let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
            match poll(&mut fds, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => fds.map(|fd| !fd.revents().is_empty()),
                Err(_) => return End::Elapsed,
            }
        };
        if is_ready[0] {
            if let Some(end) = signals.next(Some(source)) {
                return end;
            }
        }
        if is_ready[1] {
            return End::Unguarded;
        }
        if is_ready[2] && source.fd().is_some() {
            if let Some(end) = source.ready() {
                return end;
            }
        }
        if Instant::now() >= end {
            return End::Elapsed;
        }
    }
}

/// Time, and nothing else.
pub struct Time;

impl Source for Time {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn ready(&mut self) -> Option<End> {
        None
    }
}

/// A signal.
pub struct ASignal(pub c_int);

impl Source for ASignal {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn ready(&mut self) -> Option<End> {
        None
    }

    fn is_signal(&self, number: c_int) -> bool {
        number == self.0
    }
}

/// A line on standard input, or its end.
pub struct ALine(OwnedFd);

impl ALine {
    pub fn new() -> Result<Self, String> {
        let stdin = rustix::stdio::stdin();
        let stat = rustix::fs::fstat(stdin).map_err(|error| format!("standard input: {error}"))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile {
            return Err("standard input is a file, where no line can be waited for".into());
        }
        let stdin = stdin
            .try_clone_to_owned()
            .map_err(|error| format!("standard input: {error}"))?;
        Ok(Self(stdin))
    }
}

impl Source for ALine {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn ready(&mut self) -> Option<End> {
        let mut some = [0; 64];
        match rustix::io::read(&self.0, &mut some) {
            Ok(0) => Some(End::HungUp),
            Ok(length) => some[..length].contains(&b'\n').then_some(End::Asked),
            Err(Errno::INTR | Errno::AGAIN) => None,
            Err(_) => Some(End::HungUp),
        }
    }
}

/// A file that appears in a directory.
pub struct AFile {
    inotify: OwnedFd,
    name: Vec<u8>,
}

impl AFile {
    pub fn new(path: &Path) -> Result<Self, String> {
        use std::os::unix::ffi::OsStrExt;
        let says = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let (dir, name) = match (path.parent(), path.file_name()) {
            (Some(dir), Some(name)) => (dir, name.as_bytes().to_vec()),
            _ => return Err(says(&"it is no file")),
        };
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(|error| says(&error))?;
        let events = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, dir, events).map_err(|error| says(&error))?;
        // After the watch has begun, so that it is not missed.
        if fs::symlink_metadata(path).is_ok() {
            return Err(says(&"it is there already"));
        }
        Ok(Self { inotify, name })
    }
}

impl Source for AFile {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inotify.as_fd())
    }

    fn ready(&mut self) -> Option<End> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            match events.next() {
                // Too many to tell: it may be among them.
                Ok(event) if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) => {
                    return Some(End::Asked);
                }
                Ok(event) => {
                    if event.file_name().map(|name| name.to_bytes()) == Some(&self.name) {
                        return Some(End::Asked);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(_) => return Some(End::HungUp),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_itself_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("go");
        let mut file = AFile::new(&path).unwrap();
        assert_eq!(file.ready(), None);
        fs::write(dir.path().join("other"), "").unwrap();
        assert_eq!(file.ready(), None);
        fs::write(&path, "").unwrap();
        assert_eq!(file.ready(), Some(End::Asked));
        assert!(AFile::new(&path).err().unwrap().contains("there already"));
        assert!(AFile::new(Path::new("/nowhere/at/all")).is_err());
    }

    #[test]
    fn a_file_that_is_moved_there_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("go");
        let mut file = AFile::new(&path).unwrap();
        fs::write(dir.path().join("go.new"), "").unwrap();
        fs::rename(dir.path().join("go.new"), &path).unwrap();
        assert_eq!(file.ready(), Some(End::Asked));
    }
}
