// SPDX-License-Identifier: GPL-2.0

//! What can be set by an option and changed through the mailbox.

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::fault::{Faults, Name, MAX_DELAY_MS};
use crate::features::Offer;
use crate::like::Like;

/// The ring layout that is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RingKind {
    /// Split virtqueues only.
    #[default]
    Split,
    /// RING_PACKED is offered; a driver that does not accept it gets split virtqueues.
    Packed,
}

/// What an entropy device answers with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Random bytes of the host.
    #[default]
    Random,
    /// A stream of little-endian u32: 0, 1, 2, ..., from the last device reset on.
    Counter,
}

/// Whether the judge judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judging {
    /// Each violation is recorded.
    #[default]
    On,
    /// They are counted only: the driver breaks the rules on purpose.
    Off,
}

/// The settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// SUSPEND bits offered. Takes effect at the next reset.
    pub offer: Offer,
    /// Ring layout offered. Takes effect at the next reset.
    pub ring: RingKind,
    /// INDIRECT_DESC offered. Takes effect at the next reset.
    pub indirect: bool,
    /// EVENT_IDX offered. Takes effect at the next reset.
    pub event_idx: bool,
    /// ACCESS_PLATFORM offered: the driver uses the DMA API. Takes effect at the next reset.
    pub access_platform: bool,
    /// From the SUSPEND write to presenting the suspended condition.
    pub delay_suspend_ms: u64,
    /// From the resume write to presenting the resumed condition.
    pub delay_resume_ms: u64,
    /// Refuse to suspend: DEVICE_NEEDS_RESET in 1.4, no answer in the draft.
    pub refuse_suspend: bool,
    /// Contents of the buffers.
    pub data: DataKind,
    /// Take buffers in process without finishing them.
    pub hold: bool,
    /// Most bytes put into one buffer.
    pub max_bytes: Option<u32>,
    /// Look for available buffers after a resume without being notified.
    pub rescan_on_resume: bool,
    /// What it does wrong.
    pub faults: Faults,
    /// Which it is like: some of `faults` come from there.
    #[serde(skip)]
    pub like: Option<Like>,
    /// Answers out of the random stream of this seed.
    pub fuzz: Option<u64>,
    /// Whether the judge judges. A client finds it on.
    pub judge: Judging,
}

/// A partial change of the settings, as the mailbox takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    offer: Option<Offer>,
    ring: Option<RingKind>,
    indirect: Option<bool>,
    event_idx: Option<bool>,
    access_platform: Option<bool>,
    delay_suspend_ms: Option<u64>,
    delay_resume_ms: Option<u64>,
    refuse_suspend: Option<bool>,
    data: Option<DataKind>,
    hold: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    max_bytes: Option<Option<u32>>,
    rescan_on_resume: Option<bool>,
    faults: Option<Faults>,
    /// Sets `offer`, and faults before those of `faults`.
    like: Option<Like>,
    #[serde(default, deserialize_with = "present")]
    fuzz: Option<Option<u64>>,
    judge: Option<Judging>,
}

impl Patch {
    /// Whether faults are set, be they what they were: what is over is to be undone.
    pub fn sets_faults(&self) -> bool {
        self.faults.is_some() || self.like.is_some() || self.sets_fuzz()
    }

    /// Whether the random stream is to begin anew.
    pub fn sets_fuzz(&self) -> bool {
        self.fuzz.is_some()
    }
}

/// Tells `"max_bytes": null` (no cap) from an absent key (no change).
fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// A value that can't be set.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingsError {
    /// A delay is too long.
    #[error("{name} is {value}; at most {MAX_DELAY_MS} (an hour) is possible")]
    Delay {
        /// Which.
        name: &'static str,
        /// What was asked for.
        value: u64,
    },
    /// What "like" sets is set otherwise.
    #[error("like sets offer: leave that out")]
    Like,
    /// A cap of no bytes.
    #[error("max_bytes is 0; use at least 1, or null for no cap")]
    MaxBytes,
}

impl Settings {
    /// Whether the values are possible.
    pub fn check(&self) -> Result<(), SettingsError> {
        for (name, value) in [
            ("delay_suspend_ms", self.delay_suspend_ms),
            ("delay_resume_ms", self.delay_resume_ms),
        ] {
            if value > MAX_DELAY_MS {
                return Err(SettingsError::Delay { name, value });
            }
        }
        if self.max_bytes == Some(0) {
            return Err(SettingsError::MaxBytes);
        }
        Ok(())
    }

    /// These settings with `patch` applied, or an error and nothing changed.
    pub fn patched(&self, patch: &Patch) -> Result<Self, SettingsError> {
        let (offer, faults) = match patch.like {
            Some(_) if patch.offer.is_some() => return Err(SettingsError::Like),
            Some(like) => {
                let more = patch.faults.iter().flat_map(Faults::iter).copied();
                let faults = like.faults().into_iter().chain(more).collect();
                (Some(like.offer()), Some(Faults::new(faults)))
            }
            None => (patch.offer, patch.faults.clone()),
        };
        let new = Self {
            offer: offer.unwrap_or(self.offer),
            ring: patch.ring.unwrap_or(self.ring),
            indirect: patch.indirect.unwrap_or(self.indirect),
            event_idx: patch.event_idx.unwrap_or(self.event_idx),
            access_platform: patch.access_platform.unwrap_or(self.access_platform),
            delay_suspend_ms: patch.delay_suspend_ms.unwrap_or(self.delay_suspend_ms),
            delay_resume_ms: patch.delay_resume_ms.unwrap_or(self.delay_resume_ms),
            refuse_suspend: patch.refuse_suspend.unwrap_or(self.refuse_suspend),
            data: patch.data.unwrap_or(self.data),
            hold: patch.hold.unwrap_or(self.hold),
            max_bytes: patch.max_bytes.unwrap_or(self.max_bytes),
            rescan_on_resume: patch.rescan_on_resume.unwrap_or(self.rescan_on_resume),
            like: match faults {
                Some(_) => patch.like,
                None => self.like,
            },
            faults: faults.unwrap_or_else(|| self.faults.clone()),
            fuzz: patch.fuzz.unwrap_or(self.fuzz),
            judge: patch.judge.unwrap_or(self.judge),
        };
        new.check()?;
        Ok(new)
    }

    /// The settings that differ from `active`, which took effect at the last reset, and wait for
    /// the next one.
    pub fn pending(&self, active: &Self) -> Vec<&'static str> {
        [
            ("offer", self.offer != active.offer),
            ("ring", self.ring != active.ring),
            ("indirect", self.indirect != active.indirect),
            ("event_idx", self.event_idx != active.event_idx),
            (
                "access_platform",
                self.access_platform != active.access_platform,
            ),
            (
                "faults",
                self.faults.has(Name::AdminVq) != active.faults.has(Name::AdminVq),
            ),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(text: &str) -> Result<Patch, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn partial_changes() {
        let settings = Settings {
            max_bytes: Some(8),
            ..Settings::default()
        };
        let new = settings
            .patched(&patch(r#"{"offer":"both","hold":true}"#).unwrap())
            .unwrap();
        assert_eq!((new.offer, new.hold), (Offer::Both, true));
        assert_eq!(new.max_bytes, Some(8));
        assert_eq!(new.pending(&settings), ["offer"]);

        let new = settings
            .patched(&patch(r#"{"max_bytes":null}"#).unwrap())
            .unwrap();
        assert_eq!(new.max_bytes, None);

        let text = r#"{"faults":["admin-vq","hold-ms=5"],"fuzz":7}"#;
        let new = settings.patched(&patch(text).unwrap()).unwrap();
        assert_eq!(new.faults.get(Name::HoldMs), Some(5));
        assert_eq!(new.fuzz, Some(7));
        assert_eq!(new.pending(&settings), ["faults"]);
        // What `info` says of the settings can be set.
        let mut all = serde_json::to_value(&new).unwrap();
        assert_eq!(all["faults"], serde_json::json!(["admin-vq", "hold-ms=5"]));
        all["fuzz"] = serde_json::Value::Null;
        let again = serde_json::from_value(all).unwrap();
        assert_eq!(settings.patched(&again).unwrap().fuzz, None);
        assert_eq!(new.patched(&again).unwrap().faults, new.faults);
    }

    #[test]
    fn bad_values() {
        for text in [
            r#"{"offer":"44"}"#,
            r#"{"offer":43}"#,
            r#"{"speed":1}"#,
            r#"{"delay_suspend_ms":-1}"#,
            r#"{"hold":"yes"}"#,
            r#"{"faults":["toaster"]}"#,
            r#"{"like":"toaster"}"#,
            r#"{"faults":"gone"}"#,
            r#"{"faults":["hold-ms=x"]}"#,
            r#"{"fuzz":-1}"#,
            r#"{"judge":false}"#,
            r#"[]"#,
        ] {
            assert!(patch(text).is_err(), "{text}");
        }
        let settings = Settings::default();
        for text in [
            r#"{"delay_resume_ms":3600001}"#,
            r#"{"hold":true,"max_bytes":0}"#,
            r#"{"like":"crosvm","offer":"43"}"#,
        ] {
            assert!(settings.patched(&patch(text).unwrap()).is_err(), "{text}");
        }
    }
}
