// SPDX-License-Identifier: GPL-2.0

//! The rules, the code that keeps them and the tests that prove it, checked so that they can't rot.
//!
//! The source is `conformance.toml`, which explains itself; the table of
//! Documentation/virtio/conformance.rst is written from it. All that is named has to be there: code
//! as a function, type or constant of that name in that file, a kselftest in its Makefile with a
//! case of that title, and so on.

use crate::tree::{Tree, SELFTESTS};
use crate::{makefile, scenario};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const SOURCE: &str = "tools/virtio/lab/conformance.toml";
const PAGE: &str = "Documentation/virtio/conformance.rst";
/// What is behind this line of the page is written by the lab.
const MARKER: &str =
    ".. Written by scripts/lab conformance --write, out of tools/virtio/lab/conformance.toml.\n";
const HEADER: &str = "
.. list-table::
   :header-rows: 1
   :widths: 4 26 10 20 20 20

   * - Rule
     - What it asks
     - VIRTIO 1.4
     - Kept by
     - Proven by
     - With QEMU's own devices
";
/// Columns of a page.
const WIDTH: usize = 100;
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
/// What can define an item.
const KEYWORDS: [&str; 6] = ["fn", "struct", "enum", "trait", "const", "type"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    rule: Vec<Rule>,
}

/// As `conformance.toml` explains it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    name: String,
    asks: String,
    chapter: String,
    code: Vec<String>,
    tests: Vec<String>,
    #[serde(default)]
    qemu: Vec<String>,
    no_qemu: Option<String>,
}

fn rules(tree: &Tree) -> Result<Vec<Rule>> {
    let text = fs::read_to_string(tree.join(SOURCE));
    let text = text.with_context(|| format!("can't read {SOURCE}"))?;
    let list: List = toml::from_str(&text).with_context(|| format!("can't read {SOURCE}"))?;
    Ok(list.rule)
}

/// What is wrong.
pub fn check(tree: &Tree) -> Result<Vec<String>> {
    let rules = rules(tree)?;
    let mut problems = missing(&rules);
    for rule in &rules {
        let entries = rule.code.iter().map(|entry| (entry, code(tree, entry)));
        let tests = rule.tests.iter().chain(&rule.qemu);
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
    let mut problems: Vec<String> = problems
        .into_iter()
        .map(|p| format!("{SOURCE}: {p}"))
        .collect();
    let (is, should) = page(tree, &rules)?;
    if is != should {
        problems.push(format!(
            "{PAGE}: not as {SOURCE} has it: scripts/lab conformance --write"
        ));
    }
    Ok(problems)
}

/// `lab conformance`.
pub fn run(tree: &Tree, write: bool) -> Result<u8> {
    if write {
        self::write(tree)?;
    }
    let problems = check(tree)?;
    for problem in &problems {
        println!("{problem}");
    }
    Ok(u8::from(!problems.is_empty()))
}

/// Writes the table of the page.
fn write(tree: &Tree) -> Result<()> {
    let (_, should) = page(tree, &rules(tree)?)?;
    fs::write(tree.join(PAGE), should).with_context(|| format!("can't write {PAGE}"))
}

/// The page as it is, and as it should be.
fn page(tree: &Tree, rules: &[Rule]) -> Result<(String, String)> {
    let is = fs::read_to_string(tree.join(PAGE));
    let is = is.with_context(|| format!("can't read {PAGE}"))?;
    let (prose, _) = is
        .split_once(MARKER)
        .with_context(|| format!("{PAGE} has no line {MARKER:?}"))?;
    let should = format!("{prose}{MARKER}{}", table(rules));
    Ok((is, should))
}

/// A list-table with a row for each rule.
fn table(rules: &[Rule]) -> String {
    let mut text = HEADER.to_string();
    let mut cell = |mark: &str, lines: Vec<String>| {
        for (number, line) in lines.iter().enumerate() {
            text += if number == 0 { mark } else { "       " };
            text += line;
            text += "\n";
        }
    };
    for rule in rules {
        cell("   * - ", vec![rule.name.clone()]);
        cell("     - ", wrapped(&rule.asks, WIDTH - 7));
        cell("     - ", wrapped(&rule.chapter, WIDTH - 7));
        cell("     - ", literals(&rule.code));
        cell("     - ", literals(&rule.tests));
        match &rule.no_qemu {
            Some(why) => cell("     - ", wrapped(&format!("none: {why}"), WIDTH - 7)),
            None => cell("     - ", literals(&rule.qemu)),
        }
    }
    text
}

/// Lines of words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

/// A line for each entry, with a comma behind all but the last.
fn literals(entries: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = entries.iter().map(|e| format!("``{e}``,")).collect();
    if let Some(last) = lines.last_mut() {
        last.pop();
    }
    lines
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

/// Rules without an entry, or whose entry says nothing.
fn missing(rules: &[Rule]) -> Vec<String> {
    let mut problems = Vec::new();
    let all = all_rules();
    for name in &all {
        match rules.iter().filter(|r| r.name == *name).collect::<Vec<_>>()[..] {
            [] => problems.push(format!("{name} is not there")),
            [rule] => {
                if rule.code.is_empty() {
                    problems.push(format!("{name} is kept by no code"));
                }
                if rule.tests.is_empty() {
                    problems.push(format!("{name} is proven by no test"));
                }
                if rule.qemu.is_empty() == rule.no_qemu.is_none() {
                    problems.push(format!(
                        "{name} has to have either a test with QEMU's own devices, or why not"
                    ));
                }
            }
            _ => problems.push(format!("{name} is there several times")),
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
    // `IpAddr::V6` is a name, no rule.
    text.split(|c: char| !c.is_alphanumeric() && !"_:".contains(c))
        .map(|word| word.trim_end_matches(':'))
        .filter(|word| is_rule(word))
        .map(str::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process;

    fn tree() -> Tree {
        Tree::copy_at(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.."))
    }

    fn rule(name: &str) -> Rule {
        Rule {
            name: name.into(),
            asks: "Do this".into(),
            chapter: "A chapter".into(),
            ..Rule::default()
        }
    }

    #[test]
    fn a_row_for_each_rule() {
        let rules = [
            Rule {
                asks: format!("Do {}.", "this ".repeat(20).trim_end()),
                code: vec!["a.rs: f".into(), "b.rs: Struct".into()],
                tests: vec!["x.py: a title with {field}".into()],
                qemu: vec!["qtest/a".into()],
                ..rule("D1")
            },
            Rule {
                code: vec!["c.rs: g".into()],
                tests: vec!["x.py: another title".into()],
                no_qemu: Some("a reason".into()),
                ..rule("V2")
            },
        ];
        let expected = "
   * - D1
     - Do this this this this this this this this this this this this this this this this this this
       this this.
     - A chapter
     - ``a.rs: f``,
       ``b.rs: Struct``
     - ``x.py: a title with {field}``
     - ``qtest/a``
   * - V2
     - Do this
     - A chapter
     - ``c.rs: g``
     - ``x.py: another title``
     - none: a reason
";
        assert_eq!(
            table(&rules).strip_prefix(HEADER.trim_end()),
            Some(expected)
        );
    }

    #[test]
    fn a_page_that_is_stale_is_told_and_can_be_written() {
        let copy = Tree::copy_at(std::env::temp_dir().join(format!("lab-page-{}", process::id())));
        for file in [SOURCE, PAGE] {
            let to = copy.join(file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(tree().join(file), to).unwrap();
        }
        let is_stale = || {
            let (is, should) = page(&copy, &rules(&copy).unwrap()).unwrap();
            is != should
        };
        write(&copy).unwrap();
        assert!(!is_stale());
        let edit = |file: &str, from: &str, to: &str| {
            let text = fs::read_to_string(copy.join(file)).unwrap();
            assert!(text.contains(from), "{file}: {from}");
            fs::write(copy.join(file), text.replacen(from, to, 1)).unwrap();
        };
        for (file, from, to) in [
            (SOURCE, "d01_broken", "d01_kept"),
            (PAGE, "d01_kept", "d01"),
        ] {
            edit(file, from, to);
            assert!(is_stale(), "{file}");
            write(&copy).unwrap();
            assert!(!is_stale(), "{file}");
        }
        fs::remove_dir_all(copy.root()).unwrap();
    }

    #[test]
    fn a_rule_without_entry_or_test_is_told() {
        let problems = missing(&[
            Rule {
                code: vec!["a".into()],
                ..rule("D1")
            },
            rule("D99"),
        ]);
        for expected in [
            "D1 is proven by no test",
            "D1 has to have either a test with QEMU's own devices, or why not",
            "D2 is not there",
            "V5 is not there",
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
        let words = cited("rule D4, (V2). V1_4, 0xD4, D123, ID4, IpAddr::V6");
        assert_eq!(words.into_iter().collect::<Vec<_>>(), ["D4", "V2"]);
    }

    #[test]
    fn the_page_is_right() {
        let problems = check(&tree()).unwrap();
        assert!(problems.is_empty(), "{problems:#?}");
    }
}
