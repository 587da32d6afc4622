// SPDX-License-Identifier: GPL-2.0

//! Stopping virtio_blk.
//!
//! The disk's request queue is frozen: the requests that the device has are finished first, so that
//! there is nothing in the virtqueues, and new ones wait. Nothing is flushed; a flush that was
//! asked for has been finished, too, like any other request.

use kernel::prelude::*;
use virtio::{
    suspend::{
        extension::{
            Disk,
            Foreign,
            Gate,
            Quiescer,
            Virtqueues, //
        },
        Failure,
        Patience, //
    },
    DeviceId, //
};

pub(crate) struct VirtioBlk;

impl Quiescer for VirtioBlk {
    fn driver(&self) -> &'static CStr {
        c"virtio_blk"
    }

    fn device_type(&self) -> u32 {
        DeviceId::BLOCK
    }

    fn gate(
        &self,
        dev: &Foreign<'_>,
        queues: &Virtqueues<'_>,
        patience: &Patience<'_>,
    ) -> Result<KBox<dyn Gate>, Failure> {
        let room = KBox::new_uninit(GFP_KERNEL).map_err(Error::from)?;
        Ok(room.write(Disk::of(dev)?.freeze(queues, patience)?))
    }
}
