// SPDX-License-Identifier: GPL-2.0

//! SUSPEND at a time when it means nothing (V1).

use virtio::Status;

use crate::{
    report::Test,
    rig::Rig,
    setup::Setup,
    status::{
        RUNNING,
        SET_UP, //
    },
};

pub(super) fn not_negotiated(rig: &mut Rig<'_>) -> Test {
    rig.set_up_with(Setup {
        suspend: false,
        ..Setup::default()
    })?;
    rig.ignores(RUNNING)?;
    rig.works()
}

pub(super) fn before_features_ok(rig: &mut Rig<'_>) -> Test {
    let setup = Setup::default();
    rig.acknowledge(setup)?;
    rig.ignores(Status::ACKNOWLEDGE.with(Status::DRIVER))?;
    rig.features_ok()?;
    rig.driver_ok(setup)?;
    rig.works()
}

pub(super) fn before_driver_ok(rig: &mut Rig<'_>) -> Test {
    let setup = Setup::default();
    rig.acknowledge(setup)?;
    rig.features_ok()?;
    rig.ignores(SET_UP)?;
    rig.driver_ok(setup)?;
    rig.works()
}
