// SPDX-License-Identifier: GPL-2.0

//! Stopping virtio_scsi.
//!
//! Commands that the device has are finished first, and those that come wait in the queues of the
//! block layer, for whatever logical unit they are. So do the error handler, and whoever has a
//! device reset. Before that the driver handles the events that it has been told of; those that the
//! device reports later are handled after the resume.

use kernel::prelude::*;
use virtio::{
    suspend::{
        extension::{
            Foreign,
            Gate,
            Host,
            Quiescer,
            Virtqueues, //
        },
        Failure,
        Patience, //
    },
    DeviceId, //
};

/// The names of the virtqueues that the driver adds buffers to for others, of which the last has no
/// callbacks.
const CONTROL: &CStr = c"control";
const REQUESTS: &CStr = c"request";
const POLLED: &CStr = c"request_poll";

/// The name of the virtqueue for events, and how many buffers the driver has for them.
const EVENTS: &CStr = c"event";
const EVENT_BUFFERS: u32 = 8;

/// The index of the first virtqueue for commands.
const FIRST_REQUESTS: u32 = 2;

pub(crate) struct VirtioScsi;

impl Quiescer for VirtioScsi {
    fn driver(&self) -> &'static CStr {
        c"virtio_scsi"
    }

    fn device_type(&self) -> u32 {
        DeviceId::SCSI
    }

    fn gate(
        &self,
        dev: &Foreign<'_>,
        queues: &Virtqueues<'_>,
        patience: &Patience<'_>,
    ) -> Result<KBox<dyn Gate>, Failure> {
        let room = KBox::new_uninit(GFP_KERNEL).map_err(Error::from)?;
        let host = Host::of(dev)?;
        // To handle an event may take commands.
        let events = queues.detach_idle(
            EVENTS,
            EVENT_BUFFERS,
            patience,
            "events were not handled in time",
        )?;
        let held = host.hold(
            queues,
            &[CONTROL, REQUESTS, POLLED],
            (POLLED, FIRST_REQUESTS),
            events,
            patience,
        )?;
        Ok(room.write(held))
    }
}
