// SPDX-License-Identifier: GPL-2.0

//! QEMU's monitor, by QMP: commands, and the events that came so far.
//!
//! QEMU connects to us, so that one monitor can stay while a guest goes on in another QEMU.

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// For the answer to a command.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Monitor {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// To the QEMU that runs now.
    writer: Option<UnixStream>,
    next_id: u64,
    answers: Vec<Value>,
    /// The names of all events.
    events: Vec<String>,
}

impl Monitor {
    /// Listens at a path that is short enough for a socket.
    pub fn listen(path: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)
            .with_context(|| format!("can't listen at {}", path.display()))?;
        let monitor = Self {
            path: path.into(),
            shared: Arc::default(),
        };
        let shared = monitor.shared.clone();
        // Ends with the lab: one thread for each of its monitors.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                shared.serve(stream);
            }
        });
        Ok(monitor)
    }

    /// What QEMU has to be told.
    pub fn qemu_args(&self) -> [String; 4] {
        let path = self.path.display();
        [
            "-chardev".into(),
            format!("socket,id=monitor,path={path}"),
            "-mon".into(),
            "chardev=monitor,mode=control".into(),
        ]
    }

    /// Has QEMU carry out a command, and returns its answer.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        let text = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        let Some(writer) = &mut state.writer else {
            bail!("{command}: QEMU has not connected its monitor");
        };
        writer
            .write_all(text.as_bytes())
            .with_context(|| format!("can't send {command}"))?;
        let answer = self.shared.wait(state, PATIENCE, |state| {
            let index = state.answers.iter().position(|a| a["id"] == id)?;
            Some(state.answers.swap_remove(index))
        });
        let answer = answer.with_context(|| format!("no answer to {command}"))?;
        match answer.get("error") {
            Some(error) => bail!("{command}: {error}"),
            None => Ok(answer["return"].clone()),
        }
    }

    /// Whether there is a QEMU that takes commands.
    pub fn is_connected(&self) -> bool {
        self.shared.lock().writer.is_some()
    }

    /// How often an event has come.
    pub fn count(&self, event: &str) -> usize {
        self.shared.lock().count(event)
    }

    /// Waits until an event has come more than some number of times.
    pub fn wait_for_more(&self, event: &str, than: usize, patience: Duration) -> bool {
        let state = self.shared.lock();
        let more = |state: &mut State| (state.count(event) > than).then_some(());
        self.shared.wait(state, patience, more).is_some()
    }
}

impl State {
    fn count(&self, event: &str) -> usize {
        self.events.iter().filter(|name| *name == event).count()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<T>(
        &self,
        mut state: MutexGuard<'_, State>,
        patience: Duration,
        mut done: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(value) = done(&mut state) {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes what one QEMU says, until it ends.
    fn serve(&self, stream: UnixStream) {
        let Ok(mut writer) = stream.try_clone() else {
            return;
        };
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let Ok(message) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            if message.get("QMP").is_some() {
                // Commands are taken from now on.  That it has an answer is of no interest.
                let hello = json!({"execute": "qmp_capabilities", "id": "hello"}).to_string();
                if writer.write_all(hello.as_bytes()).is_err() {
                    break;
                }
                self.lock().writer = writer.try_clone().ok();
            } else if let Some(event) = message["event"].as_str() {
                self.lock().events.push(event.into());
            } else if message["id"].is_u64() {
                self.lock().answers.push(message);
            }
            self.changed.notify_all();
        }
        self.lock().writer = None;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that knows one command, and counts.
    fn qemu(path: PathBuf) {
        let stream = UnixStream::connect(path).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut say = move |value: Value| writeln!(writer, "{value}").unwrap();
        say(json!({"QMP": {}}));
        // Commands follow each other without a line's end.
        for command in serde_json::Deserializer::from_reader(stream).into_iter::<Value>() {
            let command = command.unwrap();
            let id = &command["id"];
            match command["execute"].as_str().unwrap() {
                "qmp_capabilities" => say(json!({"return": {}, "id": id})),
                "system_wakeup" => {
                    say(json!({"event": "WAKEUP"}));
                    say(json!({"return": command["arguments"], "id": id}));
                }
                "quit" => return,
                _ => say(json!({"error": {"desc": "unknown"}, "id": id})),
            }
        }
    }

    #[test]
    fn commands_answers_and_events() {
        let path = std::env::temp_dir().join(format!("lab-qmp-{}", std::process::id()));
        let monitor = Monitor::listen(&path).unwrap();
        assert!(monitor.execute("quit", json!({})).is_err());
        for round in 1..3 {
            let path = path.clone();
            let child = thread::spawn(move || qemu(path));
            let connected = |state: &mut State| state.writer.is_some().then_some(());
            let shared = &monitor.shared;
            assert!(shared.wait(shared.lock(), PATIENCE, connected).is_some());
            let answer = monitor.execute("system_wakeup", json!({"a": round}));
            assert_eq!(answer.unwrap(), json!({"a": round}));
            assert_eq!(monitor.count("WAKEUP"), round);
            assert!(monitor.wait_for_more("WAKEUP", round - 1, PATIENCE));
            assert!(!monitor.wait_for_more("WAKEUP", round, Duration::from_millis(20)));
            let error = monitor.execute("nonsense", json!({})).unwrap_err();
            assert!(error.to_string().contains("unknown"), "{error}");
            let writer = monitor.shared.lock().writer.as_ref().unwrap().try_clone();
            // Without a line's end: who is told may be gone before that.
            write!(writer.unwrap(), "{}", json!({"execute": "quit"})).unwrap();
            child.join().unwrap();
            let gone = |state: &mut State| state.writer.is_none().then_some(());
            assert!(shared.wait(shared.lock(), PATIENCE, gone).is_some());
        }
        std::fs::remove_file(path).unwrap();
    }
}
