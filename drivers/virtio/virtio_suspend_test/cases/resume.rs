// SPDX-License-Identifier: GPL-2.0

//! What ends a suspend (V4, V5).

use kernel::{
    prelude::*,
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

use virtio::Status;

use crate::{
    parameters,
    report::Test,
    rig::{
        Rig,
        SOME, //
    },
    status::{
        Revision,
        RUNNING, //
    },
};

/// How often it is tried to resume a device while it suspends.
const AT_ONCE: usize = 2;

pub(super) fn resume_kept(rig: &mut Rig<'_>) -> Test {
    if rig.revision()? == Revision::Draft {
        return Err(rig.skip(fmt!("in the draft the driver clears SUSPEND")));
    }
    rig.resumes_kept = false;
    rig.set_up()?;
    rig.suspend()?;
    let took = rig.resume_by(true)?;
    rig.works()?;
    rig.resumes_kept = true;
    rig.took(took);
    Ok(())
}

pub(super) fn resume(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    rig.suspend()?;
    let took = rig.resume()?;
    rig.works()?;
    rig.took(took);
    Ok(())
}

pub(super) fn resume_cleared(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    rig.suspend()?;
    let took = rig.resume_by(false)?;
    rig.works()?;
    rig.took(took);
    Ok(())
}

pub(super) fn reset(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    rig.suspend()?;
    rig.set_up()?;
    rig.works()
}

pub(super) fn config_change(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    rig.suspend()?;
    // One that came before the suspended condition has been notified of.
    let before = rig.configuration()?;
    rig.settle()?;
    rig.stay()?;
    let (_, heard) = rig.notifications();
    rig.resume()?;
    let after = rig.configuration()?;
    if after != before {
        rig.until_changed(heard)?;
    } else {
        rig.settle()?;
    }
    let notified = rig.notifications().1.wrapping_sub(heard);
    rig.works()?;
    match (after != before, notified) {
        (true, 0) => Err(rig.fail(
            fmt!("a notification after the resume of what has changed: {before:?} is {after:?}"),
            fmt!("none"),
        )),
        (false, 0) => Err(rig.skip(fmt!("the configuration did not change meanwhile"))),
        (changed, _) => {
            rig.seen.put(fmt!(
                "a notification after the resume, and {}",
                if changed {
                    "a change"
                } else {
                    "no change that is seen"
                }
            ));
            Ok(())
        }
    }
}

pub(super) fn left_buffers(rig: &mut Rig<'_>) -> Test {
    let queue = rig.busy()?;
    rig.set_up()?;
    let count = rig.request(SOME)?;
    rig.suspend()?;
    let before = rig.collect()?;
    rig.resume()?;
    rig.stay()?;
    let without = rig.collect()?;
    queue.lock().notify();
    rig.until_left(0)?;
    rig.seen.put(fmt!(
        "of {count} buffers {before} were used before, {without} after the resume without a \
         notification, and the others after one"
    ));
    Ok(())
}

pub(super) fn at_once(rig: &mut Rig<'_>) -> Test {
    let (mut ran, mut suspended) = (0, 0);
    rig.set_up()?;
    for _ in 0..AT_ONCE {
        rig.write(RUNNING.with(Status::SUSPEND))?;
        rig.write(RUNNING)?;
        if rig.settled()? {
            ran += 1;
        } else {
            suspended += 1;
            rig.resume()?;
        }
        rig.works()?;
    }
    rig.seen
        .put(fmt!("it ran {ran} times, and was suspended {suspended}"));
    Ok(())
}

/// Times of a transition.
struct Times {
    least: i64,
    most: i64,
    sum: i64,
    count: i64,
}

impl Times {
    const fn new() -> Self {
        Self {
            least: i64::MAX,
            most: 0,
            sum: 0,
            count: 0,
        }
    }

    fn add(&mut self, took: Delta) {
        let us = took.as_nanos() / 1000;
        self.least = self.least.min(us);
        self.most = self.most.max(us);
        self.sum += us;
        self.count += 1;
    }

    fn mean(&self) -> i64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }
}

pub(super) fn cycles(rig: &mut Rig<'_>) -> Test {
    let cycles = parameters::cycles.value().max(1);
    let (mut suspends, mut resumes) = (Times::new(), Times::new());
    rig.set_up()?;
    let began = Instant::<Monotonic>::now();
    for _ in 0..cycles {
        suspends.add(rig.suspend()?);
        resumes.add(rig.resume()?);
    }
    let ms = began.elapsed().as_millis();
    rig.works()?;
    rig.seen.put(fmt!(
        "{cycles} in {ms} ms; suspend {}/{}/{} us, resume {}/{}/{} us (least/mean/most)",
        suspends.least,
        suspends.mean(),
        suspends.most,
        resumes.least,
        resumes.mean(),
        resumes.most
    ));
    Ok(())
}
