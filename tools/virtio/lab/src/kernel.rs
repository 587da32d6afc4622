// SPDX-License-Identifier: GPL-2.0

//! The kernel of the guest.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Which kernel to build for and to boot.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
pub enum Flavour {
    /// Debian's own image, unmodified.
    #[default]
    Stock,
    /// Built from the same source with the kernel's checkers.
    Debug,
}

/// What the guest's processor is.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
pub enum Arch {
    /// This machine's.
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// Emulated, and built for with a cross compiler.
    Arm64,
}

/// What the compiler calls arm64.
pub const ARM64_TARGET: &str = "aarch64-unknown-linux-gnu";

impl Arch {
    /// The emulator, as the build root has it.
    pub fn emulator(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Where the clone has the programs for the guest that cargo has built.
    pub fn programs(self) -> PathBuf {
        let target = Path::new("out/target");
        match self {
            Self::X86_64 => target.join("release"),
            Self::Arm64 => target.join(ARM64_TARGET).join("release"),
        }
    }
}

/// A kernel that modules can be built for and that can be booted.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// Debian's version of the packages.
    pub version: String,
    pub image: PathBuf,
    /// The directory to build modules with, `make -C`.
    pub build: PathBuf,
    pub source: PathBuf,
    #[serde(default)]
    pub flavour: Flavour,
    /// What `make` has to be told besides, for the kernel and for its modules.
    #[serde(default)]
    pub make: Vec<String>,
    #[serde(default)]
    pub arch: Arch,
    /// What a guest has for its root file system.
    #[serde(default = "build_root")]
    pub root: PathBuf,
}

/// The file system of this program.
pub fn build_root() -> PathBuf {
    "/".into()
}

impl Kernel {
    /// The first two numbers of its release.
    pub fn series(&self) -> Option<String> {
        series_of(&self.release)
    }
}

/// The series that the modules have been built for and tested with, the newest one last.
pub const TRIED: [&str; 2] = ["7.2", "7.3"];

/// Where is said what they need of a kernel that another series may not have.
pub const NOT_STABLE: &str = "Documentation/virtio/kernel-api.rst";

/// The first two numbers of a kernel release.
pub fn series_of(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let (major, minor) = (numbers.next()?, numbers.next()?);
    (!major.is_empty() && !minor.is_empty()).then(|| format!("{major}.{minor}"))
}

impl Flavour {
    /// How much slower than the stock kernel it is, at least for deadlines.
    pub fn slowness(self) -> u32 {
        match self {
            Self::Stock => 1,
            Self::Debug => 5,
        }
    }

    /// The guest's memory, as QEMU wants it.
    pub fn memory(self) -> &'static str {
        match self {
            Self::Stock => "768M",
            Self::Debug => "1536M",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_release() {
        assert_eq!(series_of("7.3.4+deb13").as_deref(), Some("7.3"));
        assert_eq!(series_of("7.3-rc1").as_deref(), Some("7.3"));
        assert_eq!(series_of("cloud-amd64"), None);
    }
}
