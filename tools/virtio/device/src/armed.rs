// SPDX-License-Identifier: GPL-2.0

//! Which of the faults that were set took effect.
//!
//! A test that sets a fault and sees nothing go wrong has shown nothing if the fault did not
//! happen. So a fault that is taken back without having taken effect is remembered, and `stats`
//! tells it.

use crate::fault::{Fault, Faults, Name};

/// How many faults are listed of each kind: the mailbox has room for so many.
const LISTED: usize = 16;

/// The faults that are set, each with whether it took effect, and those that never did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    set: Vec<(Fault, bool)>,
    idle: Vec<String>,
}

impl Armed {
    /// These are set, none of which has taken effect.
    pub fn new(faults: &Faults) -> Self {
        Self {
            set: faults.iter().map(|fault| (*fault, false)).collect(),
            idle: Vec::new(),
        }
    }

    /// From now on these are set. One that was set before stays what it is.
    pub fn change(&mut self, faults: &Faults) {
        let before = std::mem::take(&mut self.set);
        for fault in faults.iter() {
            let took = before.iter().any(|(old, took)| old == fault && *took);
            self.set.push((*fault, took));
        }
        let gone = before
            .iter()
            .filter(|(fault, took)| !took && !faults.iter().any(|new| new == fault));
        for (fault, _) in gone {
            if self.idle.len() < LISTED {
                self.idle.push(fault.to_string());
            }
        }
    }

    /// A fault takes effect, which may be one that is not set but drawn at random.
    pub fn took_effect(&mut self, name: Name) {
        for (_, took) in self.set.iter_mut().filter(|(fault, _)| fault.name == name) {
            *took = true;
        }
    }

    /// The faults that were taken back without having taken effect, oldest first.
    pub fn idle(&self) -> &[String] {
        &self.idle
    }

    /// The faults that are set and have taken effect since they were.
    pub fn effective(&self) -> Vec<String> {
        let took = self.set.iter().filter(|(_, took)| *took);
        took.take(LISTED)
            .map(|(fault, _)| fault.to_string())
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

    fn faults(texts: &[&str]) -> Faults {
        Faults::new(texts.iter().map(|text| text.parse().unwrap()).collect())
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
