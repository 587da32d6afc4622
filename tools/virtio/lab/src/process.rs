// SPDX-License-Identifier: GPL-2.0

//! Running other programs: with a log, with progress, and never without an end.

use crate::output::Output;
use anyhow::{bail, Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Announces the steps of one piece of work, with the time each of them takes.
pub struct Steps {
    total: usize,
    done: usize,
}

impl Steps {
    pub fn new(total: usize) -> Self {
        Self { total, done: 0 }
    }

    /// Does one step.
    pub fn step<T>(&mut self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.done += 1;
        announce(&format!("[{}/{}] {what}", self.done, self.total), work)
    }
}

/// Does some work, and says so and how long it takes.
pub fn announce<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    Output::Terminal.announce(what, work)
}

/// Runs a command with its output in a file.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let copy = file.try_clone().context("can't duplicate a descriptor")?;
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .status()
        .with_context(|| format!("can't run {program}"))?;
    if !status.success() {
        bail!(
            "{program} failed ({status}); the end of {}:\n{}",
            log.display(),
            tail(log, 25)
        );
    }
    Ok(())
}

/// Runs a command and returns what it prints.
pub fn output_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed no UTF-8"))
}

/// The last lines of a file, or as much of it as can be read.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A program that runs beside us, with its output in a file, until it is dropped.
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn spawn(name: &'static str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let copy = file.try_clone().context("can't duplicate a descriptor")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .with_context(|| format!("can't run {name}"))?;
        Ok(Self { name, child, log })
    }

    /// Waits until the program has made its socket.
    pub fn wait_for(&mut self, socket: &Path, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while !socket.exists() {
            let ended = self.child.try_wait().context("can't wait")?;
            if ended.is_some() || start.elapsed() > patience {
                let what = match ended {
                    Some(status) => format!("ended ({status})"),
                    None => "did not get ready".into(),
                };
                bail!("{} {what}:\n{}", self.name, tail(&self.log, 15));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until the program ends by itself; `false` if it is still running by then.
    pub fn wait(&mut self, patience: Duration) -> bool {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(None) if start.elapsed() < patience => thread::sleep(Duration::from_millis(5)),
                Ok(None) => return false,
                Ok(Some(_)) | Err(_) => return true,
            }
        }
    }

    /// Ends the program with SIGKILL.
    pub fn kill(&mut self) {
        // It fails if the program has ended already.
        let _ = self.child.kill();
    }

    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
