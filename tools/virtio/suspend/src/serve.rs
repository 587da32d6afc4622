// SPDX-License-Identifier: GPL-2.0

//! `virtio-suspend serve`: a host asks for a suspend, and for its end, over virtio-vsock or a
//! virtio-serial port. What is said is in [`crate::trigger`]; who may say it, and for how long a
//! suspend lasts at most, is decided here, in the guest.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::audit;
use crate::cli::Serve;
use crate::commands::{failures, verdict};
use crate::error::Error;
use crate::hold::{Hold, Report};
use crate::machine::Machine;
use crate::plan::Outcome;
use crate::sys;
use crate::sysfs::Root;
use crate::trigger::{Lines, Refusal, Word};
use crate::waiting::{End, Signals, Source};

/// How long is waited before a port is looked at again that nobody is behind.
const NOBODY: Duration = Duration::from_secs(1);

/// What a host is connected to us by.
struct Connection {
    fd: OwnedFd,
    lines: Lines,
    /// What has been read and not looked at, between `start` and `end`.
    buffer: [u8; 64],
    start: usize,
    end: usize,
    /// Says that all stand still, and for how long at most.
    suspended: Vec<u8>,
}

/// What came.
enum Came {
    Word(Word),
    Refusal(Refusal),
    /// Nothing more, for now.
    Nothing,
    /// Nothing, ever.
    HungUp,
}

impl Connection {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            lines: Lines::default(),
            buffer: [0; 64],
            start: 0,
            end: 0,
            suspended: Vec::new(),
        }
    }

    /// An answer that the other side does not make room for is lost: it is not waited for.
    fn answer(&self, line: &[u8]) {
        let _ = rustix::io::write(&self.fd, line);
    }

    /// The next word, or what else there is. Nothing is allocated.
    fn next(&mut self) -> Came {
        loop {
            let mut input = &self.buffer[self.start..self.end];
            let result = self.lines.next(&mut input);
            self.start = self.end - input.len();
            match result {
                Some(Ok(word)) => return Came::Word(word),
                Some(Err(refusal)) => return Came::Refusal(refusal),
                None => {}
            }
            match rustix::io::read(&self.fd, &mut self.buffer) {
                Ok(0) => return Came::HungUp,
                Ok(length) => (self.start, self.end) = (0, length),
                Err(Errno::AGAIN | Errno::INTR) => return Came::Nothing,
                Err(_) => return Came::HungUp,
            }
        }
    }
}

impl Source for Connection {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn ready(&mut self) -> Option<End> {
        loop {
            match self.next() {
                Came::Word(Word::Resume) => return Some(End::Asked),
                Came::Word(Word::Status) => self.answer(b"ok suspended\n"),
                Came::Word(Word::Suspend(_)) => self.answer(b"error suspended\n"),
                Came::Refusal(refusal) => self.answer(refusal.answer()),
                Came::Nothing => return None,
                Came::HungUp => return Some(End::HungUp),
            }
        }
    }

    fn begun(&mut self, _limit: Duration) {
        self.answer(&self.suspended);
    }
}

/// What the host is told when it is over.
fn last_word(report: &Report) -> &'static [u8] {
    match (report.outcome, report.end) {
        _ if report.stuck.iter().any(Option::is_some) => b"error stuck\n",
        (Outcome::Refused(..), _) => b"error refused\n",
        (Outcome::Over, _) => b"error ended\n",
        (Outcome::All, Some(End::Asked)) => b"ok running\n",
        (Outcome::All, Some(End::Elapsed)) => b"resumed limit\n",
        (Outcome::All, _) => b"resumed ended\n",
    }
}

struct Server<'a> {
    root: &'a Root,
    args: &'a Serve,
    signals: Signals,
}

/// What waiting for somebody to say something came to.
enum Woken {
    Readable,
    /// The program is to end.
    Ended,
}

impl Server<'_> {
    fn wait(&self, fd: BorrowedFd<'_>) -> Woken {
        loop {
            let signals = self.signals.fd();
            let mut fds = [&signals, &fd].map(|fd| PollFd::new(fd, PollFlags::IN));
            let _ = poll(&mut fds, None);
            let [signal, readable] = fds.map(|fd| !fd.revents().is_empty());
            if signal && self.signals.next(None).is_some() {
                return Woken::Ended;
            }
            if readable {
                return Woken::Readable;
            }
        }
    }

    /// Listens to one connection until it ends, or the program is to.
    fn converse(&self, connection: &mut Connection) -> Woken {
        loop {
            match connection.next() {
                Came::Word(Word::Status) => connection.answer(b"ok running\n"),
                Came::Word(Word::Resume) => connection.answer(b"error running\n"),
                Came::Word(Word::Suspend(limit)) => {
                    if let Woken::Ended = self.suspend(connection, limit) {
                        return Woken::Ended;
                    }
                }
                Came::Refusal(refusal) => connection.answer(refusal.answer()),
                Came::HungUp => return Woken::Readable,
                Came::Nothing => {
                    if let Woken::Ended = self.wait(connection.fd.as_fd()) {
                        return Woken::Ended;
                    }
                }
            }
        }
    }

    /// Suspends until the host says otherwise, is gone, or the time is over.
    fn suspend(&self, connection: &mut Connection, limit: Option<Duration>) -> Woken {
        let limit = limit.map_or(self.args.at_most.0, |limit| limit.min(self.args.at_most.0));
        connection.suspended = format!("ok suspended {}\n", limit.as_secs_f64()).into_bytes();
        let result = self.hold(connection, limit);
        match &result {
            Ok(report) => connection.answer(last_word(report)),
            Err(error) => {
                eprintln!("virtio-suspend: {error}");
                connection.answer(b"error refused\n");
            }
        }
        match result.map(|report| report.end) {
            Ok(Some(End::Signal(_))) => Woken::Ended,
            _ => Woken::Readable,
        }
    }

    fn hold(&self, connection: &mut Connection, limit: Duration) -> Result<Report, Error> {
        let machine = Machine::look(self.root);
        let devices = machine.to_suspend(&self.args.targets, true)?;
        let steps = machine.steps(&devices, &self.args.targets, self.args.fsfreeze)?;
        let before = failures(&machine.devices);
        let asked = Instant::now();
        audit::asked("serve", &steps, Some(limit));
        let hold = Hold::prepare(self.root, &steps, &self.signals).map_err(Error::refused)?;
        let report = hold.run(limit, connection);
        let result = verdict(self.root, &steps, &report, &before);
        audit::over(&steps, asked.elapsed(), result.as_ref().err());
        if let Err(error) = result {
            eprintln!("virtio-suspend: {error}");
        }
        Ok(report)
    }

    fn vsock(&self, port: u32) -> Result<(), Error> {
        let socket = sys::vsock_listen(port).map_err(|e| fail(format!("vsock port {port}"), e))?;
        eprintln!("virtio-suspend: listening on vsock port {port}");
        while let Woken::Readable = self.wait(socket.as_fd()) {
            match sys::vsock_accept(socket.as_fd()) {
                Ok((fd, peer)) if peer == self.args.peer => {
                    if let Woken::Ended = self.converse(&mut Connection::new(fd)) {
                        break;
                    }
                }
                // Whoever else it is is not answered.
                Ok((_, peer)) => {
                    eprintln!("virtio-suspend: a connection from CID {peer} is refused")
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(fail("vsock", error)),
            }
        }
        Ok(())
    }

    fn port(&self, path: &Path) -> Result<(), Error> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = || rustix::fs::open(path, flags, Mode::empty());
        let fd = open().map_err(|error| fail(path.display(), error))?;
        eprintln!("virtio-suspend: listening on {}", path.display());
        let mut connection = Connection::new(fd);
        while let Woken::Readable = self.converse(&mut connection) {
            // Nobody is there, which poll() tells as if there was something to be read. What was
            // said half by the last is not the beginning of what the next says.
            connection = Connection::new(connection.fd);
            thread::sleep(NOBODY);
            if let Some(End::Signal(_)) = self.signals.next(None) {
                break;
            }
        }
        Ok(())
    }
}

fn fail(what: impl Display, error: impl Display) -> Error {
    Error::Failed(format!("{what}: {error}"))
}

pub fn run(root: &Root, args: &Serve) -> Result<(), Error> {
    // What is wrong now is told now, not when the host asks.
    let machine = Machine::look(root);
    let devices = machine.to_suspend(&args.targets, true)?;
    let steps = machine.steps(&devices, &args.targets, args.fsfreeze)?;
    if args.targets.dry_run {
        let titles: Vec<&str> = steps.iter().map(|step| step.title.as_str()).collect();
        println!(
            "would stop when asked, in this order: {}",
            titles.join(", ")
        );
        println!("would have them go on after {} at the latest", args.at_most);
        return Ok(());
    }
    let server = Server {
        root,
        args,
        signals: Signals::take().map_err(Error::Failed)?,
    };
    match (args.vsock, &args.port) {
        (Some(port), _) => server.vsock(port),
        (None, Some(path)) => server.port(path),
        (None, None) => Err(Error::Failed("there is nothing to listen on".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Connection::new(ours.into()), theirs)
    }

    #[test]
    fn what_is_said_while_all_stand_still() {
        let (mut connection, mut host) = pair();
        host.write_all(b"status\nsuspend 5\ngarb").unwrap();
        assert_eq!(connection.ready(), None);
        host.write_all(b"age\nresume\nstatus\n").unwrap();
        assert_eq!(connection.ready(), Some(End::Asked));
        // What came after it has not been lost.
        assert!(matches!(connection.next(), Came::Word(Word::Status)));
        let mut text = [0; 100];
        let length = host.read(&mut text).unwrap();
        assert_eq!(
            &text[..length],
            b"ok suspended\nerror suspended\nerror unknown\n"
        );
    }

    #[test]
    fn a_host_that_is_gone_ends_it() {
        let (mut connection, host) = pair();
        drop(host);
        assert_eq!(connection.ready(), Some(End::HungUp));
    }

    #[test]
    fn a_host_that_does_not_read_is_not_waited_for() {
        let (mut connection, mut host) = pair();
        host.set_nonblocking(true).unwrap();
        // Until neither side takes any more.
        for _ in 0..100_000 {
            let _ = host.write(b"status\n");
            if connection.ready().is_some() {
                panic!("it is not over");
            }
        }
    }
}
