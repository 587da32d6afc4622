// SPDX-License-Identifier: GPL-2.0

//! Disks.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

use kernel::{
    bindings::hd_geometry,
    devres,
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt::{
        self,
        Write as _, //
    },
    prelude::*,
    static_lock_class,
    str::NullTerminatedFormatter,
    sync::{
        atomic::{
            Atomic,
            Full, //
        },
        Arc,
        Mutex, //
    },
    types::Opaque, //
};

use super::{
    attribute::AttributeGroups,
    freeze::Freeze,
    Limits,
    Operations,
    Request,
    TagSet, //
};
use crate::{
    bindings,
    compat::this_module,
    sync::lock_class, //
};

/// How many sectors, heads and cylinders a disk pretends to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs)]
pub struct Geometry {
    pub heads: u8,
    pub sectors: u8,
    pub cylinders: u16,
}

/// How a disk presents itself.
pub struct DiskOptions<N: fmt::Display> {
    /// The name, of at most 31 characters.
    pub name: N,
    /// The major number, and the minor numbers that belong to the disk and its partitions.
    pub major: u32,
    /// See `major`.
    pub first_minor: u32,
    /// See `major`.
    pub minors: u32,
    /// Whether it can't be written.
    pub read_only: bool,
}

/// What belongs to a disk of a driver. The disk's `private_data` points to it.
struct Private<T: Operations> {
    data: T::DiskData,
    attributes: KBox<AttributeGroups>,
}

/// A disk of `T`, which may have been deleted.
///
/// # Invariants
///
/// It is a valid `struct gendisk`, whose `private_data` is a `KBox<Private<T>>`.
#[repr(transparent)]
pub struct Disk<T: Operations>(Opaque<bindings::gendisk>, PhantomData<T>);

impl<T: Operations> Disk<T> {
    const FOPS: bindings::block_device_operations = bindings::block_device_operations {
        owner: this_module::<T::OwnerModule>().as_ptr(),
        getgeo: Some(Self::getgeo_callback),
        free_disk: Some(Self::free_disk_callback),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `disk` must be a disk of `T` during `'a`.
    pub(super) unsafe fn from_raw<'a>(disk: *mut bindings::gendisk) -> &'a Self {
        // SAFETY: By the safety requirements; `Disk` is transparent.
        unsafe { &*disk.cast() }
    }

    fn as_raw(&self) -> *mut bindings::gendisk {
        self.0.get()
    }

    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariants the disk is valid. Its queue never changes.
        unsafe { (*self.as_raw()).queue }
    }

    fn private(&self) -> &Private<T> {
        // SAFETY: By the type invariants.
        unsafe { &*(*self.as_raw()).private_data.cast() }
    }

    /// Returns what the driver keeps for the disk.
    pub fn data(&self) -> &T::DiskData {
        &self.private().data
    }

    /// Returns the name, as in /dev.
    pub fn name(&self) -> &CStr {
        // SAFETY: By the type invariants the disk is valid. Its name is terminated, and not changed
        // after its creation.
        unsafe { CStr::from_char_ptr((*self.as_raw()).disk_name.as_ptr()) }
    }

    /// Returns the size in bytes of what can be read and written at least.
    pub fn logical_block_size(&self) -> u32 {
        // SAFETY: By the type invariants the disk is valid, and so is its queue.
        unsafe { (*self.queue()).limits.logical_block_size }
    }

    /// Returns the capacity in sectors, of 512 bytes.
    pub fn capacity(&self) -> u64 {
        // SAFETY: By the type invariants the disk is valid.
        unsafe { bindings::get_capacity(self.as_raw()) }
    }

    /// Sets the capacity in sectors, of 512 bytes, and tells user space if that has changed. May
    /// sleep.
    pub fn set_capacity(&self, sectors: u64) {
        // SAFETY: By the type invariants the disk is valid.
        unsafe { bindings::set_capacity_and_notify(self.as_raw(), sectors) };
    }

    /// Returns whether the device has a cache that is to be flushed.
    pub fn has_write_cache(&self) -> bool {
        // SAFETY: By the type invariants the disk is valid, and so is its queue.
        unsafe { (*self.queue()).limits.features & bindings::BLK_FEAT_WRITE_CACHE != 0 }
    }

    /// Says whether the device has a cache that is to be flushed. May sleep: the requests under way
    /// are waited for.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the block layer does not like it.
    pub fn set_write_cache(&self, write_cache: bool) -> Result {
        let queue = self.queue();
        // SAFETY: By the type invariants the queue is valid. The limits are locked until the call
        // below.
        let mut limits = unsafe { bindings::queue_limits_start_update(queue) };
        if write_cache {
            limits.features |= bindings::BLK_FEAT_WRITE_CACHE;
        } else {
            limits.features &= !bindings::BLK_FEAT_WRITE_CACHE;
        }
        // SAFETY: As above; this unlocks them.
        to_result(unsafe { bindings::queue_limits_commit_update_frozen(queue, &mut limits) })
    }

    /// Has the driver carry out a request of its own, that reads into `data`; `init` fills in the
    /// PDU. Waits until that is done.
    ///
    /// # Errors
    ///
    /// Those of [`Operations::result`], [`ENODEV`] if the disk is gone, [`ENOMEM`].
    pub fn execute(&self, init: impl FnOnce(Pin<&mut T::Pdu>), data: &mut KVec<u8>) -> Result {
        let len = c_uint::try_from(data.len())?;
        // SAFETY: By the type invariants the queue is valid.
        let rq = from_err_ptr(unsafe {
            bindings::blk_mq_alloc_request(self.queue(), bindings::req_op_REQ_OP_DRV_IN, 0)
        })?;
        // SAFETY: The request is valid, with its PDU behind it, and nobody else's yet.
        init(unsafe { Pin::new_unchecked(&mut *rq.add(1).cast::<T::Pdu>()) });

        // SAFETY: The memory is from kmalloc, has `len` bytes, and is borrowed until the request
        // has been executed.
        let ret = unsafe {
            bindings::blk_rq_map_kern(rq, data.as_mut_ptr().cast(), len, bindings::GFP_KERNEL)
        };
        let result = to_result(ret).and_then(|()| {
            // SAFETY: The request is this one's, and is so again when it has been executed.
            let status = unsafe { bindings::blk_execute_rq(rq, false) };
            // SAFETY: The function only looks the number up.
            to_result(unsafe { bindings::blk_status_to_errno(status) })?;
            // Requests of a driver's own are completed in batches even if they have failed.
            //
            // SAFETY: As above, and so the pointer is not null. The request stays this function's.
            let request = unsafe { Request::<T>::from_raw(NonNull::new_unchecked(rq)) };
            T::result(&ManuallyDrop::new(request))
        });
        // SAFETY: The request is not needed any more.
        unsafe { bindings::blk_mq_free_request(rq) };
        result
    }

    /// Lets the hardware queues go on that the driver has stopped. Any context.
    pub fn start_stopped(&self) {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::blk_mq_start_stopped_hw_queues(self.queue(), true) };
    }

    unsafe extern "C" fn getgeo_callback(
        disk: *mut bindings::gendisk,
        geo: *mut hd_geometry,
    ) -> c_int {
        // SAFETY: The block layer calls this for a disk that is open.
        let geometry = T::geometry(unsafe { Self::from_raw(disk) });
        // SAFETY: The block layer passes a geometry to be filled in.
        unsafe {
            bindings::hd_geometry_set(geo, geometry.heads, geometry.sectors, geometry.cylinders)
        };
        0
    }

    unsafe extern "C" fn free_disk_callback(disk: *mut bindings::gendisk) {
        // SAFETY: The block layer calls this once for a disk that had been added, when it is used
        // no more. By the type invariants, `private_data` is a box.
        drop(unsafe { KBox::<Private<T>>::from_raw((*disk).private_data.cast()) });
    }
}

/// Whether a disk has been added.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    New,
    Added,
    Deleted,
}

/// What there is of a disk, as long as somebody may have to delete it.
///
/// # Invariants
///
/// `disk` is a disk of `T`, of which this has a reference.
#[pin_data(PinnedDrop)]
struct Inner<T: Operations> {
    disk: *mut bindings::gendisk,
    #[pin]
    presence: Mutex<Presence>,
    /// Whether dispatch is held back.
    quiesced: Atomic<bool>,
    /// Whether whoever makes a request waits.
    #[pin]
    freeze: Freeze,
    _tag_set: Arc<TagSet<T>>,
}

// SAFETY: A `struct gendisk` is not tied to a thread, and neither is what the driver keeps in it.
unsafe impl<T: Operations> Send for Inner<T> {}

// SAFETY: All operations of a shared reference synchronise themselves.
unsafe impl<T: Operations> Sync for Inner<T> {}

impl<T: Operations> Inner<T> {
    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariants the disk is valid. Its queue never changes.
        unsafe { (*self.disk).queue }
    }

    fn delete(&self, dead: bool) {
        let mut presence = self.presence.lock();
        if *presence != Presence::Added {
            return;
        }
        *presence = Presence::Deleted;
        drop(presence);

        if dead {
            // SAFETY: By the type invariants the disk is valid.
            unsafe { bindings::blk_mark_disk_dead(self.disk) };
        }
        // SAFETY: By the type invariants the disk is valid, and it has been added.
        unsafe { bindings::del_gendisk(self.disk) };
    }

    fn unquiesce(&self) {
        if self.quiesced.xchg(false, Full) {
            // SAFETY: By the type invariants the queue is valid.
            unsafe { bindings::blk_mq_unquiesce_queue(self.queue()) };
        }
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for Inner<T> {
    fn drop(self: Pin<&mut Self>) {
        let added = *self.presence.lock() != Presence::New;
        // SAFETY: By the type invariants the disk is valid.
        let private = unsafe { (*self.disk).private_data }.cast::<Private<T>>();

        self.freeze.close();
        // SAFETY: By the type invariants the reference is this one's.
        unsafe { bindings::put_disk(self.disk) };
        if !added {
            // SAFETY: The reference was the only one, and `free_disk_callback` is not called for a
            // disk that has not been added. By the type invariants of `Disk` it is a box.
            drop(unsafe { KBox::from_raw(private) });
        }
    }
}

/// Deletes a disk when its parent is unbound, if that has not been done before: a [`GenDisk`] can
/// be forgotten, but the parent and the functions of the driver must not be used after that.
struct DeleteOnUnbind<T: Operations>(Arc<Inner<T>>);

impl<T: Operations> Drop for DeleteOnUnbind<T> {
    fn drop(&mut self) {
        // What waits would be waited for.
        self.0.unquiesce();
        self.0.freeze.end();
        self.0.delete(true);
    }
}

/// A disk, from its creation to its deletion. It can be used longer by those who have it open.
///
/// It is deleted when this is dropped, or else when the parent has been unbound.
pub struct GenDisk<'bound, T: Operations> {
    inner: Arc<Inner<T>>,
    parent: &'bound T::Parent,
}

impl<'bound, T: Operations> GenDisk<'bound, T> {
    /// Creates a disk that nobody knows yet: see [`GenDisk::add`]. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the block layer does not like the limits, or the name is too long; [`ENOMEM`].
    pub fn new<N: fmt::Display>(
        parent: &'bound T::Parent,
        tag_set: Arc<TagSet<T>>,
        limits: Limits,
        options: DiskOptions<N>,
        data: T::DiskData,
    ) -> Result<Self> {
        let mut limits = limits.to_raw();
        let private = KBox::new(
            Private::<T> {
                data,
                attributes: AttributeGroups::new::<T>()?,
            },
            GFP_KERNEL,
        )?;

        // SAFETY: The tag set is valid, and kept as long as the disk is not deleted.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_mq_alloc_disk(
                tag_set.as_raw(),
                &mut limits,
                core::ptr::null_mut(),
                static_lock_class!().as_ptr(),
            )
        })?;
        // SAFETY: The disk is valid, and nobody else's yet.
        let raw = unsafe { &mut *disk };
        raw.private_data = KBox::into_raw(private).cast();
        raw.fops = &Disk::<T>::FOPS;
        let queue = raw.queue;

        let class = lock_class!(c"block::Inner::presence");
        // The initializer owns what it is made of. If it fails the disk is put after that, and
        // needs its tag set yet: `tag_set`, which is there until the end.
        let own_tag_set = tag_set.clone();
        // INVARIANT: The disk has just been made.
        let init = pin_init!(Inner {
            disk,
            presence <- Mutex::new(Presence::New, class.0, class.1),
            quiesced: Atomic::new(false),
            // SAFETY: The queue is there as long as the disk, which is put by `PinnedDrop`, after
            // `close`.
            freeze <- unsafe { Freeze::new(queue) },
            _tag_set: own_tag_set,
        });
        let inner = Arc::pin_init(init, GFP_KERNEL).inspect_err(|_| {
            // SAFETY: The reference and the box are nobody else's: see `PinnedDrop` of `Inner`.
            unsafe {
                let private = (*disk).private_data.cast::<Private<T>>();
                bindings::put_disk(disk);
                drop(KBox::from_raw(private));
            }
        })?;

        // CAST: From the kernel's own ranges.
        raw.major = options.major as c_int;
        raw.first_minor = options.first_minor as c_int;
        raw.minors = options.minors as c_int;
        NullTerminatedFormatter::new(
            // SAFETY: A `c_char` is a byte.
            unsafe { &mut *(&raw mut raw.disk_name).cast::<[u8; 32]>() },
        )
        .ok_or(EINVAL)
        .and_then(|mut f| f.write_fmt(fmt!("{}", options.name)).map_err(|_| EINVAL))?;
        if options.read_only {
            // SAFETY: The disk is valid.
            unsafe { bindings::set_disk_ro(disk, true) };
        }
        Ok(Self { inner, parent })
    }

    /// Adds the disk to the system: it is there when this returns, with its partitions. May sleep,
    /// and does I/O.
    ///
    /// # Errors
    ///
    /// [`EEXIST`] if there is one of this name, [`ENOMEM`], [`EBUSY`] if it has been added before.
    pub fn add(&self) -> Result {
        let parent = self.parent.as_ref();
        // Before the lock is taken, which is taken when this fails, too: what could not be
        // registered is dropped then.
        devres::register(parent, DeleteOnUnbind(self.inner.clone()), GFP_KERNEL)?;
        let mut presence = self.inner.presence.lock();
        if *presence != Presence::New {
            return Err(EBUSY);
        }

        // CAST: The function only reads the array.
        let groups = self.private().attributes.as_ptr().cast_mut();
        // CAST: `Device` is a transparent wrapper.
        let parent = core::ptr::from_ref(parent).cast_mut().cast();
        // SAFETY: The disk is valid and complete. The groups stay until it is freed, and the parent
        // is bound until it has been deleted: by `DeleteOnUnbind`, if not before.
        to_result(unsafe { bindings::device_add_disk(parent, self.inner.disk, groups) })?;
        *presence = Presence::Added;
        Ok(())
    }

    /// Returns whether the disk is there: added, and not deleted.
    pub fn is_present(&self) -> bool {
        *self.inner.presence.lock() == Presence::Added
    }

    /// Deletes the disk, if it is there. May sleep.
    ///
    /// What is in the page cache is written, if `dead` is false. Then whoever uses the disk gets
    /// errors. All requests are waited for.
    pub fn delete(&self, dead: bool) {
        self.inner.delete(dead);
    }

    /// Holds requests back in the block layer, where no timeout runs for them.
    ///
    /// A request that is being queued by the driver at this moment is not waited for: the virtqueue
    /// is to be closed, too. Any context.
    pub fn quiesce(&self) {
        if !self.inner.quiesced.xchg(true, Full) {
            // SAFETY: By the type invariants of `Inner` the queue is valid.
            unsafe { bindings::blk_mq_quiesce_queue_nowait(self.inner.queue()) };
        }
    }

    /// Lets requests through again. Any context.
    pub fn unquiesce(&self) {
        self.inner.unquiesce();
    }

    /// Has whoever makes a request wait from now on, before there is a request that somebody else
    /// could have to wait for. Those that there are go on: see [`GenDisk::has_requests`]. May
    /// sleep.
    ///
    /// This waits until [`GenDisk::unfreeze`] has taken effect, if that was called right before.
    pub fn start_freeze(&self) {
        self.inner.freeze.start();
    }

    /// Lets requests be made again, after a grace period if the queue was frozen less than that
    /// ago. That is not waited for. May sleep.
    pub fn unfreeze(&self) {
        self.inner.freeze.end_soon();
    }

    /// Returns whether there is a request, be it with the driver or on its way to it. May sleep.
    ///
    /// This takes no grace period, as the end of a freeze does. In return it does not see who is
    /// about to take a tag at this very moment.
    pub fn has_requests(&self) -> bool {
        // SAFETY: By the type invariants of `Inner` the queue is valid, and so is its tag set.
        unsafe { bindings::blk_mq_has_requests(self.inner.queue()) }
    }
}

impl<T: Operations> Deref for GenDisk<'_, T> {
    type Target = Disk<T>;

    fn deref(&self) -> &Disk<T> {
        // SAFETY: By the type invariants of `Inner`.
        unsafe { Disk::from_raw(self.inner.disk) }
    }
}

impl<T: Operations> Drop for GenDisk<'_, T> {
    fn drop(&mut self) {
        self.delete(true);
    }
}

/// Writes a size for people to read into `buf`: "4.00 GiB", or with decimal units "4.29 GB".
pub fn size_string(blocks: u64, block_size: u32, decimal: bool, buf: &mut [u8; 16]) -> &CStr {
    let units = if decimal {
        bindings::string_size_units_STRING_UNITS_10
    } else {
        bindings::string_size_units_STRING_UNITS_2
    };
    // SAFETY: `buf` is valid for writing as many bytes as are told. The function terminates it.
    unsafe {
        bindings::string_get_size(
            blocks,
            u64::from(block_size),
            units,
            buf.as_mut_ptr().cast(),
            buf.len() as c_int,
        )
    };
    CStr::from_bytes_until_nul(buf).unwrap_or_default()
}
