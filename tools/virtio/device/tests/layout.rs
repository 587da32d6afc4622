// SPDX-License-Identifier: GPL-2.0

//! Holds the offsets of the common configuration structure against `virtio-spec`'s, whose fields
//! are private: only its volatile accessors know where they are.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use virtio::pci::{CommonCfg, CommonCfgVolatileFieldAccess};
use virtio_test_device::common::reg;
use volatile::VolatilePtr;

#[test]
fn registers_are_where_virtio_spec_has_them() {
    let mut memory = MaybeUninit::<CommonCfg>::zeroed();
    let base = NonNull::from(&mut memory).cast::<CommonCfg>();
    // SAFETY: `base` points to `memory`, which is large enough, aligned and alive until the end of
    // this function and not used in another way. It is zeroed, which every field of integers
    // allows, and below no field is read or written: only addresses are taken.
    let cfg = unsafe { VolatilePtr::new(base) };
    let start = base.as_ptr() as u64;
    macro_rules! check {
        ($($field:ident: $reg:ident,)*) => {
            $(
                let address = cfg.$field().as_raw_ptr().as_ptr() as *const u8 as u64;
                assert_eq!(address - start, reg::$reg, stringify!($field));
            )*
        };
    }
    check! {
        device_feature_select: DEVICE_FEATURE_SELECT,
        device_feature: DEVICE_FEATURE,
        driver_feature_select: DRIVER_FEATURE_SELECT,
        driver_feature: DRIVER_FEATURE,
        config_msix_vector: CONFIG_MSIX_VECTOR,
        num_queues: NUM_QUEUES,
        device_status: DEVICE_STATUS,
        config_generation: CONFIG_GENERATION,
        queue_select: QUEUE_SELECT,
        queue_size: QUEUE_SIZE,
        queue_msix_vector: QUEUE_MSIX_VECTOR,
        queue_enable: QUEUE_ENABLE,
        queue_notify_off: QUEUE_NOTIFY_OFF,
        queue_desc_low: QUEUE_DESC,
        queue_driver_low: QUEUE_DRIVER,
        queue_device_low: QUEUE_DEVICE,
        queue_notif_config_data: QUEUE_NOTIF_CONFIG_DATA,
        queue_reset: QUEUE_RESET,
        admin_queue_index: ADMIN_QUEUE_INDEX,
        admin_queue_num: ADMIN_QUEUE_NUM,
    }
}
