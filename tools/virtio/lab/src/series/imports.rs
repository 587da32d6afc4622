// SPDX-License-Identifier: GPL-2.0

//! `use` declarations, taken apart into paths and put together again.

use std::collections::BTreeMap;

/// A path, such as `crate::sync::Arc`; the last element may be `*`, `self` or `name as other`.
pub type Path = Vec<String>;

/// Takes a declaration apart, without `use` and `;`. Comments in it are dropped.
pub fn paths(text: &str) -> Vec<Path> {
    let text: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ");
    let mut found = Vec::new();
    take_apart(text.trim(), &[], &mut found);
    found
}

fn take_apart(text: &str, prefix: &[String], found: &mut Vec<Path>) {
    let (head, group) = match text.split_once('{') {
        None => (text, None),
        Some((head, rest)) => (head, rest.rsplit_once('}').map(|(group, _)| group)),
    };
    let mut path = prefix.to_vec();
    path.extend(
        head.split("::")
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(|name| name.split_whitespace().collect::<Vec<_>>().join(" ")),
    );
    match group {
        None if path.len() > prefix.len() => found.push(path),
        None => {}
        Some(group) => {
            for part in at_commas(group) {
                take_apart(part.trim(), &path, found);
            }
        }
    }
}

/// Divides what is in a group, but not what is in groups in it.
fn at_commas(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[derive(Default)]
struct Node {
    is_used: bool,
    below: BTreeMap<String, Node>,
}

/// Puts paths together, one declaration for each first element, in the kernel's style.
pub fn declarations(paths: &[Path]) -> Vec<String> {
    let mut root = Node::default();
    for path in paths {
        let mut node = &mut root;
        // `a::self` and `a` are the same.
        let names = match path.split_last() {
            Some((last, names)) if last == "self" && !names.is_empty() => names,
            _ => path,
        };
        for name in names {
            node = node.below.entry(name.clone()).or_default();
        }
        node.is_used = true;
    }
    root.below
        .iter()
        .map(|(name, node)| print(name, node, 0))
        .collect()
}

fn print(name: &str, node: &Node, depth: usize) -> String {
    match (node.is_used, node.below.len()) {
        (_, 0) => name.into(),
        (false, 1) => {
            let (next, below) = node.below.first_key_value().expect("there is one");
            // Only in braces can `self` have another name.
            if !next.starts_with("self as") {
                return format!("{name}::{}", print(next, below, depth));
            }
            format!("{name}::{{{next}}}")
        }
        _ => {
            let mut parts = Vec::new();
            if node.is_used {
                parts.push("self".to_string());
            }
            let mut below: Vec<_> = node.below.iter().collect();
            below.sort_by_key(|(name, _)| (class(name), *name));
            parts.extend(below.iter().map(|(n, below)| print(n, below, depth + 1)));
            let indent = "    ".repeat(depth + 1);
            let end = "    ".repeat(depth);
            // The comment keeps rustfmt from putting them on one line.
            format!(
                "{name}::{{\n{indent}{}, //\n{end}}}",
                parts.join(&format!(",\n{indent}"))
            )
        }
    }
}

/// Names are sorted by how they are written first, as rustfmt does it.
fn class(name: &str) -> u8 {
    match name {
        _ if name.starts_with("self") => 0,
        _ if name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') => 1,
        _ if name.contains(|c: char| c.is_ascii_lowercase()) => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(text: &str) -> Vec<String> {
        paths(text).iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn a_declaration_is_taken_apart() {
        let text = "kernel::{\n    device::{\n        self as dev,\n        Core, //\n    },\n    \
                    prelude::*,\n    sync::Arc as A, //\n}";
        assert_eq!(
            strings(text),
            [
                "kernel::device::self as dev",
                "kernel::device::Core",
                "kernel::prelude::*",
                "kernel::sync::Arc as A"
            ]
        );
        assert_eq!(strings("crate::bindings"), ["crate::bindings"]);
    }

    #[test]
    fn and_put_together_again() {
        let all = [
            paths("a::{self, b::C, d, E}"),
            paths("a::b::E"),
            paths("f::g::h"),
        ]
        .concat();
        assert_eq!(
            declarations(&all),
            [
                "a::{\n    self,\n    b::{\n        C,\n        E, //\n    },\n    d,\n    E, //\n}",
                "f::g::h"
            ]
        );
        assert_eq!(
            declarations(&paths("a::b::{self as c}")),
            ["a::b::{self as c}"]
        );
    }
}
