// SPDX-License-Identifier: GPL-2.0

//! Virtqueues of each layout, enabled, left out and reset (V2, V5).

use kernel::prelude::*;

use virtio::{
    compat::EOPNOTSUPP,
    Feature, //
};

use super::suspend::cut;
use crate::{
    report::{
        End,
        Test, //
    },
    rig::Rig,
    setup::Setup, //
};

pub(super) fn split(rig: &mut Rig<'_>) -> Test {
    rig.busy()?;
    rig.set_up_with(Setup {
        refused: &[Feature::RING_PACKED],
        ..Setup::default()
    })?;
    cut(rig)
}

pub(super) fn packed(rig: &mut Rig<'_>) -> Test {
    rig.busy()?;
    if !rig.session.offers(Feature::RING_PACKED)? {
        return Err(rig.skip(fmt!("the device does not offer them")));
    }
    rig.set_up_with(Setup {
        accepted: &[Feature::RING_PACKED],
        ..Setup::default()
    })?;
    cut(rig)
}

pub(super) fn none(rig: &mut Rig<'_>) -> Test {
    rig.set_up_with(Setup {
        enabled: 0,
        ..Setup::default()
    })?;
    cycle(rig)
}

pub(super) fn some(rig: &mut Rig<'_>) -> Test {
    // The driver knows of one virtqueue, or two.
    if rig.kind.queues() < 2 {
        return Err(rig.skip(fmt!("the driver knows of one virtqueue only")));
    }
    rig.set_up_with(Setup {
        enabled: 1,
        ..Setup::default()
    })?;
    cycle(rig)
}

pub(super) fn reset(rig: &mut Rig<'_>) -> Test {
    let queue = rig.busy()?;
    if !rig.session.device()?.has_feature(Feature::RING_RESET) {
        return Err(rig.skip(fmt!("virtqueue reset has not been negotiated")));
    }
    rig.set_up()?;
    // It is dropped by the reset.
    rig.request(1)?;
    match rig.session.reset_queue(&queue) {
        Ok(()) => {}
        Err(error) if error == EOPNOTSUPP => {
            return Err(rig.skip(fmt!("the transport can't reset a virtqueue")));
        }
        Err(error) => return Err(End::Error(error)),
    }
    rig.forget_given();
    rig.works()?;
    cycle(rig)?;
    rig.works()
}

fn cycle(rig: &mut Rig<'_>) -> Test {
    rig.suspend()?;
    rig.stay()?;
    rig.is_still_suspended()?;
    rig.resume()?;
    Ok(())
}
