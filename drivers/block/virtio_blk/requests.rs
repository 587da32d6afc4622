// SPDX-License-Identifier: GPL-2.0-only

//! Requests: how they come to the device and back.

use kernel::{
    device::Bound,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
};

use virtio::{
    blk,
    block::{
        mq::{
            self,
            AttributeFile,
            Batch,
            Disk,
            Geometry,
            HwQueue,
            Op,
            Operations,
            Refused,
            RequestList, //
        },
        Id, //
    },
    compat::{
        smp_mb,
        EOPNOTSUPP, //
    },
    AddError,
    Command,
    Device,
    VirtQueue,
    VirtQueueGuard, //
};

use super::{
    attributes::{
        CacheType,
        Serial, //
    },
    BlkModule, //
};

/// A status that no device writes.
pub(super) const S_NONE: u8 = 0xff;

pub(super) type Request = mq::Request<BlkOps>;

/// What the queues of a device share.
pub(super) struct Shared {
    /// Whether the device is one of VIRTIO 1.0 or later.
    pub(super) modern: bool,
    /// Whether a device that has broken a queue is recovered.
    pub(super) recovers: bool,
    /// Whether the device is out of operation for good.
    pub(super) failed: Atomic<bool>,
    /// Whether a hardware queue has been stopped.
    pub(super) stopped: Atomic<bool>,
}

/// A hardware queue.
pub(super) struct BlkQueue {
    pub(super) virtqueue: Arc<VirtQueue<Request>>,
    pub(super) shared: Arc<Shared>,
}

impl BlkQueue {
    /// Fills in the header of a request, and starts it.
    // As for `VirtQueueGuard::add`: with two callers the compiler would not do it by itself.
    #[inline(always)]
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
        // Who lets requests through again says first whether the device has failed:
        //
        //     BlkData::go_on                    a dispatch, refusal
        //     W  failed, fully ordered          R    QUEUE_FLAG_QUIESCED, 0
        //     W  QUEUE_FLAG_QUIESCED = 0        full barrier
        //                                       R    failed, the old value is forbidden
        //
        // The block layer has no barrier after its look at the flag. By the old value the queue
        // could be stopped for a device that is not recovered any more.
        smp_mb();
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
    pub(super) fn restart(&self, disk: &Disk<BlkOps>) {
        if self.stopped.load(Relaxed) && self.stopped.xchg(false, Full) {
            disk.start_stopped();
        }
    }
}

/// What is kept for a disk until its last user is gone.
pub(super) struct DiskData {
    pub(super) _index: Id,
    pub(super) geometry: Option<Geometry>,
    pub(super) shared: Arc<Shared>,
}

pub(super) struct BlkOps;

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
