// SPDX-License-Identifier: GPL-2.0

//! The documentation as the kernel's `make htmldocs` and `make rustdoc` would show it.
//!
//! The pages are those of the clone; what makes HTML of them, configuration and extensions of
//! Sphinx, is the kernel's.

use crate::files::{copy, link};
use crate::kernel::Kernel;
use crate::process::{announce, run_logged};
use crate::tree::{make_dir, Tree};
use crate::{modules, packages};
use anyhow::{bail, ensure, Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGES: &str = "scripts/packages.docs";

/// Where the pages are, in the clone as in the kernel.
const PAGES: &str = "Documentation";

/// What of the kernel is beside its pages for the extensions to find.
const BESIDE: [&str; 4] = ["MAINTAINERS", "include", "scripts", "tools"];

/// What of the kernel's pages makes HTML, or is on each page.
const MAKES: [&str; 6] = [
    "conf.py",
    "docutils.conf",
    "images",
    "sphinx",
    "sphinx-includes",
    "sphinx-static",
];

/// The kernel's pages that show the files in [`PAGES`]/ABI.
const ABI: [&str; 2] = [
    "admin-guide/abi-testing.rst",
    "admin-guide/abi-testing-files.rst",
];

/// The first page, which the kernel has otherwise.
const INDEX: &str = "\
.. SPDX-License-Identifier: GPL-2.0

===============
virtio: SUSPEND
===============

.. toctree::
   :glob:
   :maxdepth: 2

   admin-guide/*
   virtio/*
   rust/*
";

/// Makes both, in out/docs, and prints where they begin.
pub fn run(tree: &Tree, kernel: &Kernel) -> Result<()> {
    let docs = tree.join("out/docs");
    if docs.exists() {
        fs::remove_dir_all(&docs).with_context(|| format!("can't remove {}", docs.display()))?;
    }
    make_dir(docs.clone())?;
    let logs = tree.out("log")?;
    announce("installing what makes documentation", || {
        packages::install(tree, PACKAGES, &logs.join("docs-install.log"))
    })?;
    let html = announce("the pages", || {
        pages(tree, kernel, &docs, &logs.join("docs-pages.log"))
    })?;
    modules::build(tree, kernel)?;
    let crate_html = announce("the crate", || {
        rustdoc(tree, kernel, &docs, &logs.join("docs-crate.log"))
    })?;
    println!("{}\n{}", html.display(), crate_html.display());
    Ok(())
}

/// Has Sphinx make HTML of the pages; a warning is an error.
fn pages(tree: &Tree, kernel: &Kernel, docs: &Path, log: &Path) -> Result<PathBuf> {
    let work = make_dir(docs.join("tree"))?;
    for name in BESIDE {
        link(&kernel.source.join(name), &work.join(name))?;
    }
    let source = work.join(PAGES);
    copy(&tree.join(PAGES), &source)?;
    let kernels = kernel.source.join(PAGES);
    for name in MAKES {
        link(&kernels.join(name), &source.join(name))?;
    }
    for name in ABI {
        link(&kernels.join(name), &source.join(name))?;
    }
    fs::write(source.join("index.rst"), INDEX).context("can't write the first page")?;

    let html = docs.join("html");
    let warnings = docs.join("warnings");
    let mut sphinx = Command::new("sphinx-build");
    sphinx
        .current_dir(&work)
        .env("srctree", &work)
        .env("BUILDDIR", &html)
        .args(["-b", "html", "-c", PAGES, "-d"])
        .arg(docs.join("doctrees"))
        .arg("-w")
        .arg(&warnings)
        .arg(PAGES)
        .arg(&html);
    run_logged(&mut sphinx, log)?;
    let said = fs::read_to_string(&warnings).context("Sphinx did not say what it warns of")?;
    if !said.trim().is_empty() {
        bail!("Sphinx warns:\n{said}");
    }
    let index = html.join("index.html");
    ensure!(index.exists(), "Sphinx made no {}", index.display());
    Ok(index)
}

/// Has rustdoc make HTML of the crate; a link that leads nowhere is an error.
fn rustdoc(tree: &Tree, kernel: &Kernel, docs: &Path, log: &Path) -> Result<PathBuf> {
    let html = docs.join("rustdoc");
    let _lock = tree.lock("modules")?;
    let mut make = modules::make(tree, kernel, &tree.out(&kernel.release)?);
    make.arg(format!("VIRTIO_RUSTDOC={}", html.display()))
        .arg("modules");
    run_logged(&mut make, log)?;
    let index = html.join("virtio/index.html");
    ensure!(index.exists(), "rustdoc made no {}", index.display());
    Ok(index)
}
