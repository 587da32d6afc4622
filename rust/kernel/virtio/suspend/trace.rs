// SPDX-License-Identifier: GPL-2.0

//! The trace events `virtio_suspend:*`.
//!
//! Header: [`include/trace/events/virtio_suspend.h`](srctree/include/trace/events/virtio_suspend.h)

use kernel::{
    device::Bound,
    prelude::*, //
};

use super::protocol::State;
use crate::{
    bindings,
    Device,
    Status, //
};

/// The device went from one state to another, because of `result` if that is an error.
pub(super) fn transition(dev: &Device<Bound>, from: State, to: State, result: Result) {
    let error = result.err().map_or(0, |error| error.to_errno());

    // SAFETY: By the type invariant of `Device` the pointer is valid.
    unsafe { bindings::trace_virtio_suspend_transition(dev.as_raw(), from as u8, to as u8, error) };
}

/// The status has been read, or has been written.
pub(super) fn status(dev: &Device<Bound>, write: bool, status: Status) {
    // SAFETY: By the type invariant of `Device` the pointer is valid.
    unsafe { bindings::trace_virtio_suspend_status(dev.as_raw(), write, status.bits()) };
}
