// SPDX-License-Identifier: GPL-2.0

//! The common configuration structure (VIRTIO 1.4, "Common configuration structure layout"): where
//! its registers are, where it is in BAR 0 beside the others, and what is read of it.
//!
//! `virtio-spec` keeps the fields of its `CommonCfg` private, so the offsets are written down here
//! and a test holds every one of them against that structure.

use crate::features::FeatureSet;

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

/// What the driver reads of the virtqueue that it has selected.
#[derive(Clone, Copy, Debug)]
pub struct QueueRegisters {
    /// queue_size
    pub size: u16,
    /// queue_msix_vector
    pub vector: u16,
    /// queue_enable
    pub enabled: bool,
    /// queue_desc
    pub desc: u64,
    /// queue_driver
    pub driver: u64,
    /// queue_device
    pub device: u64,
}

/// What the driver reads of the device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRegisters {
    /// The features that device_feature is a window of.
    pub offered: FeatureSet,
    /// Those that driver_feature is a window of.
    pub accepted: FeatureSet,
    /// num_queues
    pub queues: u16,
    /// admin_queue_index, if there is an administration virtqueue.
    pub admin_queue: Option<u16>,
    /// device_status
    pub status: u8,
    /// The virtqueue that is selected, if it exists.
    pub queue: Option<QueueRegisters>,
}

/// The registers of the common configuration structure that mean something to the transport alone.
#[derive(Debug)]
pub struct VirtioPciCommonConfig {
    /// device_feature_select
    pub device_feature_select: u32,
    /// driver_feature_select
    pub driver_feature_select: u32,
    /// queue_select
    pub queue_select: u16,
    /// config_msix_vector
    pub msix_config: u16,
    /// config_generation
    pub config_generation: u8,
}

impl Default for VirtioPciCommonConfig {
    fn default() -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            msix_config: NO_VECTOR,
            config_generation: 0,
        }
    }
}

impl VirtioPciCommonConfig {
    /// The driver writes driver_feature: `accepted` with the window that it has selected.
    pub fn accept(&self, accepted: FeatureSet, value: u32) -> FeatureSet {
        match self.driver_feature_select {
            select @ 0..=3 => {
                let shift = 32 * select;
                accepted & !(FeatureSet::from(u32::MAX) << shift) | FeatureSet::from(value) << shift
            }
            _ => accepted,
        }
    }

    /// The structure as the driver reads it now.
    pub fn image(&self, device: &DeviceRegisters) -> [u8; COMMON_LENGTH as usize] {
        let mut image = [0; COMMON_LENGTH as usize];
        let mut put = |offset: u64, bytes: &[u8]| {
            let offset = offset as usize;
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let window = |features: FeatureSet, select: u32| match select {
            0..=3 => (features >> (32 * select)) as u32,
            _ => 0,
        };
        put(
            reg::DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        put(
            reg::DEVICE_FEATURE,
            &window(device.offered, self.device_feature_select).to_le_bytes(),
        );
        put(
            reg::DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        put(
            reg::DRIVER_FEATURE,
            &window(device.accepted, self.driver_feature_select).to_le_bytes(),
        );
        put(reg::CONFIG_MSIX_VECTOR, &self.msix_config.to_le_bytes());
        put(reg::NUM_QUEUES, &device.queues.to_le_bytes());
        if let Some(queue) = device.admin_queue {
            put(reg::ADMIN_QUEUE_INDEX, &queue.to_le_bytes());
            put(reg::ADMIN_QUEUE_NUM, &1u16.to_le_bytes());
        }
        put(reg::DEVICE_STATUS, &[device.status]);
        put(reg::CONFIG_GENERATION, &[self.config_generation]);
        put(reg::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = device.queue {
            put(reg::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(reg::QUEUE_MSIX_VECTOR, &queue.vector.to_le_bytes());
            put(reg::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(reg::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(reg::QUEUE_DESC, &queue.desc.to_le_bytes());
            put(reg::QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(reg::QUEUE_DEVICE, &queue.device.to_le_bytes());
        }
        image
    }
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
    fn features_are_read_and_written_by_windows() {
        let mut config = VirtioPciCommonConfig::default();
        let device = DeviceRegisters {
            offered: 1 << 43 | 1 << 96,
            accepted: 1 << 32,
            queues: 3,
            admin_queue: None,
            status: 0x0b,
            queue: None,
        };
        let word = |config: &VirtioPciCommonConfig, offset: u64| {
            let image = config.image(&device);
            let at = offset as usize;
            u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
        };
        for (select, offered, accepted) in [(0, 0, 0), (1, 1 << 11, 1), (3, 1, 0), (4, 0, 0)] {
            config.device_feature_select = select;
            config.driver_feature_select = select;
            assert_eq!(word(&config, reg::DEVICE_FEATURE), offered);
            assert_eq!(word(&config, reg::DRIVER_FEATURE), accepted);
        }
        assert_eq!(config.accept(1, 7), 1, "there is no window of that number");
        config.driver_feature_select = 1;
        assert_eq!(config.accept(1 | 1 << 40, 2), 1 | 1 << 33);
    }

    #[test]
    fn a_queue_that_does_not_exist_has_size_0() {
        let config = VirtioPciCommonConfig {
            queue_select: 9,
            ..VirtioPciCommonConfig::default()
        };
        let image = config.image(&DeviceRegisters {
            offered: 0,
            accepted: 0,
            queues: 1,
            admin_queue: Some(1),
            status: 0,
            queue: None,
        });
        let word = |offset: u64| image[offset as usize];
        assert_eq!((word(reg::QUEUE_SELECT), word(reg::QUEUE_SIZE)), (9, 0));
        assert_eq!(
            (word(reg::ADMIN_QUEUE_INDEX), word(reg::ADMIN_QUEUE_NUM)),
            (1, 1)
        );
        assert_eq!(word(reg::CONFIG_MSIX_VECTOR), 0xff);
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
