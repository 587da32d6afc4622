// SPDX-License-Identifier: GPL-2.0

//! The control mailbox in BAR 2: how the guest talks to the test device.
//!
//! Little-endian; accesses of 1, 2, 4 or 8 bytes at any aligned offset:
//!
//! | offset | | |
//! |---|---|---|
//! | 0x000 | u32, read | magic 0x56535444: the bytes `DTSV` in memory |
//! | 0x004 | u32, read | protocol version, 1 |
//! | 0x008 | u32, write | length of the command; writing it executes the command |
//! | 0x00c | u32, read | length of the reply |
//! | 0x1000 to 0x1fff | read, write | the command, a JSON object with `"cmd"` |
//! | 0x2000 to 0x3fff | read | the reply, a JSON object with `"ok"` |
//!
//! Commands: `info`, `stats`, `clear`, `set` (with `"settings"`), `device` (with `"set"` or without),
//! `config_change`, `fault-now` (with `"fault"`). The mailbox is outside the virtio structures: using it while suspended breaks no
//! rule, and it works when the device is gone.

use serde::Deserialize;
use serde_json::{json, Value};

use crate::fault::Now;
use crate::settings::Patch;

/// "DTSV" read as a little-endian u32.
pub const MAGIC: u32 = 0x5653_5444;
/// Version of the protocol.
pub const VERSION: u32 = 1;
/// Size of BAR 2.
pub const MAILBOX_SIZE: u64 = 0x4000;

/// Offset of the magic.
pub const MAGIC_OFFSET: u64 = 0x000;
/// Offset of the version.
pub const VERSION_OFFSET: u64 = 0x004;
/// Offset of the command length; writing it executes the command.
pub const COMMAND_LENGTH_OFFSET: u64 = 0x008;
/// Offset of the reply length.
pub const REPLY_LENGTH_OFFSET: u64 = 0x00c;
/// Offset of the command.
pub const COMMAND_OFFSET: u64 = 0x1000;
/// Room for the command.
pub const COMMAND_SIZE: usize = 0x1000;
/// Offset of the reply.
pub const REPLY_OFFSET: u64 = 0x2000;
/// Room for the reply.
pub const REPLY_SIZE: usize = 0x2000;

/// A command.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// What the device is and where it stands.
    Info {},
    /// Violations, the status log, counters and queues.
    Stats {},
    /// Forgets counters, the status log and violations.
    Clear {},
    /// Changes settings.
    Set {
        /// The change.
        settings: Patch,
    },
    /// What the device type has to say, after the change if one is asked for.
    Device {
        /// The change, as the device type has it.
        #[serde(default)]
        set: Option<Value>,
    },
    /// Sends a configuration change notification.
    ConfigChange {},
    /// Does something wrong, once, now.
    #[serde(rename = "fault-now", alias = "fault_now")]
    FaultNow {
        /// What.
        fault: Now,
    },
}

/// Parses a command, or says what is wrong with it.
pub fn parse(text: &[u8]) -> Result<Command, String> {
    serde_json::from_slice(text).map_err(|error| {
        format!("{error}; a command is a JSON object like {{\"cmd\":\"info\"}} (info, stats, clear, set, device, config_change, fault-now)")
    })
}

/// A reply that says what went wrong.
pub fn failure(error: impl std::fmt::Display) -> Value {
    json!({"ok": false, "error": error.to_string()})
}

/// The registers and buffers.
#[derive(Debug)]
pub struct Mailbox {
    bytes: Vec<u8>,
}

impl Default for Mailbox {
    fn default() -> Self {
        let mut mailbox = Self {
            bytes: vec![0; MAILBOX_SIZE as usize],
        };
        mailbox.set(MAGIC_OFFSET, MAGIC);
        mailbox.set(VERSION_OFFSET, VERSION);
        mailbox
    }
}

impl Mailbox {
    fn set(&mut self, offset: u64, value: u32) {
        let offset = offset as usize;
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Reads; beyond the end there is nothing.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(bytes) = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.bytes.get(offset..))
        else {
            return;
        };
        let len = bytes.len().min(data.len());
        data[..len].copy_from_slice(&bytes[..len]);
    }

    /// Writes; returns the command to execute if its length was written.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Result<Command, String>> {
        if offset == COMMAND_LENGTH_OFFSET {
            let Ok(length) = data.try_into().map(u32::from_le_bytes) else {
                return Some(Err("write the command's length as 4 bytes".into()));
            };
            self.set(COMMAND_LENGTH_OFFSET, length);
            let begin = COMMAND_OFFSET as usize;
            return Some(match length as usize {
                length @ 0..=COMMAND_SIZE => parse(&self.bytes[begin..begin + length]),
                length => Err(format!(
                    "a command of {length} bytes; there is room for {COMMAND_SIZE}"
                )),
            });
        }
        let end = offset.checked_add(data.len() as u64)?;
        if offset >= COMMAND_OFFSET && end <= REPLY_OFFSET {
            self.bytes[offset as usize..end as usize].copy_from_slice(data);
        }
        None
    }

    /// Puts the reply there, whole; one that is too long becomes an error.
    pub fn reply(&mut self, reply: &Value) {
        let mut text = reply.to_string();
        if text.len() > REPLY_SIZE {
            text = failure(format!(
                "the reply would be {} bytes; there is room for {REPLY_SIZE}",
                text.len()
            ))
            .to_string();
        }
        let begin = REPLY_OFFSET as usize;
        self.bytes[begin..].fill(0);
        self.bytes[begin..begin + text.len()].copy_from_slice(text.as_bytes());
        self.set(REPLY_LENGTH_OFFSET, text.len() as u32);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn execute(mailbox: &mut Mailbox, text: &str) -> Result<Command, String> {
        for (i, chunk) in text.as_bytes().chunks(8).enumerate() {
            assert!(mailbox
                .write(COMMAND_OFFSET + 8 * i as u64, chunk)
                .is_none());
        }
        mailbox
            .write(COMMAND_LENGTH_OFFSET, &(text.len() as u32).to_le_bytes())
            .unwrap()
    }

    #[test]
    fn magic_and_version() {
        let mut mailbox = Mailbox::default();
        let mut bytes = [0; 8];
        mailbox.read(0, &mut bytes);
        assert_eq!(&bytes, b"DTSV\x01\0\0\0");
        mailbox.write(0, &[0; 8]);
        mailbox.read(0, &mut bytes);
        assert_eq!(&bytes[..4], b"DTSV");
    }

    #[test]
    fn commands() {
        let mut mailbox = Mailbox::default();
        assert_eq!(
            execute(&mut mailbox, r#"{"cmd":"info"}"#),
            Ok(Command::Info {})
        );
        assert!(matches!(
            execute(&mut mailbox, r#"{"cmd":"set","settings":{"hold":true}}"#),
            Ok(Command::Set { .. })
        ));
        assert!(matches!(
            execute(&mut mailbox, r#"{"cmd":"fault-now","fault":"status-zero"}"#),
            Ok(Command::FaultNow { .. })
        ));
        for bad in [
            r#"{"cmd":"fault-now","fault":"hold-ms"}"#,
            r#"{"cmd":"fault-now"}"#,
            "",
            "{}",
            "info",
            r#"{"cmd":"reboot"}"#,
            r#"{"cmd":"info","x":1}"#,
            r#"{"cmd":"set"}"#,
            r#"{"cmd":"set","settings":{"x":1}}"#,
            "[[[[[[[[",
        ] {
            assert!(execute(&mut mailbox, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn impossible_lengths() {
        let mut mailbox = Mailbox::default();
        let result = mailbox.write(COMMAND_LENGTH_OFFSET, &u32::MAX.to_le_bytes());
        assert!(result.unwrap().unwrap_err().contains("room for 4096"));
        assert!(mailbox.write(COMMAND_LENGTH_OFFSET, &[1]).unwrap().is_err());
    }

    #[test]
    fn replies_are_whole_or_an_error() {
        let mut mailbox = Mailbox::default();
        mailbox.reply(&json!({"ok": true}));
        let mut bytes = [0; 11];
        mailbox.read(REPLY_OFFSET, &mut bytes);
        assert_eq!(&bytes, br#"{"ok":true}"#);
        mailbox.reply(&json!({"ok": true, "x": "y".repeat(REPLY_SIZE)}));
        let mut len = [0; 4];
        mailbox.read(REPLY_LENGTH_OFFSET, &mut len);
        let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
        mailbox.read(REPLY_OFFSET, &mut bytes);
        let reply: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(reply["ok"], false);
        // The reply can't be written.
        mailbox.write(REPLY_OFFSET, &[0xff; 8]);
        mailbox.read(REPLY_OFFSET, &mut len);
        assert_ne!(len, [0xff; 4]);
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            offset in prop_oneof![0u64..0x4100, any::<u64>()],
            data in proptest::collection::vec(any::<u8>(), 0..16),
        ) {
            let mut mailbox = Mailbox::default();
            let _ = mailbox.write(offset, &data);
            let mut back = data.clone();
            mailbox.read(offset, &mut back);
        }

        #[test]
        fn any_command_is_survived(text in any::<Vec<u8>>()) {
            let _ = parse(&text);
        }

        /// Commands that are nearly right, and settings of every type.
        #[test]
        fn any_setting_is_survived(
            cmd in prop_oneof!["set", "fault-now", "info", "[a-z_-]{0,12}"],
            key in prop_oneof![
                "faults", "fuzz", "offer", "max_bytes", "[a-z_]{0,9}",
            ],
            name in prop_oneof![
                "hold-ms", "gone", "used-bad-id", "[a-z=-]{0,20}", ".{0,8}",
            ],
            value in prop_oneof!["", "[0-9]{0,30}", ".{0,8}"],
        ) {
            let fault = format!("{name}={value}");
            for settings in [json!({key.as_str(): [&fault]}), json!({key.as_str(): &fault}), json!({key.as_str(): value})] {
                let command = json!({"cmd": cmd, "settings": settings, "fault": &fault});
                let _ = parse(command.to_string().as_bytes());
                let command = json!({"cmd": cmd, "settings": settings});
                if let Ok(Command::Set { settings }) = parse(command.to_string().as_bytes()) {
                    let _ = crate::settings::Settings::default().patched(&settings);
                }
            }
        }
    }
}
