// SPDX-License-Identifier: GPL-2.0

//! Stopping virtio_input.
//!
//! The driver adds a buffer for an event again when its callback has passed the event on, so the
//! callbacks are taken away: no buffer is lost, and events that the device has reported by then are
//! late. It waits for callbacks that run. What is to be set, such as lights, the driver can't tell
//! the device, and drops, as if the virtqueue were full.

use kernel::prelude::*;
use virtio::{
    suspend::{
        extension::{
            Foreign,
            Gate,
            Quiescer,
            Users,
            Virtqueues, //
        },
        Failure,
        Patience, //
    },
    DeviceId, //
};

pub(crate) struct VirtioInput;

impl Quiescer for VirtioInput {
    fn driver(&self) -> &'static CStr {
        c"virtio_input"
    }

    fn device_type(&self) -> u32 {
        DeviceId::INPUT
    }

    fn gate(
        &self,
        _dev: &Foreign<'_>,
        queues: &Virtqueues<'_>,
        _patience: &Patience<'_>,
    ) -> Result<KBox<dyn Gate>, Failure> {
        let room = KBox::new_uninit(GFP_KERNEL).map_err(Error::from)?;
        let detached = queues.detach()?;
        // What is set is told to the device with a lock held and interrupts disabled.
        queues.close_for(Users::Atomic);
        Ok(room.write(detached))
    }
}
