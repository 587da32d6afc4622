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
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
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
            DiskOptions,
            GenDisk,
            RequestList,
            TagSet, //
        },
        IdAllocator,
        IdAllocatorGuard,
        Major, //
    },
    compat::LocalInterruptDisabled,
    suspend::{
        Failure,
        Native,
        Patience,
        Quiesce, //
    },
    Adapter,
    Device,
    DeviceId,
    Driver,
    Feature,
    IdTable,
    VirtQueue, //
};

#[path = "virtio_blk/attributes.rs"]
mod attributes;
#[path = "virtio_blk/limits.rs"]
mod limits;
#[path = "virtio_blk/requests.rs"]
mod requests;

use self::{
    limits::{
        check_zones,
        queue_counts,
        read_geometry,
        read_limits, //
    },
    requests::{
        BlkOps,
        BlkQueue,
        DiskData,
        Request,
        Shared, //
    },
};

/// How many minor numbers a disk has, as a power of two.
const PART_BITS: u32 = 4;

/// The last number that a disk can have: a minor number has 20 bits.
const MAX_INDEX: u32 = (1 << (20 - PART_BITS)) - 1;

/// How long to wait before looking again for requests that are not finished, in microseconds; the
/// time doubles each time, up to this step, from which on it is looked at the device, too.
const DRAIN_STEP_US: i64 = 50;
const FIRST_LOOK: u32 = 7;

/// The size of a sector, in bytes.
const SECTOR_SIZE: u32 = 512;

/// The largest capacity that the block layer can bear, in sectors.
const MAX_CAPACITY: u64 = i64::MAX as u64 / SECTOR_SIZE as u64;

/// The numbers of the disks.
static INDICES: IdAllocator = IdAllocator::new();

/// The major number of all disks.
static MAJOR: Atomic<u32> = Atomic::new(0);

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
        // Fully ordered, see `BlkQueue::refusal`.
        self.shared.failed.xchg(failed, Full);
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
            let geometry = read_geometry(dev)?;

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
