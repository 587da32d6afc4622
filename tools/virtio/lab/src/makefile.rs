// SPDX-License-Identifier: GPL-2.0

//! As much of Makefiles and of kselftest's `settings` files as the lab needs.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// The words assigned to a variable by `:=`, `=` or `+=`.
pub fn words(makefile: &str, variable: &str) -> Vec<String> {
    let joined = makefile.replace("\\\n", " ");
    joined
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim_end_matches([':', '+']).trim() == variable).then_some(value)
        })
        .flat_map(str::split_whitespace)
        .map(str::to_string)
        .collect()
}

/// A number in a kselftest `settings` file, if there is one.
pub fn setting(path: &Path, name: &str) -> Result<Option<u64>> {
    if !path.exists() {
        return Ok(None);
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().parse())
        .transpose()
        .with_context(|| format!("{name} is no number in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_add_up() {
        let text = "# SPDX\nTEST_PROGS := a.py \\\n\tb.py\nTEST_PROGS += c.py # last\n\
                    TEST_PROGS_EXTENDED := d.sh\nTEST_FILES = lib.py\n";
        assert_eq!(words(text, "TEST_PROGS"), ["a.py", "b.py", "c.py"]);
        assert_eq!(words(text, "TEST_FILES"), ["lib.py"]);
        assert!(words(text, "TEST_GEN_PROGS").is_empty());
    }
}
