// SPDX-License-Identifier: GPL-2.0

//! The virtqueues of a driver that knows nothing of SUSPEND.

use kernel::{
    device::Bound,
    prelude::*,
    time::Delta, //
};

use super::callbacks::Detached;
use crate::{
    bindings::{
        self,
        virtqueue, //
    },
    compat::smp_mb,
    queue::Record,
    suspend::{
        failure::Failure,
        patience::Patience, //
    },
    Device,
    Feature, //
};

/// How often it is looked whether a virtqueue is idle, in milliseconds.
pub(super) const LOOK_MS: i64 = 1;

/// Who uses virtqueues, besides callbacks.
#[derive(Clone, Copy)]
pub enum Users {
    /// They have interrupts, preemption or bottom halves disabled, or are in an RCU read-side
    /// critical section, from before they look whether a virtqueue is open until they are done.
    Atomic,
    /// Tasks, which may be preempted meanwhile, but do not sleep.
    Tasks,
}

impl Users {
    /// Waits until whoever uses a virtqueue now is done. May sleep, and nothing ends that early:
    /// whoever is waited for goes on by itself.
    pub fn wait(self) {
        // SAFETY: The context may sleep.
        unsafe {
            match self {
                Self::Atomic => bindings::synchronize_rcu(),
                Self::Tasks => bindings::synchronize_rcu_tasks(),
            }
        }
    }
}

/// All virtqueues of a device.
///
/// The virtio core can mark a virtqueue as broken. Operations on it then do nothing: no buffer is
/// added, no notification sent, none is handled, and none of the used buffers is found. This is
/// what a closed virtqueue is here.
pub struct Virtqueues<'a>(&'a Device<Bound>);

impl<'a> Virtqueues<'a> {
    pub(super) fn of(dev: &'a Device<Bound>) -> Self {
        Self(dev)
    }

    /// Closes the virtqueues. An operation on one that is under way is not waited for. Any context.
    pub(super) fn close(&self) {
        self.0.break_queues();
    }

    /// Takes the callbacks of the driver away, and waits until none runs; they are put back and
    /// called when what is returned is dropped, for which the virtqueues should be open. May sleep.
    ///
    /// The work that a callback has begun goes on. What is in the used rings stays there.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn detach(&self) -> Result<Detached, Failure> {
        Detached::new(self.0, |_| true).map_err(Failure::from)
    }

    /// Takes the callbacks of the virtqueues of that name away, as above, and waits for the work
    /// that they have begun, as long as `patience` lasts: the last that it does is to add its
    /// buffer again, and then there are `count` of them, or as many as there is room for. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], those of [`Patience::check`], for which `why` is the reason if it is the
    /// deadline, and [`EIO`] if a virtqueue is broken. The callbacks have been put back.
    pub fn detach_idle(
        &self,
        name: &CStr,
        count: u32,
        patience: &Patience<'_>,
        why: &'static str,
    ) -> Result<Detached, Failure> {
        // SAFETY: The virtqueue is valid, here and below.
        let detached = Detached::new(self.0, |vq| unsafe { Self::is_named(vq, name) })?;
        loop {
            let mut idle = true;
            self.for_each(|vq| {
                // SAFETY: As above.
                idle &= unsafe {
                    !Self::is_named(vq, name)
                        || Self::outstanding(vq)
                            >= count.min(bindings::virtqueue_get_vring_size(vq))
                };
            });
            self.check()?;
            if idle {
                return Ok(detached);
            }
            patience
                .pause(Delta::from_millis(LOOK_MS))
                .map_err(|failure| failure.because(ETIMEDOUT, why))?;
        }
    }

    /// Looks whether they can still be used. Process context.
    ///
    /// # Errors
    ///
    /// [`EIO`] if one of them is broken.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.is_broken() {
            return Err(Failure::new(EIO, "a virtqueue is broken"));
        }
        Ok(())
    }

    /// Closes the virtqueues, and waits for whoever adds buffers or notifies the device and has not
    /// seen that (rules D4, D5). May sleep.
    ///
    /// Nobody is waited for who runs a callback: see [`detach`](Virtqueues::detach).
    pub fn close_for(&self, users: Users) {
        self.close();
        users.wait();
    }

    /// Opens the virtqueues again, and handles what the device has notified of meanwhile, or will
    /// not notify of. Process context.
    pub(super) fn open(&self) {
        // SAFETY: By the type invariant of `Device` the pointer is valid.
        unsafe { bindings::__virtio_unbreak_device(self.0.as_raw()) };
        // Either the handler of an interrupt sees that the virtqueue is open, or its device had
        // used the buffer before that, which is then seen below.
        smp_mb();

        // SAFETY: The pairing call is below.
        unsafe { bindings::local_bh_disable() };
        self.for_each(|vq| {
            // SAFETY: The virtqueue is valid, and the context that of an interrupt handler: neither
            // are interrupts enabled, nor does another call for the same virtqueue matter more than
            // two processors that handle a shared interrupt at a time.
            unsafe { bindings::vring_interrupt(0, vq.cast()) };
        });
        // What was raised above is run now, as after an interrupt.
        //
        // SAFETY: Bottom halves have been disabled above.
        unsafe { bindings::local_bh_enable() };
    }

    /// Returns whether the device has finished all that is in the virtqueues of that name.
    pub(super) fn is_idle(&self, name: &CStr) -> bool {
        let mut idle = true;
        self.for_each(|vq| {
            // SAFETY: The virtqueue is valid, here and below.
            idle &= unsafe { !Self::is_named(vq, name) || Self::outstanding(vq) == 0 };
        });
        idle
    }

    /// Closes the virtqueues of that name, unless there is something in them. Returns whether it
    /// has.
    pub(super) fn close_if_idle(&self, name: &CStr) -> bool {
        let mut idle = true;
        self.for_each(|vq| {
            // SAFETY: As above. Interrupts are disabled, so that who has put something into it
            // right now has hardly had the time to see that it is closed.
            unsafe {
                if !Self::is_named(vq, name) {
                    return;
                }
                if Self::outstanding(vq) == 0 {
                    bindings::__virtqueue_break(vq);
                    smp_mb();
                }
                if Self::outstanding(vq) != 0 {
                    bindings::__virtqueue_unbreak(vq);
                    idle = false;
                }
            }
        });
        idle
    }

    /// Calls `f` with the index of each virtqueue of that name that is not idle, as the handler of
    /// an interrupt is called. Process context.
    pub(super) fn for_each_busy(&self, name: &CStr, mut f: impl FnMut(u32)) {
        // SAFETY: The pairing call is below.
        unsafe { bindings::local_bh_disable() };
        self.for_each(|vq| {
            // SAFETY: The virtqueue is valid.
            unsafe {
                if Self::is_named(vq, name) && Self::outstanding(vq) != 0 {
                    f((*vq).index);
                }
            }
        });
        // SAFETY: Bottom halves have been disabled above.
        unsafe { bindings::local_bh_enable() };
    }

    /// Calls the callbacks of the virtqueues with such an index, whether something was used or not.
    /// Process context.
    pub(super) fn call_back(&self, wanted: impl Fn(u32) -> bool) {
        // SAFETY: The pairing call is below.
        unsafe { bindings::local_bh_disable() };
        self.for_each(|vq| {
            // SAFETY: The virtqueue is valid, and the context is that of `open`.
            unsafe {
                if let (true, Some(callback)) = (wanted((*vq).index), (*vq).callback) {
                    callback(vq);
                }
            }
        });
        // SAFETY: Bottom halves have been disabled above.
        unsafe { bindings::local_bh_enable() };
    }

    /// # Safety
    ///
    /// The virtqueue must be valid.
    unsafe fn is_named(vq: *mut virtqueue, name: &CStr) -> bool {
        // SAFETY: By the safety requirements; its name, if it has one, is a string that stays as
        // long as the virtqueue.
        unsafe {
            !(*vq).name.is_null() && CStr::from_char_ptr((*vq).name).to_bytes() == name.to_bytes()
        }
    }

    /// Returns how many descriptors are in use.
    ///
    /// # Safety
    ///
    /// The virtqueue must be valid.
    unsafe fn outstanding(vq: *mut virtqueue) -> u32 {
        // SAFETY: By the safety requirements. The number of free descriptors may change meanwhile.
        unsafe {
            bindings::virtqueue_get_vring_size(vq)
                .saturating_sub((&raw const (*vq).num_free).read_volatile())
        }
    }

    /// Notifies the device of every virtqueue that has buffers.
    pub(super) fn notify(&self) {
        self.for_each(|vq| {
            // SAFETY: The virtqueue is valid. Whoever adds a buffer meanwhile notifies, too.
            if unsafe { Self::outstanding(vq) } != 0 {
                // SAFETY: The virtqueue is valid; a notification need not be serialised.
                unsafe { bindings::virtqueue_notify(vq) };
            }
        });
    }

    /// Returns whether some virtqueue is closed, or broken by what the device has put into it.
    pub(super) fn is_broken(&self) -> bool {
        let mut broken = false;
        self.for_each(|vq| {
            // SAFETY: The virtqueue is valid.
            broken |= unsafe { bindings::virtqueue_is_broken(vq) };
        });
        broken
    }

    pub(super) fn count(&self) -> usize {
        let mut count = 0;
        self.for_each(|_| count += 1);
        count
    }

    /// Records the state of the virtqueues. The positions in a packed ring are known to nobody but
    /// the virtio core.
    pub(super) fn record(&self, records: &mut KVec<Record>) {
        let packed = self.0.has_feature(Feature::RING_PACKED);

        records.clear();
        self.for_each(|vq| {
            // SAFETY: The virtqueue is valid, its driver is gated, and its name, if it has one, is
            // a string that stays as long as the virtqueue.
            let record = unsafe {
                let size = bindings::virtqueue_get_vring_size(vq);
                let name = (*vq).name;
                let indices = (!packed)
                    .then(|| (bindings::vring_avail_idx(vq), bindings::vring_used_idx(vq)));
                Record {
                    name: if name.is_null() {
                        c"".into()
                    } else {
                        CStr::from_char_ptr(name).into()
                    },
                    index: (*vq).index as usize,
                    size,
                    packed,
                    available: indices.map(|indices| (indices.0, false)),
                    used: indices.map(|indices| (indices.1, false)),
                    outstanding: Self::outstanding(vq) as usize,
                }
            };
            // Room has been reserved when the device was bound; nothing can be allocated here.
            let _ = records.push_within_capacity(record);
        });
    }

    fn for_each<F: FnMut(*mut virtqueue)>(&self, f: F) {
        for_each(self.0, f);
    }
}

/// Calls `f` for each virtqueue of a device, with interrupts disabled and the lock of their list
/// held: it is valid until `f` returns.
pub(super) fn for_each<F: FnMut(*mut virtqueue)>(dev: &Device, mut f: F) {
    unsafe extern "C" fn callback<F: FnMut(*mut virtqueue)>(vq: *mut virtqueue, data: *mut c_void) {
        // SAFETY: `data` is the closure below, which is used nowhere else meanwhile.
        unsafe { (*data.cast::<F>())(vq) };
    }

    // SAFETY: By the type invariant of `Device` the pointer is valid; the closure outlives the
    // call.
    unsafe {
        bindings::virtio_device_visit_vqs(dev.as_raw(), Some(callback::<F>), (&raw mut f).cast())
    };
}
