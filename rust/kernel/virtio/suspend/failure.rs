// SPDX-License-Identifier: GPL-2.0

//! Why something that was asked of a device was not done.

use kernel::prelude::*;

use super::protocol::Reason;

/// An error, and the reason in words.
#[derive(Clone, Copy)]
pub struct Failure {
    pub(crate) error: Error,
    pub(crate) reason: &'static str,
}

impl Failure {
    /// The file `last_error` shows the reason. It is meant for people.
    pub const fn new(error: Error, reason: &'static str) -> Self {
        Self { error, reason }
    }

    /// Gives a better reason if this is `error`.
    pub fn because(self, error: Error, reason: &'static str) -> Self {
        if self.error == error {
            Self::new(error, reason)
        } else {
            self
        }
    }

    /// The name of the error, which is part of the ABI: [`Error::name`] has none if the kernel is
    /// built without names.
    pub(super) fn errno_name(&self) -> &'static str {
        match self.error {
            ETIMEDOUT => "ETIMEDOUT",
            EOPNOTSUPP => "EOPNOTSUPP",
            ENODEV => "ENODEV",
            EINTR => "EINTR",
            EIO => "EIO",
            EBUSY => "EBUSY",
            EAGAIN => "EAGAIN",
            ENOMEM => "ENOMEM",
            _ => "EINVAL",
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error, "the driver can't stop now")
    }
}

impl From<Reason> for Failure {
    fn from(why: Reason) -> Self {
        let error = match why {
            Reason::Timeout => ETIMEDOUT,
            Reason::NeedsReset | Reason::Reset | Reason::Inconsistent(_) | Reason::NotReady(_) => {
                EIO
            }
            Reason::Lost | Reason::Unbinding => ENODEV,
            Reason::Killed => EINTR,
            Reason::GoingDown => EBUSY,
        };
        Self::new(error, why.as_str())
    }
}

/// Why a transition failed, and whether the device can still be used, or is gone.
#[derive(Clone, Copy)]
pub(super) struct Refusal {
    pub(super) failure: Failure,
    pub(super) usable: bool,
    pub(super) lost: bool,
}

impl Refusal {
    pub(super) fn usable(failure: Failure) -> Self {
        Self {
            failure,
            usable: true,
            lost: false,
        }
    }

    pub(super) fn new(why: Reason, usable: bool) -> Self {
        Self {
            failure: why.into(),
            usable,
            lost: why == Reason::Lost,
        }
    }
}
