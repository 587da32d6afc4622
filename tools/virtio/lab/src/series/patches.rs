// SPDX-License-Identifier: GPL-2.0

//! The patches: what each of them changes, and `git format-patch` of that.

use super::map::{is_in, Map, Patch, DIR};
use super::rewrite;
use crate::process::output_of;
use crate::tree::{make_dir, Tree};
use anyhow::{bail, ensure, Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What of the clone would be the kernel's: each of the files there is in a patch, or left out.
const OVERLAY: [&str; 6] = [
    "Documentation",
    "drivers",
    "include",
    "rust",
    "samples",
    "tools/testing",
];

/// The cover letter, as `git format-patch` makes it.
const COVER: &str = "0000-cover-letter.patch";

/// The files of the clone that a patch adds.
pub struct Claims {
    pub of_patch: Vec<Vec<String>>,
}

/// Says which file is in which patch. Each is in one, or is left out.
pub fn claims(tree: &Tree, map: &Map) -> Result<Claims> {
    let files = overlay(tree)?;
    let mut of_patch = vec![Vec::new(); map.patch.len()];
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for file in &files {
        let claim = map
            .patch
            .iter()
            .enumerate()
            .flat_map(|(n, patch)| patch.files.iter().map(move |entry| (n, entry)))
            .filter(|(_, entry)| is_in(file, entry, '/'))
            .max_by_key(|(_, entry)| entry.len());
        match (claim, map.leaves_out(file)) {
            (Some((n, entry)), false) => {
                used.insert(entry.clone());
                of_patch[n].push(file.clone());
            }
            (None, true) => {}
            // The more exact one counts.
            (Some((n, entry)), true) => {
                let out = map.left_out.keys().filter(|o| is_in(file, o, '/'));
                if entry.len() > out.map(String::len).max().unwrap_or(0) {
                    used.insert(entry.clone());
                    of_patch[n].push(file.clone());
                }
            }
            (None, false) => problems.push(format!("{file}: in no patch, and not left out")),
        }
    }
    for entry in map.patch.iter().flat_map(|patch| &patch.files) {
        if !used.contains(entry) {
            problems.push(format!(
                "{entry}: a patch has it, but there is no such file"
            ));
        }
    }
    for entry in map.left_out.keys() {
        if !files.iter().any(|file| is_in(file, entry, '/')) {
            problems.push(format!("{entry}: left out, but there is no such file"));
        }
    }
    ensure!(
        problems.is_empty(),
        "{DIR}/map.toml does not fit the tree:\n{}",
        problems.join("\n")
    );
    Ok(Claims { of_patch })
}

/// The files of the clone that would be the kernel's.
fn overlay(tree: &Tree) -> Result<Vec<String>> {
    fn walk(tree: &Tree, dir: &Path, found: &mut Vec<String>) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))? {
            let path = entry.context("can't read a directory")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if name != "__pycache__" {
                    walk(tree, &path, found)?;
                }
            } else if !is_built(&name) {
                let path = path.strip_prefix(tree.root()).context("not in the clone")?;
                found.push(path.to_string_lossy().into_owned());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    for dir in OVERLAY {
        walk(tree, &tree.join(dir), &mut found)?;
    }
    found.sort();
    Ok(found)
}

/// What a build or a test leaves beside the sources.
fn is_built(name: &str) -> bool {
    let ends = [
        ".o", ".ko", ".mod", ".mod.c", ".cmd", ".rmeta", ".order", ".doctest",
    ];
    name.contains("_generated.") || name == "packages" || ends.iter().any(|e| name.ends_with(e))
}

/// Makes the patches in a directory, which is emptied, out of a small repository that has those of
/// the kernel's files that are changed.
pub fn make(tree: &Tree, map: &Map, source: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let claims = claims(tree, map)?;
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("can't remove {}", out.display()))?;
    }
    let work = make_dir(out.join("work"))?;
    git(&work, map, &["init", "--quiet", "--initial-branch=series"])?;
    for file in changed(tree, map)? {
        let to = work.join(&file);
        make_dir(to.parent().context("no directory")?.into())?;
        fs::copy(source.join(&file), &to)
            .with_context(|| format!("the kernel has no {file}, which is to be changed"))?;
    }
    commit(&work, map, "The kernel's own files")?;
    git(&work, map, &["tag", "base"])?;

    for (patch, files) in map.patch.iter().zip(&claims.of_patch) {
        apply(tree, map, patch, files, source, &work)
            .with_context(|| format!("can't make \"{}\"", patch.subject))?;
        let body = patch.body.trim();
        commit(&work, map, &format!("{}\n\n{body}\n", patch.subject))?;
    }
    let dir = out.to_string_lossy();
    git(
        &work,
        map,
        &[
            "format-patch",
            "--quiet",
            "--cover-letter",
            "--no-signature",
            "--subject-prefix=PATCH RFC",
            "--output-directory",
            &dir,
            "base",
        ],
    )?;
    cover(map, &out.join(COVER))?;
    fs::remove_dir_all(&work).context("can't remove the repository")?;
    list(out)
}

/// The patches in a directory, without the cover letter.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .context("can't read the patches")?
        .map(|entry| Ok(entry.context("can't read the patches")?.path()))
        .collect::<Result<_>>()?;
    found.retain(|path| path.extension().is_some_and(|e| e == "patch") && !path.ends_with(COVER));
    found.sort();
    Ok(found)
}

/// Makes the changes of a patch.
fn apply(
    tree: &Tree,
    map: &Map,
    patch: &Patch,
    files: &[String],
    source: &Path,
    work: &Path,
) -> Result<()> {
    if let Some(diff) = &patch.diff {
        let diff = tree.join(DIR).join("patches").join(diff);
        git(
            work,
            map,
            &["apply", "--whitespace=error-all", &diff.to_string_lossy()],
        )?;
    }
    let mut sources = Vec::new();
    for file in files {
        let from = tree.join(file);
        let text = fs::read_to_string(&from).with_context(|| format!("can't read {file}"))?;
        let text = rewrite::rewrite(map, file, &text)?;
        let place = map.place(file);
        let to = add(source, work, &place, &text)?;
        let mode = fs::metadata(&from)
            .context("can't look at a file")?
            .permissions();
        let mode = Permissions::from_mode(mode.mode() & 0o755 | 0o644);
        fs::set_permissions(&to, mode).context("can't set the mode of a file")?;
        sources.push(to);
    }
    for file in &patch.only {
        let text = fs::read_to_string(tree.join(DIR).join("tree").join(file))
            .with_context(|| format!("can't read {DIR}/tree/{file}"))?;
        sources.push(add(source, work, file, &text)?);
    }
    for edit in &patch.edit {
        let path = work.join(&edit.file);
        let text = fs::read_to_string(&path).with_context(|| format!("no {}", edit.file))?;
        let text = rewrite::replace_once(&text, &edit.find, &edit.replace, &edit.file)?;
        fs::write(&path, text).with_context(|| format!("can't write {}", edit.file))?;
    }
    sources.retain(|path| path.extension().is_some_and(|e| e == "rs"));
    rustfmt(&sources, &source.join(".rustfmt.toml"))
}

/// Adds a file, which the kernel must not have.
fn add(source: &Path, work: &Path, place: &str, text: &str) -> Result<PathBuf> {
    let to = work.join(place);
    ensure!(
        !source.join(place).exists() && !to.exists(),
        "there is a {place} already"
    );
    make_dir(to.parent().context("no directory")?.into())?;
    fs::write(&to, text).with_context(|| format!("can't write {place}"))?;
    Ok(to)
}

/// Lays out files as the kernel wants it, one by one: modules of theirs may not be there yet.
fn rustfmt(files: &[PathBuf], config: &Path) -> Result<()> {
    for file in files {
        let text = fs::read(file).context("can't read what was written")?;
        let mut rustfmt = Command::new("rustfmt")
            .args(["--edition=2021", "--config-path"])
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't run rustfmt")?;
        let mut input = rustfmt.stdin.take().context("rustfmt has no input")?;
        let writer = std::thread::spawn(move || input.write_all(&text));
        let output = rustfmt.wait_with_output().context("rustfmt is gone")?;
        let written = writer.join().map_err(|_| anyhow::anyhow!("can't write"))?;
        written.context("can't write to rustfmt")?;
        ensure!(
            output.status.success(),
            "rustfmt fails for {}",
            file.display()
        );
        fs::write(file, output.stdout).context("can't write what rustfmt makes")?;
    }
    Ok(())
}

/// The kernel's own files that are changed.
fn changed(tree: &Tree, map: &Map) -> Result<BTreeSet<String>> {
    let mut new: BTreeSet<&str> = BTreeSet::new();
    let mut found = BTreeSet::new();
    for patch in &map.patch {
        new.extend(patch.only.iter().map(String::as_str));
        found.extend(patch.edit.iter().map(|edit| edit.file.clone()));
        let Some(diff) = &patch.diff else { continue };
        let path = tree.join(DIR).join("patches").join(diff);
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {diff}"))?;
        let names = text.lines().filter_map(|line| line.strip_prefix("--- a/"));
        found.extend(names.map(|name| name.trim_end().to_string()));
    }
    Ok(found
        .into_iter()
        .filter(|f| !new.contains(f.as_str()))
        .collect())
}

/// Writes what the cover letter says.
fn cover(map: &Map, path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).context("there is no cover letter")?;
    let text = rewrite::replace_once(
        &text,
        "*** SUBJECT HERE ***",
        map.cover.subject.trim(),
        COVER,
    )?;
    let text = rewrite::replace_once(&text, "*** BLURB HERE ***", map.cover.body.trim(), COVER)?;
    fs::write(path, text).context("can't write the cover letter")
}

/// git, with nobody's configuration.
pub fn git_in(dir: &Path, map: &Map) -> Command {
    let (name, mail) = map.from.split_once(" <").unwrap_or((&map.from, ""));
    let mut git = Command::new("git");
    git.arg("-C").arg(dir);
    git.env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        // The clone may have a repository above.
        .env("GIT_CEILING_DIRECTORIES", dir.parent().unwrap_or(dir));
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), name)
            .env(format!("GIT_{who}_EMAIL"), mail.trim_end_matches('>'));
    }
    git
}

fn git(dir: &Path, map: &Map, args: &[&str]) -> Result<()> {
    output_of(git_in(dir, map).args(args)).map(drop)
}

fn commit(dir: &Path, map: &Map, message: &str) -> Result<()> {
    git(dir, map, &["add", "--all", "--force"])?;
    git(dir, map, &["commit", "--quiet", "--message", message])
}

/// Whether the patches apply to the source, one after the other; nothing is changed.
pub fn check(source: &Path, map: &Map, patches: &[PathBuf]) -> Result<()> {
    // In one go, since each is about what those before it leave.
    let try_all = |patches: &[PathBuf]| {
        let mut text = Vec::new();
        for patch in patches {
            text.extend(fs::read(patch).context("can't read a patch")?);
        }
        let all = patches[0].with_file_name("all");
        fs::write(&all, text).context("can't write the patches")?;
        let mut git = git_in(source, map);
        git.args(["apply", "--check", "--whitespace=error-all"]);
        let result = output_of(git.arg(&all)).map(drop);
        fs::remove_file(&all).context("can't remove what was written")?;
        result
    };
    let Err(error) = try_all(patches) else {
        return Ok(());
    };
    for end in 1..=patches.len() {
        if let Err(error) = try_all(&patches[..end]) {
            let name = patches[end - 1].file_name().unwrap_or_default();
            bail!("{} does not apply: {error:#}", name.to_string_lossy());
        }
    }
    Err(error)
}

/// The table of Documentation/virtio/upstream.rst: where each file goes, by patch.
pub fn table(tree: &Tree, map: &Map) -> Result<Vec<(String, Vec<String>)>> {
    let claims = claims(tree, map)?;
    let mut table = Vec::new();
    for (n, (patch, files)) in map.patch.iter().zip(&claims.of_patch).enumerate() {
        let mut lines: BTreeMap<String, ()> = BTreeMap::new();
        for file in files {
            lines.insert(format!("{file} -> {}", map.place(file)), ());
        }
        for file in &patch.only {
            lines.insert(format!("{DIR}/tree/{file} -> {file}"), ());
        }
        for edit in &patch.edit {
            lines.insert(format!("(the kernel's) {}", edit.file), ());
        }
        let title = format!("{:04} {}", n + 1, patch.subject);
        table.push((title, lines.into_keys().collect()));
    }
    Ok(table)
}
