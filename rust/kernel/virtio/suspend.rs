// SPDX-License-Identifier: GPL-2.0

//! SUSPEND: stopping a device through its status field, and letting it go on.
//!
//! VIRTIO 1.4, "Device Suspend". The rules that this module keeps, D1 to D14, are explained in
//! Documentation/virtio/suspend.rst; the files that it adds to a device's directory in sysfs, in
//! Documentation/ABI/testing/sysfs-bus-virtio-suspend.
//!
//! A driver takes part by implementing [`Quiesce`] and naming [`Native`] as its
//! [`Driver::Suspend`](crate::Driver::Suspend). What is common to all drivers is done here: the
//! feature bits, the order of a suspend, closing and opening the virtqueues, waiting, rolling back.

#[path = "suspend/config.rs"]
mod config;
#[path = "suspend/controller.rs"]
mod controller;
#[path = "suspend/debugfs.rs"]
mod debugfs;
#[path = "suspend/extension.rs"]
pub mod extension;
#[path = "suspend/failure.rs"]
mod failure;
#[path = "suspend/fate.rs"]
mod fate;
#[path = "suspend/group.rs"]
mod group;
#[path = "suspend/later.rs"]
mod later;
#[path = "suspend/native.rs"]
mod native;
#[path = "suspend/operations.rs"]
mod operations;
#[path = "suspend/patience.rs"]
mod patience;
#[path = "suspend/protocol.rs"]
pub mod protocol;
#[path = "suspend/quiesce.rs"]
mod quiesce;
#[path = "suspend/sleep.rs"]
mod sleep;
#[path = "suspend/state_machine.rs"]
pub mod state_machine;
#[path = "suspend/sysfs.rs"]
mod sysfs;
#[path = "suspend/trace.rs"]
mod trace;

pub(crate) use self::config::{
    ConfigChanges,
    Switch,
    Turnstile, //
};
pub(crate) use self::controller::{
    negotiate,
    negotiate_offered,
    revision,
    Bedtime,
    Controller, //
};
pub(crate) use self::debugfs::DebugfsRoot;
pub use self::failure::Failure;
pub(crate) use self::fate::Fate;
pub(crate) use self::group::{
    Directory,
    Group, //
};
pub(crate) use self::later::{
    queue as queue_work,
    Later,
    Workqueue, //
};
pub use self::patience::Patience;
pub use self::quiesce::{
    Native,
    Quiesce,
    Support,
    Unsupported, //
};
pub(crate) use self::sleep::Sleep;
