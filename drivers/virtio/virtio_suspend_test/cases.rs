// SPDX-License-Identifier: GPL-2.0

//! The cases, and how they are run.

use kernel::{
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    },
};

use virtio::Feature;

use crate::{
    report::{
        End,
        Test,
        Text, //
    },
    rig::Rig, //
};

#[path = "cases/before.rs"]
mod before;
#[path = "cases/data.rs"]
mod data;
#[path = "cases/resume.rs"]
mod resume;
#[path = "cases/still.rs"]
mod still;
#[path = "cases/suspend.rs"]
mod suspend;
#[path = "cases/virtqueues.rs"]
mod virtqueues;

/// Something that is looked at.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The rule by which it is judged, see Documentation/virtio/conformance.rst; `-` if it is not.
    pub(crate) rule: &'static str,
    /// The section of VIRTIO 1.4.
    pub(crate) section: &'static str,
    /// What it says, in our words.
    says: &'static str,
    /// The cases without which this one can't be judged: it is skipped if one of them has failed.
    needs: &'static [&'static str],
    run: fn(&mut Rig<'_>) -> Test,
}

/// What a device must be able to for most of the cases.
const CYCLE: &[&str] = &["suspend", "stays", "resume"];

/// All of them, in the order in which they are run.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "not-negotiated",
        rule: "V1",
        section: "Device Status Field",
        says: "SUSPEND is ignored if VIRTIO_F_SUSPEND has not been negotiated",
        needs: &[],
        run: before::not_negotiated,
    },
    Case {
        name: "before-features-ok",
        rule: "V1",
        section: "Device Suspend",
        says: "SUSPEND is ignored before FEATURES_OK, and the initialization goes on",
        needs: &[],
        run: before::before_features_ok,
    },
    Case {
        name: "before-driver-ok",
        rule: "V1",
        section: "Device Suspend",
        says: "SUSPEND is ignored before DRIVER_OK, and the initialization goes on",
        needs: &[],
        run: before::before_driver_ok,
    },
    Case {
        name: "suspend",
        rule: "V5",
        section: "Device Suspend",
        says: "the device presents that it is suspended, or sets DEVICE_NEEDS_RESET",
        needs: &[],
        run: suspend::suspend,
    },
    Case {
        name: "needs-reset",
        rule: "V5",
        section: "Device Status Field",
        says:
            "DEVICE_NEEDS_RESET comes with a configuration change notification, and a reset helps",
        needs: &["suspend"],
        run: suspend::needs_reset,
    },
    Case {
        name: "stays",
        rule: "V5",
        section: "Device Suspend",
        says: "a suspended device stays so until it is resumed or reset",
        needs: &["suspend"],
        run: still::stays,
    },
    Case {
        name: "resume-kept",
        rule: "V5",
        section: "Device Suspend",
        says: "the driver resumes by setting DRIVER_OK, without clearing SUSPEND",
        needs: &["suspend", "stays"],
        run: resume::resume_kept,
    },
    Case {
        name: "resume",
        rule: "V5",
        section: "Device Suspend",
        says: "the device presents that it runs, or sets DEVICE_NEEDS_RESET",
        needs: &["suspend", "stays"],
        run: resume::resume,
    },
    Case {
        name: "resume-cleared",
        rule: "V5",
        section: "Device Suspend",
        says: "DRIVER_OK resumes the device if SUSPEND is written as clear, too",
        needs: CYCLE,
        run: resume::resume_cleared,
    },
    Case {
        name: "reset",
        rule: "V5",
        section: "Device Reset",
        says: "a reset works while the device is suspended",
        needs: &["suspend", "stays"],
        run: resume::reset,
    },
    Case {
        name: "in-process",
        rule: "V2",
        section: "Device Suspend",
        says: "what is in process is used before the suspended condition is presented",
        needs: CYCLE,
        run: suspend::in_process,
    },
    Case {
        name: "notified",
        rule: "V2",
        section: "Device Suspend",
        says: "what was used before the suspended condition was notified of before it",
        needs: CYCLE,
        run: suspend::notified,
    },
    Case {
        name: "unconsumed",
        rule: "V2",
        section: "Device Suspend",
        says: "what was not consumed before the suspended condition is after the resume",
        needs: CYCLE,
        run: suspend::unconsumed,
    },
    Case {
        name: "rings-unchanged",
        rule: "V3",
        section: "Device Suspend",
        says: "a suspended device does not access virtqueues",
        needs: CYCLE,
        run: still::rings,
    },
    Case {
        name: "buffers-unchanged",
        rule: "V3",
        section: "Device Suspend",
        says: "a suspended device does not write to buffers",
        needs: &["suspend", "stays", "rings-unchanged"],
        run: still::buffers,
    },
    Case {
        name: "used-notifications",
        rule: "V3",
        section: "Device Suspend",
        says: "a suspended device sends no used buffer notification",
        needs: &["suspend", "stays", "rings-unchanged"],
        run: still::used_notifications,
    },
    Case {
        name: "config-notifications",
        rule: "V3",
        section: "Device Suspend",
        says: "a suspended device sends no configuration change notification",
        needs: &["suspend", "stays"],
        run: still::config_notifications,
    },
    Case {
        name: "config-unchanged",
        rule: "V3",
        section: "Device Suspend",
        says: "the fields of the configuration space do not change while suspended",
        needs: &["suspend", "stays"],
        run: still::config,
    },
    Case {
        name: "config-writes",
        rule: "V3",
        section: "Device Suspend",
        says: "a suspended device ignores what is written to the configuration space",
        needs: &["suspend", "stays", "config-unchanged"],
        run: still::config_writes,
    },
    Case {
        name: "driver-notifications",
        rule: "V3",
        section: "Device Suspend",
        says: "a suspended device does nothing when it is notified of buffers",
        needs: &[
            "suspend",
            "stays",
            "resume",
            "unconsumed",
            "rings-unchanged",
        ],
        run: still::driver_notifications,
    },
    Case {
        name: "status-writes",
        rule: "V5",
        section: "Device Status Field",
        says: "a status that asks for nothing leaves a suspended device suspended",
        needs: CYCLE,
        run: still::status_writes,
    },
    Case {
        name: "config-change",
        rule: "V4",
        section: "Device Suspend",
        says: "a configuration change while suspended is notified of after the resume",
        needs: CYCLE,
        run: resume::config_change,
    },
    Case {
        name: "left-buffers",
        rule: "-",
        section: "Device Suspend",
        says: "buffers left in the virtqueue are consumed after the resume, if the device looks",
        needs: &["suspend", "stays", "resume", "unconsumed"],
        run: resume::left_buffers,
    },
    Case {
        name: "suspend-twice",
        rule: "V5",
        section: "Device Suspend",
        says: "SUSPEND written again while the device suspends changes nothing",
        needs: CYCLE,
        run: suspend::twice,
    },
    Case {
        name: "resume-at-once",
        rule: "V5",
        section: "Device Suspend",
        says: "a device that is resumed while it suspends ends either way, and works",
        needs: CYCLE,
        run: resume::at_once,
    },
    Case {
        name: "burst",
        rule: "V2",
        section: "Device Suspend",
        says: "of a burst that a suspend cuts in two no buffer is lost, and none used twice",
        needs: CYCLE,
        run: suspend::burst,
    },
    Case {
        name: "split",
        rule: "V2",
        section: "Split Virtqueues",
        says: "as for a burst",
        needs: CYCLE,
        run: virtqueues::split,
    },
    Case {
        name: "packed",
        rule: "V2",
        section: "Packed Virtqueues",
        says: "as for a burst",
        needs: CYCLE,
        run: virtqueues::packed,
    },
    Case {
        name: "written-data",
        rule: "V2",
        section: "Device Suspend",
        says: "what a disk has written when a suspend comes in between is there afterwards",
        needs: CYCLE,
        run: data::written,
    },
    Case {
        name: "no-queues",
        rule: "V5",
        section: "Device Suspend",
        says: "a device of which no virtqueue is enabled suspends and resumes",
        needs: CYCLE,
        run: virtqueues::none,
    },
    Case {
        name: "some-queues",
        rule: "V5",
        section: "Device Suspend",
        says: "a device of which only the first virtqueue is enabled suspends and resumes",
        needs: CYCLE,
        run: virtqueues::some,
    },
    Case {
        name: "queue-reset",
        rule: "V5",
        section: "Virtqueue Reset",
        says: "a device of which a virtqueue has been reset suspends and resumes",
        needs: CYCLE,
        run: virtqueues::reset,
    },
    Case {
        name: "cycles",
        rule: "V5",
        section: "Device Suspend",
        says: "a device suspends and resumes again and again, as fast as it is asked to",
        needs: CYCLE,
        run: resume::cycles,
    },
];

/// What has become of a case.
struct Outcome {
    name: &'static str,
    failed: bool,
}

/// Returns the first 64 feature bits that the device offers, whatever they mean.
fn offered(rig: &Rig<'_>) -> Result<u64> {
    let mut bits = 0;
    for bit in 0..u64::BITS {
        if rig.session.offers(Feature::new(bit))? {
            bits |= 1 << bit;
        }
    }
    Ok(bits)
}

/// Runs all cases, or the `only` one, and writes what has come of them.
///
/// # Errors
///
/// [`EINTR`] if the task has been killed, [`ENODEV`] if the device is gone, or about to be stopped,
/// or can't be put into operation in the end.
pub(crate) fn run(rig: &mut Rig<'_>, only: Option<&str>, text: &mut Text) -> Result {
    let is_wanted = |case: &&Case| only.is_none_or(|only| case.name == only);
    let count = CASES.iter().filter(is_wanted).count();
    let mut results = KVec::with_capacity(count, GFP_KERNEL)?;

    text.put(fmt!("KTAP version 1\n"));
    text.put(fmt!(
        "# SUSPEND: {}\n",
        rig.revision
            .map_or("not offered", |revision| revision.name())
    ));
    text.put(fmt!("# features: {:#018x}\n", offered(rig)?));
    text.put(fmt!("1..{count}\n"));
    let mut aborted = None;
    for (index, case) in CASES.iter().filter(is_wanted).enumerate() {
        if aborted.is_some() {
            break;
        }
        let failed_before = |name: &&&str| {
            let failed = |result: &Outcome| result.name == **name && result.failed;
            results.iter().any(failed)
        };
        let obstacle = case.needs.iter().find(failed_before);
        let failed = match one(rig, case, obstacle.copied(), index + 1, text) {
            Ok(passed) => !passed,
            Err(error) => {
                aborted = Some(error);
                true
            }
        };
        // There is room.
        let _ = results.push_within_capacity(Outcome {
            name: case.name,
            failed,
        });
    }
    // As any driver leaves it.
    let left = rig.leave();
    match (aborted, left) {
        (Some(error), _) | (None, Err(error)) => Err(error),
        (None, Ok(())) => Ok(()),
    }
}

/// Runs a case. Returns whether it has not failed.
///
/// # Errors
///
/// Those that end the run.
fn one(
    rig: &mut Rig<'_>,
    case: &Case,
    obstacle: Option<&str>,
    number: usize,
    text: &mut Text,
) -> Result<bool> {
    rig.begin();
    let began = Instant::<Monotonic>::now();
    let result = match (obstacle, rig.revision) {
        (Some(name), _) => Err(rig.skip(fmt!("{name} has failed"))),
        (None, None) => Err(rig.skip(fmt!("the device does not offer SUSPEND"))),
        (None, Some(_)) => (case.run)(rig),
    };
    let us = began.elapsed().as_nanos() / 1000;

    let Case { name, rule, .. } = case;
    let (passed, error) = match result {
        Ok(()) => (true, None),
        Err(End::Skip) => {
            text.put(fmt!(
                "ok {number} {rule} {name} # SKIP {}\n",
                rig.seen.as_str()
            ));
            return Ok(true);
        }
        Err(End::Fail) => (false, None),
        Err(End::Error(error)) => {
            let _ = rig.fail(fmt!("the guest can do it"), fmt!("{error:?}"));
            (false, Some(error))
        }
    };
    text.put(fmt!("# {name}: {}: {}\n", case.section, case.says));
    if !passed {
        text.put(fmt!("# {name}: expected: {}\n", rig.expected.as_str()));
        text.put(fmt!("# {name}: seen: {}\n", rig.seen.as_str()));
    }
    text.put(fmt!("# {name}: status:"));
    rig.trace.show(text);
    text.put(fmt!("\n# {name}: {us} us\n"));
    let word = if passed { "ok" } else { "not ok" };
    text.put(fmt!("{word} {number} {rule} {name}"));
    if !rig.seen.as_str().is_empty() {
        text.put(fmt!(": {}", rig.seen.as_str()));
    }
    text.put(fmt!("\n"));
    match error {
        Some(error) if error == EINTR || error == ENODEV => Err(error),
        _ => Ok(passed),
    }
}
