// SPDX-License-Identifier: GPL-2.0

//! A line in the journal for each suspend, before and after it, with who asked.
//!
//! Never between: who writes the journal may wait for a disk that stands still.

use std::fmt::Write;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::error::Error;
use crate::handles::Step;
use crate::sysfs;

/// The journal's own protocol: a field in each line.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Any other log, RFC 3164.
const SYSLOG: &str = "/dev/log";

/// Who runs this, as far as the kernel knows: the user now, and who logged in.
fn who() -> String {
    let uid = rustix::process::getuid().as_raw();
    let login = sysfs::read("/proc/self/loginuid".as_ref()).unwrap_or_default();
    match login.as_str() {
        "" | "4294967295" => format!("uid {uid}, no login"),
        login => format!("uid {uid}, logged in as uid {login}"),
    }
}

fn titles(steps: &[Step]) -> String {
    let titles: Vec<&str> = steps.iter().map(|step| step.title.as_str()).collect();
    titles.join(", ")
}

/// Somebody has asked for a suspend.
pub fn asked(command: &str, steps: &[Step], limit: Option<Duration>) {
    let (who, titles) = (who(), titles(steps));
    let limit = match limit {
        Some(limit) => format!("for {} s at most", limit.as_secs_f64()),
        None => "until they are resumed".into(),
    };
    send(
        6,
        &format!("{command}: suspending {titles}, {limit}; asked by {who}"),
        steps,
    );
}

/// It is over.
pub fn over(steps: &[Step], took: Duration, error: Option<&Error>) {
    let titles = titles(steps);
    let took = took.as_secs_f64();
    match error {
        None => send(6, &format!("{titles}: done after {took:.3} s"), steps),
        Some(error) => send(4, &format!("{titles}: {error}"), steps),
    }
}

/// Sends a line. That nobody keeps it is no reason not to suspend.
fn send(priority: u8, message: &str, steps: &[Step]) {
    let Ok(socket) = UnixDatagram::unbound() else {
        return;
    };
    // A log that is stuck is not waited for.
    let _ = socket.set_nonblocking(true);
    let entry = journal_entry(priority, message, steps);
    if socket.send_to(entry.as_bytes(), JOURNAL).is_err() {
        // Facility 3: a system daemon.
        let line = format!(
            "<{}>virtio-suspend: {}",
            3 << 3 | priority,
            one_line(message)
        );
        let _ = socket.send_to(line.as_bytes(), SYSLOG);
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', "; ")
}

fn journal_entry(priority: u8, message: &str, steps: &[Step]) -> String {
    let mut entry = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=virtio-suspend\n");
    // Writing to a string does not fail.
    let _ = writeln!(entry, "MESSAGE={}", one_line(message));
    for step in steps {
        let _ = writeln!(entry, "VIRTIO_SUSPEND_STEP={}", one_line(&step.title));
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handles::What;
    use crate::plan::Rank;

    #[test]
    fn what_is_sent_has_a_field_in_each_line_whatever_the_names_are() {
        let step = Step {
            what: What::FileSystem("/a\nPRIORITY=0".into()),
            title: "/a\nPRIORITY=0".into(),
            rank: Rank::FileSystem,
            timeout_ms: None,
        };
        let entry = journal_entry(6, "one\ntwo", std::slice::from_ref(&step));
        let expected = "PRIORITY=6\nSYSLOG_IDENTIFIER=virtio-suspend\nMESSAGE=one; two\n\
                        VIRTIO_SUSPEND_STEP=/a; PRIORITY=0\n";
        assert_eq!(entry, expected);
    }
}
