// SPDX-License-Identifier: GPL-2.0

//! The second process of a run, which has all go on if the first does not.
//!
//! It is there before anything is stopped, locked into memory like the first, in a session of its
//! own, and no signal but SIGKILL and SIGSTOP has an effect on it. The two are joined by a socket:
//! when the first ends, however that comes about, the second is told by the kernel. When the first
//! has not said anything for longer than it had announced, it is killed, so that it can't go on
//! later, and taken for dead.

mod rules;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use rustix::process::{pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};

use crate::allocator;
use crate::handles::{Handles, Step};
use crate::memory;
use crate::sys;
use crate::sysfs::Root;

use rules::{Message, Next, Rules, Why, SIZE};

/// How long the watchdog may take until it is ready.
const START: Duration = Duration::from_secs(30);
/// How long a process may take to die: one that is killed while it freezes a file system does not
/// die before that is done.
const DEATH: Duration = Duration::from_secs(120);
/// What the watchdog says when it is ready.
const READY: &[u8] = b"R";

/// A time as poll() takes it.
pub fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// Waits until there is something to be read, or the end; whether there is.
fn is_readable(fd: impl AsFd, time: Option<Duration>) -> bool {
    let time = time.map(timespec);
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    matches!(poll(&mut fds, time.as_ref()), Ok(1..))
}

/// The watchdog, as the first process has it.
pub struct Watchdog {
    socket: OwnedFd,
    child: Child,
}

impl Watchdog {
    /// Starts it, and returns when it is ready.
    pub fn start(root: &Root, steps: &[Step]) -> Result<Self, String> {
        let kind = (
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
        );
        let (socket, theirs) = socketpair(kind.0, kind.1, kind.2, None).map_err(text)?;
        let steps = serde_json::to_string(steps).map_err(text)?;
        let process = rustix::process::getpid().as_raw_nonzero().to_string();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("virtio-suspend")
            .arg("--root")
            .arg(&root.0)
            .args(["watchdog", "--", &process, &steps])
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        let child = command.spawn().map_err(text)?;
        // Our copy of the socket's other end would keep it open.
        drop(command);
        let watchdog = Self { socket, child };
        let mut answer = [0; 1];
        let is_ready = is_readable(&watchdog.socket, Some(START))
            && matches!(rustix::io::read(&watchdog.socket, &mut answer), Ok(1))
            && answer == READY;
        match is_ready {
            true => Ok(watchdog),
            // It has said why.
            false => Err("the watchdog did not get ready".into()),
        }
    }

    /// What becomes readable when the watchdog is gone.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn is_gone(&self) -> bool {
        is_readable(&self.socket, Some(Duration::ZERO))
    }

    fn tell(&self, message: Message) {
        // If it is gone, that shows elsewhere.
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        let _ = rustix::net::send(&self.socket, &message.encode(), flags);
    }

    /// So many steps have been begun, and it will hear more within that time.
    pub fn limit(&self, steps: usize, time: Duration) {
        self.tell(Message::Limit {
            steps: u32::try_from(steps).unwrap_or(u32::MAX),
            ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        });
    }

    /// It is not needed any more; returns when it has ended.
    pub fn dismiss(mut self) {
        self.tell(Message::Done);
        let _ = self.child.wait();
    }

    /// It is to see to what did not go on, and stays until that has been done.
    pub fn hand_over(self) {
        self.tell(Message::HandOver);
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// Signals that are no reason to leave: everything that can be blocked and asks for an end or a
/// stop.
const BLOCKED: &[libc::c_int] = &[
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// The watchdog itself, of the process `process`; standard input is the socket.
pub fn main(root: &Root, process: i32, steps: &str) -> Result<(), String> {
    sys::signals(BLOCKED).map_err(text)?;
    rustix::process::setsid().map_err(text)?;
    let socket = rustix::stdio::stdin();
    let parent = Pid::from_raw(process).ok_or("no such process")?;
    let first = pidfd_open(parent, PidfdFlags::empty()).map_err(text)?;
    if rustix::process::getppid() != Some(parent) {
        return Err("the watchdog is not for use by hand".into());
    }
    let steps: Vec<Step> = serde_json::from_str(steps).map_err(text)?;
    let mut handles = Handles::open(root, &steps)?;
    let mut stuck = vec![None; handles.len()];
    // The first process has said what can't be had.
    memory::lock()?;
    rustix::io::write(socket, READY).map_err(text)?;
    allocator::seal();
    let before = sys::page_faults();

    let mut rules = Rules::default();
    let Some(why) = guard(socket, &mut rules) else {
        return Ok(());
    };
    if why == Why::Late {
        // If it went on later, it would suspend or resume out of turn.
        let _ = pidfd_send_signal(&first, Signal::KILL);
    }
    if why != Why::HandedOver {
        is_readable(&first, Some(DEATH));
    }
    handles.assume_stopped(usize::try_from(rules.steps).unwrap_or(usize::MAX));
    handles.go_on_all(&mut stuck, None);
    handles.restore_timeouts();
    let after = sys::page_faults();
    let allocations = allocator::unseal();
    report(
        why,
        &steps,
        &stuck,
        [allocations.to_string(), faults(before, after)],
    );
    Ok(())
}

/// The page faults between two counts, in words.
fn faults(before: (i64, i64), after: (i64, i64)) -> String {
    (after.0 - before.0 + after.1 - before.1).to_string()
}

/// Until it has done its work, or has to take over.
fn guard(socket: BorrowedFd<'_>, rules: &mut Rules) -> Option<Why> {
    let mut next = Next::Wait(None);
    loop {
        let deadline = match next {
            Next::Wait(deadline) => deadline,
            Next::End => return None,
            Next::TakeOver(why) => return Some(why),
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        next = match is_readable(socket, left) {
            true => {
                let mut message = [0; SIZE];
                let length = rustix::io::read(socket, &mut message);
                let told = match length {
                    // A message that makes no sense is as good as none.
                    Ok(length @ 1..) => Message::decode(&message[..length]),
                    _ => None,
                };
                rules.told(told, Instant::now())
            }
            false => rules.look(Instant::now()),
        };
    }
}

fn report(why: Why, steps: &[Step], stuck: &[Option<Errno>], [allocations, faults]: [String; 2]) {
    let why = match why {
        Why::Died => "the first process died",
        Why::Late => "the first process was late, and has been killed",
        Why::HandedOver => "what did not go on at once was asked again and again",
    };
    let titles: Vec<&str> = steps.iter().map(|step| step.title.as_str()).collect();
    eprintln!(
        "virtio-suspend: watchdog: {why}; resumed: {} (allocations: {allocations}, page faults: \
         {faults})",
        titles.join(", "),
    );
    for (step, error) in steps.iter().zip(stuck) {
        if let Some(error) = error {
            let error = io::Error::from(*error);
            eprintln!(
                "virtio-suspend: watchdog: {} does not run: {error}",
                step.title
            );
        }
    }
}
