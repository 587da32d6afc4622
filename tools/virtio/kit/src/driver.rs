// SPDX-License-Identifier: GPL-2.0

//! Has module virtio_suspend_test test a device.
//!
//! It is bound to one device at a time, and runs all of its cases at once, because it knows which of
//! them say nothing when another one has failed. What it prints is printed when it is done.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use crate::devices::{Device, Revision, Sysfs};
use crate::ktap;
use crate::parameters::Data;
use crate::report::Report;
use crate::{child, modules};

const MODULE: &str = "virtio_suspend_test";
/// Stands for all of its cases.
const ALL: &str = "all";
const DEBUGFS: &str = "kernel/debug/virtio_suspend_test";

/// For all cases of a device. Each of them has deadlines of its own.
const CASES: Duration = Duration::from_secs(300);
/// Until a driver is bound, or gone.
const BIND: Duration = Duration::from_secs(30);

/// A case, as the file `cases` has it.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    name: String,
    rule: String,
}

/// Whether the kit has it.
pub fn is_there() -> bool {
    let system = rustix::system::uname();
    let modules = Path::new("/lib/modules").join(&*system.release().to_string_lossy());
    modules
        .join("updates")
        .join(format!("{MODULE}.ko"))
        .exists()
}

/// Tests a device, by one case or by all, and reports.
pub fn test(sysfs: &Sysfs, device: &Device, case: Option<&str>, data: Data, report: &mut Report) {
    let bound = match Bound::new(sysfs, device, data) {
        Ok(bound) => bound,
        Err(error) => return report.fail_device(device, &format!("{error:#}")),
    };
    let tested = bound.test(device, case, report);
    if let Err(error) = tested {
        report.fail_device(device, &format!("{error:#}"));
    }
    if let Err(error) = bound.release(sysfs) {
        println!("# {error:#}");
    }
}

/// A device that the driver has.
struct Bound {
    name: String,
    files: PathBuf,
}

impl Bound {
    fn new(sysfs: &Sysfs, device: &Device, data: Data) -> Result<Self> {
        let name = &device.name;
        if let Some(driver) = sysfs.driver(name).filter(|driver| driver != MODULE) {
            write(
                sysfs.join(format!("bus/virtio/drivers/{driver}/unbind")),
                name,
            )?;
        }
        let parameters = [format!("device={name}"), format!("data={}", data.word())];
        modules::load(MODULE, &parameters)?;
        if sysfs.driver(name).as_deref() != Some(MODULE) {
            write(
                sysfs.join(format!("bus/virtio/drivers/{MODULE}/bind")),
                name,
            )?;
        }
        let driver = sysfs.driver(name);
        ensure!(
            driver.as_deref() == Some(MODULE),
            "{MODULE} does not bind to {name}"
        );
        Ok(Self {
            name: name.clone(),
            files: sysfs.join(DEBUGFS).join(name),
        })
    }

    fn test(&self, device: &Device, only: Option<&str>, report: &mut Report) -> Result<()> {
        let cases = self.cases()?;
        let chosen: Vec<&Known> = cases
            .iter()
            .filter(|case| only.is_none_or(|only| case.name == only))
            .collect();
        if chosen.is_empty() {
            let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
            bail!(
                "suspend.test={}: there is no such case; there are: {}",
                only.unwrap_or_default(),
                names.join(" ")
            );
        }
        println!("# {}: cases to be run: {}", device.name, chosen.len());
        let ended = child::write(&self.files.join("run"), only.unwrap_or(ALL), CASES)?;
        let text = self.read("results")?;
        let results = ktap::cases(&text);
        let failure = match ended.status {
            Some(0) => None,
            Some(_) => Some(format!("it can't be gone on with: {}", ended.last_words())),
            None => Some(format!("it did not end within {} s", CASES.as_secs())),
        };
        let revision = offered(&text)?;
        println!(
            "# {}: feature bits offered: {}",
            device.name,
            features(&text)?
        );
        if revision.is_none() && failure.is_none() {
            report.skip_device(device, "it does not offer VIRTIO_F_SUSPEND");
            return Ok(());
        }
        report.begin_device(device, revision, chosen.len());
        for known in chosen {
            let of_name = |case: &&ktap::Case| case.name() == known.name;
            match (results.iter().rfind(of_name), &failure) {
                (Some(case), _) => report.case(case, &known.rule),
                (None, Some(why)) => report.missing_case(&known.rule, &known.name, why),
                (None, None) => report.missing_case(&known.rule, &known.name, "it left no result"),
            }
        }
        report.end(false);
        Ok(())
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.files.join(name);
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    }

    fn cases(&self) -> Result<Vec<Known>> {
        Ok(self.read("cases")?.lines().filter_map(known).collect())
    }

    /// Gives the device back: it has no driver then.
    fn release(self, sysfs: &Sysfs) -> Result<()> {
        let path = sysfs.join(format!("bus/virtio/drivers/{MODULE}/unbind"));
        write(path, &self.name)?;
        modules::unload(MODULE)
    }
}

/// A line of the file `cases`: name, rule, section.
fn known(line: &str) -> Option<Known> {
    let mut words = line.split_whitespace();
    Some(Known {
        name: words.next()?.trim_end_matches([':', ',']).into(),
        rule: words.next()?.trim_end_matches([':', ',']).into(),
    })
}

/// The revision of SUSPEND that the device offers, by the file `results`. It is an error if that does
/// not say: a device is not passed over because it is not understood.
fn offered(text: &str) -> Result<Option<Revision>> {
    let said = text
        .lines()
        .find_map(|line| line.strip_prefix("# SUSPEND: "));
    match said {
        Some("not offered") => Ok(None),
        Some(revision) if revision.contains("43") => Ok(Some(Revision::V1_4)),
        Some(revision) if revision.contains("42") => Ok(Some(Revision::Draft)),
        said => bail!("{MODULE} does not say what is offered: {said:?}"),
    }
}

/// The feature bits that the device offers, by the same.
fn features(text: &str) -> Result<&str> {
    text.lines()
        .find_map(|line| line.strip_prefix("# features: "))
        .with_context(|| format!("{MODULE} does not say which feature bits are offered"))
}

/// Binds or unbinds a device, which may wait for it.
fn write(path: PathBuf, name: &str) -> Result<()> {
    let ended = child::write(&path, name, BIND)?;
    match ended.status {
        Some(0) => Ok(()),
        Some(_) => bail!("{} {name}: {}", path.display(), ended.last_words()),
        None => bail!(
            "{} {name}: it does not end within {} s",
            path.display(),
            BIND.as_secs()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_cases() {
        let expected = Known {
            name: "not-negotiated".into(),
            rule: "V1".into(),
        };
        for line in [
            "not-negotiated V1 2.1.2 Device Requirements",
            "not-negotiated, V1, 2.1.2",
            "not-negotiated\tV1\t2.1.2",
        ] {
            assert_eq!(known(line).as_ref(), Some(&expected), "{line}");
        }
        assert_eq!(known(""), None);
        assert_eq!(known("name"), None);
    }

    #[test]
    fn what_a_device_offers() {
        let of = |text| offered(text).ok().flatten();
        let text = "KTAP version 1\n# SUSPEND: VIRTIO 1.4, bit 43\n";
        assert_eq!(of(text), Some(Revision::V1_4));
        assert_eq!(
            of("# SUSPEND: draft, bit 42\n1..2\n"),
            Some(Revision::Draft)
        );
        assert_eq!(offered("# SUSPEND: not offered\n").unwrap(), None);
        for text in ["", "# SUSPEND: yes\n"] {
            assert!(offered(text).is_err(), "{text}");
        }
        let text = "# SUSPEND: not offered\n# features: 0x0000000130000000\n1..2\n";
        assert_eq!(features(text).unwrap(), "0x0000000130000000");
        assert!(features("1..2\n").is_err());
    }
}
