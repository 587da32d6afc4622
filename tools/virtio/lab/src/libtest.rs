// SPDX-License-Identifier: GPL-2.0

//! What `cargo test` prints.

use crate::ktap::Verdict;

/// Reads `test NAME ... ok`.
pub fn result(line: &str) -> Option<(&str, Verdict)> {
    let (case, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let verdict = match result.split([',', ' ']).next()? {
        "ok" => Verdict::Passed,
        "FAILED" => Verdict::Failed,
        "ignored" => Verdict::Skipped,
        _ => return None,
    };
    Some((case, verdict))
}

pub fn is_noise(line: &str) -> bool {
    line.is_empty() || line.starts_with("running ") || line.starts_with("test result: ok")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(
            result("test status::tests::any ... ok"),
            Some(("status::tests::any", Verdict::Passed))
        );
        assert_eq!(
            result("test slow ... ignored, takes an hour"),
            Some(("slow", Verdict::Skipped))
        );
        assert_eq!(
            result("test src/lib.rs - add (line 3) ... FAILED"),
            Some(("src/lib.rs - add (line 3)", Verdict::Failed))
        );
        assert_eq!(result("test result: ok. 3 passed"), None);
    }
}
