// SPDX-License-Identifier: GPL-2.0

//! Layout of BAR 0 and of the common configuration structure (VIRTIO 1.4, "Common configuration
//! structure layout").
//!
//! `virtio-spec` keeps the fields of its `CommonCfg` private, so the offsets are written down here
//! and a test holds every one of them against that structure.

/// The BAR with the virtio structures.
pub const VIRTIO_BAR: u8 = 0;
/// The BAR with the MSI-X table and PBA. QEMU emulates both; nothing of it reaches the device.
pub const MSIX_BAR: u8 = 1;
/// The BAR with the control mailbox.
pub const MAILBOX_BAR: u8 = 2;

/// Size of BAR 0.
pub const VIRTIO_BAR_SIZE: u64 = 0x4000;
/// Size of BAR 1.
pub const MSIX_BAR_SIZE: u64 = 0x1000;

/// Offset of the common configuration structure in BAR 0.
pub const COMMON_OFFSET: u64 = 0x0000;
/// Its length.
pub const COMMON_LENGTH: u64 = 0x40;
/// Offset of the ISR status byte in BAR 0.
pub const ISR_OFFSET: u64 = 0x1000;
/// Its length.
pub const ISR_LENGTH: u64 = 4;
/// Offset of the device configuration structure in BAR 0.
pub const DEVICE_OFFSET: u64 = 0x2000;
/// Its length.
pub const DEVICE_LENGTH: u64 = 0x1000;
/// Offset of the notification structure in BAR 0.
pub const NOTIFY_OFFSET: u64 = 0x3000;
/// Its length.
pub const NOTIFY_LENGTH: u64 = 0x1000;
/// notify_off_multiplier: every queue has its own address.
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// VIRTIO_MSI_NO_VECTOR.
pub const NO_VECTOR: u16 = 0xffff;

/// Offsets of the fields of the common configuration structure.
pub mod reg {
    /// device_feature_select
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    /// device_feature
    pub const DEVICE_FEATURE: u64 = 0x04;
    /// driver_feature_select
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// driver_feature
    pub const DRIVER_FEATURE: u64 = 0x0c;
    /// config_msix_vector
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    /// num_queues
    pub const NUM_QUEUES: u64 = 0x12;
    /// device_status
    pub const DEVICE_STATUS: u64 = 0x14;
    /// config_generation
    pub const CONFIG_GENERATION: u64 = 0x15;
    /// queue_select
    pub const QUEUE_SELECT: u64 = 0x16;
    /// queue_size
    pub const QUEUE_SIZE: u64 = 0x18;
    /// queue_msix_vector
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    /// queue_enable
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// queue_notify_off
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    /// queue_desc, low half
    pub const QUEUE_DESC: u64 = 0x20;
    /// queue_driver, low half
    pub const QUEUE_DRIVER: u64 = 0x28;
    /// queue_device, low half
    pub const QUEUE_DEVICE: u64 = 0x30;
    /// queue_notif_config_data
    pub const QUEUE_NOTIF_CONFIG_DATA: u64 = 0x38;
    /// queue_reset
    pub const QUEUE_RESET: u64 = 0x3a;
    /// admin_queue_index
    pub const ADMIN_QUEUE_INDEX: u64 = 0x3c;
    /// admin_queue_num
    pub const ADMIN_QUEUE_NUM: u64 = 0x3e;
}

/// The name of the register at `offset`, for reports.
pub fn register_name(offset: u64) -> &'static str {
    match offset {
        reg::DEVICE_FEATURE_SELECT => "device_feature_select",
        reg::DEVICE_FEATURE => "device_feature",
        reg::DRIVER_FEATURE_SELECT => "driver_feature_select",
        reg::DRIVER_FEATURE => "driver_feature",
        reg::CONFIG_MSIX_VECTOR => "config_msix_vector",
        reg::NUM_QUEUES => "num_queues",
        reg::DEVICE_STATUS => "device_status",
        reg::CONFIG_GENERATION => "config_generation",
        reg::QUEUE_SELECT => "queue_select",
        reg::QUEUE_SIZE => "queue_size",
        reg::QUEUE_MSIX_VECTOR => "queue_msix_vector",
        reg::QUEUE_ENABLE => "queue_enable",
        reg::QUEUE_NOTIFY_OFF => "queue_notify_off",
        0x20..=0x27 => "queue_desc",
        0x28..=0x2f => "queue_driver",
        0x30..=0x37 => "queue_device",
        reg::QUEUE_NOTIF_CONFIG_DATA => "queue_notif_config_data",
        reg::QUEUE_RESET => "queue_reset",
        reg::ADMIN_QUEUE_INDEX => "admin_queue_index",
        reg::ADMIN_QUEUE_NUM => "admin_queue_num",
        _ => "(no register)",
    }
}

/// Whether a write at `offset` resizes, resets, enables or moves a queue (D11).
pub fn is_queue_setup(offset: u64) -> bool {
    matches!(
        offset,
        reg::QUEUE_SIZE..=0x19 | reg::QUEUE_ENABLE..=0x1d | 0x20..=0x37 | reg::QUEUE_RESET..=0x3b
    )
}

#[cfg(test)]
mod tests {
    use virtio::pci::CommonCfg;

    use super::*;

    #[test]
    fn the_structure_has_the_specified_length() {
        assert_eq!(std::mem::size_of::<CommonCfg>() as u64, COMMON_LENGTH);
    }

    #[test]
    fn queue_setup_registers() {
        for offset in [
            reg::QUEUE_SIZE,
            reg::QUEUE_ENABLE,
            reg::QUEUE_DESC,
            reg::QUEUE_DRIVER + 4,
            reg::QUEUE_DEVICE,
            reg::QUEUE_RESET,
        ] {
            assert!(is_queue_setup(offset), "{offset:#x}");
        }
        for offset in [
            reg::QUEUE_SELECT,
            reg::QUEUE_MSIX_VECTOR,
            reg::CONFIG_MSIX_VECTOR,
            reg::DRIVER_FEATURE,
        ] {
            assert!(!is_queue_setup(offset), "{offset:#x}");
        }
    }
}
