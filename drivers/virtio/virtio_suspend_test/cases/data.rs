// SPDX-License-Identifier: GPL-2.0

//! What is on a disk (V2).

use kernel::{
    prelude::*,
    time::Delta, //
};

use virtio::blk;

use crate::{
    loses_data,
    report::{
        End,
        Test, //
    },
    rig::{
        Rig,
        MAX_BUFFERS, //
    },
    traffic::{
        Kind,
        Pattern,
        BLOCK_SECTORS, //
    },
};

/// How often the same blocks are written, each time with other data.
const ROUNDS: u32 = 4;

/// How much later SUSPEND is written each time, in microseconds.
const STEP_US: i64 = 60;

pub(super) fn written(rig: &mut Rig<'_>) -> Test {
    if rig.kind != Kind::Block {
        return Err(rig.skip(fmt!("the device is no disk")));
    }
    if !loses_data()? {
        return Err(rig.skip(fmt!("the data of the disk is to be kept (data=keep)")));
    }
    rig.set_up()?;
    if rig.session.offers(blk::F_RO)? {
        return Err(rig.skip(fmt!("the disk can only be read")));
    }
    let capacity = rig.session.device()?.config().read(&blk::CAPACITY)?;
    // CAST: It is small.
    if capacity < MAX_BUFFERS as u64 * BLOCK_SECTORS {
        return Err(rig.skip(fmt!("the disk has {capacity} sectors only")));
    }
    let mut blocks = 0;
    for round in 0..ROUNDS {
        // What was there before is never the same.
        let pattern = Pattern::new(round);
        let pause = Delta::from_micros(i64::from(round) * STEP_US);
        let count = rig.request_as(MAX_BUFFERS, |id, nth| pattern.write(id, nth))?;
        cut(rig, pause)?;
        let read = rig.request_as(count, |id, nth| pattern.read(id, nth))?;
        if read != count {
            return Err(End::Error(ENOSPC));
        }
        cut(rig, pause)?;
        blocks += count;
    }
    rig.seen.put(fmt!(
        "{blocks} blocks were written, and read back as they were"
    ));
    Ok(())
}

/// Has a suspend come in between, and waits for the requests.
fn cut(rig: &mut Rig<'_>, pause: Delta) -> Test {
    let queue = rig.busy()?;
    queue.lock().kick();
    rig.session.pause(pause)?;
    rig.suspend()?;
    rig.collect()?;
    rig.resume()?;
    queue.lock().notify();
    rig.until_left(0)
}
