// SPDX-License-Identifier: GPL-2.0

//! Reads the KTAP of a run of kselftests: an outer test per program, whose own results are
//! indented by "# " (Documentation/dev-tools/ktap.rst).

/// What a test case came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// What a line of KTAP means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A program starts.
    Begin(&'a str),
    /// The result of a test case.
    Case(Verdict, &'a str),
    /// A program ended.
    End {
        name: &'a str,
        verdict: Verdict,
        /// Said with a failure or a skip: `exit=1`, `TIMEOUT 45 seconds`.
        why: &'a str,
    },
    /// Anything else that a program printed.
    Other(&'a str),
    /// Version, plan and the like.
    Frame,
}

const PROGRAM: &str = "selftests: virtio: ";

pub fn parse(line: &str) -> Line<'_> {
    if let Some((verdict, name, why)) = result(line) {
        return match name.strip_prefix(PROGRAM) {
            Some(name) => Line::End { name, verdict, why },
            None => Line::Case(verdict, name),
        };
    }
    let Some(inner) = line.strip_prefix("# ") else {
        return match line {
            "" | "#" => Line::Frame,
            _ if line.starts_with("TAP version") || line.starts_with("1..") => Line::Frame,
            // Not the runner's: something in the guest wrote to the terminal.
            _ => Line::Other(line),
        };
    };
    if let Some(name) = inner.strip_prefix(PROGRAM) {
        return Line::Begin(name);
    }
    if let Some((verdict, name, _)) = result(inner) {
        return Line::Case(verdict, name);
    }
    match inner {
        _ if inner.starts_with("TAP version") || inner.starts_with("KTAP version") => Line::Frame,
        _ if inner.starts_with("1..") => Line::Frame,
        _ if inner.starts_with("timeout set to") => Line::Frame,
        _ if inner.starts_with("overriding timeout to") => Line::Frame,
        _ => Line::Other(inner),
    }
}

/// Splits `ok 1 name # directive`.
fn result(line: &str) -> Option<(Verdict, &str, &str)> {
    let (ok, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<u32>().ok()?;
    let rest = rest.strip_prefix("- ").unwrap_or(rest);
    let (name, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
    let verdict = match ok {
        _ if directive.to_ascii_uppercase().starts_with("SKIP") => Verdict::Skipped,
        true => Verdict::Passed,
        false => Verdict::Failed,
    };
    Some((verdict, name.trim(), directive.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::*;

    #[test]
    fn a_program_from_begin_to_end() {
        let log = "TAP version 13\n1..1\n# overriding timeout to 45\n\
                   # selftests: virtio: sysfs.py\n# TAP version 13\n# 1..3\n\
                   # ok 1 state is running \n# not ok 2 - timeout_ms\n\
                   # # expected 1, got 2\n# ok 3 packed # SKIP no packed rings\n\
                   # # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0\n\
                   not ok 1 selftests: virtio: sysfs.py # exit=1\n";
        let lines: Vec<_> = log
            .lines()
            .map(parse)
            .filter(|line| *line != Line::Frame)
            .collect();
        assert_eq!(
            lines,
            [
                Line::Begin("sysfs.py"),
                Line::Case(Passed, "state is running"),
                Line::Case(Failed, "timeout_ms"),
                Line::Other("# expected 1, got 2"),
                Line::Case(Skipped, "packed"),
                Line::Other("# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0"),
                Line::End {
                    name: "sysfs.py",
                    verdict: Failed,
                    why: "exit=1"
                },
            ]
        );
    }

    #[test]
    fn a_skipped_program() {
        assert_eq!(
            parse("ok 2 selftests: virtio: net.py # SKIP"),
            Line::End {
                name: "net.py",
                verdict: Skipped,
                why: "SKIP"
            }
        );
    }

    #[test]
    fn prose_is_no_result() {
        assert_eq!(parse("# ok then"), Line::Other("ok then"));
        assert_eq!(parse("# not ok at all"), Line::Other("not ok at all"));
        assert_eq!(parse("Traceback"), Line::Other("Traceback"));
    }
}
