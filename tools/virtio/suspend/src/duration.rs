// SPDX-License-Identifier: GPL-2.0

//! Durations as they are written: "500ms", "5s", "2m", "1h".

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A day: who wants to suspend for longer wants something else.
const MAX: Duration = Duration::from_secs(24 * 3600);

/// How long something lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" => return Err("the unit is missing: ms, s, m or h".into()),
            unit => return Err(format!("no unit is called {unit:?}: ms, s, m or h")),
        };
        // A sign would be accepted else.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{digits:?} is no number"));
        }
        let number: u64 = digits
            .parse()
            .map_err(|_| format!("{digits:?} is no number"))?;
        let span = number.checked_mul(unit).map(Duration::from_millis);
        match span {
            Some(span) if span.is_zero() => Err("it has to be longer than nothing".into()),
            Some(span) if span <= MAX => Ok(Self(span)),
            _ => Err("it must not be longer than 24h".into()),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms if ms % 1000 == 0 => write!(f, "{} s", ms / 1000),
            ms => write!(f, "{ms} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units() {
        let parse = |text: &str| text.parse::<Span>().map(|span| span.0.as_millis());
        assert_eq!(parse("5s"), Ok(5000));
        assert_eq!(parse("500ms"), Ok(500));
        assert_eq!(parse("2m"), Ok(120_000));
        assert_eq!(parse("24h"), Ok(86_400_000));
        for bad in [
            "",
            "5",
            "s",
            "0s",
            "-1s",
            "+1s",
            "1.5s",
            "1e3s",
            "25h",
            "5 s",
            " 5s",
            "5S",
            "5sec",
            "99999999999999999999s",
            "18446744073709551615h",
            "५s",
            "5µs",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_does_no_harm(text in "\\PC{0,12}") {
            if let Ok(span) = text.parse::<Span>() {
                prop_assert!(!span.0.is_zero() && span.0 <= MAX);
            }
        }
    }
}
