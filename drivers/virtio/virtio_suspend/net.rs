// SPDX-License-Identifier: GPL-2.0

//! Stopping virtio_net.
//!
//! The interface is held: nothing is sent or received, and no command given. Buffers for what is to
//! be received stay in the virtqueues, and so do packets that the device has not taken yet.

use kernel::prelude::*;
use virtio::{
    compat::{
        EOPNOTSUPP,
        NET_BEARS_BROKEN, //
    },
    suspend::{
        extension::{
            Foreign,
            Gate,
            Interface,
            Quiescer,
            Virtqueues, //
        },
        Failure,
        Patience, //
    },
    DeviceId,
    Feature, //
};

/// The device stands by for another one, and the driver has a second interface for both.
const VIRTIO_NET_F_STANDBY: Feature = Feature::new(62);

/// The name of the virtqueue for commands.
const COMMANDS: &CStr = c"control";

pub(crate) struct VirtioNet;

impl Quiescer for VirtioNet {
    fn driver(&self) -> &'static CStr {
        c"virtio_net"
    }

    fn device_type(&self) -> u32 {
        DeviceId::NETWORK
    }

    fn gate(
        &self,
        dev: &Foreign<'_>,
        queues: &Virtqueues<'_>,
        patience: &Patience<'_>,
    ) -> Result<KBox<dyn Gate>, Failure> {
        if !NET_BEARS_BROKEN {
            return Err(Failure::new(
                EOPNOTSUPP,
                "the driver of this kernel loops on virtqueues that are closed",
            ));
        }
        if dev.has_feature(VIRTIO_NET_F_STANDBY) {
            return Err(Failure::new(EOPNOTSUPP, "the device stands by for another"));
        }
        let room = KBox::new_uninit(GFP_KERNEL).map_err(Error::from)?;
        Ok(room.write(Interface::of(dev)?.hold(dev, queues, COMMANDS, patience)?))
    }
}
