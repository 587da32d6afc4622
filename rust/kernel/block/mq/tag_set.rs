// SPDX-License-Identifier: GPL-2.0

//! Tag sets: the hardware queues of a disk, and the requests that they can have.

use core::ptr::null_mut;

use kernel::{
    device::{
        Bound,
        Device, //
    },
    error::to_result,
    prelude::*,
    types::Opaque, //
};

use super::{
    operations::VTable,
    Operations, //
};
use crate::bindings;

/// How many hardware queues there are of each kind.
#[derive(Clone, Copy)]
pub struct QueueCounts {
    /// Those with interrupts. They come first.
    pub default: u32,
    /// Those that are polled.
    pub poll: u32,
}

/// What the block layer's functions find in the tag set.
pub(super) struct Shared<T: Operations> {
    pub(super) queues: KVec<T::QueueData>,
    counts: QueueCounts,
    /// The device that has the interrupts, while the tag set is allocated.
    dev: *mut bindings::device,
}

impl<T: Operations> Shared<T> {
    /// Maps the processors to the queues: those with interrupts by the affinity of these.
    pub(super) unsafe extern "C" fn map_queues_callback(set: *mut bindings::blk_mq_tag_set) {
        // SAFETY: The block layer passes a tag set of `TagSet::new`, whose `driver_data` is a
        // `Shared`.
        let (set, shared) = unsafe { (&mut *set, &*(*set).driver_data.cast::<Self>()) };
        let counts = [shared.counts.default, 0, shared.counts.poll];
        let mut offset = 0;

        // CAST: A small number.
        let used = set.nr_maps as usize;
        for (kind, (map, count)) in set.map.iter_mut().zip(counts).take(used).enumerate() {
            map.nr_queues = count;
            map.queue_offset = offset;
            offset += count;
            if count == 0 {
                continue;
            }
            // CAST: A small number.
            if kind as u32 == bindings::hctx_type_HCTX_TYPE_POLL || shared.dev.is_null() {
                // SAFETY: The map is valid.
                unsafe { bindings::blk_mq_map_queues(map) };
            } else {
                // SAFETY: The map is valid, and so is the device, which `TagSet::new` has.
                unsafe { bindings::blk_mq_map_hw_queues(map, shared.dev, 0) };
            }
        }
    }
}

/// A tag set.
///
/// # Invariants
///
/// `inner` is allocated, and its `driver_data` is a `KBox<Shared<T>>`.
#[pin_data(PinnedDrop)]
pub struct TagSet<T: Operations> {
    #[pin]
    inner: Opaque<bindings::blk_mq_tag_set>,
    shared: *mut Shared<T>,
}

// SAFETY: A tag set is not tied to a thread, and the `Shared` in it is `Send` as far as it is used.
unsafe impl<T: Operations> Send for TagSet<T> {}

// SAFETY: A shared reference gives access to nothing.
unsafe impl<T: Operations> Sync for TagSet<T> {}

impl<T: Operations> TagSet<T> {
    /// Creates an initializer for a tag set of `queues`, as many as `counts` tells, which can each
    /// have `depth` requests. `dev` has the interrupts. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the numbers don't match, [`ENOMEM`] if memory is short.
    pub fn new(
        dev: &Device<Bound>,
        queues: KVec<T::QueueData>,
        counts: QueueCounts,
        depth: u32,
    ) -> impl PinInit<Self, Error> + use<'_, T> {
        const {
            assert!(
                align_of::<T::Pdu>() <= align_of::<bindings::request>(),
                "the PDU lies right behind the request"
            )
        };
        let dev: &kernel::device::Device = dev;
        let dev = dev as *const kernel::device::Device;

        pin_init::pin_init_scope(move || {
            let total = counts.default.checked_add(counts.poll).ok_or(EINVAL)?;
            if counts.default == 0 || usize::try_from(total)? != queues.len() {
                return Err(EINVAL);
            }
            let shared = KBox::new(
                Shared {
                    queues,
                    counts,
                    // CAST: `Device` is a transparent wrapper.
                    dev: dev.cast_mut().cast(),
                },
                GFP_KERNEL,
            )?;
            let shared = KBox::into_raw(shared);

            Ok(try_pin_init!(Self {
                inner <- Opaque::try_ffi_init(move |slot: *mut bindings::blk_mq_tag_set| {
                    let set = bindings::blk_mq_tag_set {
                        ops: &VTable::<T>::OPS,
                        // The kinds up to the last that is used.
                        nr_maps: if counts.poll > 0 { 3 } else { 1 },
                        nr_hw_queues: total,
                        queue_depth: depth,
                        // CAST: Small.
                        cmd_size: size_of::<T::Pdu>() as c_uint,
                        numa_node: bindings::NUMA_NO_NODE,
                        driver_data: shared.cast(),
                        ..pin_init::zeroed()
                    };
                    // SAFETY: `slot` is valid for writing.
                    unsafe { slot.write(set) };
                    // SAFETY: `slot` has been filled in, is pinned, and stays until it is freed.
                    let result = to_result(unsafe { bindings::blk_mq_alloc_tag_set(slot) });
                    // The device may be gone when the queues are mapped again.
                    //
                    // SAFETY: Nobody uses the `Shared` now: the tag set has no disk yet.
                    unsafe { (*shared).dev = null_mut() };
                    result.inspect_err(|_| {
                        // SAFETY: It comes from `into_raw` above, and the tag set is not there.
                        drop(unsafe { KBox::from_raw(shared) });
                    })
                }),
                shared,
            }))
        })
    }

    pub(super) fn as_raw(&self) -> *mut bindings::blk_mq_tag_set {
        self.inner.get()
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for TagSet<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the tag set is allocated. No disk uses it: each keeps it.
        unsafe { bindings::blk_mq_free_tag_set(self.inner.get()) };
        // SAFETY: By the type invariants it is a box. Nobody uses it any more.
        drop(unsafe { KBox::from_raw(self.shared) });
    }
}

/// Returns how many hardware queues a disk can make use of, up to `max`.
pub fn num_possible_queues(max: u32) -> u32 {
    // SAFETY: The function can always be called.
    unsafe { bindings::blk_mq_num_possible_queues(max) }
}
