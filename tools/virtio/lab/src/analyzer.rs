// SPDX-License-Identifier: GPL-2.0

//! `lab rust-analyzer`: rust-project.json, so that an editor understands the modules.
//!
//! The kernel's own generator describes the kernel's crates.  Of modules outside of the kernel it
//! expects one directory each and none that another links to, so crate `virtio` and its users are
//! added here.  The file is for an editor outside of the build root.

use crate::kernel::Kernel;
use crate::makefile;
use crate::process::run_logged;
use crate::tree::Tree;
use anyhow::{Context, Result};
use serde_json::{json, Value};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crate that the modules link to, as Kbuild calls its object.
const CRATE: &str = "rust/kernel/virtio.o";
/// The variable of Kbuild that lists the modules which link to it.
const USERS: &str = "virtio-users";
/// Where scripts/enter says the build root is, seen from outside.
const ROOT_VARIABLE: &str = "LAB_ROOT";

pub fn run(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let rust = fs::canonicalize(kernel.build.join("rust")).context("no Rust metadata")?;
    let objects = rust.parent().context("the metadata has no parent")?;
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(&kernel.source)
        .arg(format!("O={}", objects.display()))
        .arg("rust-analyzer");
    run_logged(&mut make, &tree.out("log")?.join("rust-analyzer.log"))?;

    let made = objects.join("rust-project.json");
    let text = fs::read(&made).with_context(|| format!("can't read {}", made.display()))?;
    let mut project: Value =
        serde_json::from_slice(&text).context("rust-project.json is broken")?;
    let root = std::env::var(ROOT_VARIABLE).context("not started by scripts/lab")?;
    move_paths(&mut project, &root);

    let kbuild = fs::read_to_string(tree.join("Kbuild")).context("can't read Kbuild")?;
    let bindings = tree
        .join("out")
        .join(&kernel.release)
        .join("rust/bindings/virtio_bindings_generated.rs");
    add_crates(
        &mut project,
        tree,
        &makefile::words(&kbuild, USERS),
        &bindings,
    )?;

    let path = tree.join("rust-project.json");
    let text = serde_json::to_string_pretty(&project).context("can't encode the project")?;
    fs::write(&path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

/// Puts the build root in front of every absolute path.
fn move_paths(value: &mut Value, root: &str) {
    match value {
        Value::String(text) if text.starts_with('/') => text.insert_str(0, root),
        Value::Array(values) => values.iter_mut().for_each(|v| move_paths(v, root)),
        Value::Object(fields) => fields.values_mut().for_each(|v| move_paths(v, root)),
        _ => {}
    }
}

/// Replaces the kernel's drivers and samples by our crates.
fn add_crates(project: &mut Value, tree: &Tree, users: &[String], bindings: &Path) -> Result<()> {
    let crates = project["crates"].as_array_mut().context("no crates")?;
    let find = |crates: &[Value], name: &str| {
        let found = crates.iter().position(|c| c["display_name"] == name);
        found.with_context(|| format!("no crate {name}"))
    };
    let kernel = find(crates, "kernel")?;
    // What follows are leaves: nothing refers to them.
    crates.truncate(kernel + 1);
    let mut deps = ["core", "kernel", "pin_init", "zerocopy", "zerocopy_derive"]
        .iter()
        .map(|name| Ok(json!({"crate": find(crates, name)?, "name": name})))
        .collect::<Result<Vec<_>>>()?;
    let template = json!({
        "cfg": crates[kernel]["cfg"],
        "edition": crates[kernel]["edition"],
        "is_workspace_member": true,
    });
    let krate = |object: &str, deps: &[Value], env: Value| {
        let source = Path::new(object).with_extension("rs");
        let mut krate = template.clone();
        krate["display_name"] = json!(source.file_stem().unwrap_or_default().to_string_lossy());
        krate["root_module"] = json!(tree.join(source));
        krate["deps"] = json!(deps);
        krate["env"] = env;
        krate
    };
    crates.push(krate(CRATE, &deps, json!({"VIRTIO_BINDINGS": bindings})));
    deps.push(json!({"crate": crates.len() - 1, "name": "virtio"}));
    crates.extend(users.iter().map(|user| krate(user, &deps, json!({}))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_absolute_path_moves() {
        let mut project = json!({"sysroot": "/usr", "crates": [{"cfg": ["a"], "deps": [1],
            "source": {"include_dirs": ["/src/rust"]}}]});
        move_paths(&mut project, "/root");
        assert_eq!(project["sysroot"], "/root/usr");
        assert_eq!(
            project["crates"][0]["source"]["include_dirs"][0],
            "/root/src/rust"
        );
        assert_eq!(project["crates"][0]["cfg"][0], "a");
    }
}
