// SPDX-License-Identifier: GPL-2.0

//! What a suspended device leaves alone (V3).

use kernel::prelude::*;

use virtio::{
    blk,
    Status, //
};

use crate::{
    report::Test,
    rig::{
        Rig,
        SOME, //
    },
    setup::Setup,
    traffic::Kind, //
};

pub(super) fn stays(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    rig.suspend()?;
    rig.stay()?;
    rig.is_still_suspended()
}

pub(super) fn rings(rig: &mut Rig<'_>) -> Test {
    rig.quiet()?;
    rig.set_up()?;
    // The device has not been notified of these.
    let count = rig.supply(SOME)?;
    rig.suspend()?;
    let before = rig.collect()?;
    rig.uses_none(count, fmt!("no buffer is used while suspended"))?;
    rig.seen.put(fmt!(
        "{} buffers stayed; what the device reads can't be seen",
        count.saturating_sub(before)
    ));
    Ok(())
}

pub(super) fn buffers(rig: &mut Rig<'_>) -> Test {
    rig.quiet()?;
    rig.set_up()?;
    rig.supply(SOME)?;
    rig.suspend()?;
    rig.collect()?;
    rig.stay()?;
    rig.collect()?;
    // From here on the device uses none of them, and they can be looked at.
    rig.session.reset()?;
    let (count, touched) = rig.take_back()?;
    if touched > 0 {
        return Err(rig.fail(
            fmt!("buffers that have not been used are as they were"),
            fmt!("{touched} of {count} have been written to"),
        ));
    }
    if count == 0 {
        return Err(rig.skip(fmt!("the device had used all buffers before")));
    }
    rig.seen.put(fmt!("{count} buffers were as they had been"));
    Ok(())
}

pub(super) fn used_notifications(rig: &mut Rig<'_>) -> Test {
    let queue = rig.busy()?;
    rig.set_up()?;
    // One that is used and stays in the virtqueue: without it the virtio core would not tell.
    let (before, _) = rig.notifications();
    rig.request(1)?;
    queue.lock().kick();
    rig.until_notified(before)?;
    rig.suspend()?;
    rig.settle()?;
    let (before, _) = rig.notifications();
    rig.stay()?;
    let (after, _) = rig.notifications();
    rig.is_still_suspended()?;
    if rig.collect()? == 0 {
        return Err(rig.skip(fmt!("the device has used no buffer")));
    }
    if after != before {
        return Err(rig.fail(
            fmt!("no used buffer notification while suspended"),
            fmt!("{}", after.wrapping_sub(before)),
        ));
    }
    Ok(())
}

pub(super) fn config_notifications(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    rig.suspend()?;
    rig.settle()?;
    let (_, before) = rig.notifications();
    rig.stay()?;
    rig.settle()?;
    let (_, after) = rig.notifications();
    if after != before {
        return Err(rig.fail(
            fmt!("no configuration change notification while suspended"),
            fmt!("{}", after.wrapping_sub(before)),
        ));
    }
    rig.is_still_suspended()
}

pub(super) fn config(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    rig.suspend()?;
    let before = rig.configuration()?;
    rig.stay()?;
    let after = rig.configuration()?;
    if after != before {
        return Err(rig.fail(
            fmt!("generation and fields as they were: {before:?}"),
            fmt!("{after:?}"),
        ));
    }
    rig.is_still_suspended()
}

pub(super) fn config_writes(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    if rig.kind != Kind::Block || !rig.session.offers(blk::F_CONFIG_WCE)? {
        return Err(rig.skip(fmt!("no field is known that could be written")));
    }
    rig.set_up_with(Setup {
        accepted: &[blk::F_CONFIG_WCE],
        ..Setup::default()
    })?;
    let before = rig.session.device()?.config().read(&blk::WCE)?;
    rig.suspend()?;
    let other = u8::from(before == 0);
    rig.session.device()?.config().write(&blk::WCE, other)?;
    rig.stay()?;
    let after = rig.session.device()?.config().read(&blk::WCE)?;
    rig.is_still_suspended()?;
    rig.resume()?;
    let resumed = rig.session.device()?.config().read(&blk::WCE)?;
    rig.session.device()?.config().write(&blk::WCE, before)?;
    if after != before || resumed != before {
        return Err(rig.fail(
            fmt!("writeback {before}, what it was before {other} was written"),
            fmt!("{after}, and {resumed} after the resume"),
        ));
    }
    Ok(())
}

pub(super) fn driver_notifications(rig: &mut Rig<'_>) -> Test {
    let queue = rig.busy()?;
    rig.set_up()?;
    let count = rig.request(SOME)?;
    rig.suspend()?;
    let left = count.saturating_sub(rig.collect()?);
    // A device may have consumed all before. No good driver makes a buffer available now (D4).
    let left = left + rig.request(SOME)?;
    queue.lock().notify();
    rig.stay()?;
    let late = rig.collect()?;
    if late > 0 {
        return Err(rig.fail(
            fmt!("a notification has no effect while suspended"),
            fmt!("{late} of {left} buffers were used"),
        ));
    }
    rig.is_still_suspended()?;
    rig.resume()?;
    queue.lock().notify();
    rig.until_left(0)?;
    if left == 0 {
        return Err(rig.skip(fmt!("there was no room for a buffer")));
    }
    rig.seen
        .put(fmt!("{left} buffers were used after the resume only"));
    Ok(())
}

pub(super) fn status_writes(rig: &mut Rig<'_>) -> Test {
    rig.set_up()?;
    rig.suspend()?;
    let status = rig.read()?;
    let values = [status, Status::SUSPEND.with(Status::ACKNOWLEDGE), status];
    for value in values {
        // For the draft, DRIVER_OK is what it presents.
        rig.write(value)?;
        rig.is_still_suspended()?;
    }
    rig.stay()?;
    rig.is_still_suspended()?;
    rig.resume()?;
    rig.works()
}
