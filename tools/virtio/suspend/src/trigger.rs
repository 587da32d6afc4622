// SPDX-License-Identifier: GPL-2.0

//! What a host says to have devices suspended, line by line: pure logic.
//!
//! The protocol is in the manual page, under THE TRIGGER. A line is one of
//!
//! ```text
//! status
//! suspend [SECONDS]
//! resume
//! ```
//!
//! of printable ASCII, its words separated by one space, at most [`MAX_LINE`] bytes long. Whatever
//! else there is on the other side may be broken or hostile: nothing that it sends makes anything
//! but a refusal of it, and nothing is kept but the line that is being read.

use std::time::Duration;

/// The longest line, with its end.
pub const MAX_LINE: usize = 32;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Status,
    /// For as long as the guest allows, or less.
    Suspend(Option<Duration>),
    Resume,
}

/// Why a line is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    TooLong,
    Unknown,
    /// The number of seconds is none, 0 or too great.
    Seconds,
}

impl Refusal {
    /// The answer.
    pub fn answer(self) -> &'static [u8] {
        match self {
            Self::TooLong => b"error too-long\n",
            Self::Unknown => b"error unknown\n",
            Self::Seconds => b"error seconds\n",
        }
    }
}

/// Understands a line, without its end.
pub fn parse(line: &[u8]) -> Result<Word, Refusal> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line {
        b"status" => Ok(Word::Status),
        b"resume" => Ok(Word::Resume),
        b"suspend" => Ok(Word::Suspend(None)),
        _ => match line.strip_prefix(b"suspend ") {
            Some(number) => seconds(number).map(|limit| Word::Suspend(Some(limit))),
            None => Err(Refusal::Unknown),
        },
    }
}

/// From 1 to 99999, in digits, the first of which is not 0.
fn seconds(number: &[u8]) -> Result<Duration, Refusal> {
    let plain = matches!(number, [b'1'..=b'9', rest @ ..]
                         if rest.len() < 5 && rest.iter().all(u8::is_ascii_digit));
    if !plain {
        return Err(Refusal::Seconds);
    }
    let value = number
        .iter()
        .fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    Ok(Duration::from_secs(value))
}

/// Divides what arrives into lines, in a buffer of fixed size.
#[derive(Debug)]
pub struct Lines {
    line: [u8; MAX_LINE],
    length: usize,
    /// The line is too long already, and its end is still to come.
    skipping: bool,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            line: [0; MAX_LINE],
            length: 0,
            skipping: false,
        }
    }
}

impl Lines {
    /// Takes from `input` up to the end of a line, if there is one, and understands it. A line that
    /// is too long is refused once, when it becomes so.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Word, Refusal>> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            match byte {
                b'\n' if self.skipping => {
                    self.skipping = false;
                    self.length = 0;
                }
                b'\n' => {
                    let line = &self.line[..self.length];
                    self.length = 0;
                    return Some(parse(line));
                }
                _ if self.skipping => {}
                // The end of the line has to fit, too.
                _ if self.length == MAX_LINE - 1 => {
                    self.skipping = true;
                    return Some(Err(Refusal::TooLong));
                }
                byte => {
                    self.line[self.length] = byte;
                    self.length += 1;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn all(mut input: &[u8]) -> Vec<Result<Word, Refusal>> {
        let mut lines = Lines::default();
        std::iter::from_fn(|| lines.next(&mut input)).collect()
    }

    #[test]
    fn words() {
        let suspend = |seconds| Ok(Word::Suspend(Some(Duration::from_secs(seconds))));
        assert_eq!(parse(b"status"), Ok(Word::Status));
        assert_eq!(parse(b"status\r"), Ok(Word::Status));
        assert_eq!(parse(b"resume"), Ok(Word::Resume));
        assert_eq!(parse(b"suspend"), Ok(Word::Suspend(None)));
        assert_eq!(parse(b"suspend 1"), suspend(1));
        assert_eq!(parse(b"suspend 99999"), suspend(99999));
    }

    #[test]
    fn garbage_is_refused() {
        for line in [
            &b""[..],
            b" ",
            b"STATUS",
            b"status ",
            b" status",
            b"status\r\r",
            b"resume 1",
            b"suspended",
            b"suspend\t5",
            b"suspend\x005",
            b"\x00",
            b"\xff\xfe",
            b"suspend5",
            b"{\"cmd\":\"suspend\"}",
        ] {
            assert_eq!(parse(line), Err(Refusal::Unknown), "{line:?}");
        }
        for line in [
            &b"suspend "[..],
            b"suspend 0",
            b"suspend 01",
            b"suspend -1",
            b"suspend +1",
            b"suspend 1.5",
            b"suspend 1s",
            b"suspend 1 ",
            b"suspend  1",
            b"suspend 100000",
            b"suspend 18446744073709551616",
            b"suspend \xd9\xa1",
            b"suspend vda",
        ] {
            assert_eq!(parse(line), Err(Refusal::Seconds), "{line:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_once_and_the_next_is_read() {
        let mut input = vec![b'x'; 1000];
        input.extend(b"\nstatus\n");
        assert_eq!(all(&input), [Err(Refusal::TooLong), Ok(Word::Status)]);
        // The longest that is not.
        let mut input = vec![b'x'; MAX_LINE - 1];
        input.push(b'\n');
        assert_eq!(all(&input), [Err(Refusal::Unknown)]);
        input.insert(0, b'x');
        assert_eq!(all(&input), [Err(Refusal::TooLong)]);
    }

    proptest! {
        #[test]
        fn only_the_words_are_understood(line in vec(any::<u8>(), 0..MAX_LINE)) {
            if let Ok(word) = parse(&line) {
                let text = String::from_utf8(line).unwrap();
                let again = match word {
                    Word::Status => "status".to_string(),
                    Word::Resume => "resume".to_string(),
                    Word::Suspend(None) => "suspend".to_string(),
                    Word::Suspend(Some(limit)) => format!("suspend {}", limit.as_secs()),
                };
                prop_assert_eq!(text.trim_end_matches('\r'), again);
            }
        }

        #[test]
        fn how_it_arrives_makes_no_difference(
            input in vec(prop_oneof![
                Just(b"status\n".to_vec()), Just(b"suspend 3\n".to_vec()),
                Just(b"resume\r\n".to_vec()), vec(any::<u8>(), 0..80), Just(b"\n".to_vec()),
            ], 0..12),
            cuts in vec(1usize..40, 0..60),
        ) {
            let input = input.concat();
            let mut lines = Lines::default();
            let mut found = Vec::new();
            let mut rest = &input[..];
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (mut part, after) = rest.split_at(cut.min(rest.len()));
                while let Some(result) = lines.next(&mut part) {
                    found.push(result);
                }
                prop_assert!(part.is_empty());
                rest = after;
            }
            prop_assert_eq!(found, all(&input));
        }

        #[test]
        fn there_are_not_more_answers_than_lines(input in vec(any::<u8>(), 0..2000)) {
            let ends = input.iter().filter(|byte| **byte == b'\n').count();
            prop_assert!(all(&input).len() <= ends + 1);
        }
    }
}
