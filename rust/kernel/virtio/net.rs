// SPDX-License-Identifier: GPL-2.0

//! What network devices and their drivers exchange.
//!
//! VIRTIO 1.4, "Network Device".
//!
//! C header: [`include/uapi/linux/virtio_net.h`](srctree/include/uapi/linux/virtio_net.h)

use core::mem::offset_of;

use crate::{
    bindings::{
        self,
        virtio_net_config as Layout, //
    },
    config::Field,
    Feature, //
};

/// The maximum MTU is in the configuration space.
pub const F_MTU: Feature = Feature::new(bindings::VIRTIO_NET_F_MTU);
/// The MAC address is in the configuration space.
pub const F_MAC: Feature = Feature::new(bindings::VIRTIO_NET_F_MAC);

/// There is a virtqueue for commands.
pub const F_CTRL_VQ: Feature = Feature::new(bindings::VIRTIO_NET_F_CTRL_VQ);
/// The device takes commands that say which frames it is to receive.
pub const F_CTRL_RX: Feature = Feature::new(bindings::VIRTIO_NET_F_CTRL_RX);

/// How many bytes the header of a command has.
pub const COMMAND_BYTES: usize = size_of::<bindings::virtio_net_ctrl_hdr>();

/// The header of the command that says for which addresses frames are to be received: lists of
/// those of stations and of groups follow, each with its length.
// CAST: Both are small.
pub const SET_MAC_TABLE: [u8; COMMAND_BYTES] = [
    bindings::VIRTIO_NET_CTRL_MAC as u8,
    bindings::VIRTIO_NET_CTRL_MAC_TABLE_SET as u8,
];

/// What a device answers that has carried out a command.
// CAST: It is small.
pub const COMMAND_OK: u8 = bindings::VIRTIO_NET_OK as u8;

/// How many bytes a MAC address has.
pub const MAC_BYTES: usize = 6;

/// How many bytes the header of a frame has, for a device of VIRTIO 1.0 or later.
pub const HEADER_BYTES: usize = size_of::<bindings::virtio_net_hdr_v1>();

/// The MAC address.
// SAFETY: The offset is that of a field that every network device has, if it has negotiated the
// feature.
pub const MAC: Field<[u8; MAC_BYTES]> = unsafe {
    // CAST: The space is small.
    let offset = offset_of!(Layout, mac) as u32;
    Field::new(bindings::VIRTIO_ID_NET, offset, Some(F_MAC))
};

/// The maximum MTU, in bytes.
// SAFETY: As above.
pub const MTU: Field<u16> = unsafe {
    // CAST: The space is small.
    let offset = offset_of!(Layout, mtu) as u32;
    Field::new(bindings::VIRTIO_ID_NET, offset, Some(F_MTU))
};
