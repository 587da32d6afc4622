// SPDX-License-Identifier: GPL-2.0

//! The cable: a Unix stream socket between two devices, which may be two processes.
//!
//! Whoever starts first listens, the other one connects; when an end is gone, the other waits for
//! the next. There is a carrier while both ends have greeted each other. A frame goes as its length,
//! 4 bytes in network order, its header and itself.
//!
//! An end never waits for the other: what it sends is queued, up to a bound, and dropped beyond it
//! or without a carrier.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::{info, warn};

use super::frame::{Frame, FrameError, HEADER, MAX_FRAME};
use crate::socket::{Socket, SocketError};

/// Most frames that wait for something.
pub const MAX_FRAMES: usize = 4096;
/// Most bytes that wait for something.
pub const MAX_BYTES: usize = 16 << 20;

/// What each end says first.
const GREETING: [u8; 8] = *b"vnetcbl1";
/// For the other end to say it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looking whether the other end is there.
const PAUSE: Duration = Duration::from_millis(10);
/// Between complaints that the cable can't be plugged in.
const LONG_PAUSE: Duration = Duration::from_secs(1);
const BUFFER: usize = 256 * 1024;

/// Whom it is plugged into. Called from the cable's own thread.
pub trait Plug: Send + 'static {
    /// The other end is there, or is gone.
    fn carrier(&mut self, up: bool);

    /// A frame arrives.
    fn arrive(&mut self, frame: Result<Frame, FrameError>);

    /// No more frames for now.
    fn arrived(&mut self);
}

/// Why a frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The other end is not there.
    NoCarrier,
    /// Too many wait already.
    Full,
}

/// This end of the cable.
#[derive(Clone, Debug, Default)]
pub struct Cable {
    outbox: Arc<Outbox>,
}

/// Frames to be sent.
#[derive(Debug, Default)]
struct Outbox {
    queue: Mutex<Queue>,
    /// There is a frame, or the carrier is gone.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    carrier: bool,
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_carrier(&self, up: bool) {
        *self.lock() = Queue {
            carrier: up,
            ..Queue::default()
        };
        self.changed.notify_all();
    }

    /// All frames there are, as soon as there is one; none once the carrier is gone.
    fn take(&self) -> Option<VecDeque<Frame>> {
        let mut queue = self
            .changed
            .wait_while(self.lock(), |queue| {
                queue.carrier && queue.frames.is_empty()
            })
            .unwrap_or_else(PoisonError::into_inner);
        queue.bytes = 0;
        queue.carrier.then(|| std::mem::take(&mut queue.frames))
    }
}

impl Cable {
    /// Plugs in the end of the cable at `path`.
    pub fn plug_in(path: &Path, plug: impl Plug) -> io::Result<Self> {
        let cable = Self::default();
        let mut end = End {
            path: path.into(),
            outbox: Arc::clone(&cable.outbox),
            plug,
        };
        thread::Builder::new()
            .name("cable".into())
            .spawn(move || end.run())?;
        Ok(cable)
    }

    /// Sends a frame.
    pub fn send(&self, frame: Frame) -> Result<(), Dropped> {
        let mut queue = self.outbox.lock();
        if !queue.carrier {
            return Err(Dropped::NoCarrier);
        }
        if queue.frames.len() >= MAX_FRAMES || queue.bytes + frame.total_len() > MAX_BYTES {
            return Err(Dropped::Full);
        }
        queue.bytes += frame.total_len();
        queue.frames.push_back(frame);
        drop(queue);
        self.outbox.changed.notify_one();
        Ok(())
    }
}

/// The cable's thread.
struct End<P> {
    path: PathBuf,
    outbox: Arc<Outbox>,
    plug: P,
}

impl<P: Plug> End<P> {
    fn run(&mut self) {
        loop {
            match self.meet() {
                Ok(Some(stream)) => self.stay(&stream),
                Ok(None) => thread::sleep(PAUSE),
                Err(error) => {
                    warn!("no cable: {error}");
                    thread::sleep(LONG_PAUSE);
                }
            }
        }
    }

    /// Finds the other end, or waits for it; none if it is to be tried again.
    fn meet(&self) -> Result<Option<UnixStream>, SocketError> {
        if let Ok(stream) = UnixStream::connect(&self.path) {
            return Ok(Some(stream));
        }
        match Socket::bind(&self.path) {
            // Dropping the socket, so that a third end does not get in between.
            Ok((_socket, listener)) => Ok(self.accept(&listener)),
            Err(SocketError::InUse(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for the other end, for as long as it can find this one.
    fn accept(&self, listener: &UnixListener) -> Option<UnixStream> {
        let inode = || fs::metadata(&self.path).map(|file| file.ino()).ok();
        let own = inode()?;
        listener.set_nonblocking(true).ok()?;
        while inode() == Some(own) {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).ok()?;
                    return Some(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Err(_) => return None,
            }
        }
        None
    }

    /// Carries frames until the other end is gone.
    fn stay(&mut self, stream: &UnixStream) {
        if let Err(error) = greet(stream) {
            warn!("{} is no cable: {error}", self.path.display());
            thread::sleep(PAUSE);
            return;
        }
        info!("the other end of {} is there", self.path.display());
        self.outbox.set_carrier(true);
        self.plug.carrier(true);
        let outbox = Arc::clone(&self.outbox);
        let end = thread::scope(|scope| {
            scope.spawn(|| {
                let _ = send_all(stream, &outbox);
                // What can't be sent can't be received: the reader ends, too.
                let _ = stream.shutdown(Shutdown::Both);
            });
            let end = self.receive_all(stream);
            outbox.set_carrier(false);
            // A writer that waits for the other end to read.
            let _ = stream.shutdown(Shutdown::Both);
            end
        });
        info!("the other end of {} is gone: {end}", self.path.display());
        self.plug.carrier(false);
    }

    /// Receives frames, until an error ends it.
    fn receive_all(&mut self, stream: &UnixStream) -> io::Error {
        let mut reader = BufReader::with_capacity(BUFFER, stream);
        let mut bytes = Vec::new();
        loop {
            if let Err(error) = receive(&mut reader, &mut bytes) {
                return error;
            }
            self.plug.arrive(Frame::parse(&bytes));
            if reader.buffer().is_empty() {
                self.plug.arrived();
            }
        }
    }
}

/// Greets the other end, and waits for its greeting.
fn greet(stream: &UnixStream) -> io::Result<()> {
    let mut greeting = GREETING;
    let mut stream = stream;
    stream.write_all(&greeting)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut greeting)?;
    stream.set_read_timeout(None)?;
    if greeting != GREETING {
        return Err(io::Error::other("it greets in another way"));
    }
    Ok(())
}

/// Sends frames until the carrier is gone.
fn send_all(stream: &UnixStream, outbox: &Outbox) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER, stream);
    while let Some(frames) = outbox.take() {
        for frame in frames {
            writer.write_all(&(frame.total_len() as u32).to_be_bytes())?;
            writer.write_all(&frame.to_bytes(0))?;
        }
        writer.flush()?;
    }
    Ok(())
}

/// Receives a frame.
fn receive(reader: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > HEADER + MAX_FRAME {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    bytes.resize(length, 0);
    reader.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Event {
        Carrier(bool),
        Frame(Vec<u8>),
        Bad,
    }

    struct Listener(Sender<Event>);

    impl Plug for Listener {
        fn carrier(&mut self, up: bool) {
            let _ = self.0.send(Event::Carrier(up));
        }

        fn arrive(&mut self, frame: Result<Frame, FrameError>) {
            let event = frame.map_or(Event::Bad, |frame| Event::Frame(frame.data().to_vec()));
            let _ = self.0.send(event);
        }

        fn arrived(&mut self) {}
    }

    fn end(path: &Path) -> (Cable, Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        (Cable::plug_in(path, Listener(sender)).unwrap(), receiver)
    }

    fn next(receiver: &Receiver<Event>) -> Event {
        receiver.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn frame(byte: u8) -> Frame {
        Frame::plain(vec![byte; 60])
    }

    #[test]
    fn both_ways_in_order() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("cable");
        let (one, from_other) = end(&path);
        assert_eq!(one.send(frame(0)), Err(Dropped::NoCarrier));
        let (other, from_one) = end(&path);
        assert_eq!(next(&from_one), Event::Carrier(true));
        assert_eq!(next(&from_other), Event::Carrier(true));
        for byte in 0..100 {
            one.send(frame(byte)).unwrap();
            other.send(frame(byte + 100)).unwrap();
        }
        for byte in 0..100 {
            assert_eq!(next(&from_one), Event::Frame(vec![byte; 60]));
            assert_eq!(next(&from_other), Event::Frame(vec![byte + 100; 60]));
        }
        // Both ends are taken: nobody waits there.
        assert!(!path.exists());
    }

    #[test]
    fn an_end_that_is_gone_is_replaced() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("cable");
        // A socket of somebody who was killed while it waited.
        drop(UnixListener::bind(&path).unwrap());
        let (cable, events) = end(&path);
        for round in 0..3 {
            let mut other = loop {
                match UnixStream::connect(&path) {
                    Ok(stream) => break stream,
                    Err(_) => thread::sleep(PAUSE),
                }
            };
            greet(&other).unwrap();
            assert_eq!(next(&events), Event::Carrier(true));
            cable.send(frame(round)).unwrap();
            let mut bytes = Vec::new();
            receive(&mut other, &mut bytes).unwrap();
            assert_eq!(bytes[HEADER..], [round; 60]);
            match round {
                // A frame that is none does no harm, a length that is none ends it.
                0 => {
                    other.write_all(&[0, 0, 0, 1, 9]).unwrap();
                    assert_eq!(next(&events), Event::Bad);
                    other.write_all(&[0xff; 4]).unwrap();
                }
                // In the middle of a frame.
                1 => other.write_all(&[0, 0, 0, 80, 1]).unwrap(),
                _ => {}
            }
            if round > 0 {
                drop(other);
            }
            assert_eq!(next(&events), Event::Carrier(false));
            assert_eq!(cable.send(frame(0)), Err(Dropped::NoCarrier));
        }
    }

    #[test]
    fn a_stranger_is_no_carrier() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("cable");
        let (_cable, events) = end(&path);
        let mut stranger = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(PAUSE),
            }
        };
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let (_other, _) = end(&path);
        assert_eq!(next(&events), Event::Carrier(true));
    }

    #[test]
    fn who_does_not_read_loses_the_rest() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("cable");
        let (cable, events) = end(&path);
        let other = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(PAUSE),
            }
        };
        greet(&other).unwrap();
        assert_eq!(next(&events), Event::Carrier(true));
        let large = Frame::plain(vec![0; MAX_FRAME]);
        let sent = (0..10_000)
            .take_while(|_| cable.send(large.clone()).is_ok())
            .count();
        assert_eq!(cable.send(large), Err(Dropped::Full));
        // In the queue, being written, and in the socket.
        assert!(
            (MAX_BYTES / MAX_FRAME - 1..3 * MAX_BYTES / MAX_FRAME).contains(&sent),
            "{sent}"
        );
        drop(other);
        assert_eq!(next(&events), Event::Carrier(false));
    }

    #[test]
    fn a_socket_that_was_taken_away_is_put_there_again() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("cable");
        let (_one, events) = end(&path);
        while fs::remove_file(&path).is_err() {
            thread::sleep(PAUSE);
        }
        let (_other, _) = end(&path);
        assert_eq!(next(&events), Event::Carrier(true));
    }
}
