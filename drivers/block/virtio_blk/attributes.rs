// SPDX-License-Identifier: GPL-2.0-only

//! The files of a disk in sysfs.

use kernel::{
    device::Bound,
    prelude::*,
    str::BStr, //
};

use virtio::{
    blk,
    block::mq::{
        Attribute,
        Disk,
        Output, //
    },
    compat::EOPNOTSUPP,
    Device, //
};

use super::{
    limits::has_write_cache,
    requests::{
        BlkOps,
        S_NONE, //
    },
};

/// What the file `cache_type` shows, without and with a cache.
const CACHE_TYPES: [&str; 2] = ["write through", "write back"];

/// The identifier of the device. Empty, if it has none.
pub(super) struct Serial;

impl Attribute<BlkOps> for Serial {
    const NAME: &'static CStr = c"serial";

    fn show(disk: &Disk<BlkOps>, _parent: &Device<Bound>, output: &mut Output<'_>) -> Result {
        let mut id = KVec::from_elem(0u8, blk::ID_BYTES, GFP_KERNEL)?;
        let header = blk::Header::new(disk.data().shared.modern, blk::T_GET_ID, 0, 0);

        match disk.execute(|pdu| pdu.set(header, S_NONE), &mut id) {
            Ok(()) => {}
            Err(EIO | EOPNOTSUPP) => return Ok(()),
            Err(error) => return Err(error),
        }
        let len = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        output.push(&id[..len])
    }
}

/// Whether there is a cache. Can be written, if the device allows.
pub(super) struct CacheType;

impl Attribute<BlkOps> for CacheType {
    const NAME: &'static CStr = c"cache_type";

    fn is_writable(_disk: &Disk<BlkOps>, dev: &Device<Bound>) -> bool {
        dev.has_feature(blk::F_CONFIG_WCE)
    }

    fn show(_disk: &Disk<BlkOps>, dev: &Device<Bound>, output: &mut Output<'_>) -> Result {
        let cache_type = CACHE_TYPES[usize::from(has_write_cache(dev))];
        output.push(cache_type.as_bytes())?;
        output.push(b"\n")
    }

    fn store(disk: &Disk<BlkOps>, dev: &Device<Bound>, line: &BStr) -> Result {
        let wanted = CACHE_TYPES
            .iter()
            .position(|name| name.as_bytes() == &**line)
            .ok_or(EINVAL)?;

        // CAST: 0 or 1.
        dev.config().write(&blk::WCE, wanted as u8)?;
        disk.set_write_cache(has_write_cache(dev))
    }
}
