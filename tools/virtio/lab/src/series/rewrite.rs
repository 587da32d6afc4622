// SPDX-License-Identifier: GPL-2.0

//! A file of the clone, as it would be upstream.
//!
//! What is done to all of them is mechanical: crate `virtio` is a module of crate `kernel`, helpers
//! have the kernel's prefix, pages are elsewhere. What is left is in the map, file by file.

use super::imports;
use super::map::{longest, Map};
use anyhow::{ensure, Result};

/// Whose file it is.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Crate,
    Driver,
}

impl Side {
    /// What paths of the crate begin with.
    fn ours(self) -> &'static str {
        match self {
            Self::Crate => "crate",
            Self::Driver => "virtio",
        }
    }

    /// What paths of crate `kernel` begin with, upstream.
    fn kernel(self) -> &'static str {
        match self {
            Self::Crate => "crate",
            Self::Driver => "kernel",
        }
    }
}

/// Rewrites a file, whose name is that in the clone.
pub fn rewrite(map: &Map, file: &str, text: &str) -> Result<String> {
    let mut text = text.to_string();
    for edit in map.edit.iter().filter(|edit| edit.file == file) {
        text = replace_once(&text, &edit.find, &edit.replace, file)?;
    }
    for substitute in map.substitute.iter().filter(|s| file.ends_with(&s.files)) {
        text = text.replace(&substitute.find, &substitute.replace);
    }
    let text = text.trim_end().to_string() + "\n";
    let side = match file.starts_with("rust/kernel/") {
        true => Side::Crate,
        false => Side::Driver,
    };
    if file.ends_with(".rs") {
        return Ok(fold(&rust(map, side, &text)));
    }
    if file.starts_with("rust/helpers/") {
        return Ok(helpers(&text));
    }
    if file.ends_with(".rst") || file.starts_with("Documentation/") {
        return Ok(paths_in(map, Side::Driver, &text));
    }
    Ok(text)
}

/// Replaces what has to be there, once.
pub fn replace_once(text: &str, find: &str, replace: &str, file: &str) -> Result<String> {
    let count = text.matches(find).count();
    ensure!(
        count == 1,
        "{file} has this {count} times, not once:\n{find}"
    );
    Ok(text.replacen(find, replace, 1))
}

/// A path of the crate as it is in crate `kernel`; `None` if it is gone.
fn in_kernel(map: &Map, names: &[&str]) -> Option<Vec<String>> {
    let path = names.join("::");
    let (from, to) = longest(&map.paths, &path, ':').unwrap_or(("", "virtio"));
    if !from.is_empty() && to.is_empty() {
        return None;
    }
    let rest = path[from.len()..].trim_start_matches(':');
    let names = to.split("::").chain(rest.split("::"));
    Some(names.filter(|n| !n.is_empty()).map(String::from).collect())
}

fn rust(map: &Map, side: Side, text: &str) -> String {
    let mut new = String::new();
    for line in uses(map, side, text) {
        match line {
            Line::Done(line) => new += &line,
            // Upstream the crate is no crate of its own, and modules are where the compiler looks.
            Line::Found(line)
                if side == Side::Crate && line.trim_start().starts_with("#[path = ") =>
            {
                continue;
            }
            Line::Found(line) => new += &paths_in(map, side, line),
        }
        new.push('\n');
    }
    new
}

/// A declaration, and where it begins and ends in the lines of a file.
struct Use {
    first: usize,
    last: usize,
    /// What each line begins with.
    prefix: String,
    visibility: String,
    text: String,
}

/// The next declaration from a line on.
fn next_use(lines: &[&str], from: usize) -> Option<Use> {
    (from..lines.len()).find_map(|first| {
        let line = lines[first];
        let bare = without_prefix(line);
        let prefix = &line[..line.len() - bare.len()];
        let at = match bare.starts_with("use ") {
            true => 0,
            false => bare
                .starts_with("pub")
                .then(|| bare.find(" use ").map(|at| at + 1))??,
        };
        // Not a word in a sentence.
        ensure_use(bare, at)?;
        let mut text = bare[at + 4..].to_string();
        let mut last = first;
        while !text.trim_end().ends_with(';') {
            last += 1;
            let next = *lines.get(last)?;
            text.push('\n');
            text += next.strip_prefix(prefix.trim_end())?;
        }
        Some(Use {
            first,
            last,
            prefix: prefix.into(),
            visibility: bare[..at].into(),
            text: text.trim_end().trim_end_matches(';').into(),
        })
    })
}

fn ensure_use(bare: &str, at: usize) -> Option<()> {
    let rest = &bare[at + 4..];
    let is_path = rest.starts_with(|c: char| c.is_ascii_lowercase() || c == ':')
        && (rest.contains("::") || rest.trim_end().ends_with(';'));
    let is_sentence = rest.split("//").next()?.trim_end().ends_with(['.', ',']);
    (is_path && !is_sentence).then_some(())
}

/// A line without its indentation, and without what makes it an example in a comment.
fn without_prefix(line: &str) -> &str {
    let line = line.trim_start();
    let line = match line.strip_prefix("///").or(line.strip_prefix("//!")) {
        Some(rest) => rest.trim_start(),
        None => line,
    };
    line.strip_prefix("# ").unwrap_or(line)
}

/// A line of a file.
enum Line<'a> {
    /// As it is in the clone.
    Found(&'a str),
    /// As it is upstream.
    Done(String),
}

/// Rewrites the declarations. Those at the left margin that are alike become one.
fn uses<'a>(map: &Map, side: Side, text: &'a str) -> Vec<Line<'a>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(one) = next_use(&lines, at) {
        at = one.last + 1;
        found.push(one);
    }
    let is_plain = |one: &Use| {
        let above = one.first.checked_sub(1).map_or("", |n| lines[n]);
        one.prefix.is_empty() && one.visibility.is_empty() && !above.starts_with("#[")
    };
    let rewritten = |one: &Use| -> Vec<imports::Path> {
        let side = match one.prefix.contains("//") {
            // An example is a crate of its own.
            true => Side::Driver,
            false => side,
        };
        let paths = imports::paths(&one.text);
        paths.iter().filter_map(|p| import(map, side, p)).collect()
    };
    // What goes to the first of those that are alike.
    let mut plain: Vec<imports::Path> = found
        .iter()
        .filter(|one| is_plain(one))
        .flat_map(&rewritten)
        .collect();
    plain.sort();
    plain.dedup();

    let mut new = Vec::new();
    let mut at = 0;
    for one in &found {
        new.extend(lines[at..one.first].iter().copied().map(Line::Found));
        at = one.last + 1;
        let mut paths = rewritten(one);
        if is_plain(one) {
            let roots: Vec<String> = paths.iter().map(|p| p[0].clone()).collect();
            paths = plain
                .iter()
                .filter(|p| roots.contains(&p[0]))
                .cloned()
                .collect();
            plain.retain(|p| !roots.contains(&p[0]));
        }
        for text in imports::declarations(&paths) {
            let text = format!("{}use {text};", one.visibility);
            let text = match one.prefix.contains("//") {
                true => on_one_line(&text),
                false => text,
            };
            let lines = text.lines().map(|l| format!("{}{l}", one.prefix));
            new.extend(lines.map(Line::Done));
        }
    }
    new.extend(lines[at..].iter().copied().map(Line::Found));
    new
}

fn on_one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().filter(|w| *w != "//").collect();
    words.join(" ")
}

fn import(map: &Map, side: Side, path: &[String]) -> Option<imports::Path> {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let (first, rest) = names.split_first()?;
    let mut new = match *first {
        name if name == side.ours() => {
            let new = in_kernel(map, rest)?;
            // Of another crate.
            if new.first().is_some_and(|name| name == "pin_init") {
                return Some(new);
            }
            new
        }
        "kernel" => rest.iter().map(|n| n.to_string()).collect(),
        _ => return Some(path.to_vec()),
    };
    new.insert(0, side.kernel().into());
    Some(new)
}

/// Rewrites the paths in the code, and the comments, of a text.
fn paths_in(map: &Map, side: Side, text: &str) -> String {
    let mut new = String::new();
    let mut rest = text;
    loop {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let Some(start) = rest.find(word) else { break };
        let before = new
            .chars()
            .chain(rest[..start].chars())
            .last()
            .unwrap_or(' ');
        let end = rest[start..]
            .find(|c| !word(c))
            .map_or(rest.len(), |n| start + n);
        let (name, after) = (&rest[start..end], &rest[end..]);
        new += &rest[..start];
        let is_path = after.starts_with("::") && after[2..].starts_with(word);
        let is_first = !matches!(before, ':' | '"' | '/' | '.');
        let is_comment = new.trim_start().starts_with("//");
        let ours = match (side, name) {
            (Side::Crate, "crate") => before != '$' || !is_kernels(after),
            (Side::Driver, "virtio") => is_first,
            (Side::Crate, "virtio") => is_first && is_comment,
            (Side::Crate, "kernel") if is_path && is_first && !is_comment && before != '$' => {
                new += "crate";
                rest = after;
                continue;
            }
            _ => false,
        };
        if !(is_path && ours) {
            new += name;
            rest = after;
            continue;
        }
        let end = after[2..].find(|c| !word(c)).map_or(after.len(), |n| 2 + n);
        let next = &after[2..end];
        let path = in_kernel(map, &[next]).unwrap_or_else(|| vec!["virtio".into(), next.into()]);
        let root = match name {
            "crate" => "crate",
            _ => "kernel",
        };
        new += &format!("{root}::{}", path.join("::"));
        rest = &after[end..];
    }
    new + rest
}

/// Whether it is a macro of the kernel's that follows.
fn is_kernels(after: &str) -> bool {
    after.starts_with("::module_d")
}

/// How long a line may be.
const WIDTH: usize = 100;

/// Folds comments that have become too long: what is too much goes to the line that follows.
fn fold(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    let mut at = 0;
    while at < lines.len() {
        let cut = cut(&lines[at]);
        if let Some((text, rest)) = cut {
            let (marker, words) = comment(&text).unwrap_or_default();
            let next = lines.get(at + 1).and_then(|next| comment(next));
            match next {
                Some((next_marker, next))
                    if next_marker.starts_with(marker.trim_end()) && !begins(next) =>
                {
                    lines[at + 1] = format!("{next_marker}{rest} {next}");
                }
                _ => {
                    let item = if words.starts_with("- ") { "  " } else { "" };
                    lines.insert(at + 1, format!("{marker}{item}{rest}"));
                }
            }
            lines[at] = text;
        }
        at += 1;
    }
    lines.join("\n") + "\n"
}

/// Divides a comment where it is long enough.
fn cut(line: &str) -> Option<(String, String)> {
    comment(line)?;
    if line.chars().count() <= WIDTH {
        return None;
    }
    let end = line
        .char_indices()
        .nth(WIDTH + 1)
        .map_or(line.len(), |(at, _)| at);
    let (text, rest) = line.split_at(line[..end].rfind(' ')?);
    Some((text.into(), rest.trim_start().into()))
}

/// Divides a comment into what it begins with and its words.
fn comment(line: &str) -> Option<(&str, &str)> {
    let bare = line.trim_start();
    let text = bare.strip_prefix("//")?.trim_start_matches(['/', '!']);
    let words = text.trim_start();
    Some(line.split_at(line.len() - words.len()))
}

/// Whether words begin something new.
fn begins(words: &str) -> bool {
    words.is_empty() || words.starts_with(['-', '#', '`', '|', '*'])
}

/// Gives helpers the kernel's prefix and lays them out again.
fn helpers(text: &str) -> String {
    let mut new = String::new();
    let mut shift_from = None;
    for line in text.lines() {
        if line == "#include \"virtio.h\"" || line.starts_with("#define CREATE_TRACE_POINTS") {
            continue;
        }
        let renamed = line.replace("rust_virtio_helper_", "rust_helper_");
        let defines = line.contains("rust_virtio_helper_")
            && line.starts_with(|c: char| c.is_ascii_alphabetic())
            && !line.ends_with(';');
        if let (true, Some(at)) = (defines, renamed.find("rust_helper_")) {
            // The type on a line of its own: there is room for the rest.
            new += &format!(
                "__rust_helper {}\n{}\n",
                renamed[..at].trim_end(),
                &renamed[at..]
            );
            shift_from = renamed[at..].find('(').map(|n| n + 1);
            if line.contains(')') && !line.ends_with(',') {
                shift_from = None;
            }
            continue;
        }
        if let Some(column) = shift_from {
            let (tabs, spaces) = (column / 8, column % 8);
            let indent = "\t".repeat(tabs) + &" ".repeat(spaces);
            new += &format!("{indent}{}\n", renamed.trim_start());
            if !line.ends_with(',') {
                shift_from = None;
            }
            continue;
        }
        new += &renamed;
        new.push('\n');
    }
    while new.contains("\n\n\n") {
        new = new.replace("\n\n\n", "\n\n");
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> Map {
        let text = "from = 'a <b>'\nplaces = {}\nleft_out = {}\npatch = []\n\
                    cover = { subject = '', body = '' }\n\
                    paths = { bindings = 'bindings', input = 'input', gone = '', \
                    'compat::Lock' = 'sync::Lock', virtio = 'virtio' }\n";
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_crate_becomes_a_module() {
        let text =
            "use kernel::prelude::*;\n\nuse crate::{\n    bindings,\n    compat::Lock,\n    \
                    gone,\n    input,\n    Device, //\n};\n\n/// See [`A`](crate::A).\n\
                    #[path = \"a/b.rs\"]\nmod b;\n$crate::parameter::Word; kernel::x!();\n";
        let got = rewrite(&map(), "rust/kernel/virtio/a.rs", text).unwrap();
        assert_eq!(
            got,
            "use crate::{\n    bindings,\n    input,\n    prelude::*,\n    sync::Lock,\n    \
             virtio::Device, //\n};\n\n\n/// See [`A`](crate::virtio::A).\nmod b;\n\
             $crate::virtio::parameter::Word; crate::x!();\n"
        );
    }

    #[test]
    fn a_driver_uses_crate_kernel() {
        let text = "use kernel::prelude::*;\nuse virtio::{input, Device};\n\nuse crate::own;\n\
                    virtio::Status::new(); \"virtio::x\"; crate::own::f();\n";
        let got = rewrite(&map(), "drivers/virtio/a.rs", text).unwrap();
        assert_eq!(
            got,
            "use kernel::{\n    input,\n    prelude::*,\n    virtio::Device, //\n};\n\n\
             use crate::own;\nkernel::virtio::Status::new(); \"virtio::x\"; crate::own::f();\n"
        );
    }

    #[test]
    fn examples_are_rewritten_and_sentences_are_not() {
        let text = "/// use it well, or not.\n/// # use virtio::{Device, input};\n";
        let got = rewrite(&map(), "rust/kernel/input.rs", text).unwrap();
        assert_eq!(
            got,
            "/// use it well, or not.\n/// # use kernel::{ input, virtio::Device, };\n"
        );
    }

    #[test]
    fn helpers_are_laid_out_again() {
        let text =
            "#include \"virtio.h\"\nvoid rust_virtio_helper_f(struct a *a,\n\t\t\t   int b)\n{\n\
                    \tf(a,\n\t  b);\n}\n";
        assert_eq!(
            helpers(text),
            "__rust_helper void\nrust_helper_f(struct a *a,\n\t      int b)\n{\n\
             \tf(a,\n\t  b);\n}\n"
        );
    }

    #[test]
    fn long_comments_are_folded() {
        let word = "a".repeat(60);
        let text = format!("/// {word} {word} b\n/// c\n///\n    // - {word} {word}\nf();\n");
        assert_eq!(
            fold(&text),
            format!("/// {word}\n/// {word} b c\n///\n    // - {word}\n    //   {word}\nf();\n")
        );
    }

    #[test]
    fn what_is_to_be_replaced_is_there_once() {
        assert_eq!(replace_once("abc", "b", "d", "f").unwrap(), "adc");
        assert!(replace_once("abcb", "b", "d", "f").is_err());
        assert!(replace_once("abc", "x", "d", "f").is_err());
    }
}
