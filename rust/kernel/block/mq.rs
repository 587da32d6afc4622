// SPDX-License-Identifier: GPL-2.0

//! Drivers of the multi-queue block layer.
//!
//! A driver implements [`Operations`], makes a [`TagSet`], and with it a [`GenDisk`].
//!
//! # A request has one owner
//!
//! [`Operations::queue_rq`] gets a [`Request`] from the block layer. The driver gives it back by
//! refusing it, or, later, through a [`Batch`]; one that it drops is queued again. So none is
//! lost, whatever a driver does: a virtqueue that is drained after a reset has all its requests
//! queued again just by dropping them.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

#[path = "mq/attribute.rs"]
mod attribute;
#[path = "mq/freeze.rs"]
mod freeze;
#[path = "mq/gen_disk.rs"]
mod gen_disk;
#[path = "mq/limits.rs"]
mod limits;
#[path = "mq/list.rs"]
mod list;
#[path = "mq/operations.rs"]
mod operations;
#[path = "mq/request.rs"]
mod request;
#[path = "mq/segments.rs"]
mod segments;
#[path = "mq/tag_set.rs"]
mod tag_set;

pub use self::attribute::{
    Attribute,
    AttributeFile,
    Output, //
};
pub use self::gen_disk::{
    size_string,
    Disk,
    DiskOptions,
    GenDisk,
    Geometry, //
};
pub use self::limits::Limits;
pub use self::list::{
    Batch,
    RequestList, //
};
pub use self::operations::{
    HwQueue,
    Operations, //
};
pub use self::request::{
    Op,
    Pdu,
    Range,
    Ranges,
    Refused,
    Request, //
};
pub use self::segments::Segments;
pub use self::tag_set::{
    num_possible_queues,
    QueueCounts,
    TagSet, //
};
