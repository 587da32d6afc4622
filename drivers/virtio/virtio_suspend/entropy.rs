// SPDX-License-Identifier: GPL-2.0

//! Stopping virtio_rng.
//!
//! What the driver has received stays there, and its buffer stays in the virtqueue if it is there:
//! nothing is lost. It waits until whoever reads right now has added the buffer again. Readers wait
//! from then on, or get nothing if they do not want to wait.

use kernel::prelude::*;
use virtio::{
    suspend::{
        extension::{
            Foreign,
            Gate,
            Quiescer,
            Source,
            Virtqueues, //
        },
        Failure,
        Patience, //
    },
    DeviceId, //
};

pub(crate) struct VirtioRng;

impl Quiescer for VirtioRng {
    fn driver(&self) -> &'static CStr {
        c"virtio_rng"
    }

    fn device_type(&self) -> u32 {
        DeviceId::ENTROPY
    }

    fn gate(
        &self,
        dev: &Foreign<'_>,
        queues: &Virtqueues<'_>,
        _patience: &Patience<'_>,
    ) -> Result<KBox<dyn Gate>, Failure> {
        let room = KBox::new_uninit(GFP_KERNEL).map_err(Error::from)?;
        Ok(room.write(Source::of(dev)?.hold(queues)?))
    }
}
