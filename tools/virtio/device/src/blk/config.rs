// SPDX-License-Identifier: GPL-2.0

//! What a block device is: its features, its limits, and how they look in device configuration
//! space (VIRTIO 1.4, "Block Device", "Device configuration layout").

use std::collections::BTreeSet;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use virtio::blk::F;

use crate::features::FeatureSet;

/// The unit of the driver's addresses, whatever the block size is.
pub const SECTOR: u64 = 512;
/// Length of the serial.
pub const ID_BYTES: usize = 20;
/// Most queues: each has an MSI-X vector of its own.
pub const MAX_QUEUES: u16 = 64;

/// Offsets of the fields of device configuration space. `virtio-spec` keeps the fields of its
/// structure private; tests/layout.rs holds every one of these against it.
pub mod field {
    /// capacity
    pub const CAPACITY: usize = 0;
    /// size_max
    pub const SIZE_MAX: usize = 8;
    /// seg_max
    pub const SEG_MAX: usize = 12;
    /// blk_size
    pub const BLK_SIZE: usize = 20;
    /// topology.physical_block_exp
    pub const PHYSICAL_BLOCK_EXP: usize = 24;
    /// topology.alignment_offset
    pub const ALIGNMENT_OFFSET: usize = 25;
    /// topology.min_io_size
    pub const MIN_IO_SIZE: usize = 26;
    /// topology.opt_io_size
    pub const OPT_IO_SIZE: usize = 28;
    /// writeback
    pub const WRITEBACK: usize = 32;
    /// num_queues
    pub const NUM_QUEUES: usize = 34;
    /// max_discard_sectors
    pub const MAX_DISCARD_SECTORS: usize = 36;
    /// max_discard_seg
    pub const MAX_DISCARD_SEG: usize = 40;
    /// discard_sector_alignment
    pub const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    /// max_write_zeroes_sectors
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    /// max_write_zeroes_seg
    pub const MAX_WRITE_ZEROES_SEG: usize = 52;
    /// write_zeroes_may_unmap
    pub const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    /// max_secure_erase_sectors
    pub const MAX_SECURE_ERASE_SECTORS: usize = 60;
    /// max_secure_erase_seg
    pub const MAX_SECURE_ERASE_SEG: usize = 64;
    /// secure_erase_sector_alignment
    pub const SECURE_ERASE_SECTOR_ALIGNMENT: usize = 68;
    /// Behind the last one that is used here.
    pub const END: usize = 72;
}

/// A feature of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// VIRTIO_BLK_F_SIZE_MAX
    SizeMax,
    /// VIRTIO_BLK_F_SEG_MAX
    SegMax,
    /// VIRTIO_BLK_F_RO
    Ro,
    /// VIRTIO_BLK_F_BLK_SIZE
    BlkSize,
    /// VIRTIO_BLK_F_FLUSH
    Flush,
    /// VIRTIO_BLK_F_TOPOLOGY
    Topology,
    /// VIRTIO_BLK_F_CONFIG_WCE
    ConfigWce,
    /// VIRTIO_BLK_F_MQ
    Mq,
    /// VIRTIO_BLK_F_DISCARD
    Discard,
    /// VIRTIO_BLK_F_WRITE_ZEROES
    WriteZeroes,
    /// VIRTIO_BLK_F_SECURE_ERASE
    SecureErase,
}

impl Feature {
    /// Its bit.
    pub fn bit(self) -> FeatureSet {
        let feature = match self {
            Self::SizeMax => F::SIZE_MAX,
            Self::SegMax => F::SEG_MAX,
            Self::Ro => F::RO,
            Self::BlkSize => F::BLK_SIZE,
            Self::Flush => F::FLUSH,
            Self::Topology => F::TOPOLOGY,
            Self::ConfigWce => F::CONFIG_WCE,
            Self::Mq => F::MQ,
            Self::Discard => F::DISCARD,
            Self::WriteZeroes => F::WRITE_ZEROES,
            Self::SecureErase => F::SECURE_ERASE,
        };
        feature.bits().to_ne()
    }
}

/// What the device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// In sectors of 512 bytes.
    pub capacity: u64,
    /// The features that are offered.
    pub features: BTreeSet<Feature>,
    /// How many request queues.
    pub queues: u16,
    /// Most bytes of a segment.
    pub size_max: u32,
    /// Most data segments of a request.
    pub seg_max: u32,
    /// In bytes.
    pub blk_size: u32,
    /// Logical blocks in a physical one, as a power of two.
    pub physical_block_exp: u8,
    /// The first aligned logical block.
    pub alignment_offset: u8,
    /// In logical blocks.
    pub min_io_size: u16,
    /// In logical blocks.
    pub opt_io_size: u32,
    /// The cache mode after a reset: writeback, or else writethrough.
    pub writeback: bool,
    /// Most sectors of a discard segment.
    pub max_discard_sectors: u32,
    /// Most segments of a discard.
    pub max_discard_seg: u32,
    /// In sectors.
    pub discard_sector_alignment: u32,
    /// Most sectors of a write zeroes segment.
    pub max_write_zeroes_sectors: u32,
    /// Most segments of a write zeroes.
    pub max_write_zeroes_seg: u32,
    /// Whether a write zeroes with UNMAP gives the space back.
    pub write_zeroes_may_unmap: bool,
    /// Most sectors of a secure erase segment.
    pub max_secure_erase_sectors: u32,
    /// Most segments of a secure erase.
    pub max_secure_erase_seg: u32,
    /// In sectors.
    pub secure_erase_sector_alignment: u32,
    /// What GET_ID answers.
    pub serial: String,
}

/// A device that can't be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A change that is no JSON object.
    #[error("a change is a JSON object, like {{\"capacity\":2048}}")]
    NoObject,
    /// What serde says.
    #[error("{0}")]
    Syntax(String),
    /// A value out of range.
    #[error("{key} is {value}; {wanted}")]
    Value {
        /// Which.
        key: &'static str,
        /// What it is.
        value: u64,
        /// What is possible.
        wanted: String,
    },
    /// A serial that is too long.
    #[error("serial has {0} bytes; at most {ID_BYTES} are possible")]
    Serial(usize),
}

impl Config {
    /// A device of `capacity` sectors with everything, for queues of at most `queue_size`
    /// descriptors.
    pub fn new(capacity: u64, queues: u16, queue_size: u16) -> Self {
        let all = Feature::value_variants().iter().copied();
        Self {
            capacity,
            features: all.filter(|feature| *feature != Feature::Ro).collect(),
            queues,
            size_max: 1 << 20,
            seg_max: u32::from(queue_size.saturating_sub(2)).clamp(1, 126),
            blk_size: SECTOR as u32,
            physical_block_exp: 3,
            alignment_offset: 0,
            min_io_size: 8,
            opt_io_size: 0,
            writeback: true,
            max_discard_sectors: 1 << 15,
            max_discard_seg: 16,
            discard_sector_alignment: 8,
            max_write_zeroes_sectors: 1 << 15,
            max_write_zeroes_seg: 1,
            write_zeroes_may_unmap: true,
            max_secure_erase_sectors: 1 << 15,
            max_secure_erase_seg: 16,
            secure_erase_sector_alignment: 8,
            serial: "virtio-test".into(),
        }
    }

    /// This one with `change` applied, or what is wrong with the change.
    pub fn changed(&self, change: &Value) -> Result<Self, ConfigError> {
        let change = change.as_object().ok_or(ConfigError::NoObject)?;
        let syntax = |error: serde_json::Error| ConfigError::Syntax(error.to_string());
        let mut all: Map<String, Value> =
            serde_json::from_value(serde_json::to_value(self).map_err(syntax)?).map_err(syntax)?;
        all.extend(change.clone());
        serde_json::from_value(Value::Object(all)).map_err(syntax)
    }

    /// Whether such a device can be, with queues of at most `queue_size` descriptors.
    pub fn check(&self, queue_size: u16, max_queues: u16) -> Result<(), ConfigError> {
        let in_range = |key, value: u64, min: u64, max: u64| {
            let wanted = format!("use {min} to {max}");
            let error = ConfigError::Value { key, value, wanted };
            (min..=max).contains(&value).then_some(()).ok_or(error)
        };
        let max_seg = u64::from(queue_size.saturating_sub(2)).max(1);
        let max_sectors = i64::MAX as u64 / SECTOR;
        in_range("capacity", self.capacity, 0, max_sectors)?;
        in_range("queues", self.queues.into(), 1, max_queues.into())?;
        in_range("size_max", self.size_max.into(), 1, u32::MAX.into())?;
        in_range("seg_max", self.seg_max.into(), 1, max_seg)?;
        in_range("blk_size", self.blk_size.into(), SECTOR, 1 << 16)?;
        in_range("physical_block_exp", self.physical_block_exp.into(), 0, 15)?;
        if !self.blk_size.is_power_of_two() {
            return Err(ConfigError::Value {
                key: "blk_size",
                value: self.blk_size.into(),
                wanted: "use a power of two".into(),
            });
        }
        if self.serial.len() > ID_BYTES {
            return Err(ConfigError::Serial(self.serial.len()));
        }
        Ok(())
    }

    /// Whether a feature is offered.
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// The feature bits that are offered.
    pub fn bits(&self) -> FeatureSet {
        let bits = self.features.iter().map(|feature| feature.bit());
        bits.fold(0, |all, bit| all | bit)
    }

    /// How many queues the driver sees.
    pub fn queues(&self) -> u16 {
        if self.has(Feature::Mq) {
            self.queues.min(MAX_QUEUES)
        } else {
            1
        }
    }

    /// Device configuration space, with the cache mode as it is now. A field is there if its
    /// feature is offered, and reads as zero otherwise.
    pub fn image(&self, capacity: u64, writeback: bool) -> [u8; field::END] {
        use Feature::*;

        let mut image = [0; field::END];
        let mut put = |feature, offset: usize, bytes: &[u8]| {
            if self.has(feature) {
                image[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        };
        put(SizeMax, field::SIZE_MAX, &self.size_max.to_le_bytes());
        put(SegMax, field::SEG_MAX, &self.seg_max.to_le_bytes());
        put(BlkSize, field::BLK_SIZE, &self.blk_size.to_le_bytes());
        let topology = [self.physical_block_exp, self.alignment_offset];
        put(Topology, field::PHYSICAL_BLOCK_EXP, &topology);
        put(
            Topology,
            field::MIN_IO_SIZE,
            &self.min_io_size.to_le_bytes(),
        );
        put(
            Topology,
            field::OPT_IO_SIZE,
            &self.opt_io_size.to_le_bytes(),
        );
        put(ConfigWce, field::WRITEBACK, &[writeback.into()]);
        put(Mq, field::NUM_QUEUES, &self.queues().to_le_bytes());
        for (feature, offset, value) in [
            (
                Discard,
                field::MAX_DISCARD_SECTORS,
                self.max_discard_sectors,
            ),
            (Discard, field::MAX_DISCARD_SEG, self.max_discard_seg),
            (
                Discard,
                field::DISCARD_SECTOR_ALIGNMENT,
                self.discard_sector_alignment,
            ),
            (
                WriteZeroes,
                field::MAX_WRITE_ZEROES_SECTORS,
                self.max_write_zeroes_sectors,
            ),
            (
                WriteZeroes,
                field::MAX_WRITE_ZEROES_SEG,
                self.max_write_zeroes_seg,
            ),
            (
                SecureErase,
                field::MAX_SECURE_ERASE_SECTORS,
                self.max_secure_erase_sectors,
            ),
            (
                SecureErase,
                field::MAX_SECURE_ERASE_SEG,
                self.max_secure_erase_seg,
            ),
            (
                SecureErase,
                field::SECURE_ERASE_SECTOR_ALIGNMENT,
                self.secure_erase_sector_alignment,
            ),
        ] {
            put(feature, offset, &value.to_le_bytes());
        }
        let may_unmap = [self.write_zeroes_may_unmap.into()];
        put(WriteZeroes, field::WRITE_ZEROES_MAY_UNMAP, &may_unmap);
        image[..field::SIZE_MAX].copy_from_slice(&capacity.to_le_bytes());
        image
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> Config {
        Config::new(2048, 4, 64)
    }

    #[test]
    fn a_field_is_there_if_its_feature_is() {
        let mut config = config();
        let image = config.image(7, true);
        assert_eq!(image[..8], 7u64.to_le_bytes());
        assert_eq!(image[field::SEG_MAX..][..4], 62u32.to_le_bytes());
        assert_eq!(image[field::WRITEBACK], 1);
        assert_eq!(image[field::NUM_QUEUES..][..2], 4u16.to_le_bytes());
        assert_eq!(image[field::WRITE_ZEROES_MAY_UNMAP], 1);
        config.features.clear();
        let image = config.image(7, true);
        assert_eq!(image[..8], 7u64.to_le_bytes());
        assert!(image[8..].iter().all(|byte| *byte == 0));
        assert_eq!((config.bits(), config.queues()), (0, 1));
    }

    #[test]
    fn bits() {
        assert_eq!(config().bits(), 0x1_7e46);
        assert_eq!(Feature::Ro.bit(), 1 << 5);
    }

    #[test]
    fn changes() {
        let old = config();
        let new = old
            .changed(&json!({"features": ["flush", "ro"], "seg_max": 4, "serial": "x"}))
            .unwrap();
        assert!(new.has(Feature::Ro) && new.has(Feature::Flush) && !new.has(Feature::Mq));
        assert_eq!((new.seg_max, new.capacity), (4, 2048));
        assert_eq!(new.check(64, 4), Ok(()));
        for bad in [
            json!([]),
            json!({"toaster": 1}),
            json!({"seg_max": -1}),
            json!({"features": ["toast"]}),
            json!({"capacity": "x"}),
        ] {
            assert!(old.changed(&bad).is_err(), "{bad}");
        }
        for impossible in [
            json!({"queues": 0}),
            json!({"queues": 5}),
            json!({"seg_max": 0}),
            json!({"seg_max": 63}),
            json!({"blk_size": 513}),
            json!({"blk_size": 256}),
            json!({"capacity": u64::MAX}),
            json!({"physical_block_exp": 16}),
            json!({"serial": "a serial of twenty-one"}),
        ] {
            let new = old.changed(&impossible).unwrap();
            assert!(new.check(64, 4).is_err(), "{impossible}");
        }
    }
}
