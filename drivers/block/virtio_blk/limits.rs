// SPDX-License-Identifier: GPL-2.0-only

//! What the configuration space says of a device.

use kernel::{
    device::Bound,
    prelude::*, //
};

use virtio::{
    blk,
    block::mq::{
        self,
        Geometry,
        Limits,
        QueueCounts, //
    },
    compat::EOPNOTSUPP,
    config::{
        ConfigValue,
        Field, //
    },
    Device, //
};

use super::{
    parameters,
    SECTOR_SIZE, //
};

/// The most ranges that one request is made to discard.
const MAX_DISCARD_SEGMENTS: u32 = 256;

/// The most segments of a request, so that it fits into a virtqueue with header and status.
const MAX_SEGMENTS: u32 = 32768 - 2;

/// The smallest segments that the block layer can bear, in bytes.
const MIN_SEGMENT_SIZE: u32 = 4096;

/// Returns whether the device has a cache that is to be flushed.
///
/// If it can't be asked, one that can't flush has none.
pub(super) fn has_write_cache(dev: &Device<Bound>) -> bool {
    match dev.config().read(&blk::WCE) {
        Ok(wce) => wce != 0,
        Err(_) => dev.has_feature(blk::F_FLUSH),
    }
}

/// Reads a field that is 0 if the device does not have it.
fn field<T: ConfigValue + Default>(dev: &Device<Bound>, field: &Field<T>) -> Result<T> {
    match dev.config().read(field) {
        Err(EOPNOTSUPP) => Ok(T::default()),
        result => result,
    }
}

/// Reads a field that must not be 0.
fn nonzero_field(dev: &Device<Bound>, field: &Field<u32>, name: &str) -> Result<u32> {
    match dev.config().read(field)? {
        0 => {
            dev_err!(dev, "{name} can't be 0\n");
            Err(EINVAL)
        }
        value => Ok(value),
    }
}

/// Returns the smaller of two limits, of which 0 is none.
fn min_not_zero(a: u32, b: u32) -> u32 {
    match (a, b) {
        (0, limit) | (limit, 0) => limit,
        _ => a.min(b),
    }
}

/// Refuses a device whose zones the driver would have to respect.
pub(super) fn check_zones(dev: &Device<Bound>) -> Result {
    if !dev.has_feature(blk::F_ZONED) {
        return Ok(());
    }
    match dev.config().read(&blk::ZONED_MODEL)? {
        blk::Z_NONE | blk::Z_HA => Ok(()),
        blk::Z_HM => {
            dev_err!(dev, "host-managed zoned devices are not supported\n");
            Err(EOPNOTSUPP)
        }
        model => {
            dev_err!(dev, "unsupported zone model {model}\n");
            Err(EINVAL)
        }
    }
}

/// Reads what the device can do.
pub(super) fn read_limits(dev: &Device<Bound>) -> Result<Limits> {
    let segments = field(dev, &blk::SEG_MAX)?.clamp(1, MAX_SEGMENTS);
    let max_dma_size = u32::try_from(dev.max_dma_size()).unwrap_or(u32::MAX);
    let block_size = match field(dev, &blk::BLK_SIZE)? {
        0 => SECTOR_SIZE,
        size => size,
    };
    // A device's word is not trusted. What is too large stays so, and is refused by the block
    // layer, as is a size that is no power of two. It warns of segments that are too small for it,
    // as of a mistake of the driver's, so they are refused here.
    let blocks = |count: u32| block_size.saturating_mul(count);
    let max_segment_size = min_not_zero(max_dma_size, field(dev, &blk::SIZE_MAX)?);
    if max_segment_size < MIN_SEGMENT_SIZE {
        dev_err!(dev, "segments of {max_segment_size} bytes are too small\n");
        return Err(EINVAL);
    }

    let mut limits = Limits {
        rotational: true,
        write_cache: has_write_cache(dev),
        logical_block_size: block_size,
        max_hw_sectors: u32::MAX,
        // CAST: See `MAX_SEGMENTS`.
        max_segments: segments as u16,
        max_segment_size,
        ..Limits::default()
    };

    let exponent = u32::from(field(dev, &blk::PHYSICAL_BLOCK_EXP)?);
    if exponent > 0 {
        limits.physical_block_size = blocks(1u32.checked_shl(exponent).ok_or(EINVAL)?);
    }
    limits.alignment_offset = blocks(u32::from(field(dev, &blk::ALIGNMENT_OFFSET)?));
    limits.io_min = blocks(u32::from(field(dev, &blk::MIN_IO_SIZE)?));
    limits.io_opt = blocks(field(dev, &blk::OPT_IO_SIZE)?);

    let no_limit = |sectors: u32| if sectors == 0 { u32::MAX } else { sectors };
    let (mut discard_segments, mut granularity) = (0, 0);
    if dev.has_feature(blk::F_DISCARD) {
        limits.max_hw_discard_sectors = no_limit(field(dev, &blk::MAX_DISCARD_SECTORS)?);
        discard_segments = field(dev, &blk::MAX_DISCARD_SEG)?;
        granularity = field(dev, &blk::DISCARD_SECTOR_ALIGNMENT)?;
    }
    if dev.has_feature(blk::F_WRITE_ZEROES) {
        limits.max_write_zeroes_sectors = no_limit(field(dev, &blk::MAX_WRITE_ZEROES_SECTORS)?);
    }
    // The block layer has one limit for ranges to discard and to erase: the smaller one.
    if dev.has_feature(blk::F_SECURE_ERASE) {
        let alignment = nonzero_field(
            dev,
            &blk::SECURE_ERASE_SECTOR_ALIGNMENT,
            "secure_erase_sector_alignment",
        )?;
        limits.max_secure_erase_sectors = nonzero_field(
            dev,
            &blk::MAX_SECURE_ERASE_SECTORS,
            "max_secure_erase_sectors",
        )?;
        let segments = nonzero_field(dev, &blk::MAX_SECURE_ERASE_SEG, "max_secure_erase_seg")?;
        granularity = min_not_zero(granularity, alignment);
        discard_segments = min_not_zero(discard_segments, segments);
    }
    if dev.has_feature(blk::F_DISCARD) || dev.has_feature(blk::F_SECURE_ERASE) {
        if discard_segments == 0 {
            discard_segments = segments;
        }
        // CAST: Small.
        limits.max_discard_segments = discard_segments.min(MAX_DISCARD_SEGMENTS) as u16;
        limits.discard_granularity = match granularity {
            0 => block_size,
            sectors => sectors.checked_mul(SECTOR_SIZE).ok_or(EINVAL)?,
        };
    }
    Ok(limits)
}

/// Returns how many queues to use of each kind.
pub(super) fn queue_counts(dev: &Device<Bound>) -> Result<QueueCounts> {
    let offered = match dev.config().read(&blk::NUM_QUEUES) {
        Ok(0) => {
            dev_err!(dev, "MQ advertised but zero queues reported\n");
            return Err(EINVAL);
        }
        Ok(count) => u32::from(count),
        Err(EOPNOTSUPP) => 1,
        Err(error) => return Err(error),
    };
    let limit = *parameters::num_request_queues.value_ref();
    let total = mq::num_possible_queues(min_not_zero(limit, offered)).clamp(1, offered);
    let poll = (*parameters::poll_queues.value_ref()).min(total - 1);

    let default = total - poll;
    dev_info!(dev, "{default}/0/{poll} default/read/poll queues\n");
    Ok(QueueCounts { default, poll })
}

/// Reads the geometry, [`None`] if the device has none.
pub(super) fn read_geometry(dev: &Device<Bound>) -> Result<Option<Geometry>> {
    if !dev.has_feature(blk::F_GEOMETRY) {
        return Ok(None);
    }
    let geometry = dev.config().snapshot(|fields| {
        Ok(Geometry {
            heads: fields.read(&blk::HEADS)?,
            sectors: fields.read(&blk::SECTORS)?,
            cylinders: fields.read(&blk::CYLINDERS)?,
        })
    })?;
    Ok(Some(geometry))
}
