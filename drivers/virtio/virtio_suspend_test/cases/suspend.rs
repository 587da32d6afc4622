// SPDX-License-Identifier: GPL-2.0

//! What a device does until it presents that it is suspended (V2, V5).

use kernel::{
    prelude::*,
    time::Delta, //
};

use virtio::Status;

use crate::{
    report::Test,
    rig::{
        Rig,
        MAX_BUFFERS,
        SOME, //
    },
};

/// How often a burst is cut in two.
const BURSTS: i64 = 8;

/// How much later than the burst SUSPEND is written each time, in microseconds.
const BURST_STEP_US: i64 = 30;

pub(super) fn suspend(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    let took = rig.suspend()?;
    rig.took(took);
    Ok(())
}

pub(super) fn needs_reset(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    let (_, before) = rig.notifications();
    let status = rig.try_suspend()?;
    if !status.contains(Status::DEVICE_NEEDS_RESET) {
        return Err(rig.skip(fmt!("the device did not refuse to suspend")));
    }
    rig.until_changed(before)?;
    if rig.notifications().1 == before {
        return Err(rig.fail(
            fmt!("a configuration change notification with DEVICE_NEEDS_RESET"),
            fmt!("none"),
        ));
    }
    rig.set_up()?;
    rig.works()?;
    rig.seen.put(fmt!("refused by DEVICE_NEEDS_RESET"));
    Ok(())
}

pub(super) fn in_process(rig: &mut Rig<'_>) -> Test {
    let queue = rig.busy()?;
    rig.set_up()?;
    let count = rig.request(SOME)?;
    queue.lock().kick();
    rig.suspend()?;
    let before = rig.collect()?;
    rig.uses_none(
        count,
        fmt!("no buffer is used after the suspended condition"),
    )?;
    rig.is_still_suspended()?;
    rig.resume()?;
    rig.works()?;
    rig.until_left(0)?;
    rig.seen
        .put(fmt!("{before} of {count} buffers were used before"));
    Ok(())
}

pub(super) fn notified(rig: &mut Rig<'_>) -> Test {
    let queue = rig.busy()?;
    rig.set_up()?;
    let (before, _) = rig.notifications();
    let count = rig.request(SOME)?;
    queue.lock().kick();
    rig.suspend()?;
    // Which is false if there is a used buffer, of which the device should have notified.
    let nothing = queue.lock().enable_callbacks();
    let took = if nothing {
        Delta::ZERO
    } else {
        rig.until_notified(before)?
    };
    let (after, _) = rig.notifications();
    let used = rig.collect()?;
    if used > 0 && after == before {
        return Err(rig.fail(
            fmt!("a used buffer notification before the suspended condition"),
            fmt!("none, and {used} of {count} buffers were used"),
        ));
    }
    rig.resume()?;
    rig.works()?;
    if used == 0 {
        return Err(rig.skip(fmt!("no buffer was used before the suspended condition")));
    }
    // How long it is under way is up to the VMM.
    rig.seen.put(fmt!(
        "{} for {used} buffers, seen {} us after the suspended condition",
        after.wrapping_sub(before),
        took.as_nanos() / 1000
    ));
    Ok(())
}

pub(super) fn unconsumed(rig: &mut Rig<'_>) -> Test {
    let queue = rig.busy()?;
    rig.set_up()?;
    // The device has not been notified of these.
    let count = rig.request(SOME)?;
    rig.suspend()?;
    let before = rig.collect()?;
    rig.resume()?;
    queue.lock().notify();
    rig.until_left(0)?;
    rig.seen.put(fmt!(
        "{} of {count} buffers were used after the resume",
        count.saturating_sub(before)
    ));
    Ok(())
}

pub(super) fn twice(rig: &mut Rig<'_>) -> Test {
    let revision = rig.revision()?;
    rig.set_up()?;
    let suspend = crate::status::RUNNING.with(Status::SUSPEND);
    rig.write(suspend)?;
    let status = rig.read()?;
    // Once it is suspended the same value would resume it.
    if revision.is_suspended(status) {
        return Err(rig.skip(fmt!("the device suspends at once")));
    }
    rig.suspend()?;
    rig.is_still_suspended()?;
    rig.resume()?;
    rig.works()
}

/// Cuts bursts in two, with the device set up.
pub(super) fn cut(rig: &mut Rig<'_>) -> Test {
    let queue = rig.busy()?;
    let (mut total, mut late) = (0, 0);
    for round in 0..BURSTS {
        let count = rig.request(MAX_BUFFERS)?;
        queue.lock().kick();
        rig.session
            .pause(Delta::from_micros(round * BURST_STEP_US))?;
        rig.suspend()?;
        let before = rig.collect()?;
        rig.resume()?;
        queue.lock().notify();
        rig.until_left(0)?;
        total += count;
        late += count.saturating_sub(before);
    }
    rig.works()?;
    rig.seen.put(fmt!(
        "{total} buffers in {BURSTS} bursts, {late} of them used after the resume"
    ));
    Ok(())
}

pub(super) fn burst(rig: &mut Rig<'_>) -> Test {
    rig.busy()?;
    rig.set_up()?;
    cut(rig)
}
