// SPDX-License-Identifier: GPL-2.0

//! No circle between the files of a package: each can be read, and tested, before those that need
//! it.
//!
//! A file needs another one if it names something there, in a `use` or anywhere else: by `crate`,
//! `self` or `super`, or by a module of its own. `mod name;` alone is no need: it says where a file
//! is. What is named in comments and texts does not count; what is in macros and tests does.

use crate::tree::Tree;
use anyhow::{anyhow, Context, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the packages are.
const PACKAGES: &str = "tools/virtio";

/// The path of a module, from the root of its package.
type Module = Vec<String>;

/// For each file, by the path of its module, those that it needs.
type Needs = BTreeMap<Module, BTreeSet<Module>>;

/// The circles there are, each as files of which every one needs the next.
pub fn check(tree: &Tree) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(tree.join(PACKAGES)).context("can't read where the packages are")? {
        let package = entry.context("can't read where the packages are")?.path();
        if !package.join("Cargo.toml").exists() {
            continue;
        }
        let files = files(&package.join("src"))?;
        for circle in circles(&needs(&files)?) {
            let names: Vec<String> = circle.iter().map(name).collect();
            found.push(format!(
                "a circle in {}: {}",
                package.display(),
                names.join(" needs ")
            ));
        }
    }
    Ok(found)
}

fn name(module: &Module) -> String {
    match module.is_empty() {
        true => "the root".into(),
        false => module.join("::"),
    }
}

/// The texts of the files of a package.
fn files(src: &Path) -> Result<BTreeMap<Module, String>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(src.to_path_buf(), Module::new())];
    while let Some((dir, module)) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("can't read {}", dir.display()))? {
            let path: PathBuf = entry.context("can't read a directory")?.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let mut module = module.clone();
            if !(module.is_empty() && matches!(&*stem, "lib" | "main")) {
                module.push(stem.into_owned());
            } else if stem == "main" && src.join("lib.rs").exists() {
                // It is a package of its own.
                continue;
            }
            if path.is_dir() {
                todo.push((path, module));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("can't read {}", path.display()))?;
                found.insert(module, text);
            }
        }
    }
    Ok(found)
}

fn needs(files: &BTreeMap<Module, String>) -> Result<Needs> {
    let mut needs = Needs::new();
    for (module, text) in files {
        let tokens: TokenStream = text
            .parse()
            .map_err(|error| anyhow!("{}: {error}", name(module)))?;
        let mut paths = Vec::new();
        let own = modules(&tokens);
        scan(tokens, module, &own, &mut paths);
        let file_of = |path: Module| {
            (0..=path.len())
                .rev()
                .map(|len| &path[..len])
                .find(|start| files.contains_key(*start))
                .map(<[String]>::to_vec)
        };
        let mut needed: BTreeSet<Module> = paths.into_iter().filter_map(file_of).collect();
        needed.remove(module);
        needs.insert(module.clone(), needed);
    }
    Ok(needs)
}

/// Finds the paths in what stands in a module, whose own modules are `own`.
fn scan(tokens: TokenStream, module: &Module, own: &BTreeSet<String>, found: &mut Vec<Module>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let (before, after) = (&tokens[..at], &tokens[at + 1..]);
        match token {
            TokenTree::Group(group) => match before {
                [.., keyword, name] if is_ident(keyword, "mod") => {
                    let tokens = group.stream();
                    let own = modules(&tokens);
                    scan(tokens, &joined(module, name), &own, found);
                }
                _ => scan(group.stream(), module, own, found),
            },
            TokenTree::Ident(ident) if !ends_in_colons(before) => {
                let Some(rest) = after_colons(after) else {
                    continue;
                };
                let start = match ident.to_string().as_str() {
                    "crate" => Module::new(),
                    "self" => module.clone(),
                    "super" => parent(module),
                    name if own.contains(name) => joined(module, token),
                    _ => continue,
                };
                follow(rest, start, found);
            }
            _ => {}
        }
    }
}

/// Follows a path that has come as far as `path`, and takes all branches of a `use`.
fn follow(mut rest: &[TokenTree], mut path: Module, found: &mut Vec<Module>) {
    loop {
        match rest.first() {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
                let branches = tokens.split(|token| is_punct(token, ','));
                // There is none behind the last comma.
                for branch in branches.filter(|branch| !branch.is_empty()) {
                    follow(branch, path.clone(), found);
                }
                return;
            }
            Some(name @ TokenTree::Ident(_)) => {
                path = match name {
                    name if is_ident(name, "self") => path,
                    name if is_ident(name, "super") => parent(&path),
                    name => joined(&path, name),
                };
                match after_colons(&rest[1..]) {
                    Some(more) => rest = more,
                    None => return found.push(path),
                }
            }
            // All there is, or the end.
            _ => return found.push(path),
        }
    }
}

/// The modules that are declared.
fn modules(tokens: &TokenStream) -> BTreeSet<String> {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let pairs = tokens.windows(2);
    pairs
        .filter(|pair| is_ident(&pair[0], "mod"))
        .map(|pair| pair[1].to_string())
        .collect()
}

fn joined(module: &Module, name: &TokenTree) -> Module {
    let mut module = module.clone();
    module.push(name.to_string());
    module
}

fn parent(module: &Module) -> Module {
    module[..module.len().saturating_sub(1)].to_vec()
}

fn is_ident(token: &TokenTree, name: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == name)
}

fn is_punct(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == char)
}

fn ends_in_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [.., a, b] if is_punct(a, ':') && is_punct(b, ':'))
}

fn after_colons(tokens: &[TokenTree]) -> Option<&[TokenTree]> {
    match tokens {
        [a, b, rest @ ..] if is_punct(a, ':') && is_punct(b, ':') => Some(rest),
        _ => None,
    }
}

/// A circle for each need that closes one, as it is found from the first file on.
fn circles(needs: &Needs) -> Vec<Vec<Module>> {
    fn walk<'a>(
        needs: &'a Needs,
        file: &'a Module,
        way: &mut Vec<&'a Module>,
        done: &mut BTreeSet<&'a Module>,
        found: &mut Vec<Vec<Module>>,
    ) {
        if let Some(at) = way.iter().position(|passed| *passed == file) {
            let circle = way[at..].iter().chain([&file]);
            found.push(circle.map(|file| file.to_vec()).collect());
        } else if !done.contains(file) {
            way.push(file);
            for needed in &needs[file] {
                walk(needs, needed, way, done, found);
            }
            way.pop();
            done.insert(file);
        }
    }
    let (mut done, mut found) = (BTreeSet::new(), Vec::new());
    for file in needs.keys() {
        walk(needs, file, &mut Vec::new(), &mut done, &mut found);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let module = |path: &str| path.split_terminator("::").map(str::to_string).collect();
        let files = files
            .iter()
            .map(|(path, text)| (module(path), text.to_string()))
            .collect();
        let circles = circles(&needs(&files).unwrap());
        let names = |circle: &Vec<Module>| circle.iter().map(name).collect::<Vec<_>>().join(" ");
        circles.iter().map(names).collect()
    }

    #[test]
    fn a_circle_is_found_however_it_is_written() {
        for (one, other) in [
            ("use crate::b::f;", "use crate::a;"),
            ("use crate::{c, b::{self, d}};", "fn f() { crate::a::f() }"),
            ("mod tests { use super::super::b; }", "use super::a::*;"),
            (
                "fn f() { assert!(crate::b::f(), \"{}\", 1) }",
                "use self::super::a as x;",
            ),
        ] {
            let files = [("", "mod a; mod b;"), ("a", one), ("b", other)];
            assert_eq!(found(&files), ["a b a"], "{one} {other}");
        }
    }

    #[test]
    fn a_file_and_its_own_module_are_two() {
        let child = ("a::b", "use super::f;");
        assert_eq!(found(&[("a", "mod b; pub use b::g;"), child]), ["a a::b a"]);
        assert_eq!(
            found(&[("a", "mod b; fn h() { b::g() }"), child]),
            ["a a::b a"]
        );
        assert!(found(&[("a", "mod b;"), child]).is_empty());
    }

    #[test]
    fn a_longer_circle_is_found() {
        let files = [
            ("a", "use crate::b::f; use crate::c::f;"),
            ("b", "use crate::c;"),
            ("c", "fn f() { g::<crate::a::T>() }"),
        ];
        assert_eq!(found(&files), ["a b c a"]);
    }

    #[test]
    fn what_is_no_need() {
        let files = [
            ("", "mod a; mod b; use a::f;"),
            (
                "a",
                "use crate::{b::{f, g,}, }; mod tests { use super::*; }",
            ),
            (
                "b",
                "/// See [`crate::a`].\n// crate::a\nfn f() { \"crate::a\"; x::a::b(); }",
            ),
        ];
        assert!(found(&files).is_empty());
    }

    #[test]
    fn the_packages_have_none() {
        let tree = Tree::copy_at(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.."));
        let found = check(&tree).unwrap();
        assert!(found.is_empty(), "{found:#?}");
    }
}
