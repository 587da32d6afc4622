// SPDX-License-Identifier: GPL-2.0-only

//! Driver for virtio block devices.
//!
//! VIRTIO 1.4, "Block Device". There is a hardware queue of the block layer for each virtqueue. A
//! request is its own buffer: header, data and status are in it, and nothing is allocated for one
//! of few segments.
//!
//! Devices that are divided into zones by the host are not supported.
//!
//! # Suspend
//!
//! The device finishes all requests before it is suspended. Whoever makes one while it is waits
//! before there is a request. If the device is reset, all that it had are queued again.
//! Documentation/virtio/suspend.rst tells what that means for flushes.
//!
//! Based on the C driver, drivers/block/virtio_blk.c, by Rusty Russell.

use kernel::{
    device::{
        Bound,
        Core, //
    },
    fmt,
    interrupt::LocalInterruptDisabled,
    prelude::*,
    str::BStr,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::Delta,
    InPlaceModule,
    ModuleMetadata, //
};

use virtio::{
    blk,
    block::{
        mq::{
            self,
            Attribute,
            AttributeFile,
            Batch,
            Disk,
            DiskOptions,
            GenDisk,
            Geometry,
            HwQueue,
            Limits,
            Op,
            Operations,
            Output,
            QueueCounts,
            Refused,
            RequestList,
            TagSet, //
        },
        Id,
        IdAllocator,
        IdAllocatorGuard,
        Major, //
    },
    config::{
        ConfigValue,
        Field, //
    },
    suspend::{
        Failure,
        Native,
        Patience,
        Quiesce, //
    },
    Adapter,
    AddError,
    Command,
    Device,
    DeviceId,
    Driver,
    Feature,
    IdTable,
    VirtQueue,
    VirtQueueGuard, //
};

/// How many minor numbers a disk has, as a power of two.
const PART_BITS: u32 = 4;

/// The last number that a disk can have: a minor number has 20 bits.
const MAX_INDEX: u32 = (1 << (20 - PART_BITS)) - 1;

/// The most ranges that one request is made to discard.
const MAX_DISCARD_SEGMENTS: u32 = 256;

/// The most segments of a request, so that it fits into a virtqueue with header and status.
const MAX_SEGMENTS: u32 = 32768 - 2;

/// How long to wait before looking again for requests that are not finished, in microseconds; the
/// time doubles each time, up to this step, from which on it is looked at the device, too.
const DRAIN_STEP_US: i64 = 50;
const FIRST_LOOK: u32 = 7;

/// The smallest segments that the block layer can bear, in bytes.
const MIN_SEGMENT_SIZE: u32 = 4096;

/// The size of a sector, in bytes.
const SECTOR_SIZE: u32 = 512;

/// The largest capacity that the block layer can bear, in sectors.
const MAX_CAPACITY: u64 = i64::MAX as u64 / SECTOR_SIZE as u64;

/// A status that no device writes.
const S_NONE: u8 = 0xff;

/// What the file `cache_type` shows, without and with a cache.
const CACHE_TYPES: [&str; 2] = ["write through", "write back"];

/// The numbers of the disks.
static INDICES: IdAllocator = IdAllocator::new();

/// The major number of all disks.
static MAJOR: Atomic<u32> = Atomic::new(0);

type Request = mq::Request<BlkOps>;

/// What the queues of a device share.
struct Shared {
    /// Whether the device is one of VIRTIO 1.0 or later.
    modern: bool,
    /// Whether a device that has broken a queue is recovered.
    recovers: bool,
    /// Whether the device is out of operation for good.
    failed: Atomic<bool>,
    /// Whether a hardware queue has been stopped.
    stopped: Atomic<bool>,
}

/// A hardware queue.
struct BlkQueue {
    virtqueue: Arc<VirtQueue<Request>>,
    shared: Arc<Shared>,
}

impl BlkQueue {
    /// Fills in the header of a request, and starts it.
    #[inline]
    fn prepare(&self, mut request: Request) -> Result<Request, Refused<BlkOps>> {
        match self.set_up(&mut request).and_then(|()| request.start()) {
            Ok(()) => Ok(request),
            Err(error) => Err(Refused { request, error }),
        }
    }

    #[inline]
    fn set_up(&self, request: &mut Request) -> Result {
        let (kind, sector) = match request.op() {
            Op::Read => (blk::T_IN, request.sector()),
            Op::Write => (blk::T_OUT, request.sector()),
            Op::Flush => (blk::T_FLUSH, 0),
            Op::Discard => (blk::T_DISCARD, 0),
            Op::WriteZeroes => (blk::T_WRITE_ZEROES, 0),
            Op::SecureErase => (blk::T_SECURE_ERASE, 0),
            // Whoever made it has filled in the header.
            Op::DriverIn => {
                let header = request.pdu().header;
                request.pdu_mut().set(header, S_NONE);
                return Ok(());
            }
            Op::Other(_) => return Err(EOPNOTSUPP),
        };
        if matches!(
            kind,
            blk::T_DISCARD | blk::T_WRITE_ZEROES | blk::T_SECURE_ERASE
        ) {
            let unmap = kind == blk::T_WRITE_ZEROES && !request.no_unmap();
            Self::set_ranges(request, unmap)?;
        }
        let header = blk::Header::new(
            self.shared.modern,
            kind,
            u32::from(request.ioprio()),
            sector,
        );
        request.pdu_mut().set(header, S_NONE);
        Ok(())
    }

    /// Has the request carry the ranges that it is about.
    fn set_ranges(request: &mut Request, unmap: bool) -> Result {
        let ranges = request.ranges();
        let mut payload = KVec::with_capacity(ranges.size_hint().0, GFP_ATOMIC)?;

        for range in ranges {
            payload.push(
                blk::Range::new(range.sector, range.sectors, unmap),
                GFP_ATOMIC,
            )?;
        }
        request.set_payload(payload)
    }

    /// Decides what becomes of a request that could not be added.
    fn refusal(
        &self,
        hw_queue: &HwQueue<'_, BlkOps>,
        virtqueue: &VirtQueueGuard<'_, Request>,
        error: Error,
    ) -> Error {
        let failed = self.shared.failed.load(Relaxed);
        match error {
            // It has room when a request is completed. If there is none, it never has.
            ENOSPC if virtqueue.outstanding() > 0 => {}
            // It is reset soon.
            EIO if self.shared.recovers && !failed => {}
            ENOMEM => return ENOMEM,
            // The device is about to be suspended or reset, and the request came too late to be
            // held back. It is held back now.
            EBUSY | ENODEV if !failed => return ENOMEM,
            _ => return EIO,
        }
        // With the virtqueue locked, so that the completion that starts it comes later. One of
        // another virtqueue may come at once, before the block layer has the request back: it is
        // told to try again by itself, which it does unless the queue is still stopped.
        hw_queue.stop();
        // With `Release`, so that who reads it in `Shared::restart` sees the hardware queue
        // stopped:
        //
        //     refusal                           Shared::restart
        //     W  BLK_MQ_S_STOPPED = 1           RMW  stopped: true -> false, fully ordered
        //     W  stopped = true, Release        R    BLK_MQ_S_STOPPED, 0 is forbidden
        //
        // Else the queue would be seen as running, left alone, and stay stopped.
        //
        // That somebody reads it is by the lock of the virtqueue, which is held here. The buffer
        // for which `outstanding` is not 0 is taken back, or a broken virtqueue drained, in a later
        // section of that lock, and `restart` called after it.
        self.shared.stopped.store(true, Release);
        ENOMEM
    }
}

impl Shared {
    /// Lets the hardware queues go on that have been stopped. To be called after buffers have been
    /// taken back, or virtqueues drained, under their locks: see [`BlkQueue::refusal`].
    #[inline]
    fn restart(&self, disk: &Disk<BlkOps>) {
        if self.stopped.load(Relaxed) && self.stopped.xchg(false, Full) {
            disk.start_stopped();
        }
    }
}

/// What is kept for a disk until its last user is gone.
struct DiskData {
    _index: Id,
    geometry: Option<Geometry>,
    shared: Arc<Shared>,
}

struct BlkOps;

impl Operations for BlkOps {
    type OwnerModule = BlkModule;
    type Parent = Device<Bound>;
    type Pdu = Command<blk::Header, u8>;
    type QueueData = BlkQueue;
    type DiskData = DiskData;

    const ATTRIBUTES: &'static [AttributeFile<Self>] = &[
        AttributeFile::new::<Serial>(),
        AttributeFile::new::<CacheType>(),
    ];

    #[inline]
    fn queue_rq(
        hw_queue: HwQueue<'_, Self>,
        request: Request,
        last: bool,
    ) -> Result<(), Refused<Self>> {
        let queue = hw_queue.data();
        let request = queue.prepare(request)?;

        let mut virtqueue = queue.virtqueue.lock();
        if let Err(AddError { token, error }) = virtqueue.add(request) {
            let error = queue.refusal(&hw_queue, &virtqueue, error);
            // Of those that were added before.
            virtqueue.unlock_and_kick();
            return Err(Refused {
                request: token,
                error,
            });
        }
        if last {
            virtqueue.unlock_and_kick();
        }
        Ok(())
    }

    #[inline]
    fn queue_rqs(
        hw_queue: HwQueue<'_, Self>,
        mut requests: RequestList<Self>,
    ) -> RequestList<Self> {
        let queue = hw_queue.data();
        let mut ready = RequestList::new();
        let mut left = RequestList::new();

        while let Some(request) = requests.pop() {
            match queue.prepare(request) {
                Ok(request) => ready.push(request),
                Err(refused) => left.push(refused.request),
            }
        }

        // What does not fit any more is dropped when the virtqueue is unlocked, and so comes again.
        let mut late = RequestList::new();
        let mut virtqueue = queue.virtqueue.lock();
        while let Some(request) = ready.pop() {
            if let Err(AddError { token, .. }) = virtqueue.add(request) {
                late.push(token);
            }
        }
        virtqueue.unlock_and_kick();
        left
    }

    fn commit_rqs(hw_queue: HwQueue<'_, Self>) {
        hw_queue.data().virtqueue.lock().unlock_and_kick();
    }

    fn poll(hw_queue: HwQueue<'_, Self>, batch: &mut Batch<'_, Self>) -> usize {
        let queue = hw_queue.data();
        let count = queue.virtqueue.lock().drain(|buffers| {
            for used in buffers {
                batch.complete(used.token);
            }
        });

        if count > 0 {
            queue.shared.restart(hw_queue.disk());
        }
        count
    }

    #[inline]
    fn result(request: &Request) -> Result {
        match *request.pdu().status() {
            blk::S_OK => Ok(()),
            blk::S_UNSUPP => Err(EOPNOTSUPP),
            _ => Err(EIO),
        }
    }

    fn geometry(disk: &Disk<Self>) -> Geometry {
        // As sd has it, if the device has none.
        disk.data().geometry.unwrap_or(Geometry {
            heads: 1 << 6,
            sectors: 1 << 5,
            // CAST: A larger disk has no such geometry.
            cylinders: (disk.capacity() >> 11) as u16,
        })
    }
}

/// The identifier of the device. Empty, if it has none.
struct Serial;

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
struct CacheType;

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

/// Returns whether the device has a cache that is to be flushed.
///
/// If it can't be asked, one that can't flush has none.
fn has_write_cache(dev: &Device<Bound>) -> bool {
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
fn check_zones(dev: &Device<Bound>) -> Result {
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
fn read_limits(dev: &Device<Bound>) -> Result<Limits> {
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
fn queue_counts(dev: &Device<Bound>) -> Result<QueueCounts> {
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

/// The name of a disk: "vda" to "vdz", then "vdaa", and so on.
struct DiskName(u32);

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All numbers up to `MAX_INDEX` have less letters.
        let mut letters = [0; 8];
        let mut begin = letters.len();
        let mut rest = self.0 + 1;

        while rest > 0 && begin > 0 {
            rest -= 1;
            begin -= 1;
            // CAST: Less than 26.
            letters[begin] = b'a' + (rest % 26) as u8;
            rest /= 26;
        }
        f.write_str("vd")?;
        f.write_str(core::str::from_utf8(&letters[begin..]).map_err(|_| fmt::Error)?)
    }
}

/// What has become of the requests that a device had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drained {
    /// They have been finished.
    Finished,
    /// The device is broken, and will not finish them.
    Broken,
}

/// The data of a device.
#[pin_data]
struct BlkData<'bound> {
    queues: KVec<Arc<VirtQueue<Request>>>,
    /// How many of them there are before those that are polled.
    notified: usize,
    shared: Arc<Shared>,
    disk: GenDisk<'bound, BlkOps>,
}

impl BlkData<'_> {
    /// Reads the capacity, and tells it.
    fn update_capacity(&self, dev: &Device<Bound>, resized: bool) -> Result {
        let capacity = dev.config().read(&blk::CAPACITY)?;
        if capacity > MAX_CAPACITY {
            dev_err!(dev, "a capacity of {capacity} sectors is impossible\n");
            return Err(EINVAL);
        }
        let block_size = self.disk.logical_block_size();
        let blocks = capacity.div_ceil(u64::from(block_size / SECTOR_SIZE));
        let (mut decimal, mut binary) = ([0; 16], [0; 16]);

        dev_notice!(
            dev,
            "[{}] {}{} {}-byte logical blocks ({}/{})\n",
            self.disk.name(),
            if resized { "new size: " } else { "" },
            blocks,
            block_size,
            mq::size_string(blocks, block_size, true, &mut decimal),
            mq::size_string(blocks, block_size, false, &mut binary)
        );
        self.disk.set_capacity(capacity);
        Ok(())
    }

    /// Takes the requests back that the device has carried out.
    fn complete(&self, index: usize) {
        let Some(queue) = self.queues.get(index) else {
            return;
        };
        let count = queue.lock().drain(|buffers| {
            let mut done = RequestList::new();
            for used in buffers {
                done.push(used.token);
            }
            done.complete();
        });

        if count > 0 {
            self.shared.restart(&self.disk);
        }
    }

    /// Has no request made any more, and waits for those that there are, as long as that is worth
    /// it. After an error they go on.
    ///
    /// So nobody has to wait for the resume because of a request: who makes a processor go offline,
    /// or changes the scheduler.
    fn drain(&self, dev: &Device<Bound>, patience: &Patience<'_>) -> Result<Drained, Failure> {
        self.disk.start_freeze();
        self.wait_drained(dev, patience)
            .inspect_err(|_| self.disk.unfreeze())
    }

    fn wait_drained(
        &self,
        dev: &Device<Bound>,
        patience: &Patience<'_>,
    ) -> Result<Drained, Failure> {
        let mut step = 0;
        loop {
            // Of the end of these nobody is notified: whoever has made them polls, or not.
            for index in self.notified..self.queues.len() {
                self.complete(index);
            }
            if !self.disk.has_requests() {
                self.disk.quiesce();
                if !self.disk.has_requests() {
                    return Ok(Drained::Finished);
                }
                // One has come late: it was about to get a tag.
                self.disk.unquiesce();
            }
            if step == FIRST_LOOK && !dev.is_whole() {
                self.disk.quiesce();
                return Ok(Drained::Broken);
            }
            let micros = DRAIN_STEP_US << step;
            step = FIRST_LOOK.min(step + 1);
            patience
                .pause(Delta::from_micros(micros))
                .map_err(|failure| {
                    failure.because(ETIMEDOUT, "requests were not finished in time")
                })?;
        }
    }

    /// Lets requests through, those that were queued again included.
    fn go_on(&self, failed: bool) {
        self.shared.failed.store(failed, Relaxed);
        self.disk.unquiesce();
        self.disk.unfreeze();
        self.shared.restart(&self.disk);
    }
}

struct BlkDriver;

virtio::virtio_device_table!(ID_TABLE, [DeviceId::new(DeviceId::BLOCK)]);

impl Driver for BlkDriver {
    type Data<'bound> = BlkData<'bound>;
    type Queue = usize;
    type Suspend = Native;

    const ID_TABLE: IdTable = &ID_TABLE;

    const FEATURES: &'static [Feature] = &[
        blk::F_SEG_MAX,
        blk::F_SIZE_MAX,
        blk::F_GEOMETRY,
        blk::F_RO,
        blk::F_BLK_SIZE,
        blk::F_FLUSH,
        blk::F_TOPOLOGY,
        blk::F_CONFIG_WCE,
        blk::F_MQ,
        blk::F_DISCARD,
        blk::F_WRITE_ZEROES,
        blk::F_SECURE_ERASE,
        blk::F_ZONED,
    ];

    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        let parent: &'bound Device<Bound> = dev;
        pin_init::pin_init_scope(move || {
            check_zones(dev)?;
            let counts = queue_counts(dev)?;
            let limits = read_limits(dev)?;
            let geometry = if dev.has_feature(blk::F_GEOMETRY) {
                Some(dev.config().snapshot(|fields| {
                    Ok(Geometry {
                        heads: fields.read(&blk::HEADS)?,
                        sectors: fields.read(&blk::SECTORS)?,
                        cylinders: fields.read(&blk::CYLINDERS)?,
                    })
                })?)
            } else {
                None
            };

            let mut virtqueues = dev.virtqueues::<Self>().spread();
            let mut queues = KVec::new();
            for i in 0..counts.default {
                queues.push(virtqueues.add(queues.len(), fmt!("req.{i}"))?, GFP_KERNEL)?;
            }
            for i in counts.default..counts.default + counts.poll {
                let queue = virtqueues.add_polled(queues.len(), fmt!("req_poll.{i}"))?;
                queues.push(queue, GFP_KERNEL)?;
            }
            virtqueues.find()?;

            let shared = Arc::new(
                Shared {
                    modern: dev.has_feature(Feature::VERSION_1),
                    recovers: dev.can_recover(),
                    failed: Atomic::new(false),
                    stopped: Atomic::new(false),
                },
                GFP_KERNEL,
            )?;
            // As many requests as fill the virtqueue. Without indirect descriptors each needs two
            // at least.
            let mut depth = *parameters::queue_depth.value_ref();
            if depth == 0 {
                depth = queues[0].num_free();
                if !dev.has_feature(Feature::RING_INDIRECT_DESC) {
                    depth /= 2;
                }
            }
            let mut hw_queues = KVec::with_capacity(queues.len(), GFP_KERNEL)?;
            for virtqueue in &queues {
                let (virtqueue, shared) = (virtqueue.clone(), shared.clone());
                hw_queues.push(BlkQueue { virtqueue, shared }, GFP_KERNEL)?;
            }
            let tag_set = Arc::pin_init(
                TagSet::new(dev.as_ref(), hw_queues, counts, depth),
                GFP_KERNEL,
            )?;

            let index = INDICES.alloc(MAX_INDEX)?;
            let options = DiskOptions {
                name: DiskName(index.number()),
                major: MAJOR.load(Relaxed),
                first_minor: index.number() << PART_BITS,
                minors: 1 << PART_BITS,
                read_only: dev.has_feature(blk::F_RO),
            };
            let data = DiskData {
                _index: index,
                geometry,
                shared: shared.clone(),
            };
            Ok(try_pin_init!(BlkData {
                queues,
                // CAST: From 32 bits to at least as many.
                notified: counts.default as usize,
                shared,
                disk: GenDisk::new(parent, tag_set, limits, options, data)?,
            }))
        })
    }

    fn start(dev: &Device<Core<'_>>, this: Pin<&BlkData<'_>>) -> Result {
        if !this.disk.is_present() {
            this.update_capacity(dev, false)?;
            return this.disk.add();
        }
        // The reset has undone what was set.
        if dev.has_feature(blk::F_CONFIG_WCE) {
            dev.config()
                .write(&blk::WCE, u8::from(this.disk.has_write_cache()))?;
        }
        this.go_on(false);
        Ok(())
    }

    /// A request that waits until the system is awake would have its tag until then, and who makes
    /// the processors go offline, which comes next, waits for the tags.
    fn prepare_sleep(
        dev: &Device<Bound>,
        this: Pin<&BlkData<'_>>,
        patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        match this.drain(dev, patience)? {
            Drained::Finished => Ok(()),
            Drained::Broken => {
                this.go_on(false);
                Err(Failure::new(
                    EIO,
                    "the device is broken, and does not finish its requests",
                ))
            }
        }
    }

    fn stop(_dev: &Device<Core<'_>>, this: Pin<&BlkData<'_>>) {
        this.disk.quiesce();
    }

    fn give_up(_dev: &Device<Bound>, this: Pin<&BlkData<'_>>) {
        this.go_on(true);
    }

    fn unbind(dev: &Device<Core<'_>>, this: Pin<&BlkData<'_>>) {
        // What the disk is still to be written is lost otherwise, but nobody waits for it: the
        // device is reset first, and the disk deleted when all its requests have failed.
        if dev.is_operational() {
            this.disk.delete(false);
        }
    }

    fn used(
        _dev: &Device<Bound>,
        this: Pin<&BlkData<'_>>,
        queue: usize,
        _irq: &LocalInterruptDisabled,
    ) {
        this.complete(queue);
    }

    fn config_changed(dev: &Device<Bound>, this: Pin<&BlkData<'_>>) {
        if let Err(error) = this.update_capacity(dev, true) {
            dev_err!(dev, "can't read the capacity: {error:?}\n");
        }
    }
}

impl Quiesce for BlkDriver {
    fn gate(
        dev: &Device<Bound>,
        this: Pin<&BlkData<'_>>,
        patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        // What has become of a device that is broken is found out by who asks it to suspend.
        this.drain(dev, patience).map(|_| ())
    }

    fn ungate(_dev: &Device<Bound>, this: Pin<&BlkData<'_>>) {
        this.go_on(false);
    }
}

/// The module: what is dropped last comes last.
#[pin_data]
struct BlkModule {
    #[pin]
    _driver: kernel::driver::Registration<Adapter<BlkDriver>>,
    _major: Major,
    _indices: IdAllocatorGuard,
}

impl InPlaceModule for BlkModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let indices = INDICES.init()?;
            let major = Major::new(c"virtblk")?;
            MAJOR.store(major.number(), Relaxed);

            Ok(try_pin_init!(Self {
                _driver <- kernel::driver::Registration::new(Self::NAME, module),
                _major: major,
                _indices: indices,
            }))
        })
    }
}

module! {
    type: BlkModule,
    name: "virtio_blk",
    authors: ["The virtio-suspend developers"],
    description: "Virtio block driver",
    license: "GPL",
}

virtio::module_parameters! {
    num_request_queues: u32 {
        default: 0,
        description: "The most queues of a disk, 0 for as many as there are processors",
    },
    poll_queues: u32 {
        default: 0,
        description: "The number of dedicated virtqueues for polling I/O",
    },
    queue_depth: u32 {
        default: 0,
        description: "The number of requests of a queue, 0 for as many as fill the virtqueue",
    },
}
