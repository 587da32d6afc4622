// SPDX-License-Identifier: GPL-2.0

//! Processes that may never end.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

/// How a child of the kit is told to write to a file.
const WRITE: &str = "write";
/// Between two looks at a process.
const LOOK: Duration = Duration::from_millis(20);
/// After it has been killed. One that can't be killed is left alone.
const DEATH: Duration = Duration::from_secs(2);

/// What became of a process.
pub struct Ended {
    /// As a shell says it; none if it took too long, and was killed.
    pub status: Option<i32>,
    last: String,
}

impl Ended {
    /// The last line that it printed.
    pub fn last_words(&self) -> &str {
        match self.last.is_empty() {
            true => "no reason was given",
            false => &self.last,
        }
    }
}

/// Runs a program, whose lines are handed on, until it ends or the time is over.
pub fn run(
    command: &mut Command,
    patience: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<Ended> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe().context("can't make a pipe")?;
    let copy = writer.try_clone().context("can't duplicate a pipe")?;
    command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("TERM", "linux")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(copy)
        .process_group(0);
    let child = command.spawn();
    let mut child = child.with_context(|| format!("can't run {program}"))?;
    // Its ends of the pipe are those of the child alone.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
    let deadline = Instant::now() + patience;
    let mut last = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                on_line(&line);
                last = line;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                kill(&mut child);
                return Ok(Ended { status: None, last });
            }
        }
    }
    let status = wait(&mut child, deadline)?;
    if status.is_none() {
        kill(&mut child);
    }
    Ok(Ended { status, last })
}

fn wait(child: &mut Child, deadline: Instant) -> Result<Option<i32>> {
    loop {
        if let Some(status) = child.try_wait().context("can't wait for a process")? {
            let signal = || 128 + status.signal().unwrap_or(0);
            return Ok(Some(status.code().unwrap_or_else(signal)));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// Ends a process and what it has started, if that can be.
fn kill(child: &mut Child) {
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let _ = wait(child, Instant::now() + DEATH);
}

/// Has a process write to a file, in one piece: what is written to may wait for a device. Its last
/// words say what went wrong.
pub fn write(path: &Path, text: &str, patience: Duration) -> Result<Ended> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(WRITE).arg(path).arg(text);
    run(&mut command, patience, |_| {})
}

/// What the program does as a child of the kit.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match &words[..] {
        [verb, path, text] if verb == WRITE => {
            let file = OpenOptions::new().write(true).open(path);
            let written = file.and_then(|mut f| f.write_all(text.as_encoded_bytes()));
            match written {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    println!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => {
            println!("This is process 1 of a machine: boot it, see the README beside it.");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience: Duration) -> (Ended, Vec<String>) {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        let ended = run(command.args(["-c", script]), patience, |line| {
            lines.push(line.to_string());
        });
        (ended.unwrap(), lines)
    }

    #[test]
    fn lines_and_status() {
        let (ended, lines) = shell("echo a; echo b >&2; exit 3", Duration::from_secs(60));
        assert_eq!(ended.status, Some(3));
        assert_eq!(lines, ["a", "b"]);
        assert_eq!(ended.last_words(), "b");
    }

    #[test]
    fn one_that_does_not_end_is_killed() {
        let begin = Instant::now();
        let (ended, lines) = shell("echo a; exec sleep 600", Duration::from_secs(1));
        assert_eq!(ended.status, None);
        assert_eq!(lines, ["a"]);
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn one_that_closes_its_output_and_does_not_end_is_killed() {
        let (ended, _) = shell("exec sleep 600 >&- 2>&-", Duration::from_secs(1));
        assert_eq!(ended.status, None);
    }

    #[test]
    fn a_program_that_is_not_there() {
        let mut command = Command::new("/nowhere/to/be/found");
        assert!(run(&mut command, LOOK, |_| {}).is_err());
    }
}
