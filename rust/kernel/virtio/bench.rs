// SPDX-License-Identifier: GPL-2.0

//! A device on the test bench: for a driver that tests devices.
//!
//! Such a driver brings its device up itself, as far as it likes and as often as it likes, writes
//! any status, and looks at what comes of it. Nothing of that can harm memory: a device that has
//! been reset knows no virtqueue, and gets to know those that are set up here, which are deleted
//! after the next reset only.
//!
//! [`Device::bench`] is called in the driver's probe. Between two [`Session`]s the device is in
//! operation as that of any other driver is.

use core::{
    mem::replace,
    ptr::from_ref, //
};

use kernel::{
    device::{
        Bound,
        Core,
        CoreInternal, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        Mutex,
        MutexGuard, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    },
};

use crate::{
    bindings,
    buffer::Token,
    compat::{
        as_millis_ceil,
        EOPNOTSUPP, //
    },
    driver::Common,
    queue::VirtQueue,
    sync::{
        lock_class,
        Completion, //
    },
    Device,
    Feature,
    Status, //
};

/// Up to this many microseconds a pause is so short that it need not be interrupted.
const SHORT_PAUSE_US: i64 = 1_000;

/// How far a session has taken its device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has been reset, and not been asked for its virtqueues since.
    Reset,
    /// As above, and features have been negotiated.
    Negotiated,
    /// It has been asked for its virtqueues.
    Found,
}

/// The device that can be taken.
///
/// # Invariants
///
/// `dev` is bound, and no virtqueue of it is deleted by others as long as this is in the slot of a
/// [`Bench`], that is, not before [`Bench::close`] has returned.
struct Taken {
    dev: ARef<Device>,
    stage: Stage,
    /// The features that differ from what the virtio core negotiated, and whether it had them.
    changed: KVec<(Feature, bool)>,
}

/// The test bench of a device, see [`Device::bench`].
///
/// It can be kept for longer than the device is bound.
#[pin_data]
pub struct Bench {
    /// There is something in it while the device is bound and in operation. Locked during a
    /// session.
    #[pin]
    device: Mutex<Option<Taken>>,
    /// Done when the device is about to be stopped.
    #[pin]
    closing: Completion,
}

impl Bench {
    fn new() -> impl PinInit<Self> {
        let class = lock_class!(c"virtio::Bench::device");
        pin_init!(Self {
            device <- Mutex::new(None, class.0, class.1),
            closing <- Completion::new(),
        })
    }

    /// The device is in operation. The device lock is held.
    fn open(&self, dev: &Device<CoreInternal<'_>>) {
        let normal: &Device = dev;
        self.closing.reinit();
        // INVARIANT: `close` is called before the device is stopped.
        *self.device.lock() = Some(Taken {
            dev: normal.into(),
            stage: Stage::Found,
            changed: KVec::new(),
        });
    }

    /// The device is about to be stopped: ends a session, and waits for that. May sleep.
    fn close(&self) {
        self.closing.complete_all();
        let taken = self.device.lock().take();
        if let Some(mut taken) = taken {
            taken.restore_features();
        }
    }

    /// Takes the device. It stays bound during the session: who unbinds it waits for that, after
    /// having seen to it that [`Session::pause`] fails. Process context.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there is a session, [`ENODEV`] if the device is not in operation, or about not
    /// to be.
    pub fn enter(&self) -> Result<Session<'_>> {
        let slot = self.device.try_lock().ok_or(EBUSY)?;
        if slot.is_none() || self.closing.is_done() {
            return Err(ENODEV);
        }
        // INVARIANT: As has just been checked.
        Ok(Session { bench: self, slot })
    }
}

impl Taken {
    fn dev(&self) -> &Device<Bound> {
        let dev: &Device = &self.dev;
        // SAFETY: `Device` is transparent whatever its context, and by the type invariants the
        // device is bound.
        unsafe { &*from_ref(dev).cast() }
    }

    fn restore_features(&mut self) {
        for (feature, had) in replace(&mut self.changed, KVec::new()) {
            match had {
                true => self.dev.set_feature(feature),
                false => self.dev.clear_feature(feature),
            }
        }
    }
}

/// A device that has been taken, see [`Bench::enter`].
///
/// The order is that of VIRTIO 1.4, "Device Initialization": [`reset`](Session::reset),
/// [`negotiate`](Session::negotiate), [`write_status`](Session::write_status) with FEATURES_OK,
/// [`find`](Session::find), and `write_status` with DRIVER_OK. What a session ends with stays.
///
/// # Invariants
///
/// There is something in `slot`.
pub struct Session<'a> {
    bench: &'a Bench,
    slot: MutexGuard<'a, Option<Taken>>,
}

impl Session<'_> {
    fn taken(&self) -> Result<&Taken> {
        self.slot.as_ref().ok_or(ENODEV)
    }

    fn taken_mut(&mut self) -> Result<&mut Taken> {
        (*self.slot).as_mut().ok_or(ENODEV)
    }

    /// Returns the device.
    ///
    /// # Errors
    ///
    /// None in a session: [`ENODEV`] if there is no device.
    pub fn device(&self) -> Result<&Device<Bound>> {
        Ok(self.taken()?.dev())
    }

    /// Returns whether the device offers `feature`, whether it is negotiated or not. May sleep.
    ///
    /// # Errors
    ///
    /// As for [`Session::device`].
    pub fn offers(&self, feature: Feature) -> Result<bool> {
        Ok(self.taken()?.dev.offers(feature))
    }

    /// Writes the device status field, whatever it is. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `status` is 0: that is [`Session::reset`].
    pub fn write_status(&mut self, status: Status) -> Result {
        if status == Status::RESET {
            return Err(EINVAL);
        }
        self.device()?.set_status(status);
        Ok(())
    }

    /// Resets the device, and returns when it has presented that. The virtqueues keep their
    /// buffers, see [`Session::take_back`]. May sleep, for as long as the device takes.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is gone.
    pub fn reset(&mut self) -> Result {
        let taken = self.taken_mut()?;
        let dev = taken.dev();
        if dev.stays_gone() {
            return Err(ENODEV);
        }
        dev.common()
            .for_each_queue(|_, queue| queue.set_open(false));
        // SAFETY: The device is valid, this is no callback of its virtqueues, and nobody notifies
        // it: the virtqueues are closed, and only `open_queues` opens them.
        unsafe { bindings::virtio_reset_device(dev.as_raw()) };
        dev.synchronize_callbacks();
        taken.stage = Stage::Reset;
        Ok(())
    }

    /// Takes back a buffer that the device had when it was reset, if there is one.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device has not been reset, [`EINVAL`] if it is no virtqueue of this device.
    pub fn take_back<T: Token>(&mut self, queue: &VirtQueue<T>) -> Result<Option<T>> {
        let taken = self.taken()?;
        if taken.stage != Stage::Reset {
            return Err(EBUSY);
        }
        // SAFETY: The device has been reset, so that it uses no buffer any more, and knows no
        // virtqueue until the next `find`, before which the virtqueues are deleted.
        unsafe { queue.detach_one(taken.dev()) }
    }

    /// Takes the device from reset to the negotiation of features: those that the virtio core
    /// negotiated, with those that are `accepted`, if the device offers them, and without those
    /// that are `refused`. Drops the buffers that the device had. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device has not been reset, [`EOPNOTSUPP`] if it does not offer what is
    /// accepted, or that is an administration virtqueue, see [`Device::bench`], [`ENOMEM`] if
    /// memory is short, and those of the transport.
    pub fn negotiate(&mut self, accepted: &[Feature], refused: &[Feature]) -> Result {
        let taken = self.taken_mut()?;
        if taken.stage != Stage::Reset {
            return Err(EBUSY);
        }
        // SAFETY: The device has been reset, which has waited for callbacks, and after which there
        // are none.
        unsafe { taken.dev().common().delete_queues(taken.dev()) };

        taken.restore_features();
        taken
            .changed
            .reserve(accepted.len() + refused.len(), GFP_KERNEL)?;
        let accepted = accepted.iter().map(|feature| (*feature, true));
        let refused = refused.iter().map(|feature| (*feature, false));
        for (feature, wanted) in Iterator::chain(accepted, refused) {
            let is_admin = feature.bit() == Feature::ADMIN_VQ.bit();
            if wanted && (is_admin || !taken.dev.offers(feature)) {
                return Err(EOPNOTSUPP);
            }
            let had = taken.dev.test_feature(feature);
            if had == wanted {
                continue;
            }
            // There is room.
            let _ = taken.changed.push_within_capacity((feature, had));
            match wanted {
                true => taken.dev.set_feature(feature),
                false => taken.dev.clear_feature(feature),
            }
        }
        taken.dev().acknowledge()?;
        taken.stage = Stage::Negotiated;
        Ok(())
    }

    /// Asks the device for the virtqueues of the driver, but only for the first `count` of them.
    /// The others stay as they are after a reset. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if features have not been negotiated, or it has been asked already; and as for
    /// [`VirtQueues::find`](crate::VirtQueues::find).
    pub fn find(&mut self, count: usize) -> Result {
        let taken = self.taken_mut()?;
        if taken.stage != Stage::Negotiated {
            return Err(EBUSY);
        }
        taken.stage = Stage::Found;
        taken.dev().common().find_first_queues(taken.dev(), count)
    }

    /// Lets the driver make buffers available in the virtqueues that have been found.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there are none.
    pub fn open_queues(&mut self) -> Result {
        let taken = self.taken()?;
        if taken.stage != Stage::Found {
            return Err(EBUSY);
        }
        taken
            .dev()
            .common()
            .for_each_queue(|_, queue| queue.set_open(true));
        Ok(())
    }

    /// Resets one virtqueue while the device operates, drops its buffers, and enables it again
    /// (VIRTIO 1.4, "Virtqueue Reset"). May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is no virtqueue of this device, [`EOPNOTSUPP`] if the transport can't, and
    /// what the transport finds; the virtqueue is broken then.
    pub fn reset_queue<T: Token>(&mut self, queue: &VirtQueue<T>) -> Result {
        let taken = self.taken()?;
        if taken.stage != Stage::Found {
            return Err(EBUSY);
        }
        queue.reset(taken.dev())
    }

    /// Waits until no callback of a virtqueue runs that began before the call. May sleep.
    ///
    /// # Errors
    ///
    /// As for [`Session::device`].
    pub fn synchronize_callbacks(&self) -> Result {
        self.device()?.synchronize_callbacks();
        Ok(())
    }

    /// Sleeps for about `delta`. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINTR`] if the task has been killed, [`ENODEV`] if the device is about to be stopped.
    pub fn pause(&self, delta: Delta) -> Result {
        if delta.as_nanos() <= SHORT_PAUSE_US * 1_000 {
            fsleep(delta);
            // SAFETY: Any context.
            if unsafe { bindings::fatal_signal_pending() } {
                return Err(EINTR);
            }
            return if self.bench.closing.is_done() {
                Err(ENODEV)
            } else {
                Ok(())
            };
        }
        let ms = u32::try_from(as_millis_ceil(delta)).map_err(|_| EINVAL)?;
        match self
            .bench
            .closing
            .wait_killable_timeout(msecs_to_jiffies(ms))?
        {
            true => Err(ENODEV),
            false => Ok(()),
        }
    }
}

impl Common {
    /// The device is in operation. The device lock is held.
    pub(crate) fn open_bench(&self, dev: &Device<CoreInternal<'_>>) {
        if let Some(bench) = self.bench.as_ref() {
            bench.open(dev);
        }
    }

    /// The device is about to be stopped, or shut down: from here on no session puts it into
    /// operation again. May sleep.
    pub(crate) fn close_bench(&self) {
        if let Some(bench) = self.bench.as_ref() {
            bench.close();
        }
    }
}

impl<'a> Device<Core<'a>> {
    /// Has the device on a test bench, from the end of the probe on. To be called by a driver's
    /// probe, whose `Suspend` is [`suspend::Unsupported`](crate::suspend::Unsupported): nothing
    /// else may suspend or recover the device.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it is on one already, [`ENOMEM`] if memory is short, [`EOPNOTSUPP`] if SUSPEND
    /// or an administration virtqueue has been negotiated.
    pub fn bench(&self) -> Result<Arc<Bench>> {
        let common = self.common();
        // A transport of Linux 7.3 that has negotiated an administration virtqueue looks into it at
        // each reset, even if it has deleted it since: there is none on a bench, ever.
        if common.controller.has_revision() || self.has_feature(Feature::ADMIN_VQ) {
            return Err(EOPNOTSUPP);
        }
        let bench = Arc::pin_init(Bench::new(), GFP_KERNEL)?;
        if !common.bench.populate(bench.clone()) {
            return Err(EBUSY);
        }
        Ok(bench)
    }
}
