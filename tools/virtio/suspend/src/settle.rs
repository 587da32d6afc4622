// SPDX-License-Identifier: GPL-2.0

//! What is left to be done when a device has been asked to resume: pure logic.

use rustix::io::Errno;

/// The state of a device, as the file `state` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Suspending,
    Suspended,
    Resuming,
    Failed,
    /// The file can't be read: the device is gone, or its driver.
    Gone,
}

impl State {
    /// What the file says, with or without the end of the line.
    pub fn parse(text: &[u8]) -> Option<Self> {
        match text.strip_suffix(b"\n").unwrap_or(text) {
            b"running" => Some(Self::Running),
            b"suspending" => Some(Self::Suspending),
            b"suspended" => Some(Self::Suspended),
            b"resuming" => Some(Self::Resuming),
            b"failed" => Some(Self::Failed),
            _ => None,
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It runs.
    Done,
    /// It does not, and no resume changes that.
    Lost,
    /// It is suspended still, or somebody is at it: ask again.
    Again,
}

/// After a resume that was told `error`, of a device that is in `state` then.
pub fn after(error: Errno, state: State) -> Next {
    match (error, state) {
        (_, State::Running) => Next::Done,
        // The request has been written correctly, or something else than the kernel is behind it.
        (Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF | Errno::ACCESS | Errno::PERM, _) => {
            Next::Lost
        }
        (_, State::Failed | State::Gone) => Next::Lost,
        (_, State::Suspending | State::Suspended | State::Resuming) => Next::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_may_come_back_is_asked_again() {
        for error in [
            Errno::NODEV,
            Errno::TIMEDOUT,
            Errno::BUSY,
            Errno::INTR,
            Errno::NOMEM,
        ] {
            assert_eq!(after(error, State::Suspended), Next::Again, "{error:?}");
            assert_eq!(after(error, State::Resuming), Next::Again, "{error:?}");
            assert_eq!(after(error, State::Suspending), Next::Again, "{error:?}");
            assert_eq!(after(error, State::Gone), Next::Lost, "{error:?}");
            assert_eq!(after(error, State::Failed), Next::Lost, "{error:?}");
        }
    }

    #[test]
    fn one_that_runs_is_left_alone() {
        for error in [Errno::ALREADY, Errno::IO, Errno::NODEV, Errno::OPNOTSUPP] {
            assert_eq!(after(error, State::Running), Next::Done, "{error:?}");
        }
    }

    #[test]
    fn states() {
        assert_eq!(State::parse(b"suspended\n"), Some(State::Suspended));
        assert_eq!(State::parse(b"running"), Some(State::Running));
        assert_eq!(State::parse(b""), None);
        assert_eq!(State::parse(b"running \n"), None);
    }
}
