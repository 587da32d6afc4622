// SPDX-License-Identifier: GPL-2.0

//! What the first process tells the watchdog, and what follows from it: pure logic.

use std::time::{Duration, Instant};

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// So many steps have been begun, and the next message comes within that time.
    Limit { steps: u32, ms: u64 },
    /// All is as it should be.
    Done,
    /// Something did not go on: see to it.
    HandOver,
}

/// The size of a message.
pub const SIZE: usize = 13;

impl Message {
    pub fn encode(self) -> [u8; SIZE] {
        let (kind, steps, ms) = match self {
            Self::Limit { steps, ms } => (b'L', steps, ms),
            Self::Done => (b'D', 0, 0),
            Self::HandOver => (b'H', 0, 0),
        };
        let mut bytes = [kind; SIZE];
        bytes[1..5].copy_from_slice(&steps.to_le_bytes());
        bytes[5..].copy_from_slice(&ms.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        let [kind, a, b, c, d, ms @ ..] = *bytes;
        match kind {
            b'L' => Some(Self::Limit {
                steps: u32::from_le_bytes([a, b, c, d]),
                ms: u64::from_le_bytes(ms),
            }),
            b'D' => Some(Self::Done),
            b'H' => Some(Self::HandOver),
            _ => None,
        }
    }
}

/// Why the watchdog takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Died,
    Late,
    HandedOver,
}

/// What the watchdog does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Waits for the next message, until then if that is known.
    Wait(Option<Instant>),
    /// Has done its work.
    End,
    /// Has all go on that was stopped.
    TakeOver(Why),
}

/// What the watchdog knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// How many steps have been begun.
    pub steps: u32,
    deadline: Option<Instant>,
}

impl Rules {
    /// A message has arrived; or none can any more, because the first process is gone.
    pub fn told(&mut self, message: Option<Message>, now: Instant) -> Next {
        match message {
            Some(Message::Limit { steps, ms }) => {
                self.steps = steps;
                self.deadline = now.checked_add(Duration::from_millis(ms));
                Next::Wait(self.deadline)
            }
            Some(Message::Done) => Next::End,
            Some(Message::HandOver) => Next::TakeOver(Why::HandedOver),
            None if self.steps == 0 => Next::End,
            None => Next::TakeOver(Why::Died),
        }
    }

    /// It is `now`.
    pub fn look(&self, now: Instant) -> Next {
        match self.deadline {
            Some(deadline) if now >= deadline => Next::TakeOver(Why::Late),
            deadline => Next::Wait(deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn messages() -> impl Strategy<Value = Message> {
        prop_oneof![
            (any::<u32>(), any::<u64>()).prop_map(|(steps, ms)| Message::Limit { steps, ms }),
            Just(Message::Done),
            Just(Message::HandOver),
        ]
    }

    proptest! {
        #[test]
        fn what_is_told_is_understood(message in messages()) {
            prop_assert_eq!(Message::decode(&message.encode()), Some(message));
        }

        #[test]
        fn garbage_is_not(bytes in vec(any::<u8>(), 0..40)) {
            if let Some(message) = Message::decode(&bytes) {
                prop_assert_eq!(bytes.len(), SIZE);
                prop_assert!(b"LDH".contains(&bytes[0]));
                prop_assert_eq!(message.encode()[0], bytes[0]);
            }
        }
    }

    #[test]
    fn one_that_dies_before_it_has_begun_leaves_nothing() {
        assert_eq!(Rules::default().told(None, Instant::now()), Next::End);
    }

    #[test]
    fn one_that_dies_later_does() {
        let (mut rules, now) = (Rules::default(), Instant::now());
        rules.told(Some(Message::Limit { steps: 1, ms: 5 }), now);
        assert_eq!(rules.told(None, now), Next::TakeOver(Why::Died));
        assert_eq!(rules.told(Some(Message::Done), now), Next::End);
    }

    #[test]
    fn one_that_is_late() {
        let (mut rules, now) = (Rules::default(), Instant::now());
        assert_eq!(rules.look(now), Next::Wait(None));
        let end = now + Duration::from_millis(5);
        let limit = Message::Limit { steps: 2, ms: 5 };
        assert_eq!(rules.told(Some(limit), now), Next::Wait(Some(end)));
        assert_eq!(rules.look(now), Next::Wait(Some(end)));
        assert_eq!(rules.look(end), Next::TakeOver(Why::Late));
        // Each message counts anew.
        rules.told(Some(limit), end);
        assert_eq!(
            rules.look(end),
            Next::Wait(Some(end + Duration::from_millis(5)))
        );
        assert_eq!(rules.steps, 2);
    }
}
