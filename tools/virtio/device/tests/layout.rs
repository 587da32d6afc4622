// SPDX-License-Identifier: GPL-2.0

//! Holds the offsets of the configuration structures against `virtio-spec`'s, whose fields
//! are private: only its volatile accessors know where they are.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use virtio::blk::{self, ConfigVolatileFieldAccess as _, TopologyVolatileFieldAccess};
use virtio::net::{self, ConfigVolatileFieldAccess as _};
use virtio::pci::{CommonCfg, CommonCfgVolatileFieldAccess};
use virtio_test_device::blk::config::field as blk_field;
use virtio_test_device::net::config::field as net_field;
use virtio_test_device::transport::pci_common_config::reg;
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

#[test]
fn block_configuration_is_where_virtio_spec_has_it() {
    let mut memory = MaybeUninit::<blk::Config>::zeroed();
    let base = NonNull::from(&mut memory).cast::<blk::Config>();
    // SAFETY: As above: `memory` is large enough, aligned, zeroed, which every field of integers
    // allows, alive and not used in another way, and only addresses are taken.
    let config = unsafe { VolatilePtr::new(base) };
    let start = base.as_ptr() as usize;
    macro_rules! check {
        ($($($path:ident).+: $field:ident,)*) => {
            $(
                let address = config$(.$path())+.as_raw_ptr().as_ptr() as *const u8 as usize;
                assert_eq!(address - start, blk_field::$field, stringify!($field));
            )*
        };
    }
    check! {
        capacity: CAPACITY,
        size_max: SIZE_MAX,
        seg_max: SEG_MAX,
        blk_size: BLK_SIZE,
        topology.physical_block_exp: PHYSICAL_BLOCK_EXP,
        topology.alignment_offset: ALIGNMENT_OFFSET,
        topology.min_io_size: MIN_IO_SIZE,
        topology.opt_io_size: OPT_IO_SIZE,
        writeback: WRITEBACK,
        num_queues: NUM_QUEUES,
        max_discard_sectors: MAX_DISCARD_SECTORS,
        max_discard_seg: MAX_DISCARD_SEG,
        discard_sector_alignment: DISCARD_SECTOR_ALIGNMENT,
        max_write_zeroes_sectors: MAX_WRITE_ZEROES_SECTORS,
        max_write_zeroes_seg: MAX_WRITE_ZEROES_SEG,
        write_zeroes_may_unmap: WRITE_ZEROES_MAY_UNMAP,
        max_secure_erase_sectors: MAX_SECURE_ERASE_SECTORS,
        max_secure_erase_seg: MAX_SECURE_ERASE_SEG,
        secure_erase_sector_alignment: SECURE_ERASE_SECTOR_ALIGNMENT,
        zoned: END,
    }
}

#[test]
fn network_configuration_is_where_virtio_spec_has_it() {
    let mut memory = MaybeUninit::<net::Config>::zeroed();
    let base = NonNull::from(&mut memory).cast::<net::Config>();
    // SAFETY: As above.
    let config = unsafe { VolatilePtr::new(base) };
    let start = base.as_ptr() as usize;
    macro_rules! check {
        ($($path:ident: $field:ident,)*) => {
            $(
                let address = config.$path().as_raw_ptr().as_ptr() as *const u8 as usize;
                assert_eq!(address - start, net_field::$field, stringify!($field));
            )*
        };
    }
    check! {
        mac: MAC,
        status: STATUS,
        max_virtqueue_pairs: MAX_VIRTQUEUE_PAIRS,
        mtu: MTU,
        speed: SPEED,
        duplex: DUPLEX,
        rss_max_key_size: END,
    }
}
