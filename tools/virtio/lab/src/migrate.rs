// SPDX-License-Identifier: GPL-2.0

//! What a guest asks of the QEMU that runs it, and how it goes on in another QEMU.
//!
//! A kselftest writes a line to the terminal, and the answer is a line that it can read there:
//!
//! ```text
//! # # qemu: {"qmp": {"command": "set_link", "arguments": {"name": "net0", "up": false}}}
//! {"return":{}}
//! ```
//!
//! The terminal of a guest goes with it: the standard output of all its QEMUs is one pipe, and the
//! answer is given to the one that runs the guest by then.

use crate::machine::{Disk, Machine, DISKS};
use crate::process::tail;
use crate::qmp::Monitor;
use crate::tree::RunDir;
use crate::waker::Waker;
use anyhow::{bail, ensure, Context, Result};
use serde::Deserialize;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Begins what a guest asks for.
const ASKS: &str = "qemu: ";
/// Until a QEMU has connected its monitor, or has ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a migration, or a snapshot.
const LONG: Duration = Duration::from_secs(180);
/// Between two looks at something that has to be asked for.
const LOOK: Duration = Duration::from_millis(20);
/// Where QEMU's devices are that have been given an id.
const DEVICES: &str = "/machine/peripheral/";
/// The node that snapshots are written to, with the only disk that they are of.
const SNAPSHOTS: &str = DISKS[1].name;

/// Carries out what a guest asks for, and has it run in one QEMU after the other.
#[derive(Clone)]
pub struct Host {
    machine: Machine,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    program: PathBuf,
    /// The arguments of the first QEMU, but for its monitor.
    args: Vec<OsString>,
    run: PathBuf,
    sockets: PathBuf,
    /// How many QEMUs there have been.
    count: usize,
    /// How many snapshots there are.
    snapshots: usize,
    current: Option<Qemu>,
    /// Of a QEMU that is about to be started.
    monitor: Option<Monitor>,
    /// Of a server that returns what it is sent.
    port: Option<u16>,
    /// Of the guest in the QEMU that runs it now.
    waker: Option<Waker>,
}

/// A QEMU that is running.
struct Qemu {
    /// Its own, if it is not the first.
    child: Option<Child>,
    pid: u32,
    stdin: ChildStdin,
    monitor: Monitor,
    log: PathBuf,
}

/// What can be asked for.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    /// A command of QEMU's monitor.
    Qmp {
        command: String,
        #[serde(default)]
        arguments: Value,
    },
    /// What QEMU says of each device, and how many suspends it has seen.
    Status {},
    /// Goes on in another QEMU.
    Hop {
        /// By way of a file: the first QEMU has ended before there is the second.
        #[serde(default)]
        through_file: bool,
        /// What is to be another text in the arguments of the new QEMU.
        #[serde(default)]
        change: Vec<(String, String)>,
    },
    /// Keeps the state of the guest. Who asks for it is told "saved", and, when the guest goes on
    /// from there once more, "loaded".
    Save {},
    Load {},
    /// The port of a server that returns what it is sent.
    Server {},
    /// Writes nonsense into a virtqueue.
    Corrupt {
        device: String,
        queue: u64,
        packed: bool,
    },
}

impl Host {
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            state: Arc::default(),
        }
    }

    fn with_state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the first QEMU its devices and its monitor; called before it is started.
    pub fn prepare(&self, qemu: &mut Command, run: &RunDir) -> Result<()> {
        let sockets = run.sockets()?;
        self.with_state(|state| {
            state.end();
            state.program = qemu.get_program().into();
            state.run = run.to_path_buf();
            state.sockets = sockets;
            for disk in DISKS {
                make_disk(state, &disk).with_context(|| format!("can't make {}", disk.name))?;
            }
            qemu.args(self.machine.devices(run));
            state.args = qemu.get_args().map(Into::into).collect();
            let monitor = state.new_monitor()?;
            qemu.args(monitor.qemu_args());
            state.monitor = Some(monitor);
            Ok(())
        })
    }

    /// Takes note of the first QEMU.
    pub fn begin(&self, child: &mut Child, log: &Path) -> Result<()> {
        let stdin = child.stdin.take().context("QEMU has no standard input")?;
        self.with_state(|state| {
            let monitor = state.monitor.take().context("QEMU has no monitor")?;
            state.run_in(Qemu {
                child: None,
                pid: child.id(),
                stdin,
                monitor,
                log: log.into(),
            });
            Ok(())
        })
    }

    /// Ends what is left of the guest.
    pub fn end(&self) {
        self.with_state(State::end);
    }

    /// Whether the guest and its QEMUs agree on how often it has slept.
    pub fn has_slept(&self) -> Result<()> {
        self.with_state(|state| state.waker.as_ref().map_or(Ok(()), Waker::end))
    }

    /// Carries out what a line asks for, if it does, and wakes a guest that says that it sleeps.
    pub fn line(&self, line: &str) -> Result<bool> {
        let Some(text) = line.trim_start_matches("# ").strip_prefix(ASKS) else {
            self.with_state(|state| match &mut state.waker {
                Some(waker) => waker.line(line),
                None => Ok(()),
            })?;
            return Ok(false);
        };
        self.with_state(|state| {
            let result = serde_json::from_str(text)
                .context("can't understand the request")
                .and_then(|request| state.carry_out(request));
            let answer = match result {
                Ok(value) => json!({ "return": value }),
                Err(error) => json!({ "error": format!("{error:#}") }),
            };
            let current = state.current.as_mut().context("no QEMU is left")?;
            writeln!(current.stdin, "{answer}").context("can't answer the guest")
        })?;
        Ok(true)
    }
}

impl State {
    fn carry_out(&mut self, request: Request) -> Result<Value> {
        match request {
            Request::Qmp { command, arguments } => {
                self.current()?.monitor.execute(&command, arguments)
            }
            Request::Status {} => self.status(),
            Request::Hop {
                through_file,
                change,
            } => self.hop(through_file, &change),
            Request::Save {} => {
                // Nothing is written over one that there is.
                self.snapshots += 1;
                self.snapshot("snapshot-save")?;
                Ok("saved".into())
            }
            Request::Load {} => {
                self.snapshot("snapshot-load")?;
                // To the guest that asked to be saved.
                Ok("loaded".into())
            }
            Request::Server {} => {
                let port = match self.port {
                    Some(port) => port,
                    None => serve()?,
                };
                self.port = Some(port);
                Ok(port.into())
            }
            Request::Corrupt {
                device,
                queue,
                packed,
            } => self.corrupt(&device, queue, packed),
        }
    }

    /// The guest runs there from now on.
    fn run_in(&mut self, qemu: Qemu) {
        self.waker = Some(Waker::new(qemu.monitor.clone()));
        self.current = Some(qemu);
    }

    fn current(&self) -> Result<&Qemu> {
        self.current.as_ref().context("no QEMU is left")
    }

    /// The monitor of the next QEMU.
    fn new_monitor(&mut self) -> Result<Monitor> {
        self.count += 1;
        Monitor::listen(&self.sockets.join(format!("monitor-{}", self.count)))
    }

    /// Starts another QEMU, which waits for the guest.
    fn start(&mut self, args: &[OsString], terminal: File, incoming: &str) -> Result<Qemu> {
        let monitor = self.new_monitor()?;
        let log = self.run.join(format!("qemu-{}.log", self.count));
        let stderr = File::create(&log).context("can't write the log of QEMU")?;
        let mut child = Command::new(&self.program)
            .args(args)
            .args(monitor.qemu_args())
            .args(["-incoming", incoming])
            .stdin(Stdio::piped())
            .stdout(terminal)
            .stderr(stderr)
            .spawn()
            .context("can't run QEMU")?;
        let mut qemu = Qemu {
            pid: child.id(),
            stdin: child.stdin.take().context("QEMU has no standard input")?,
            child: Some(child),
            monitor,
            log,
        };
        let ready = wait_for("QEMU does not start", PATIENCE, || {
            qemu.lives()?;
            Ok(qemu.monitor.is_connected().then_some(()))
        });
        match ready {
            Ok(()) => Ok(qemu),
            Err(error) => {
                qemu.end();
                Err(error)
            }
        }
    }

    /// Has the guest go on in another QEMU; if that can't be, it goes on in this one.
    fn hop(&mut self, through_file: bool, change: &[(String, String)]) -> Result<Value> {
        let args = changed(&self.args, change)?;
        let name = format!("hop-{}", self.count);
        let terminal = self.current()?.terminal()?;
        if through_file {
            let file = self.run.join(name);
            let uri = format!("file:{}", file.display());
            self.current()?.migrate(&uri, false)?;
            if let Some(mut from) = self.current.take() {
                from.quit()?;
            }
            let mut to = self.start(&args, terminal, &uri)?;
            let arrived = to.wait_until_running();
            self.run_in(to);
            arrived?;
            let size = file.metadata().context("there is no file")?.len();
            fs::remove_file(&file).context("can't remove the file")?;
            return Ok(json!({ "bytes": size }));
        }
        let started = Instant::now();
        let socket = self.sockets.join(name);
        let uri = format!("unix:{}", socket.display());
        let mut to = self.start(&args, terminal, &uri)?;
        let current = self.current.as_mut().context("no QEMU is left")?;
        let sent = wait_for("QEMU waits for no guest", PATIENCE, || {
            to.lives()?;
            Ok(socket.exists().then_some(()))
        })
        .and_then(|()| current.migrate(&uri, true));
        if let Err(error) = sent {
            to.end();
            let why = tail(&to.log, 5);
            current.wait_until_running()?;
            return Err(error.context(why));
        }
        to.wait_until_running()?;
        let seconds = started.elapsed().as_secs_f64();
        current.quit()?;
        let told = json!({ "from": current.pid, "to": to.pid, "seconds": seconds });
        self.run_in(to);
        Ok(told)
    }

    fn snapshot(&self, command: &str) -> Result<Value> {
        let monitor = &self.current()?.monitor;
        let arguments = json!({
            "job-id": command,
            "tag": format!("kept-{}", self.snapshots),
            "vmstate": SNAPSHOTS,
            "devices": [SNAPSHOTS],
        });
        run_job(monitor, command, arguments)
    }

    fn status(&self) -> Result<Value> {
        let monitor = &self.current()?.monitor;
        let mut devices = BTreeMap::new();
        for device in array(&monitor.execute("x-query-virtio", json!({}))?) {
            let path = device["path"].as_str().context("a device without a path")?;
            let Some((id, _)) = path
                .strip_prefix(DEVICES)
                .map(|rest| rest.split_once('/').unwrap_or((rest, "")))
            else {
                continue;
            };
            let status = monitor.execute("x-query-virtio-status", json!({ "path": path }))?;
            let told = json!({
                "path": path,
                "status": status["status"]["statuses"],
                "suspended": status["suspended"],
                "pending": status["suspend-config-pending"],
                "violations": status["suspend-violations"],
            });
            devices.insert(id.to_string(), told);
        }
        let mut suspends = BTreeMap::<String, u64>::new();
        for entry in fs::read_dir(&self.run).context("can't read the logs")? {
            let path = entry.context("can't read the logs")?.path();
            if path.extension().is_some_and(|e| e == "log") {
                let log = fs::read(&path).context("can't read a log")?;
                for name in suspended(&String::from_utf8_lossy(&log)) {
                    *suspends.entry(name.into()).or_default() += 1;
                }
            }
        }
        Ok(json!({ "devices": devices, "suspends": suspends }))
    }

    /// Makes available what can't be: more than the ring has room for, or, in a packed virtqueue, a
    /// table of descriptors that ends within one.
    fn corrupt(&self, device: &str, queue: u64, packed: bool) -> Result<Value> {
        let current = self.current()?;
        let monitor = &current.monitor;
        let all = monitor.execute("x-query-virtio", json!({}))?;
        let mut paths = array(&all).filter_map(|d| d["path"].as_str());
        let path = paths
            .find(|path| path[DEVICES.len().min(path.len())..].split('/').next() == Some(device))
            .context("there is no such device")?;
        let status = monitor.execute(
            "x-query-virtio-queue-status",
            json!({ "path": path, "queue": queue }),
        )?;
        let number = |name: &str| status[name].as_u64().context("no such ring");
        // Memory begins at 0, and this machine has no hole in it.
        let memory = current.memory()?;
        if packed {
            let descriptor = number("vring-desc")? + 16 * number("last-avail-idx")?;
            let mut old = [0; 16];
            memory.read_exact_at(&mut old, descriptor)?;
            memory.write_all_at(&unusable(&old), descriptor)?;
        } else {
            memory.write_all_at(&[0x5a, 0x5a], number("vring-avail")? + 2)?;
        }
        Ok(json!({}))
    }

    fn end(&mut self) {
        if let Some(mut current) = self.current.take() {
            current.end();
        }
    }
}

impl Qemu {
    /// The pipe that it writes to.
    fn terminal(&self) -> Result<File> {
        let path = format!("/proc/{}/fd/1", self.pid);
        File::options()
            .write(true)
            .open(path)
            .context("can't open the terminal")
    }

    /// Fails if it has ended.
    fn lives(&mut self) -> Result<()> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait().context("can't wait for QEMU")?,
            None => None,
        };
        match ended {
            Some(status) => bail!("QEMU ended ({status}): {}", tail(&self.log, 5)),
            None => Ok(()),
        }
    }

    /// Sends the guest, and waits until whoever gets it has said that it is there.
    fn migrate(&self, uri: &str, has_answer: bool) -> Result<()> {
        let execute = |command, arguments| self.monitor.execute(command, arguments);
        let capability = json!({ "capability": "return-path", "state": has_answer });
        execute(
            "migrate-set-capabilities",
            json!({ "capabilities": [capability] }),
        )?;
        // As fast as it can be, and stopped for as long as it takes.
        execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": 4_u64 << 30, "downtime-limit": 5000 }),
        )?;
        execute("migrate", json!({ "uri": uri }))?;
        wait_for("the migration does not end", LONG, || {
            let state = execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => Ok(Some(())),
                Some(status @ ("failed" | "cancelled")) => {
                    bail!("the migration {status}: {}", state["error-desc"])
                }
                _ => Ok(None),
            }
        })
    }

    fn wait_until_running(&mut self) -> Result<()> {
        wait_for("the guest does not go on", PATIENCE, || {
            self.lives()?;
            let state = self.monitor.execute("query-status", json!({}))?;
            Ok((state["running"] == true).then_some(()))
        })
    }

    /// Has it end, now that the guest is elsewhere.
    fn quit(&mut self) -> Result<()> {
        // It may be gone before it has answered.
        let _ = self.monitor.execute("quit", json!({}));
        if let Some(child) = &mut self.child {
            child.wait().context("can't wait for QEMU")?;
        }
        wait_for("QEMU does not end", PATIENCE, || {
            Ok((!self.monitor.is_connected()).then_some(()))
        })
    }

    fn end(&mut self) {
        if let Some(child) = &mut self.child {
            // It fails if it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The guest's memory, of which QEMU has a file.
    fn memory(&self) -> Result<File> {
        let directory = format!("/proc/{}/fd", self.pid);
        for entry in fs::read_dir(directory).context("can't see what QEMU has open")? {
            let path = entry.context("can't see what QEMU has open")?.path();
            let is_memory = fs::read_link(&path)
                .is_ok_and(|target| target.to_string_lossy().contains("memory-backend-memfd"));
            if is_memory {
                let file = File::options().read(true).write(true).open(&path);
                return file.context("can't open the guest's memory");
            }
        }
        bail!("QEMU has no file of the guest's memory")
    }
}

/// An available descriptor of a packed virtqueue that no device can use, in the place of one that has
/// been used, or never been available.
fn unusable(old: &[u8; 16]) -> [u8; 16] {
    const INDIRECT: u16 = 1 << 2;
    const AVAIL: u16 = 1 << 7;
    const USED: u16 = 1 << 15;
    let flags = u16::from_le_bytes([old[14], old[15]]);
    // What is used has both bits alike, which are the other way round the next time.
    let flags = match flags & USED {
        0 => INDIRECT | AVAIL,
        _ => INDIRECT | USED,
    };
    let mut new = [0; 16];
    new[8..12].copy_from_slice(&1_u32.to_le_bytes());
    new[14..].copy_from_slice(&flags.to_le_bytes());
    new
}

/// Arguments with texts in them changed, each of which has to be there.
fn changed(args: &[OsString], change: &[(String, String)]) -> Result<Vec<OsString>> {
    let mut args: Vec<OsString> = args.to_vec();
    for (from, to) in change {
        let mut found = false;
        for arg in &mut args {
            let text = arg.to_string_lossy();
            if text.contains(from) {
                found = true;
                *arg = text.replace(from, to).into();
            }
        }
        ensure!(found, "QEMU has no argument with {from}");
    }
    Ok(args)
}

/// The names of the devices that have been suspended, by what QEMU traces.
fn suspended(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("virtio_suspend_end vdev ")?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        match words[..] {
            [_, name, "suspended", "1", ..] => Some(name),
            _ => None,
        }
    })
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut done: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "{what}, for {patience:?}");
        thread::sleep(LOOK);
    }
}

/// Runs a job of QEMU to its end.
fn run_job(monitor: &Monitor, command: &str, arguments: Value) -> Result<Value> {
    let id = arguments["job-id"].clone();
    monitor.execute(command, arguments)?;
    let job = wait_for(&format!("{command} does not end"), LONG, || {
        let jobs = monitor.execute("query-jobs", json!({}))?;
        let job = array(&jobs).find(|job| job["id"] == id).cloned();
        let job = job.context("the job is gone")?;
        Ok((job["status"] == "concluded").then_some(job))
    })?;
    monitor.execute("job-dismiss", json!({ "id": id }))?;
    ensure!(job["error"].is_null(), "{command}: {}", job["error"]);
    Ok(json!({}))
}

/// Makes a disk in the directory of the run, by QEMU if it is not raw.
fn make_disk(state: &mut State, disk: &Disk) -> Result<()> {
    let path = state.run.join(disk.name);
    let file = File::create(&path).context("can't make the file")?;
    if disk.format == "raw" {
        return file.set_len(disk.size).context("can't make it that large");
    }
    let monitor = state.new_monitor()?;
    let mut child = Command::new(&state.program)
        .args(["-machine", "none", "-nodefaults", "-display", "none"])
        .args(monitor.qemu_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("can't run QEMU")?;
    let made = wait_for("QEMU does not start", PATIENCE, || {
        Ok(monitor.is_connected().then_some(()))
    })
    .and_then(|()| {
        let node = json!({ "driver": "file", "node-name": "file", "filename": path });
        monitor.execute("blockdev-add", node)?;
        let options = json!({ "driver": disk.format, "file": "file", "size": disk.size });
        let arguments = json!({ "job-id": "create", "options": options });
        run_job(&monitor, "blockdev-create", arguments)
    });
    let _ = child.kill();
    child.wait().context("can't wait for QEMU")?;
    made.map(drop)
}

/// Starts a server that returns what it is sent; it ends with the lab.
fn serve() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("can't listen")?;
    let port = listener.local_addr().context("can't tell the port")?.port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                // It ends when the other side does.
                let _ = std::io::copy(&mut &stream, &mut &stream);
            });
        }
    });
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_asks_for() {
        let parse = |text| serde_json::from_str::<Request>(text);
        assert_eq!(parse(r#"{"status": {}}"#).unwrap(), Request::Status {});
        let hop = parse(r#"{"hop": {"change": [["on", "off"]]}}"#).unwrap();
        let change = vec![("on".to_string(), "off".to_string())];
        assert_eq!(
            hop,
            Request::Hop {
                through_file: false,
                change
            }
        );
        let qmp = parse(r#"{"qmp": {"command": "cont"}}"#).unwrap();
        assert!(matches!(qmp, Request::Qmp { .. }));
        for text in ["{}", r#"{"hop": {"to": 1}}"#, r#"{"fly": {}}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn texts_in_arguments() {
        let args = ["-device", "a,suspend=1.4"].map(OsString::from);
        let change = |from: &str| [(from.to_string(), "x".to_string())];
        assert_eq!(changed(&args, &change("suspend=1.4")).unwrap()[1], "a,x");
        assert!(changed(&args, &change("suspend=2")).is_err());
    }

    #[test]
    fn descriptors_that_cannot_be_used() {
        // avail and used are different, and avail is what the device expects next.
        for (old, expected) in [(0x0000_u16, 0x0084_u16), (0x8080, 0x8004)] {
            let mut descriptor = [0x11; 16];
            descriptor[14..].copy_from_slice(&old.to_le_bytes());
            let new = unusable(&descriptor);
            assert_eq!(new[14..], expected.to_le_bytes());
            assert_eq!(new[8..12], [1, 0, 0, 0]);
        }
    }

    #[test]
    fn what_qemu_traces() {
        let log = "virtio_suspend_end vdev 0x55 virtio-blk suspended 1 after 20 us\n\
                   virtio_suspend_end vdev 0x55 virtio-net suspended 0 after 20 us\n\
                   qemu: warning\n";
        let names: Vec<_> = suspended(log).collect();
        assert_eq!(names, ["virtio-blk"]);
    }
}
