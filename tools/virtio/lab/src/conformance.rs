// SPDX-License-Identifier: GPL-2.0

//! Documentation/virtio/conformance.rst, checked so that it can't rot.
//!
//! The page is the source: a table with a row for each rule, whose last three columns name, as
//! literals, the code that keeps the rule, the tests that prove it, and those that prove it once
//! more, with QEMU's own devices; or why there is none of these. All of it must be there:
//!
//! * code, `FILE: ITEM`: the file defines a function, type or constant of that name;
//! * `PROGRAM: TITLE`: a kselftest that its Makefile lists, with a case of that title;
//! * `boot/NAME`: a test that ends its guest;
//! * `qtest/NAME`: a case of the test that the series for QEMU brings;
//! * `PACKAGE::PATH::NAME`: a test of a package of tools/virtio.

use crate::tree::{Tree, SELFTESTS};
use crate::{makefile, scenario};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = "Documentation/virtio/conformance.rst";
/// Where rules are cited.
const CITING: [&str; 5] = [
    "rust",
    "drivers",
    "samples",
    "tools/virtio",
    "tools/testing",
];
const CITING_EXTENSIONS: [&str; 5] = ["rs", "py", "c", "h", "toml"];
const NOT_READ: [&str; 3] = ["target", "out", "conformance.rs"];
/// How many rules there are for the driver, and for the device.
const RULES: [(char, u32); 2] = [('D', 14), ('V', 5)];
/// Where the series for QEMU has its test.
const QTEST: &str = "tools/virtio/qemu/0016-tests-qtest-test-Device-Suspend.patch";
/// Begins why a rule is not tested with QEMU's own devices.
const NONE: &str = "none: ";
/// What can define an item.
const KEYWORDS: [&str; 6] = ["fn", "struct", "enum", "trait", "const", "type"];

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    name: String,
    code: Vec<String>,
    tests: Vec<String>,
    /// With QEMU's own devices.
    second: Vec<String>,
    /// Why there is none of these.
    why: Option<String>,
}

/// What is wrong.
pub fn check(tree: &Tree) -> Result<Vec<String>> {
    let path = tree.join(PAGE);
    let text =
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let rules = parse(&text);
    let mut problems = missing(&rules);
    for rule in &rules {
        let entries = rule.code.iter().map(|entry| (entry, code(tree, entry)));
        let tests = rule.tests.iter().chain(&rule.second);
        let tests = tests.map(|entry| (entry, test(tree, entry)));
        for (entry, found) in entries.chain(tests) {
            if let Err(why) = found {
                problems.push(format!("{}: {entry}: {why}", rule.name));
            }
        }
    }
    for dir in CITING {
        citations(tree, &tree.join(dir), &mut problems)?;
    }
    Ok(problems
        .into_iter()
        .map(|p| format!("{PAGE}: {p}"))
        .collect())
}

/// Reads the rows of a list-table with six columns.
fn parse(text: &str) -> Vec<Rule> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in text.lines() {
        if let Some(cell) = line.strip_prefix("   * - ") {
            rows.push(vec![cell.to_string()]);
        } else if let (Some(cell), Some(row)) = (line.strip_prefix("     - "), rows.last_mut()) {
            row.push(cell.to_string());
        } else if let (Some(more), Some(row)) = (line.strip_prefix("       "), rows.last_mut()) {
            if let Some(cell) = row.last_mut() {
                cell.push(' ');
                cell.push_str(more);
            }
        }
    }
    rows.into_iter()
        .filter(|row| row.len() == 6 && is_rule(&row[0]))
        .map(|row| Rule {
            name: row[0].clone(),
            code: literals(&row[3]),
            tests: literals(&row[4]),
            second: literals(&row[5]),
            why: row[5].strip_prefix(NONE).map(str::to_string),
        })
        .collect()
}

/// What is between pairs of backquotes.
fn literals(cell: &str) -> Vec<String> {
    let parts = cell.split("``").skip(1).step_by(2);
    parts.map(str::to_string).collect()
}

/// Looks like the number of a rule.
fn is_rule(word: &str) -> bool {
    let rest = word.strip_prefix(['D', 'V']).unwrap_or_default();
    (1..=2).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_digit())
}

fn all_rules() -> Vec<String> {
    let each = |(letter, last)| (1..=last).map(move |n| format!("{letter}{n}"));
    RULES.into_iter().flat_map(each).collect()
}

/// Rules without a row, or whose row says nothing.
fn missing(rules: &[Rule]) -> Vec<String> {
    let mut problems = Vec::new();
    let all = all_rules();
    for name in &all {
        match rules.iter().filter(|r| r.name == *name).collect::<Vec<_>>()[..] {
            [] => problems.push(format!("{name} has no row")),
            [rule] => {
                if rule.code.is_empty() {
                    problems.push(format!("{name} is kept by no code"));
                }
                if rule.tests.is_empty() {
                    problems.push(format!("{name} is proven by no test"));
                }
                if rule.second.is_empty() == rule.why.is_none() {
                    problems.push(format!(
                        "{name} has to have either a test with QEMU's own devices, or why not"
                    ));
                }
            }
            _ => problems.push(format!("{name} has several rows")),
        }
    }
    let unknown = rules.iter().filter(|r| !all.contains(&r.name));
    problems.extend(unknown.map(|r| format!("{} is no rule", r.name)));
    problems
}

type Found = Result<(), String>;

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Finds `FILE: ITEM`.
fn code(tree: &Tree, entry: &str) -> Found {
    let (file, item) = entry.split_once(": ").ok_or("is no file and item")?;
    match defines(&read(&tree.join(file))?, item) {
        true => Ok(()),
        false => Err(format!("nothing is named {item} there")),
    }
}

/// Whether a source file in Rust defines an item.
fn defines(text: &str, item: &str) -> bool {
    KEYWORDS.iter().any(|keyword| {
        let needle = format!("{keyword} {item}");
        text.match_indices(&needle).any(|(at, _)| {
            let next = text[at + needle.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    })
}

fn test(tree: &Tree, entry: &str) -> Found {
    if let Some(name) = entry.strip_prefix("boot/") {
        return match scenario::all().iter().any(|s| s.name == name) {
            true => Ok(()),
            false => Err("there is no such scenario".into()),
        };
    }
    if let Some(name) = entry.strip_prefix("qtest/") {
        return match read(&tree.join(QTEST))?.contains(&format!("{{ \"{name}\", test_")) {
            true => Ok(()),
            false => Err("the series has no such case".into()),
        };
    }
    match entry.split_once(".py: ") {
        Some((program, title)) => kselftest(tree, &format!("{program}.py"), title),
        None => host_test(tree, entry),
    }
}

fn kselftest(tree: &Tree, program: &str, title: &str) -> Found {
    let dir = tree.join(SELFTESTS);
    let text = read(&dir.join("Makefile"))?;
    let mut listed = makefile::words(&text, "TEST_PROGS");
    listed.extend(makefile::words(&text, "TEST_PROGS_EXTENDED"));
    if !listed.iter().any(|name| name == program) {
        return Err("the Makefile does not list the program".into());
    }
    match read(&dir.join(program))?.contains(&format!("\"{title}\"")) {
        true => Ok(()),
        false => Err("it has no such case".into()),
    }
}

/// Finds a test by its path: in the file of its module, or of the one around that.
fn host_test(tree: &Tree, entry: &str) -> Found {
    let words: Vec<&str> = entry.split("::").collect();
    let [package, modules @ .., name] = &words[..] else {
        return Err("is no test".into());
    };
    let dir = match *package {
        "suspend-protocol" => "tools/virtio/protocol",
        "virtio-test-device" => "tools/virtio/device",
        "lab" => "tools/virtio/lab",
        _ => return Err(format!("there is no package {package}")),
    };
    let dir = tree.join(dir);
    let mut files: Vec<PathBuf> = Vec::new();
    for depth in [modules.len(), modules.len().saturating_sub(1)] {
        let module = modules[..depth].join("/");
        files.push(dir.join(format!("src/{module}.rs")));
        files.push(dir.join(format!("src/{module}/mod.rs")));
        files.push(dir.join(format!("tests/{module}.rs")));
    }
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    // A macro that makes several tests is given their names: `NAME: [`.
    let made = format!("{name}: [");
    match texts
        .into_iter()
        .any(|text| defines(&text, name) || text.contains(&made))
    {
        true => Ok(()),
        false => Err("there is no such test".into()),
    }
}

/// Looks for rules that are cited and don't exist.
fn citations(tree: &Tree, path: &Path, problems: &mut Vec<String>) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    if NOT_READ.iter().any(|n| name == *n) {
        return Ok(());
    }
    if path.is_dir() {
        let entries =
            fs::read_dir(path).with_context(|| format!("can't read {}", path.display()))?;
        for entry in entries {
            citations(
                tree,
                &entry.context("can't read a directory")?.path(),
                problems,
            )?;
        }
        return Ok(());
    }
    let extension = path.extension().and_then(|e| e.to_str());
    if !extension.is_some_and(|e| CITING_EXTENSIONS.contains(&e)) {
        return Ok(());
    }
    let text = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    let all = all_rules();
    for word in cited(&String::from_utf8_lossy(&text)) {
        if !all.contains(&word) {
            let path = path.strip_prefix(tree.root()).unwrap_or(path);
            problems.push(format!("{} cites {word}, which is no rule", path.display()));
        }
    }
    Ok(())
}

/// The rules that a text cites.
fn cited(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| is_rule(word))
        .map(str::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Prose.

.. list-table::
   :header-rows: 1

   * - Rule
     - What
     - Where
     - Code
     - Tests
   * - D1
     - Do this,
       and that
     - A chapter
     - ``a.rs: f``,
       ``b.rs: Struct``
     - ``x.py: a title with {field}``
     - ``qtest/a``
   * - V2
     - Something
     - A chapter
     - ``c.rs: g``
     - ``x.py: another title``
     - none: a reason
";

    fn tree() -> Tree {
        Tree::copy_at(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.."))
    }

    #[test]
    fn rows_of_a_table() {
        let rules = parse(TABLE);
        assert_eq!(
            rules[0],
            Rule {
                name: "D1".into(),
                code: vec!["a.rs: f".into(), "b.rs: Struct".into()],
                tests: vec!["x.py: a title with {field}".into()],
                second: vec!["qtest/a".into()],
                why: None,
            }
        );
        assert_eq!(rules[1].why.as_deref(), Some("a reason"));
    }

    #[test]
    fn a_rule_without_row_or_test_is_told() {
        let problems = missing(&[
            Rule {
                name: "D1".into(),
                code: vec!["a".into()],
                tests: Vec::new(),
                second: Vec::new(),
                why: None,
            },
            Rule {
                name: "D99".into(),
                code: Vec::new(),
                tests: Vec::new(),
                second: Vec::new(),
                why: None,
            },
        ]);
        for expected in [
            "D1 is proven by no test",
            "D1 has to have either a test with QEMU's own devices, or why not",
            "D2 has no row",
            "V5 has no row",
            "D99 is no rule",
        ] {
            assert!(problems.iter().any(|p| p == expected), "{expected}");
        }
    }

    #[test]
    fn definitions() {
        let text = "pub fn a_b() {}\nconst X: u8 = 1;\n// fn only_said\nfn f<T>() {}";
        for item in ["a_b", "X", "f"] {
            assert!(defines(text, item), "{item}");
        }
        for item in ["a", "a_b_c", "Y"] {
            assert!(!defines(text, item), "{item}");
        }
    }

    #[test]
    fn what_is_named_is_looked_for() {
        let tree = tree();
        let protocol = "rust/kernel/virtio/suspend/protocol.rs";
        assert_eq!(code(&tree, &format!("{protocol}: Transition")), Ok(()));
        assert!(code(&tree, &format!("{protocol}: Tranquility")).is_err());
        assert!(code(&tree, "rust/nothing.rs: f").is_err());
        for entry in [
            "suspend-protocol::exhaustive::negotiation",
            "lab::conformance::tests::definitions",
            "suspend_basic.py: {revision}: suspend, resume",
            "boot/reboot-suspended",
            "qtest/refuse",
            "qemu_cycles.py: our entropy device: {CYCLES} cycles while it is read",
        ] {
            assert_eq!(test(&tree, entry), Ok(()), "{entry}");
        }
        for entry in [
            "suspend-protocol::exhaustive::negotiated",
            "suspend-protocol::nowhere::negotiation",
            "nothing::a::b",
            "suspend_basic.py: {revision}: suspend, resumed",
            "suspend_nothing.py: {revision}: suspend, resume",
            "boot/nothing",
            "qtest/nothing",
        ] {
            assert!(test(&tree, entry).is_err(), "{entry}");
        }
    }

    #[test]
    fn citations_are_words() {
        let words = cited("rule D4, (V2). V1_4, 0xD4, D123, ID4");
        assert_eq!(words.into_iter().collect::<Vec<_>>(), ["D4", "V2"]);
    }

    #[test]
    fn the_page_is_right() {
        let problems = check(&tree()).unwrap();
        assert!(problems.is_empty(), "{problems:#?}");
    }
}
