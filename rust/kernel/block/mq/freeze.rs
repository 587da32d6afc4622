// SPDX-License-Identifier: GPL-2.0

//! Freezing a request queue: whoever makes a request waits before there is one.

use kernel::{
    container_of,
    prelude::*,
    sync::Mutex,
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

use crate::{
    bindings,
    suspend::queue_work,
    sync::lock_class, //
};

/// How long those who have waited for a queue have to get into it before it is frozen again.
const CHANCE: Delta = Delta::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Frozen,
    /// Frozen until the work is done.
    Thawing,
}

/// A request queue that can be frozen, by one user: it does not count.
///
/// Its work is no [`Later`](crate::suspend::Later): that is for a device which is bound, and ends
/// when it is unbound, while a disk stays until the last who has opened it is gone.
///
/// # Invariants
///
/// `queue` is a valid request queue until [`Freeze::close`] has returned. It is frozen once for
/// this, unless `state` is [`State::Open`].
#[pin_data(PinnedDrop)]
pub(super) struct Freeze {
    queue: *mut bindings::request_queue,
    #[pin]
    state: Mutex<State>,
    #[pin]
    work: Opaque<bindings::delayed_work>,
}

// SAFETY: A request queue is not tied to a thread, and neither is work.
unsafe impl Send for Freeze {}

// SAFETY: All operations of a shared reference synchronise themselves.
unsafe impl Sync for Freeze {}

impl Freeze {
    /// # Safety
    ///
    /// `queue` must be a valid request queue until [`Freeze::close`] has returned.
    pub(super) unsafe fn new(queue: *mut bindings::request_queue) -> impl PinInit<Self> {
        let class = lock_class!(c"block::Freeze::state");
        // INVARIANT: By the safety requirements, and the queue is not frozen.
        pin_init!(Self {
            queue,
            state <- Mutex::new(State::Open, class.0, class.1),
            work <- Opaque::ffi_init(|slot: *mut bindings::delayed_work| {
                // SAFETY: `slot` is valid for writing, and pinned.
                unsafe { bindings::init_delayed_work(slot, Some(Self::callback)) };
            }),
        })
    }

    /// Freezes the queue, but does not wait for the requests that there are. May sleep.
    pub(super) fn start(&self) {
        let mut state = self.state.lock();
        // Else one who freezes the queue again and again would keep all others from it.
        if *state == State::Thawing {
            self.thaw_if(&mut state, State::Thawing);
            fsleep(CHANCE);
        }
        if *state == State::Open {
            // It may be another task that lets requests be made again.
            //
            // SAFETY: By the type invariants the queue is valid. The pairing call is in `thaw_if`.
            unsafe { bindings::blk_freeze_queue_start_non_owner(self.queue) };
            *state = State::Frozen;
        }
    }

    /// Lets requests be made again. May sleep, for a grace period if the queue was frozen less than
    /// that ago.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        self.thaw_if(&mut state, State::Thawing);
        self.thaw_if(&mut state, State::Frozen);
    }

    /// Lets requests be made again as soon as that is possible, without waiting for it. May sleep.
    pub(super) fn end_soon(&self) {
        let mut state = self.state.lock();
        if *state == State::Frozen {
            *state = State::Thawing;
            // SAFETY: The work has been initialised, and stays until it has been cancelled. Who
            // uses a disk uses this module.
            unsafe { queue_work(self.work.get(), 0) };
        }
    }

    /// Ends all use of the queue. May sleep.
    pub(super) fn close(&self) {
        self.end();
        // SAFETY: The work has been initialised.
        unsafe { bindings::cancel_delayed_work_sync(self.work.get()) };
    }

    fn thaw_if(&self, state: &mut State, which: State) {
        if *state == which {
            // SAFETY: By the type invariants the queue is valid, and frozen for this.
            unsafe { bindings::blk_mq_unfreeze_queue_non_owner(self.queue) };
            // INVARIANT: It is frozen no more.
            *state = State::Open;
        }
    }

    unsafe extern "C" fn callback(work: *mut bindings::work_struct) {
        // SAFETY: This is called for the `work_struct` in the `delayed_work` of a `Freeze`, which
        // stays until the work has been cancelled.
        let this = unsafe {
            let delayed = container_of!(work, bindings::delayed_work, work);
            &*container_of!(Opaque::cast_from(delayed), Self, work)
        };
        this.thaw_if(&mut this.state.lock(), State::Thawing);
    }
}

#[pinned_drop]
impl PinnedDrop for Freeze {
    fn drop(self: Pin<&mut Self>) {
        // The queue has been left before; the memory is not left to the work in any case.
        //
        // SAFETY: The work has been initialised.
        unsafe { bindings::cancel_delayed_work_sync(self.work.get()) };
    }
}
