// SPDX-License-Identifier: GPL-2.0

//! `virtio-suspend status`: the states of devices, and each change.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{poll, PollFd, PollFlags};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{bind, recv, socket_with, AddressFamily, RecvFlags, SocketFlags, SocketType};
use serde_json::json;

use crate::cli::Status;
use crate::error::Error;
use crate::sysfs::{self, Device, Root};
use crate::targets::resolve;

/// The multicast group of the kernel's own uevents.
const KERNEL: u32 = 1;

/// A file that can be polled for changes.
struct Watched {
    file: File,
    title: String,
    name: String,
}

pub fn run(root: &Root, args: &Status) -> Result<(), Error> {
    let devices = sysfs::devices(root);
    let chosen = match args.names.is_empty() {
        true => devices
            .iter()
            .filter(|device| device.suspend.is_some())
            .collect(),
        false => resolve(&devices, &args.names).map_err(|p| Error::Failed(p.join("\n")))?,
    };
    let state = |device: &Device| {
        device
            .suspend
            .as_ref()
            .map_or("-".into(), |s| s.state.clone())
    };
    let mut told = BTreeMap::new();
    for device in &chosen {
        print(args, device.name.as_str(), &device.title(), &state(device))?;
        told.insert(device.name.clone(), state(device));
    }
    match args.follow {
        true => follow(root, args, told),
        false => Ok(()),
    }
}

/// Prints a line; whoever reads it may be gone, which ends the program.
fn print(args: &Status, name: &str, title: &str, state: &str) -> Result<(), Error> {
    let line = match args.json {
        true => json!({"device": name, "state": state}).to_string(),
        false => format!("{title} {state}"),
    };
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|error| Error::Failed(format!("can't print: {error}")))
}

/// Prints what changes, from what has been told on, until the program is ended.
fn follow(root: &Root, args: &Status, mut told: BTreeMap<String, String>) -> Result<(), Error> {
    let only: Vec<String> = match args.names.is_empty() {
        true => Vec::new(),
        false => told.keys().cloned().collect(),
    };
    let uevents = uevents().map_err(|e| Error::Failed(format!("can't have uevents: {e}")))?;
    loop {
        let watched: Vec<Watched> = sysfs::devices(root)
            .into_iter()
            .filter(|device| only.is_empty() || only.contains(&device.name))
            .filter_map(|device| watch(root, &device))
            .collect();
        let gone = |name: &&String| !watched.iter().any(|watched| watched.name == **name);
        for name in told.keys().filter(gone).cloned().collect::<Vec<_>>() {
            print(args, &name, &name, "gone")?;
            told.remove(&name);
        }
        // Until a device comes or goes.
        while changes(&watched, args, &mut told, &uevents)? {}
    }
}

fn watch(root: &Root, device: &Device) -> Option<Watched> {
    Some(Watched {
        file: File::open(root.device(&device.name).join("suspend/state")).ok()?,
        title: device.title(),
        name: device.name.clone(),
    })
}

fn uevents() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(netlink::KOBJECT_UEVENT);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
    Ok(socket)
}

/// Tells what has changed and waits for more; false if devices have come or gone.
fn changes(
    watched: &[Watched],
    args: &Status,
    told: &mut BTreeMap<String, String>,
    uevents: &OwnedFd,
) -> Result<bool, Error> {
    for device in watched {
        // Having been read, the file can be polled for the next change.
        let mut text = [0; 32];
        let Ok(length) = device.file.read_at(&mut text, 0) else {
            return Ok(false);
        };
        let state = String::from_utf8_lossy(&text[..length])
            .trim_end()
            .to_string();
        if told.get(&device.name) != Some(&state) {
            print(args, &device.name, &device.title, &state)?;
            told.insert(device.name.clone(), state);
        }
    }
    let mut fds = vec![PollFd::new(uevents, PollFlags::IN)];
    fds.extend(
        watched
            .iter()
            .map(|device| PollFd::from_borrowed_fd(device.file.as_fd(), PollFlags::PRI)),
    );
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(Error::Failed(format!("can't wait: {error}"))),
    }
    if fds[0].revents().is_empty() {
        return Ok(true);
    }
    drop(fds);
    let mut is_same = true;
    let mut message = [0; 8192];
    // Too many to be kept is an error, which means that some were lost: look at all.
    while let Ok((length, _)) = recv(uevents, &mut message[..], RecvFlags::DONTWAIT) {
        is_same &= !comes_or_goes(&message[..length]);
    }
    Ok(is_same)
}

/// Whether a uevent says that a virtio device is there, or has a driver, or not any more.
fn comes_or_goes(message: &[u8]) -> bool {
    let mut fields = message.split(|byte| *byte == 0);
    let has = |field: &[u8]| message.split(|byte| *byte == 0).any(|other| other == field);
    let first = fields.next().unwrap_or_default();
    has(b"SUBSYSTEM=virtio") && !first.starts_with(b"change@")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uevents_that_matter() {
        assert!(comes_or_goes(
            b"bind@/devices/x/virtio1\0ACTION=bind\0SUBSYSTEM=virtio\0"
        ));
        assert!(comes_or_goes(
            b"remove@/devices/x/virtio1\0SUBSYSTEM=virtio\0"
        ));
        assert!(!comes_or_goes(
            b"change@/devices/x/virtio1\0SUBSYSTEM=virtio\0"
        ));
        assert!(!comes_or_goes(b"add@/devices/x\0SUBSYSTEM=block\0"));
        assert!(!comes_or_goes(b""));
    }
}
