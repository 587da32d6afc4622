// SPDX-License-Identifier: GPL-2.0

//! Why something that was asked of a device was not done.

use kernel::prelude::*;

use super::{
    protocol::Reason,
    state_machine::Diagnosis, //
};
use crate::compat::EOPNOTSUPP;

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

/// What a transition that has failed leaves behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remains {
    /// The device is where it was before.
    Usable,
    /// The same, as far as is known: it can't be reached, for now at least.
    OutOfReach,
    /// Only a reset helps, if anything does.
    Broken,
    /// The device is gone.
    Lost,
}

/// Why a transition failed, and what that leaves behind.
#[derive(Clone, Copy)]
pub(super) struct Refusal {
    pub(super) failure: Failure,
    remains: Remains,
}

impl Refusal {
    pub(super) fn usable(failure: impl Into<Failure>) -> Self {
        Self {
            failure: failure.into(),
            remains: Remains::Usable,
        }
    }

    pub(super) fn unusable(why: Reason) -> Self {
        Self {
            failure: why.into(),
            remains: if why == Reason::Lost {
                Remains::Lost
            } else {
                Remains::Broken
            },
        }
    }

    /// A device whose every bit reads as one, but whose bus does not say that it is gone for good.
    pub(super) fn out_of_reach() -> Self {
        Self {
            failure: Reason::Lost.into(),
            remains: Remains::OutOfReach,
        }
    }

    pub(super) fn is_usable(&self) -> bool {
        matches!(self.remains, Remains::Usable | Remains::OutOfReach)
    }

    /// Returns what is known of the device, if it has failed because of this. `hopeless` tells that
    /// it breaks again and again.
    pub(super) fn diagnosis(&self, hopeless: bool) -> Diagnosis {
        match self.remains {
            Remains::Lost | Remains::OutOfReach => Diagnosis::Lost,
            Remains::Usable | Remains::Broken if hopeless => Diagnosis::Hopeless,
            Remains::Usable | Remains::Broken => Diagnosis::Curable,
        }
    }
}
