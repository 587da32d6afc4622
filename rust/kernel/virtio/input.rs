// SPDX-License-Identifier: GPL-2.0

//! What input devices and their drivers exchange.
//!
//! VIRTIO 1.4, "Input Device".
//!
//! C header: [`include/uapi/linux/virtio_input.h`](srctree/include/uapi/linux/virtio_input.h)

use core::mem::offset_of;

use crate::{
    bindings::{
        self,
        virtio_input_absinfo as AbsInfo,
        virtio_input_config as Layout,
        virtio_input_devids as DevIds, //
    },
    config::Field,
    input::Event, //
};

/// The most bytes that the device tells of what is selected.
pub const DATA_BYTES: usize = 128;

/// Defines fields, which every input device has.
macro_rules! fields {
    ($(
        $(#[$doc:meta])*
        $name:ident: $ty:ty = $member:ident $(as $part:ident.$field:ident)? $(, $writable:ident)?;
    )*) => {$(
        $(#[$doc])*
        // SAFETY: The offset is that of a field that every input device has.
        pub const $name: Field<$ty> = unsafe {
            // CAST: The space is small.
            let offset = (offset_of!(Layout, $member) $(+ offset_of!($part, $field))?) as u32;
            Field::new(bindings::VIRTIO_ID_INPUT, offset, None)$(.$writable())?
        };
    )*};
}

fields! {
    /// What is to be told, one of `CFG_*`.
    SELECT: u8 = select, writable;
    /// Of which type of events or axis, if there are several.
    SUBSEL: u8 = subsel, writable;
    /// How many bytes are told of it, 0 if the device has nothing to tell.
    SIZE: u8 = size;
    /// A string, not always terminated, or a bitmap, of which the first byte has bits 0 to 7.
    DATA: [u8; DATA_BYTES] = u;
    /// Of [`CFG_ID_DEVIDS`]: the bus.
    BUSTYPE: u16 = u as DevIds.bustype;
    /// The vendor.
    VENDOR: u16 = u as DevIds.vendor;
    /// The product.
    PRODUCT: u16 = u as DevIds.product;
    /// The version.
    VERSION: u16 = u as DevIds.version;
    /// Of [`CFG_ABS_INFO`]: the least value of the axis.
    ABS_MIN: i32 = u as AbsInfo.min;
    /// The greatest.
    ABS_MAX: i32 = u as AbsInfo.max;
    /// How much it changes by noise.
    ABS_FUZZ: i32 = u as AbsInfo.fuzz;
    /// How far from the middle is still the middle.
    ABS_FLAT: i32 = u as AbsInfo.flat;
    /// The resolution, in units per millimetre, or per radian of an axis that turns.
    ABS_RES: i32 = u as AbsInfo.res;
}

/// Defines what can be selected.
macro_rules! selections {
    ($($(#[$doc:meta])* $name:ident = $value:ident;)*) => {$(
        $(#[$doc])*
        // CAST: All of them are small.
        pub const $name: u8 = bindings::$value as u8;
    )*};
}

selections! {
    /// The name, in [`DATA`].
    CFG_ID_NAME = virtio_input_config_select_VIRTIO_INPUT_CFG_ID_NAME;
    /// The serial number, in [`DATA`].
    CFG_ID_SERIAL = virtio_input_config_select_VIRTIO_INPUT_CFG_ID_SERIAL;
    /// The ids, from [`BUSTYPE`] to [`VERSION`], of [`DEVIDS_BYTES`].
    CFG_ID_DEVIDS = virtio_input_config_select_VIRTIO_INPUT_CFG_ID_DEVIDS;
    /// The properties, a bitmap in [`DATA`].
    CFG_PROP_BITS = virtio_input_config_select_VIRTIO_INPUT_CFG_PROP_BITS;
    /// The codes of the events of a type, a bitmap in [`DATA`].
    CFG_EV_BITS = virtio_input_config_select_VIRTIO_INPUT_CFG_EV_BITS;
    /// An axis, from [`ABS_MIN`] to [`ABS_RES`].
    CFG_ABS_INFO = virtio_input_config_select_VIRTIO_INPUT_CFG_ABS_INFO;
}

/// How many bytes the ids have.
pub const DEVIDS_BYTES: usize = size_of::<bindings::virtio_input_devids>();

/// How many bytes an event has in a buffer.
pub const EVENT_BYTES: usize = size_of::<bindings::virtio_input_event>();

/// Makes an event of what is in a buffer.
pub fn event_from_bytes(bytes: [u8; EVENT_BYTES]) -> Event {
    let [t0, t1, c0, c1, v0, v1, v2, v3] = bytes;
    Event {
        kind: u16::from_le_bytes([t0, t1]),
        code: u16::from_le_bytes([c0, c1]),
        value: i32::from_le_bytes([v0, v1, v2, v3]),
    }
}

/// Makes what is to be in a buffer of an event.
pub fn event_to_bytes(event: Event) -> [u8; EVENT_BYTES] {
    let [t0, t1] = event.kind.to_le_bytes();
    let [c0, c1] = event.code.to_le_bytes();
    let [v0, v1, v2, v3] = event.value.to_le_bytes();
    [t0, t1, c0, c1, v0, v1, v2, v3]
}
