// SPDX-License-Identifier: GPL-2.0

//! A device that answers out of a seeded random stream: `--fuzz SEED`, and `"fuzz"` in the mailbox.
//!
//! It begins at DRIVER_OK, so that a driver binds, and ends at every reset until the next
//! DRIVER_OK. There is one stream for each kind of answer: the nth status read, the nth buffer, the
//! nth notification and the nth suspend get the same answer for the same seed, whatever happens in
//! between and at whatever time.
//!
//! Nothing random makes a device gone for good, ends the connection or keeps a driver from binding:
//! every seed leaves a device that a reset gets going again.

use crate::fault::{Effect, Fault, Faults, Moment, Name};
use crate::random::Stream;
use crate::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, SUSPEND};

const SET_UP: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

/// What a status read may answer instead of the truth.
const PLAUSIBLE: [u8; 10] = [
    SET_UP | DRIVER_OK,
    SET_UP | DRIVER_OK,
    SET_UP | SUSPEND,
    SET_UP | SUSPEND,
    SET_UP | DRIVER_OK | SUSPEND,
    SET_UP,
    SET_UP | DRIVER_OK | NEEDS_RESET,
    ACKNOWLEDGE | DRIVER | DRIVER_OK,
    0x00,
    0xff,
];

/// What a suspend, with the resume after it, may do wrong.
const EPISODE: [Name; 26] = [
    Name::SuspendIgnored,
    Name::SuspendNever,
    Name::SuspendLate,
    Name::SuspendDropped,
    Name::DriverOkKept,
    Name::ConfigChangeBefore,
    Name::ConfigChangeDuring,
    Name::ConfigChangeWhile,
    Name::ConfigChangeAfter,
    Name::UsedIrqAfterSuspend,
    Name::UsedAfterSuspend,
    Name::ResumeNeedsClear,
    Name::ResumeNever,
    Name::ResumeLate,
    Name::At(Effect::NeedsReset, Moment::OnSuspend),
    Name::At(Effect::NeedsReset, Moment::WhileSuspended),
    Name::At(Effect::NeedsReset, Moment::OnResume),
    Name::At(Effect::StatusZero, Moment::OnSuspend),
    Name::At(Effect::StatusZero, Moment::WhileSuspended),
    Name::At(Effect::StatusZero, Moment::OnResume),
    Name::At(Effect::StatusOnes, Moment::OnSuspend),
    Name::At(Effect::StatusOnes, Moment::WhileSuspended),
    Name::At(Effect::StatusOnes, Moment::OnResume),
    Name::At(Effect::StatusRandom, Moment::OnSuspend),
    Name::At(Effect::FeaturesOkDropped, Moment::WhileSuspended),
    Name::At(Effect::StatusRandom, Moment::OnResume),
];

/// Longest delay, in milliseconds: most drivers have a deadline, and a fuzz run many suspends.
const MAX_MS: u64 = 40;

/// What becomes of a used-buffer notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// It is sent.
    Sent,
    /// It is not.
    Lost,
    /// It is sent so many milliseconds late.
    Late(u64),
    /// It is sent twice.
    Twice,
}

/// What happens at a notification of the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// Nothing.
    None,
    /// A configuration change.
    ConfigChange,
    /// A used-buffer notification for nothing.
    Spurious,
    /// DEVICE_NEEDS_RESET.
    NeedsReset,
    /// The device resets itself.
    Reset,
}

/// What is done to a buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mischief {
    /// How many milliseconds it is in process.
    pub hold_ms: u64,
    /// Another ID.
    pub id: Option<u16>,
    /// Another length.
    pub len: Option<u32>,
    /// More used entries, each an ID and a length.
    pub extra: Vec<(u16, u32)>,
    /// What is in the buffer is wrong: the seed of what it is instead.
    pub lie: Option<u64>,
}

/// The streams.
#[derive(Clone, Debug)]
pub struct Fuzz {
    seed: u64,
    status: Stream,
    registers: Stream,
    suspends: Stream,
    buffers: Stream,
    notifications: Stream,
    incidents: Stream,
    answers: Stream,
    /// The faults of the suspend that is under way.
    episode: Faults,
}

impl Fuzz {
    /// The streams of `seed`, from their beginning.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            status: Stream::new(seed, 1),
            registers: Stream::new(seed, 2),
            suspends: Stream::new(seed, 3),
            buffers: Stream::new(seed, 4),
            notifications: Stream::new(seed, 5),
            incidents: Stream::new(seed, 6),
            answers: Stream::new(seed, 7),
            episode: Faults::default(),
        }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What a read of status answers; mostly the truth.
    pub fn status(&mut self, truth: u8) -> u8 {
        match self.status.below(100) {
            0..=79 => truth,
            80..=97 => self.status.pick(&PLAUSIBLE),
            _ => self.status.draw() as u8,
        }
    }

    /// What a read of another register answers.
    pub fn registers(&mut self, data: &mut [u8]) {
        if self.registers.one_in(16) {
            for byte in data {
                *byte = self.registers.draw() as u8;
            }
        }
    }

    /// SUSPEND was written: draws what goes wrong until the next time.
    pub fn suspend(&mut self) -> &Faults {
        let count = match self.suspends.below(8) {
            0..=3 => 0,
            4..=6 => 1,
            _ => 2,
        };
        let fault = |_| {
            let name = self.suspends.pick(&EPISODE);
            Fault::with(name, self.suspends.below(MAX_MS))
        };
        self.episode = Faults::new((0..count).map(fault).collect());
        &self.episode
    }

    /// What goes wrong now.
    pub fn episode(&self) -> &Faults {
        &self.episode
    }

    /// The device was reset.
    pub fn reset(&mut self) {
        self.episode = Faults::default();
    }

    /// How long the suspend, or the resume, takes in milliseconds.
    pub fn delay_ms(&mut self) -> u64 {
        match self.suspends.below(2) {
            0 => 0,
            _ => self.suspends.below(MAX_MS),
        }
    }

    /// What is done to the next buffer of a queue of `size`.
    pub fn buffer(&mut self, size: u16) -> Mischief {
        let mut mischief = Mischief {
            lie: self.answers.one_in(16).then(|| self.answers.draw()),
            ..Mischief::default()
        };
        let roll = self.buffers.below(100);
        if roll < 80 {
            return mischief;
        }
        let id = match self.buffers.below(3) {
            0 => self.buffers.draw() as u16,
            1 => size,
            _ => self.buffers.below(size.into()) as u16,
        };
        let len = match self.buffers.below(3) {
            0 => 0,
            1 => self.buffers.below(1 << 17) as u32,
            _ => u32::MAX,
        };
        match roll {
            80..=87 => mischief.hold_ms = self.buffers.below(MAX_MS),
            88..=93 => mischief.len = Some(len),
            94..=95 => mischief.id = Some(id),
            96..=97 => mischief.extra.push((id, len)),
            _ => {
                let count = 1 + self.buffers.below(2 * u64::from(size));
                mischief.extra = (0..count.min(64)).map(|_| (id, len)).collect();
            }
        }
        mischief
    }

    /// What becomes of the next used-buffer notification.
    pub fn notification(&mut self) -> Notification {
        match self.notifications.below(100) {
            0..=84 => Notification::Sent,
            85..=89 => Notification::Lost,
            90..=94 => Notification::Late(self.notifications.below(MAX_MS)),
            _ => Notification::Twice,
        }
    }

    /// What happens at the next notification of the driver's.
    pub fn incident(&mut self) -> Incident {
        match self.incidents.below(256) {
            0 => Incident::Reset,
            1..=2 => Incident::NeedsReset,
            3..=10 => Incident::ConfigChange,
            11..=30 => Incident::Spurious,
            _ => Incident::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that one stream of each kind says.
    fn answers(seed: u64, interleave: bool) -> Vec<String> {
        let mut fuzz = Fuzz::new(seed);
        let mut all = Vec::new();
        for _ in 0..50 {
            all.push(format!("{}", fuzz.status(0x0f)));
        }
        for _ in 0..50 {
            if interleave {
                // In between, and not part of the answer.
                fuzz.status(0x0f);
                fuzz.notification();
                fuzz.incident();
            }
            all.push(format!("{:?}", fuzz.suspend()));
            all.push(format!("{:?}", fuzz.buffer(8)));
        }
        all
    }

    #[test]
    fn a_seed_replays_whatever_happens_in_between() {
        assert_eq!(answers(7, false), answers(7, true));
        assert_ne!(answers(7, false), answers(8, false));
    }

    #[test]
    fn it_is_not_always_wrong_and_not_always_right() {
        let mut fuzz = Fuzz::new(1);
        let lies = (0..1000).filter(|_| fuzz.status(0x0f) != 0x0f).count();
        assert!((50..400).contains(&lies), "{lies}");
        let faulty = (0..1000).filter(|_| !fuzz.suspend().is_empty()).count();
        assert!((300..700).contains(&faulty), "{faulty}");
    }

    proptest! {
        #[test]
        fn bounded(seed in any::<u64>(), size in 1u16..=32768) {
            let mut fuzz = Fuzz::new(seed);
            for _ in 0..200 {
                let mischief = fuzz.buffer(size);
                prop_assert!(mischief.extra.len() <= 64);
                prop_assert!(mischief.hold_ms < MAX_MS);
                prop_assert!(fuzz.delay_ms() < MAX_MS);
            }
        }
    }
}
