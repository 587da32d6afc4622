// SPDX-License-Identifier: GPL-2.0

//! What the device can be told to do wrong: `--fault`, and `"faults"` in the mailbox.
//!
//! A fault is a name, `suspend-never`, or a name with an argument, `suspend-late=500`. Here is what
//! there is and how it is written; what follows from it is the device's business
//! (`device/faulty.rs`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The longest time that can be asked for: an hour.
pub const MAX_DELAY_MS: u64 = 3_600_000;

/// Defines [`Effect`], and how each is written and explained.
macro_rules! effects {
    ($($effect:ident = $name:literal, $what:literal;)*) => {
        /// Something that breaks a device from one moment to the next.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Effect {
            $(#[doc = $what] $effect,)*
        }

        const EFFECTS: &[(Effect, &str, &str)] = &[$((Effect::$effect, $name, $what),)*];
    };
}

effects! {
    NeedsReset = "needs-reset",
        "DEVICE_NEEDS_RESET is set";
    StatusZero = "status-zero",
        "the device resets itself: status reads 0, queues are disabled";
    StatusOnes = "status-ones",
        "all registers read as ones until a reset, which works";
    Gone = "gone",
        "all registers read as ones and ignore writes, until the fault is cleared";
    Away = "away",
        "all registers read as ones and ignore writes, until the fault is cleared; then as before";
    StatusRandom = "status-random",
        "status reads as random bits until a reset";
    FeaturesOkDropped = "features-ok-dropped",
        "status reads without FEATURES_OK until a reset";
    Disconnect = "disconnect",
        "the server closes the connection (at the next access)";
    Exit = "exit",
        "the server exits";
}

/// When an [`Effect`] takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// When SUSPEND is written.
    OnSuspend,
    /// Some time after the suspended condition was presented.
    WhileSuspended,
    /// At the write that resumes.
    OnResume,
}

const MOMENTS: [(Moment, &str, &str); 3] = [
    (Moment::OnSuspend, "on-suspend", "when SUSPEND is written"),
    (
        Moment::WhileSuspended,
        "while-suspended",
        "MS after the suspended condition was presented",
    ),
    (
        Moment::OnResume,
        "on-resume",
        "at the write that asks to resume",
    ),
];

impl Effect {
    /// Its name.
    pub fn name(self) -> &'static str {
        EFFECTS
            .iter()
            .find(|(effect, ..)| *effect == self)
            .map_or("", |(_, name, _)| name)
    }

    /// Whether the argument is a seed, not a time.
    fn is_seeded(self) -> bool {
        self == Self::StatusRandom
    }
}

/// The argument a fault takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arg {
    None,
    /// Milliseconds, and what they are unless given.
    Ms(u64),
    /// Bytes, and how many they are unless given.
    Bytes(u64),
    /// A buffer ID; the queue size, which is none, unless given.
    Id,
    /// The seed of a random stream; 0 unless given.
    Seed,
    /// How often, or how many, and what that is unless given.
    Count(u64),
}

/// Defines [`Name`], and how each fault that is no effect is written, what argument it takes and how
/// it is explained: a fault is an entry here, what follows from it, and a line in the README.
macro_rules! faults {
    ($($fault:ident = $name:literal, $arg:expr, $what:literal;)*) => {
        /// The name of a fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Name {
            /// An effect at a moment of a suspend.
            At(Effect, Moment),
            $(#[doc = $what] $fault,)*
        }

        /// The faults that are no effects.
        const OTHERS: &[(Name, &str, Arg, &str)] = &[$((Name::$fault, $name, $arg, $what),)*];
    };
}

faults! {
    SuspendIgnored = "suspend-ignored", Arg::None,
        "the SUSPEND write has no effect, the device goes on";
    SuspendStored = "suspend-stored", Arg::None,
        "presents SUSPEND as written where it is to be ignored: before DRIVER_OK, or not negotiated (breaks V1)";
    SuspendNever = "suspend-never", Arg::None,
        "stops consuming but never presents SUSPEND; honours a rollback";
    SuspendLate = "suspend-late", Arg::Ms(1000),
        "presents SUSPEND after MS, even if it was taken back meanwhile";
    SuspendDropped = "suspend-dropped", Arg::Ms(20),
        "presents SUSPEND, and runs again by itself MS later";
    SuspendNeedsQueues = "suspend-needs-queues", Arg::Count(1),
        "the SUSPEND write has no effect while fewer than COUNT virtqueues are enabled";
    SuspendWearsOut = "suspend-wears-out", Arg::Count(10),
        "the SUSPEND write has no effect when the device has suspended COUNT times since its reset";
    SuspendTwiceCancels = "suspend-twice-cancels", Arg::None,
        "runs again when SUSPEND is written once more while it suspends";
    CancelStops = "cancel-stops", Arg::None,
        "runs again when a suspend is taken back, but consumes no buffer until resumed or reset";
    DriverOkKept = "driver-ok-kept", Arg::None,
        "presents SUSPEND together with DRIVER_OK, as 1.4 does not have it";
    ConfigChangeBefore = "config-change-before-suspend", Arg::None,
        "a configuration change notification when SUSPEND is written";
    ConfigChangeDuring = "config-change-during-suspend", Arg::Ms(20),
        "a configuration change while suspended, notified after the resume (as V4 has it)";
    ConfigChangeWhile = "config-change-while-suspended", Arg::Ms(20),
        "a configuration change while suspended, notified at once (breaks V3, V4)";
    ConfigChangeAfter = "config-change-after-suspend", Arg::None,
        "a configuration change notification right after the resume";
    ConfigIrqLost = "config-irq-lost", Arg::None,
        "configuration change notifications are not sent";
    UsedIrqLost = "used-irq-lost", Arg::None,
        "used-buffer notifications are not sent";
    UsedIrqLate = "used-irq-late", Arg::Ms(100),
        "used-buffer notifications are sent MS late";
    UsedIrqSpurious = "used-irq-spurious", Arg::None,
        "a used-buffer notification of every queue at every kick and status access";
    UsedIrqAfterSuspend = "used-irq-after-suspend", Arg::Ms(20),
        "a used-buffer notification of every queue MS after SUSPEND was presented";
    UsedBadId = "used-bad-id", Arg::Id,
        "used entries have this ID, which was not made available";
    UsedTwice = "used-twice", Arg::None,
        "every buffer is put into the used ring twice";
    UsedLong = "used-long", Arg::Bytes(4096),
        "used lengths are this much larger than the buffer";
    UsedZero = "used-zero", Arg::None,
        "used lengths are zero";
    UsedAfterSuspend = "used-after-suspend", Arg::Ms(20),
        "buffers stay in process, and are put into the used ring MS after SUSPEND was presented";
    InProcessLost = "in-process-lost", Arg::Count(8),
        "forgets the buffers in process but COUNT when SUSPEND is written (breaks V2)";
    AvailLost = "avail-lost", Arg::None,
        "forgets the buffers that are available when SUSPEND is written (breaks V2)";
    WritesLost = "writes-lost", Arg::None,
        "a disk says that it has written, but has not, what it begins with while it suspends (breaks V2)";
    BuffersWritten = "buffers-written", Arg::Ms(20),
        "writes to buffers that are available MS after SUSPEND was presented (breaks V3)";
    HoldMs = "hold-ms", Arg::Ms(100),
        "every buffer is in process for MS; a suspend waits for it (V2)";
    WorksSuspended = "works-while-suspended", Arg::None,
        "goes on with its queues while suspended, and notifies after the resume (breaks V2, V3)";
    ConfigWritesTaken = "config-writes-taken", Arg::None,
        "configuration writes have their effect while suspended (breaks V3)";
    WritesDropped = "writes-dropped", Arg::None,
        "ignores status writes, but a reset, until it has suspended";
    DrainLimit = "drain-limit", Arg::Ms(100),
        "sets DEVICE_NEEDS_RESET if it has not suspended after MS";
    AvailLeft = "avail-left", Arg::None,
        "available buffers stay in the ring until the device was suspended and resumed";
    ResumeNeedsClear = "resume-needs-clear", Arg::None,
        "resumes only when SUSPEND is written as clear";
    ResumeNeedsKept = "resume-needs-kept", Arg::None,
        "1.4: resumes only when SUSPEND is written as set";
    StatusWriteResumes = "status-write-resumes", Arg::None,
        "runs again at any status write while suspended";
    QueueResetStops = "queue-reset-stops", Arg::None,
        "consumes no buffer after a resume if a virtqueue was reset before";
    ResumeNever = "resume-never", Arg::None,
        "never presents that it has resumed";
    ResumeLate = "resume-late", Arg::Ms(1000),
        "presents MS after the write that it has resumed";
    ResetLate = "reset-late", Arg::Ms(1000),
        "presents the status it had until MS after the driver has reset it";
    ResetKeepsStopped = "reset-keeps-stopped", Arg::None,
        "consumes no buffer after a reset while suspended, until resumed or reset again";
    FeaturesOkRefused = "features-ok-refused", Arg::None,
        "FEATURES_OK does not stay set, whatever the driver accepts";
    AdminVq = "admin-vq", Arg::None,
        "offers ADMIN_VQ, with a working administration virtqueue, from the next reset on";
}

impl Name {
    /// All there are.
    pub fn all() -> impl Iterator<Item = Self> {
        let others = OTHERS.iter().map(|(name, ..)| *name);
        let at = EFFECTS.iter().flat_map(|(effect, ..)| {
            MOMENTS
                .iter()
                .map(|(moment, ..)| Self::At(*effect, *moment))
        });
        others.chain(at)
    }

    fn arg(self) -> Arg {
        match self {
            Self::At(effect, _) if effect.is_seeded() => Arg::Seed,
            Self::At(_, Moment::WhileSuspended) => Arg::Ms(20),
            Self::At(..) => Arg::None,
            other => OTHERS
                .iter()
                .find(|(name, ..)| *name == other)
                .map_or(Arg::None, |(_, _, arg, _)| *arg),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::At(effect, moment) => {
                let (_, moment, _) = MOMENTS[moment as usize];
                write!(f, "{}-{moment}", effect.name())
            }
            other => {
                let name = OTHERS.iter().find(|(name, ..)| *name == other);
                f.write_str(name.map_or("", |(_, name, ..)| name))
            }
        }
    }
}

/// A fault that does not exist, or can't have that argument.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FaultError {
    /// No such name.
    #[error("there is no fault {0:?}; --help lists them")]
    Name(String),
    /// It takes no argument.
    #[error("{0} takes no argument")]
    NoArgument(String),
    /// The argument is not a number, or out of range.
    #[error("{name}: {value:?} is not a number from 0 to {max}")]
    Argument {
        /// The fault.
        name: String,
        /// The argument.
        value: String,
        /// The greatest possible.
        max: u64,
    },
}

/// A fault with its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub name: Name,
    /// The argument, if one was given.
    given: Option<u64>,
}

impl Fault {
    /// With an argument, which counts if the fault takes one.
    pub fn with(name: Name, arg: u64) -> Self {
        let given = (name.arg() != Arg::None).then_some(arg);
        Self { name, given }
    }

    /// The argument: milliseconds, bytes, an ID or a seed. Without one it is the default.
    pub fn arg(&self) -> u64 {
        self.given.unwrap_or(match self.name.arg() {
            Arg::None | Arg::Seed => 0,
            Arg::Ms(default) | Arg::Bytes(default) | Arg::Count(default) => default,
            Arg::Id => u64::MAX,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match self.given {
            Some(arg) => write!(f, "={arg}"),
            None => Ok(()),
        }
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    }
}

fn number(name: &str, value: &str, max: u64) -> Result<u64, FaultError> {
    value
        .parse()
        .ok()
        .filter(|number| *number <= max)
        .ok_or_else(|| FaultError::Argument {
            name: name.into(),
            value: value.into(),
            max,
        })
}

impl FromStr for Fault {
    type Err = FaultError;

    /// An effect without a moment means on-suspend.
    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (text, value) = split(text);
        let effect = EFFECTS.iter().find(|(_, name, _)| *name == text);
        let name = match effect {
            Some((effect, ..)) => Name::At(*effect, Moment::OnSuspend),
            None => Name::all()
                .find(|name| name.to_string() == text)
                .ok_or_else(|| FaultError::Name(text.into()))?,
        };
        let Some(value) = value else {
            return Ok(Self { name, given: None });
        };
        let max = match name.arg() {
            Arg::None => return Err(FaultError::NoArgument(text.into())),
            Arg::Ms(_) => MAX_DELAY_MS,
            Arg::Bytes(_) | Arg::Count(_) => u32::MAX.into(),
            Arg::Id => u16::MAX.into(),
            Arg::Seed => u64::MAX,
        };
        let given = Some(number(text, value, max)?);
        Ok(Self { name, given })
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A fault that happens once, now: the mailbox's `fault-now`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// An effect, with the seed if it takes one.
    Effect(Effect, u64),
    /// A configuration change, as V4 has it.
    ConfigChange,
    /// A configuration change that is notified even while suspended.
    ConfigChangeWhile,
    /// A used-buffer notification of every queue, whatever the state.
    UsedIrqSpurious,
}

impl FromStr for Now {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (name, value) = split(text);
        if let Some((effect, ..)) = EFFECTS.iter().find(|(_, effect, _)| *effect == name) {
            let arg = match value {
                None => 0,
                Some(value) if effect.is_seeded() => number(name, value, u64::MAX)?,
                Some(_) => return Err(FaultError::NoArgument(name.into())),
            };
            return Ok(Self::Effect(*effect, arg));
        }
        let now = match name {
            "config-change" => Self::ConfigChange,
            "config-change-while-suspended" => Self::ConfigChangeWhile,
            "used-irq-spurious" => Self::UsedIrqSpurious,
            _ => return Err(FaultError::Name(name.into())),
        };
        match value {
            None => Ok(now),
            Some(_) => Err(FaultError::NoArgument(name.into())),
        }
    }
}

impl<'de> Deserialize<'de> for Now {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The faults that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// These.
    pub fn new(faults: Vec<Fault>) -> Self {
        Self(faults)
    }

    /// All of them, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The argument of a fault, if it is set; of several the last one counts.
    pub fn get(&self, name: Name) -> Option<u64> {
        let fault = self.0.iter().rev().find(|fault| fault.name == name)?;
        Some(fault.arg())
    }

    /// Whether a fault is set.
    pub fn has(&self, name: Name) -> bool {
        self.get(name).is_some()
    }

    /// The effects set for a moment, with their arguments.
    pub fn at(&self, moment: Moment) -> Vec<(Effect, u64)> {
        let effect = |fault: &Fault| match fault.name {
            Name::At(effect, at) if at == moment => Some((effect, fault.arg())),
            _ => None,
        };
        self.0.iter().filter_map(effect).collect()
    }
}

/// A fault's name as it is written, with its argument.
fn usage(name: &str, arg: Arg) -> String {
    match arg {
        Arg::None => name.into(),
        Arg::Ms(default) => format!("{name}[=MS] (default {default})"),
        Arg::Bytes(default) => format!("{name}[=BYTES] (default {default})"),
        Arg::Count(default) => format!("{name}[=COUNT] (default {default})"),
        Arg::Id => format!("{name}[=ID] (default: the queue size)"),
        Arg::Seed => format!("{name}[=SEED] (default 0)"),
    }
}

/// The list of faults for `--help`.
pub fn help() -> String {
    let mut text = String::from("Faults:\n");
    let mut add = |name: String, what: &str| {
        text.push_str(&format!("  {name}\n          {what}\n"));
    };
    for &(_, name, arg, what) in OTHERS {
        add(usage(name, arg), what);
    }
    for &(effect, name, what) in EFFECTS {
        let arg = if effect.is_seeded() { "[=SEED]" } else { "" };
        add(format!("{name}-MOMENT{arg}"), what);
    }
    text.push_str("\n  MOMENT is one of (without one it is on-suspend):\n");
    for (moment, name, what) in MOMENTS {
        let arg = if moment == Moment::WhileSuspended {
            "[=MS] (default 20)"
        } else {
            ""
        };
        text.push_str(&format!("  {name}{arg}\n          {what}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_fault_can_be_written_and_read() {
        let mut names = HashSet::new();
        for name in Name::all() {
            let text = name.to_string();
            assert!(names.insert(text.clone()), "{text} twice");
            let fault: Fault = text.parse().unwrap();
            assert_eq!((fault.name, fault.to_string()), (name, text.clone()));
            let with = format!("{text}=7").parse::<Fault>();
            if name.arg() == Arg::None {
                assert_eq!(with, Err(FaultError::NoArgument(text)));
            } else {
                assert_eq!(with.unwrap().arg(), 7);
            }
        }
        assert_eq!(names.len(), OTHERS.len() + EFFECTS.len() * MOMENTS.len());
        for (moment, ..) in MOMENTS {
            assert_eq!(MOMENTS[moment as usize].0, moment);
        }
    }

    #[test]
    fn help_explains_every_fault() {
        let help = help();
        for &(_, name, _, what) in OTHERS {
            assert!(help.contains(name) && help.contains(what));
        }
        for &(_, name, what) in EFFECTS {
            assert!(help.contains(name) && help.contains(what));
        }
    }

    #[test]
    fn the_readme_lists_every_fault() {
        let readme = include_str!("../README.md");
        for &(_, name, arg, _) in OTHERS {
            let usage = usage(name, arg);
            let usage = usage.split(" (").next().unwrap_or_default();
            assert!(readme.contains(&format!("| `{usage}`")), "{usage}");
        }
        for &(effect, name, _) in EFFECTS {
            let seed = if effect.is_seeded() { "[=SEED]" } else { "" };
            let usage = format!("| `{name}-MOMENT{seed}`");
            assert!(readme.contains(&usage), "{usage}");
        }
    }

    #[test]
    fn effects_have_a_default_moment_and_can_be_had_now() {
        let fault: Fault = "gone".parse().unwrap();
        assert_eq!(fault.name, Name::At(Effect::Gone, Moment::OnSuspend));
        assert_eq!("gone".parse(), Ok(Now::Effect(Effect::Gone, 0)));
        assert_eq!("config-change".parse(), Ok(Now::ConfigChange));
        assert!("hold-ms".parse::<Now>().is_err());
        assert!("gone=1".parse::<Now>().is_err());
    }

    #[test]
    fn bad_faults() {
        for text in [
            "",
            "=",
            "toaster",
            "hold-ms=",
            "hold-ms=x",
            "hold-ms=-1",
            "hold-ms=3600001",
            "used-bad-id=65536",
            "suspend-never=1",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_of_several_counts() {
        let faults =
            |texts: &[&str]| Faults::new(texts.iter().map(|text| text.parse().unwrap()).collect());
        let set = faults(&["hold-ms=1", "status-zero-while-suspended", "hold-ms=2"]);
        assert_eq!(set.get(Name::HoldMs), Some(2));
        assert_eq!(set.get(Name::UsedZero), None);
        assert_eq!(set.at(Moment::WhileSuspended), [(Effect::StatusZero, 20)]);
        assert!(set.at(Moment::OnResume).is_empty());
    }
}
