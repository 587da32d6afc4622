// SPDX-License-Identifier: GPL-2.0

//! Reads KTAP (Documentation/dev-tools/ktap.rst), as a kselftest prints it and as
//! virtio_suspend_test shows it.

/// What a case came to. What counts most for the whole is last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Result {
    Skipped,
    Passed,
    Failed,
}

/// A case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub result: Result,
    /// What follows the number, without the directive.
    pub text: String,
    /// Why it was skipped.
    pub why: String,
    /// What was said before it.
    pub notes: Vec<String>,
}

impl Case {
    /// The name, in "RULE name: what was seen", as virtio_suspend_test has it.
    pub fn name(&self) -> &str {
        let rest = self.text.split_once(' ').map_or("", |(_, rest)| rest);
        rest.split_once(':').map_or(rest, |(name, _)| name).trim()
    }

    /// As a line of KTAP.
    pub fn line(&self, number: usize) -> String {
        let text = &self.text;
        match self.result {
            Result::Passed => format!("ok {number} {text}"),
            Result::Failed => format!("not ok {number} {text}"),
            Result::Skipped => format!("ok {number} {text} # SKIP {}", self.why),
        }
    }
}

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Case(Case),
    Note(&'a str),
    /// Version, plan, totals.
    Frame,
}

pub fn line(line: &str) -> Line<'_> {
    let line = line.trim_end();
    if let Some((result, text, why)) = parse(line) {
        return Line::Case(Case {
            result,
            text: text.into(),
            why: why.into(),
            notes: Vec::new(),
        });
    }
    let frame = ["TAP version", "KTAP version", "1..", "# Totals:"];
    match line.is_empty() || frame.iter().any(|text| line.starts_with(text)) {
        true => Line::Frame,
        false => Line::Note(line.strip_prefix("# ").unwrap_or(line)),
    }
}

/// All cases of a text, with what is said before each.
pub fn cases(text: &str) -> Vec<Case> {
    let mut notes = Vec::new();
    let mut cases = Vec::new();
    for text in text.lines() {
        match line(text) {
            Line::Case(case) => cases.push(Case {
                notes: std::mem::take(&mut notes),
                ..case
            }),
            Line::Note(note) => notes.push(note.into()),
            Line::Frame => {}
        }
    }
    cases
}

/// The result of a line, what it is of, and the reason of a skip.
fn parse(line: &str) -> Option<(Result, &str, &str)> {
    let (ok, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<u32>().ok()?;
    let (text, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
    let skip = directive
        .get(..4)
        .is_some_and(|word| word.eq_ignore_ascii_case("SKIP"));
    let result = match ok {
        _ if skip => Result::Skipped,
        true => Result::Passed,
        false => Result::Failed,
    };
    let why = if skip { directive[4..].trim() } else { "" };
    Some((result, text.trim(), why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_the_driver() {
        let cases = cases(
            "KTAP version 1\n1..3\n# read 0x0f\n# wrote 0x1f\nok 1 V1 early: it is ignored\n\
             not ok 2 V3 quiet: an interrupt\nok 3 V4 change # SKIP it has no configuration\n",
        );
        assert_eq!(cases.len(), 3);
        assert_eq!(cases[0].result, Result::Passed);
        assert_eq!(cases[0].notes, ["read 0x0f", "wrote 0x1f"]);
        assert_eq!(cases[0].name(), "early");
        assert_eq!(cases[1].result, Result::Failed);
        assert_eq!(cases[1].line(7), "not ok 7 V3 quiet: an interrupt");
        assert_eq!(cases[2].result, Result::Skipped);
        assert_eq!(cases[2].name(), "change");
        assert_eq!(
            cases[2].line(3),
            "ok 3 V4 change # SKIP it has no configuration"
        );
    }

    #[test]
    fn what_is_no_result() {
        assert_eq!(line("Traceback:"), Line::Note("Traceback:"));
        assert_eq!(line("ok then"), Line::Note("ok then"));
        assert_eq!(line("# # why"), Line::Note("# why"));
        for text in ["# Totals: pass:0", "1..3", "TAP version 13", ""] {
            assert_eq!(line(text), Line::Frame);
        }
    }

    #[test]
    fn no_text() {
        assert_eq!(cases("ok 1\n")[0].name(), "");
        // What is not judged has no rule.
        assert_eq!(cases("ok 1 - left: 4 of 4\n")[0].name(), "left");
        assert_eq!(cases("not ok 1 - a # TODO\n")[0].result, Result::Failed);
    }
}
