// SPDX-License-Identifier: GPL-2.0

//! What is needed to stop things and to have them go on, all of it opened before.
//!
//! Between the two nothing is opened, allocated or read from a disk here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::duration::Span;
use crate::plan::{go_on_all, Rank, Steps};
use crate::settle::{after, Next, State};
use crate::sys;
use crate::sysfs::{self, Root};

/// How long the deadline of a request can be, the file timeout_ms.
const TIMEOUT: std::ops::RangeInclusive<u64> = 1..=600_000;
/// What a request may take beyond its deadline, until it has been taken back.
const TAKING_BACK: Duration = Duration::from_secs(1);
/// How long writing out and freezing a file system may take.
const FREEZING: Duration = Duration::from_secs(60);
/// Between two attempts at one that did not go on.
const PAUSE: Duration = Duration::from_millis(100);

/// Something that is to be stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A virtio device, by its name.
    Device(String),
    /// A file system, by a place where it is mounted.
    FileSystem(PathBuf),
}

/// One of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub what: What,
    /// What people call it.
    pub title: String,
    #[serde(skip, default = "no_rank")]
    pub rank: Rank,
    /// The deadline of each request to a device in milliseconds, if it is to be another one.
    pub timeout_ms: Option<u64>,
}

/// Who has the steps from somebody else has them in their order.
fn no_rank() -> Rank {
    Rank::Other
}

struct Device {
    request: OwnedFd,
    state: OwnedFd,
    timeout: Option<Timeout>,
    timeout_ms: u64,
}

/// A deadline that has been changed.
struct Timeout {
    file: OwnedFd,
    before: String,
}

enum Kind {
    Device(Device),
    FileSystem(OwnedFd),
}

struct Handle {
    kind: Kind,
    /// It has been stopped, and has not gone on.
    stopped: bool,
    /// It will not go on, whatever is done.
    lost: bool,
}

/// The handles of the steps of a plan.
pub struct Handles(Vec<Handle>);

fn open(path: &std::path::Path, flags: OFlags) -> Result<OwnedFd, String> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("can't open {}: {}", path.display(), io::Error::from(error)))
}

impl Handles {
    pub fn open(root: &Root, steps: &[Step]) -> Result<Self, String> {
        let handles = steps.iter().map(|step| Handle::open(root, step));
        handles.collect::<Result<_, _>>().map(Self)
    }

    /// Sets the deadlines that the steps have.
    pub fn set_timeouts(&mut self, steps: &[Step]) -> Result<(), String> {
        for (handle, step) in self.0.iter_mut().zip(steps) {
            let (Kind::Device(device), Some(ms)) = (&mut handle.kind, step.timeout_ms) else {
                continue;
            };
            let written = match &device.timeout {
                Some(timeout) => rustix::io::write(&timeout.file, ms.to_string().as_bytes()),
                None => continue,
            };
            written.map_err(|error| format!("{}: can't set the deadline: {error}", step.title))?;
            device.timeout_ms = ms;
        }
        Ok(())
    }

    /// Sets the deadlines to what they were.
    pub fn restore_timeouts(&self) {
        for handle in &self.0 {
            if let Kind::Device(Device {
                timeout: Some(timeout),
                ..
            }) = &handle.kind
            {
                // A device that is gone has none.
                let _ = rustix::io::pwrite(&timeout.file, timeout.before.as_bytes(), 0);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How long it may take to stop one, or to have it go on.
    pub fn cost(&self, number: usize) -> Duration {
        match &self.0[number].kind {
            Kind::Device(device) => Duration::from_millis(device.timeout_ms) + TAKING_BACK,
            Kind::FileSystem(_) => FREEZING,
        }
    }

    /// Somebody else has stopped the first `count`, or has begun to.
    pub fn assume_stopped(&mut self, count: usize) {
        self.0
            .iter_mut()
            .take(count)
            .for_each(|handle| handle.stopped = true);
    }

    /// One more attempt at those that did not go on, after a while, in reverse; whether there is
    /// any left for which another makes sense.
    fn try_again(&mut self, stuck: &mut [Option<Errno>]) -> bool {
        thread::sleep(PAUSE);
        for (number, stuck) in stuck.iter_mut().enumerate().rev() {
            if stuck.is_some() && !self.0[number].lost {
                *stuck = self.go_on(number).err();
            }
        }
        self.is_worth_it(stuck)
    }

    fn is_worth_it(&self, stuck: &[Option<Errno>]) -> bool {
        let mut pairs = self.0.iter().zip(stuck);
        pairs.any(|(handle, stuck)| stuck.is_some() && !handle.lost)
    }

    /// Has all go on that have been stopped, in reverse, and asks those again that did not, until
    /// `patience` is over, if it ever is. What is left in `stuck` did not. Nothing is allocated.
    pub fn go_on_all(&mut self, stuck: &mut [Option<Errno>], patience: Option<Duration>) {
        let end = patience.map(|patience| Instant::now() + patience);
        go_on_all(self, stuck);
        let in_time = || end.is_none_or(|end| Instant::now() < end);
        let mut more = self.is_worth_it(stuck);
        while more && in_time() {
            more = self.try_again(stuck);
        }
    }
}

impl Handle {
    fn open(root: &Root, step: &Step) -> Result<Self, String> {
        let kind = match &step.what {
            What::Device(name) => Kind::Device(Device::open(root, name, step.timeout_ms)?),
            What::FileSystem(path) => {
                Kind::FileSystem(open(&root.join(path), OFlags::RDONLY | OFlags::DIRECTORY)?)
            }
        };
        Ok(Self {
            kind,
            stopped: false,
            lost: false,
        })
    }
}

impl Device {
    fn open(root: &Root, name: &str, timeout_ms: Option<u64>) -> Result<Self, String> {
        let dir = root.device(name).join("suspend");
        let before = sysfs::read(&dir.join("timeout_ms")).map_err(|e| format!("{name}: {e}"))?;
        let timeout = match timeout_ms {
            Some(_) => Some(Timeout {
                file: open(&dir.join("timeout_ms"), OFlags::WRONLY)?,
                before: before.clone(),
            }),
            None => None,
        };
        Ok(Self {
            request: open(&dir.join("request"), OFlags::WRONLY)?,
            state: open(&dir.join("state"), OFlags::RDONLY)?,
            timeout,
            timeout_ms: before.parse().unwrap_or(*TIMEOUT.end()),
        })
    }

    fn ask(&self, what: &[u8]) -> Result<(), Errno> {
        rustix::io::pwrite(&self.request, what, 0).map(drop)
    }

    fn state(&self) -> State {
        let mut text = [0; 16];
        match rustix::io::pread(&self.state, &mut text, 0) {
            Ok(length) => State::parse(&text[..length]).unwrap_or(State::Gone),
            Err(_) => State::Gone,
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Steps for Handles {
    fn stop(&mut self, number: usize) -> Result<(), Errno> {
        let handle = &mut self.0[number];
        match &handle.kind {
            Kind::Device(device) => device.ask(b"suspend\n"),
            Kind::FileSystem(dir) => sys::freeze(dir.as_fd()).map_err(|error| errno(&error)),
        }?;
        handle.stopped = true;
        Ok(())
    }

    fn go_on(&mut self, number: usize) -> Result<(), Errno> {
        if !self.0[number].stopped {
            return Ok(());
        }
        // What is written by a thaw has to get to a disk: one that stands still would have us wait
        // for it without an end.
        let is_held = |handle: &Handle| {
            matches!(handle.kind, Kind::Device(_)) && handle.stopped && !handle.lost
        };
        let held = self.0.iter().any(is_held);
        let handle = &mut self.0[number];
        let (next, result) = match &handle.kind {
            Kind::Device(device) => match device.ask(b"resume\n") {
                Ok(()) => (Next::Done, Ok(())),
                Err(error) => match after(error, device.state()) {
                    Next::Done => (Next::Done, Ok(())),
                    next => (next, Err(error)),
                },
            },
            Kind::FileSystem(_) if held => (Next::Again, Err(Errno::BUSY)),
            Kind::FileSystem(dir) => match sys::thaw(dir.as_fd()).map_err(|error| errno(&error)) {
                // It is not frozen: somebody else has been faster.
                Ok(()) | Err(Errno::INVAL) => (Next::Done, Ok(())),
                Err(error) => (Next::Lost, Err(error)),
            },
        };
        handle.stopped = next != Next::Done;
        handle.lost = next == Next::Lost;
        result
    }

    fn is_over(&mut self) -> bool {
        false
    }
}

/// A deadline as the file timeout_ms takes it.
pub fn timeout_ms(span: Span) -> Result<u64, String> {
    let ms = u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX);
    match TIMEOUT.contains(&ms) {
        true => Ok(ms),
        false => Err(format!(
            "a deadline is no longer than {} s",
            TIMEOUT.end() / 1000
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn step(name: &str, timeout_ms: Option<u64>) -> Step {
        Step {
            what: What::Device(name.into()),
            title: name.into(),
            rank: Rank::Other,
            timeout_ms,
        }
    }

    fn two() -> (Fake, Vec<Step>) {
        let fake = Fake::new();
        fake.device("virtio0", 4, "virtio_rng", "1.4");
        fake.device("virtio1", 4, "virtio_rng", "1.4");
        (
            fake,
            vec![step("virtio0", None), step("virtio1", Some(1500))],
        )
    }

    #[test]
    fn what_is_written() {
        let (fake, steps) = two();
        let mut handles = Handles::open(&fake.root(), &steps).unwrap();
        handles.set_timeouts(&steps).unwrap();
        assert_eq!(fake.written("virtio0", "timeout_ms"), "10000\n");
        assert!(fake.written("virtio1", "timeout_ms").starts_with("1500"));
        assert_eq!(handles.cost(0), Duration::from_secs(11));
        assert_eq!(handles.cost(1), Duration::from_millis(2500));
        assert_eq!(handles.stop(0), Ok(()));
        assert_eq!(fake.written("virtio0", "request"), "suspend\n");
        assert_eq!(fake.written("virtio1", "request"), "\n");
        // The second has not been stopped, and is not touched.
        let mut stuck = [None; 2];
        handles.go_on_all(&mut stuck, Some(Duration::ZERO));
        assert!(fake.written("virtio0", "request").starts_with("resume\n"));
        assert_eq!(fake.written("virtio1", "request"), "\n");
        assert_eq!(stuck, [None; 2]);
        handles.restore_timeouts();
        assert!(fake.written("virtio1", "timeout_ms").starts_with("10000"));
    }

    #[test]
    fn what_is_not_there() {
        let (fake, mut steps) = two();
        steps.push(step("virtio2", None));
        assert!(Handles::open(&fake.root(), &steps).is_err());
    }

    #[test]
    fn a_file_system_is_not_thawed_while_a_device_stands_still() {
        let (fake, _) = two();
        fake.directory("mnt");
        let steps = [
            Step {
                what: What::FileSystem("/mnt".into()),
                ..step("/mnt", None)
            },
            step("virtio0", None),
        ];
        let mut handles = Handles::open(&fake.root(), &steps).unwrap();
        handles.assume_stopped(2);
        assert_eq!(handles.go_on(0), Err(Errno::BUSY));
        assert!(!handles.0[0].lost);
        assert_eq!(handles.go_on(1), Ok(()));
        // Not frozen, or none that could be: that depends on where the test runs.
        let _ = handles.go_on(0);
        assert!(!handles.0[0].stopped || handles.0[0].lost);
    }

    #[test]
    fn deadlines() {
        let ms = |text: &str| timeout_ms(text.parse().unwrap());
        assert_eq!(ms("10s"), Ok(10_000));
        assert_eq!(ms("10m"), Ok(600_000));
        assert!(ms("11m").is_err());
    }
}
