// SPDX-License-Identifier: GPL-2.0

//! Which of the kernel's packages belong together.
//!
//! Modules load only if the image they are for, the headers and the source that the Rust metadata
//! is rebuilt from are of one version.  A mirror may offer them out of step, while a new version
//! arrives.

use std::collections::BTreeMap;
use thiserror::Error;

/// Versions that apt offers, newest first, by package.
pub type Offers = BTreeMap<String, Vec<String>>;

/// The architecture's kernel flavour for virtual machines.
pub const FLAVOUR: &str = "cloud-amd64";

#[derive(Debug, Error, PartialEq, Eq)]
pub enum MatchError {
    #[error("apt offers no package {0}")]
    Missing(String),
    #[error(
        "{image} is {wanted}, but {other} is {offered}: the mirror is between two versions; \
         try again later, or use another mirror (MIRROR=…) or series (KERNEL_SERIES=…)"
    )]
    Mismatch {
        image: String,
        wanted: String,
        other: String,
        offered: String,
    },
    #[error("apt offers no kernel of the series {series}; it has: {known}")]
    NoSuchSeries { series: String, known: String },
    #[error("can't tell the kernel series of {0}")]
    NoSeries(String),
}

/// The packages to install, all of one version.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelPackages {
    /// As `uname -r` says it.
    pub release: String,
    /// Two numbers, such as 7.3.
    pub series: String,
    pub version: String,
}

impl KernelPackages {
    pub fn names(&self) -> Vec<String> {
        names(&self.release, &self.series).to_vec()
    }
}

pub fn names(release: &str, series: &str) -> [String; 4] {
    [
        format!("linux-image-{release}"),
        format!("linux-headers-{release}"),
        format!("linux-source-{series}"),
        format!("linux-config-{series}"),
    ]
}

/// The first two numbers of a kernel release.
pub fn series_of(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let (major, minor) = (numbers.next()?, numbers.next()?);
    (!major.is_empty() && !minor.is_empty()).then(|| format!("{major}.{minor}"))
}

/// Parses what `apt-cache show` prints: one paragraph per version.
pub fn parse_show(text: &str) -> Offers {
    let mut offers = Offers::new();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            paragraph
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        if let (Some(package), Some(version)) = (field("Package"), field("Version")) {
            offers
                .entry(package.into())
                .or_default()
                .push(version.into());
        }
    }
    offers
}

/// The kernel release that a metapackage depends on, out of what `apt-cache show` prints for it.
pub fn parse_recommended(text: &str) -> Option<String> {
    let depends = text.lines().find_map(|l| l.strip_prefix("Depends: "))?;
    depends.split(',').find_map(|dependency| {
        let package = dependency.split_whitespace().next()?;
        let release = package.strip_prefix("linux-image-")?;
        release.ends_with(FLAVOUR).then(|| release.to_string())
    })
}

/// Chooses the newest release of a series out of names of image packages.
pub fn newest_release(images: &[&str], series: &str) -> Result<String, MatchError> {
    let releases = images.iter().filter_map(|image| {
        let release = image.strip_prefix("linux-image-")?;
        // Neither metapackages nor debugging symbols nor unsigned images.
        (release.starts_with(|c: char| c.is_ascii_digit()) && release.ends_with(FLAVOUR))
            .then_some(release)
    });
    releases
        .clone()
        .filter(|release| series_of(release).as_deref() == Some(series))
        .max_by_key(|release| numbers(release))
        .map(str::to_string)
        .ok_or_else(|| MatchError::NoSuchSeries {
            series: series.into(),
            known: releases.collect::<Vec<_>>().join(", "),
        })
}

fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
}

/// Checks that image, headers, source and configuration are offered in the same version.
pub fn match_versions(release: &str, offers: &Offers) -> Result<KernelPackages, MatchError> {
    let series = series_of(release).ok_or_else(|| MatchError::NoSeries(release.into()))?;
    let versions = |package: &String| {
        offers
            .get(package)
            .filter(|versions| !versions.is_empty())
            .ok_or_else(|| MatchError::Missing(package.clone()))
    };
    let [image, others @ ..] = names(release, &series);
    let wanted = &versions(&image)?[0];
    for other in others {
        let offered = versions(&other)?;
        if !offered.contains(wanted) {
            return Err(MatchError::Mismatch {
                image,
                wanted: wanted.clone(),
                offered: offered.join(" or "),
                other,
            });
        }
    }
    Ok(KernelPackages {
        release: release.into(),
        version: wanted.clone(),
        series,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "7.3.4+deb13-cloud-amd64";

    fn offers(versions: [&str; 4]) -> Offers {
        let packages = names(RELEASE, "7.3");
        packages
            .into_iter()
            .zip(versions.map(|v| vec![v.to_string()]))
            .collect()
    }

    #[test]
    fn one_version_matches() {
        let packages = match_versions(RELEASE, &offers(["7.3.4-1"; 4])).unwrap();
        assert_eq!(packages.version, "7.3.4-1");
        assert_eq!(packages.series, "7.3");
        assert_eq!(packages.names()[2], "linux-source-7.3");
    }

    #[test]
    fn an_older_version_still_on_offer_matches() {
        let mut offers = offers(["7.3.4-1"; 4]);
        let source = offers.get_mut("linux-source-7.3").unwrap();
        source.insert(0, "7.3.5-1".into());
        assert_eq!(match_versions(RELEASE, &offers).unwrap().version, "7.3.4-1");
    }

    #[test]
    fn a_mismatch_names_both() {
        let error = match_versions(
            RELEASE,
            &offers(["7.3.4-1", "7.3.4-1", "7.3.5-1", "7.3.4-1"]),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("linux-image-7.3.4+deb13-cloud-amd64 is 7.3.4-1"));
        assert!(error.contains("linux-source-7.3 is 7.3.5-1"));
    }

    #[test]
    fn a_missing_package_is_named() {
        let mut offers = offers(["7.3.4-1"; 4]);
        offers.remove("linux-config-7.3");
        assert_eq!(
            match_versions(RELEASE, &offers),
            Err(MatchError::Missing("linux-config-7.3".into()))
        );
    }

    #[test]
    fn show_lists_every_version() {
        let text = "Package: a\nVersion: 2\nDepends: x\n\nPackage: a\nVersion: 1\n\n\
                    Package: b\nSource: a\nVersion: 3\n\n";
        let offers = parse_show(text);
        assert_eq!(offers["a"], ["2", "1"]);
        assert_eq!(offers["b"], ["3"]);
    }

    #[test]
    fn the_metapackage_recommends() {
        let text = "Package: linux-image-cloud-amd64\n\
                    Depends: linux-base-cloud-amd64 (= 7.3.4-1), \
                    linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1)\n";
        assert_eq!(parse_recommended(text).as_deref(), Some(RELEASE));
        assert_eq!(parse_recommended("Package: x\n"), None);
    }

    #[test]
    fn the_newest_of_a_series() {
        let images = [
            "linux-image-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-image-7.3.12+deb13-cloud-amd64",
            "linux-image-7.3.13+deb13-cloud-amd64-unsigned",
            "linux-image-6.12.117+deb13-cloud-amd64",
        ];
        assert_eq!(
            newest_release(&images, "7.3").unwrap(),
            "7.3.12+deb13-cloud-amd64"
        );
        let error = newest_release(&images, "7.4").unwrap_err().to_string();
        assert!(error.contains("6.12.117+deb13-cloud-amd64"));
    }

    #[test]
    fn series_of_a_release() {
        assert_eq!(series_of("7.3.4+deb13").as_deref(), Some("7.3"));
        assert_eq!(series_of("7.3-rc1").as_deref(), Some("7.3"));
        assert_eq!(series_of("cloud"), None);
    }
}
