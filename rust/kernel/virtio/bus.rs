// SPDX-License-Identifier: GPL-2.0

//! The virtio bus.

use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::bindings::{
    self,
    bus_type,
    virtio_driver, //
};

/// Finds the virtio bus, which is not exported: it is that of every virtio driver. May sleep.
///
/// The bus is there as long as the virtio core, of which this module has need.
pub(crate) fn find(module: &'static ThisModule) -> Result<*const bus_type> {
    struct Ids([bindings::virtio_device_id; 1]);

    // SAFETY: The table is only read.
    unsafe impl Sync for Ids {}

    // An empty table: the driver is for no device.
    static IDS: Ids = Ids([bindings::virtio_device_id {
        device: 0,
        vendor: 0,
    }]);

    let mut driver = KBox::new(virtio_driver::default(), GFP_KERNEL)?;
    driver.driver.name = c"virtio_suspend".as_char_ptr();
    driver.id_table = IDS.0.as_ptr();
    let raw = &raw mut *driver;

    // SAFETY: The driver is valid, has a name and a table of ids, and stays where it is until it is
    // unregistered.
    to_result(unsafe { bindings::__register_virtio_driver(raw, module.as_ptr()) })?;
    // SAFETY: The registration has set the bus.
    let bus = unsafe { (*raw).driver.bus };
    // SAFETY: The driver has been registered right above.
    unsafe { bindings::unregister_virtio_driver(raw) };
    Ok(bus)
}
