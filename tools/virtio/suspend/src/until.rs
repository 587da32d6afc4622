// SPDX-License-Identifier: GPL-2.0

//! What `run` waits for, as it is written.

use std::ffi::{c_int, OsStr};
use std::path::PathBuf;
use std::str::FromStr;

/// What `--until` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// This file is made, or moved there.
    File(PathBuf),
    /// This signal arrives.
    Signal(c_int),
    /// A line, or the end, is read from standard input.
    Line,
}

/// Those that mean nothing else to the program.
const SIGNALS: [(&str, c_int); 2] = [("SIGUSR1", libc::SIGUSR1), ("SIGUSR2", libc::SIGUSR2)];

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "line" {
            return Ok(Self::Line);
        }
        if let Some((_, number)) = SIGNALS.iter().find(|(name, _)| *name == text) {
            return Ok(Self::Signal(*number));
        }
        let path = PathBuf::from(text);
        // `file_name` passes over a slash at the end.
        let has_name = path
            .file_name()
            .is_some_and(|name| name != OsStr::new(".."));
        if path.is_absolute() && has_name && !text.ends_with('/') {
            return Ok(Self::File(path));
        }
        Err("it has to be an absolute path, \"line\", SIGUSR1 or SIGUSR2".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood() {
        let parse = |text: &str| text.parse::<Until>();
        assert_eq!(parse("line"), Ok(Until::Line));
        assert_eq!(parse("SIGUSR2"), Ok(Until::Signal(libc::SIGUSR2)));
        assert_eq!(parse("/run/go"), Ok(Until::File("/run/go".into())));
        for bad in [
            "", "Line", "SIGTERM", "SIGKILL", "go", "./go", "/", "/run/", "/run/..", "10",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
