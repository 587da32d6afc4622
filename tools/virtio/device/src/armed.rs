// SPDX-License-Identifier: GPL-2.0

//! Which of the faults that were set took effect.
//!
//! A test that sets a fault and sees nothing go wrong has shown nothing if the fault did not
//! happen. So a fault that is taken back without having taken effect is remembered, and `stats`
//! tells it; but for those of a device that this one is like, which belong together.

use crate::fault::{Fault, Name};
use crate::like::Like;
use crate::settings::Settings;

/// How many faults are listed of each kind: the mailbox has room for so many.
const LISTED: usize = 16;

/// The faults that are set, each with whether it took effect, and those that never did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    set: Vec<Entry>,
    idle: Vec<String>,
}

/// A fault that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    fault: Fault,
    took_effect: bool,
    /// Whether somebody asked for this very one.
    is_asked_for: bool,
}

impl Armed {
    /// The faults of these settings are set, none of which has taken effect.
    pub fn new(settings: &Settings) -> Self {
        let mut new = Self::default();
        new.change(settings);
        new
    }

    /// From now on those of these settings are set. One that was set before stays what it is.
    pub fn change(&mut self, settings: &Settings) {
        let belong = settings.like.map(Like::faults).unwrap_or_default();
        let before = std::mem::take(&mut self.set);
        for fault in settings.faults.iter() {
            self.set.push(Entry {
                fault: *fault,
                took_effect: before
                    .iter()
                    .any(|old| old.fault == *fault && old.took_effect),
                is_asked_for: !belong.contains(fault),
            });
        }
        let idle = before.iter().filter(|old| {
            let is_set = settings.faults.iter().any(|new| *new == old.fault);
            old.is_asked_for && !old.took_effect && !is_set
        });
        for old in idle {
            if self.idle.len() < LISTED {
                self.idle.push(old.fault.to_string());
            }
        }
    }

    /// A fault takes effect, which may be one that is not set but drawn at random.
    pub fn took_effect(&mut self, name: Name) {
        for entry in self.set.iter_mut().filter(|e| e.fault.name == name) {
            entry.took_effect = true;
        }
    }

    /// The faults that were taken back without having taken effect, oldest first.
    pub fn idle(&self) -> &[String] {
        &self.idle
    }

    /// The faults that are set and have taken effect since they were.
    pub fn effective(&self) -> Vec<String> {
        let took = self.set.iter().filter(|entry| entry.took_effect);
        took.take(LISTED)
            .map(|entry| entry.fault.to_string())
            .collect()
    }

    /// Forgets those that had no effect. What is set stays what it is.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Faults;

    fn faults(texts: &[&str]) -> Settings {
        Settings {
            faults: Faults::new(texts.iter().map(|text| text.parse().unwrap()).collect()),
            ..Settings::default()
        }
    }

    #[test]
    fn those_of_a_device_that_it_is_like_need_not_take_effect() {
        let like = Like::FiveBsd;
        let more: Fault = "used-zero".parse().unwrap();
        let settings = Settings {
            like: Some(like),
            faults: Faults::new(like.faults().into_iter().chain([more]).collect()),
            ..Settings::default()
        };
        let mut armed = Armed::new(&settings);
        armed.took_effect(Name::DrainLimit);
        assert_eq!(armed.effective(), ["drain-limit=100"]);
        armed.change(&faults(&[]));
        assert_eq!(armed.idle(), ["used-zero"]);
    }

    #[test]
    fn a_fault_that_takes_effect_is_not_idle() {
        let mut armed = Armed::new(&faults(&["used-zero"]));
        assert!(armed.effective().is_empty());
        armed.took_effect(Name::UsedZero);
        assert_eq!(armed.effective(), ["used-zero"]);
        armed.clear();
        armed.change(&faults(&[]));
        assert!(armed.idle().is_empty());
    }

    #[test]
    fn one_that_does_not_is() {
        let mut armed = Armed::default();
        armed.change(&faults(&["hold-ms=5", "used-zero"]));
        armed.took_effect(Name::UsedZero);
        assert!(armed.idle().is_empty(), "it is still set");
        armed.change(&faults(&["used-zero"]));
        assert_eq!(armed.idle(), ["hold-ms=5"]);
        armed.change(&faults(&[]));
        assert_eq!(armed.idle(), ["hold-ms=5"]);
        armed.clear();
        assert!(armed.idle().is_empty());
    }

    #[test]
    fn another_argument_is_another_fault_and_what_stays_set_stays_what_it_is() {
        let mut armed = Armed::new(&faults(&["hold-ms=5", "used-long"]));
        armed.took_effect(Name::HoldMs);
        armed.took_effect(Name::UsedLong);
        armed.change(&faults(&["hold-ms=6", "used-long"]));
        armed.change(&faults(&[]));
        assert_eq!(armed.idle(), ["hold-ms=6"]);
    }

    #[test]
    fn the_list_is_bounded() {
        let mut armed = Armed::default();
        for ms in 0..100 {
            armed.change(&faults(&[&format!("hold-ms={ms}")]));
        }
        assert_eq!(armed.idle().len(), LISTED);
    }
}
