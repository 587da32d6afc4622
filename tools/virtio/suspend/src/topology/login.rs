// SPDX-License-Identifier: GPL-2.0

//! From where the login came that this process belongs to.

use std::fs;

use crate::sysfs::{self, Root};

/// The most processes between this one and its login.
const DEPTH: usize = 32;

/// The address of the other end of an SSH connection, as this process or one of those that have
/// started it were told; sudo, for one, does not pass it on.
pub fn address(root: &Root) -> Option<String> {
    let mut process = "self".to_string();
    for _ in 0..DEPTH {
        let dir = root.join("proc").join(&process);
        // Only root may read that of others.
        let environment = fs::read(dir.join("environ")).unwrap_or_default();
        if let Some(address) = connection(&environment) {
            return Some(address);
        }
        let status = sysfs::read(&dir.join("status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        process = match parent.trim() {
            "" | "0" => return None,
            parent => parent.into(),
        };
    }
    None
}

fn connection(environment: &[u8]) -> Option<String> {
    let mut variables = environment.split(|byte| *byte == 0);
    let value = variables.find_map(|variable| variable.strip_prefix(b"SSH_CONNECTION="))?;
    let text = std::str::from_utf8(value).ok()?;
    text.split(' ').next().map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn it_is_looked_for_in_those_who_started_us() {
        let fake = Fake::new();
        fake.write("proc/self/environ", "HOME=/root\0");
        fake.write("proc/self/status", "Name:\tx\nPPid:\t70\n");
        fake.write(
            "proc/70/environ",
            "A=B\0SSH_CONNECTION=10.0.0.2 1 10.0.0.1 22\0",
        );
        fake.write("proc/70/status", "Name:\tx\nPPid:\t1\n");
        assert_eq!(address(&fake.root()).as_deref(), Some("10.0.0.2"));
    }

    #[test]
    fn there_is_none() {
        let fake = Fake::new();
        assert_eq!(address(&fake.root()), None);
        fake.write("proc/self/environ", "HOME=/root\0");
        fake.write("proc/self/status", "Name:\tx\nPPid:\t0\n");
        assert_eq!(address(&fake.root()), None);
        // One that is its own parent.
        fake.write("proc/self/status", "Name:\tx\nPPid:\tself\n");
        assert_eq!(address(&fake.root()), None);
    }
}
