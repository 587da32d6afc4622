// SPDX-License-Identifier: GPL-2.0

//! What the command ends with, if not with success.

use std::fmt::Write;
use std::process::ExitCode;

use thiserror::Error;

/// Why the command has not done what it was asked. Each kind has an exit status, see EXIT STATUS in
/// the manual page; 2 is clap's, for arguments that make no sense.
#[derive(Debug, Error)]
pub enum Error {
    /// Something that is no device's doing.
    #[error("{0}")]
    Failed(String),
    /// It can't be done, and nothing has been begun.
    #[error("nothing has been suspended:{}", list(.0))]
    Refused(Vec<String>),
    /// A device refused, and all are as before.
    #[error("{0}")]
    Undone(String),
    /// Some device is not as it should be.
    #[error("{0}")]
    Stuck(String),
    /// All run again, but earlier than was asked for.
    #[error("{0}")]
    Early(String),
}

/// One reason stands in the line, several below it.
fn list(reasons: &[String]) -> String {
    match reasons {
        [one] => format!(" {one}"),
        all => all.iter().fold(String::new(), |mut text, reason| {
            // Writing to a string does not fail.
            let _ = write!(text, "\n    {reason}");
            text
        }),
    }
}

impl Error {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Refused(_) => 3,
            Self::Undone(_) => 4,
            Self::Stuck(_) => 5,
            Self::Early(_) => 6,
        }
    }

    /// A refusal for one reason.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused(vec![reason.into()])
    }
}

impl From<&Error> for ExitCode {
    fn from(error: &Error) -> Self {
        Self::from(error.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        let text = |reasons: &[&str]| {
            let reasons = reasons.iter().map(ToString::to_string).collect();
            Error::Refused(reasons).to_string()
        };
        assert_eq!(text(&["a"]), "nothing has been suspended: a");
        assert_eq!(
            text(&["a", "b"]),
            "nothing has been suspended:\n    a\n    b"
        );
    }
}
