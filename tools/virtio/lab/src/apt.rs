// SPDX-License-Identifier: GPL-2.0

//! Which of the kernel's packages belong together: apt's solver chooses.
//!
//! Modules load only if the image they are for, the headers and the source that the Rust metadata
//! is rebuilt from are of one version.  A mirror may offer them out of step, while a new version
//! arrives: then there is no solution, and apt says what is missing.

use crate::kernel::{series_of, NOT_STABLE, TRIED};
use crate::process::output_of;
use anyhow::{Context, Result};
use std::process::Command;

/// The architecture's kernel flavour for virtual machines.
pub const FLAVOUR: &str = "cloud-amd64";

const BACKPORTS: &str = "trixie-backports";
/// The image asks for something that makes an initramfs.  None is made here (see
/// scripts/provision), so take the smallest.
const INITRAMFS: &str = "tiny-initramfs";

/// The packages to install, all of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPackages {
    /// As `uname -r` says it.
    pub release: String,
    /// Two numbers, such as 7.3.
    pub series: String,
    pub version: String,
}

impl KernelPackages {
    /// Installs them, or finds that done.
    pub fn install(&self) -> Command {
        let mut apt = get("install");
        apt.arg(INITRAMFS).args(self.with_version());
        apt
    }

    fn with_version(&self) -> Vec<String> {
        let Self {
            release,
            series,
            version,
        } = self;
        [
            format!("linux-image-{release}={version}"),
            format!("linux-headers-{release}={version}"),
            format!("linux-source-{series}={version}"),
            format!("linux-config-{series}={version}"),
        ]
        .into()
    }
}

/// Has the lists of packages read.
pub fn update() -> Command {
    get("update")
}

fn get(command: &str) -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt.args(["--yes", "--target-release", BACKPORTS, command]);
    apt
}

/// What apt would install if nothing was yet, so that it says all, and changes nothing.
fn plan(packages: &[String]) -> Result<String> {
    let mut apt = get("install");
    apt.args(["--simulate", "--option", "Dir::State::status=/dev/null"]);
    output_of(apt.arg(INITRAMFS).args(packages))
}

/// Chooses the newest kernel of a series, or of those that have been tried.
pub fn choose(series: Option<&str>) -> Result<KernelPackages> {
    let newest = offered(series)?;
    if series.is_some() || TRIED.contains(&newest.series.as_str()) {
        return Ok(newest);
    }
    let known = TRIED.iter().rev().find_map(|s| offered(Some(s)).ok());
    let chosen = known.unwrap_or_else(|| newest.clone());
    println!("{}", untried(&newest.series, &chosen.series));
    Ok(chosen)
}

/// What to say of a series that is newer than those that have been tried.
fn untried(newest: &str, chosen: &str) -> String {
    format!(
        "Debian's backports have Linux {newest}, and the modules have been tried with {} only: \
         taking {chosen}. KERNEL_SERIES={newest} tries the other one; what may be different is in \
         {NOT_STABLE}.",
        TRIED.join(" and ")
    )
}

/// The newest kernel that apt offers, of a series or of all.
fn offered(series: Option<&str>) -> Result<KernelPackages> {
    let wanted = match series {
        None => format!("linux-image-{FLAVOUR}"),
        // The metapackage is that of the newest series only.
        Some(series) => {
            let prefix = format!("linux-image-{series}.");
            let names = output_of(Command::new("apt-cache").args(["pkgnames", &prefix]))?;
            newest(&names, &prefix)
                .with_context(|| format!("apt offers no kernel of series {series}"))?
                .into()
        }
    };
    let packages = image(&plan(&[wanted])?).context("apt would install no kernel image")?;
    plan(&packages.with_version()).context(
        "the mirror may be between two versions: try again later, or use another mirror \
         (MIRROR=…) or series (KERNEL_SERIES=…)",
    )?;
    Ok(packages)
}

/// The newest kernel out of names of packages that begin with its series.
fn newest<'a>(names: &'a str, prefix: &str) -> Option<&'a str> {
    let patch_level = |name: &str| {
        let rest = name.strip_prefix(prefix)?;
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, rest) = rest.split_at(end);
        // No other flavour, and nothing that belongs to the image.
        let middle = rest.strip_suffix(FLAVOUR)?.strip_suffix('-')?;
        (!middle.contains('-')).then_some(number.parse::<u32>().ok()?)
    };
    names
        .lines()
        .filter_map(|name| Some((patch_level(name)?, name)))
        .max()
        .map(|(_, name)| name)
}

/// The image out of a plan, in a line such as `Inst linux-image-7.3.4-cloud-amd64 (7.3.4-1 …)`.
fn image(plan: &str) -> Option<KernelPackages> {
    plan.lines().find_map(|line| {
        let (release, rest) = line.strip_prefix("Inst linux-image-")?.split_once(" (")?;
        Some(KernelPackages {
            // The metapackage has none.
            series: series_of(release)?,
            release: release.into(),
            version: rest.split_whitespace().next()?.into(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = "\
Inst linux-base (4.17~bpo13+1 Debian Backports:stable-backports [all])
Inst linux-image-cloud-amd64 (7.3.4-1~bpo13+1 Debian Backports:stable-backports [amd64])
Inst linux-image-7.3.4+deb13-cloud-amd64 (7.3.4-1~bpo13+1 Debian Backports:stable-backports [amd64])
Conf linux-image-7.3.4+deb13-cloud-amd64 (7.3.4-1~bpo13+1 Debian Backports:stable-backports [amd64])
";

    #[test]
    fn the_image_of_a_plan() {
        let packages = image(PLAN).unwrap();
        assert_eq!(packages.release, "7.3.4+deb13-cloud-amd64");
        assert_eq!(packages.series, "7.3");
        assert_eq!(packages.version, "7.3.4-1~bpo13+1");
        assert_eq!(
            packages.with_version()[2],
            "linux-source-7.3=7.3.4-1~bpo13+1"
        );
        let without: Vec<&str> = PLAN.lines().take(2).collect();
        assert_eq!(image(&without.join("\n")), None);
    }

    #[test]
    fn a_series_that_nobody_has_tried() {
        let text = untried("9.9", "7.3");
        for part in [
            "Linux 9.9",
            "7.2 and 7.3 only",
            "taking 7.3",
            "KERNEL_SERIES=9.9",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_newest_kernel_of_a_series() {
        let names = "\
linux-image-7.2.9+deb13-cloud-amd64
linux-image-7.2.12+deb13-amd64
linux-image-7.2.12+deb13-cloud-amd64-dbg
linux-image-7.2.12+deb13-cloud-amd64
linux-image-7.2.13+deb13-rt-amd64
linux-image-7.2.11+deb13-cloud-amd64
";
        let prefix = "linux-image-7.2.";
        assert_eq!(
            newest(names, prefix),
            Some("linux-image-7.2.12+deb13-cloud-amd64")
        );
        assert_eq!(newest("", prefix), None);
    }
}
