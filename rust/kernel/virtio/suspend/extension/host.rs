// SPDX-License-Identifier: GPL-2.0

//! The SCSI host of a SCSI device.
//!
//! All that the SCSI midlayer has its driver do goes by way of the host's template. While the host
//! is held that is a copy, in which those operations that add to virtqueues are those of this file:
//!
//! - A command of the block layer is sent back, and stays in its queue, which is quiesced: so one
//!   for a logical unit that has been found meanwhile, too.
//! - The error handler, which gives its commands to the driver itself, waits, and so does whoever
//!   wants a logical unit to be reset, unless it is killed.
//!
//! C header: [`include/scsi/scsi_host.h`](srctree/include/scsi/scsi_host.h)
//!
//! # What keeps this sound
//!
//! - There is one copy, a static: who has read the pointer to it may go on to read it at any time.
//!   It is written when no host is held, and the same is not written again.
//! - Who has found an operation of this file there calls that without sleeping in between, and is
//!   [`Inside`] from then on: that is waited for before the extension is unregistered, by when no
//!   host is held. Only a scan may sleep before it reads what the driver itself has there (in
//!   `scsi_add_lun()`): those are waited for, too, see [`wait_scanned()`].
//! - A host is in [`static@HELD`] as long as it is held. Who finds that it is not calls the driver.
//!
//! [`Inside`]: super::front::Inside

use core::ptr::null_mut;

use kernel::{
    container_of,
    device::Bound,
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        global_lock,
        Arc, //
    },
    time::{
        msecs_to_jiffies,
        Delta,
        Msecs, //
    },
    types::Opaque, //
};

use super::{
    callbacks::Detached,
    child::Child,
    front::Inside,
    virtqueues::LOOK_MS,
    Foreign,
    Gate,
    SystemSleep,
    Users,
    Virtqueues, //
};
use crate::{
    bindings::{
        self,
        notifier_block,
        request_queue,
        scsi_cmnd,
        scsi_host_template,
        scsi_qc_status,
        Scsi_Host, //
    },
    suspend::{
        failure::Failure,
        patience::Patience, //
    },
    sync::Completion,
    Device, //
};

/// How long whoever waits for a host waits before looking again, in milliseconds.
const SLICE_MS: Msecs = 10_000;

/// The copy of the driver's template.
struct Template(Opaque<scsi_host_template>);

// SAFETY: It is written with `HELD` held, and otherwise only read.
unsafe impl Sync for Template {}

static COPY: Template = Template(Opaque::zeroed());

/// What it is a copy of: the template of virtio_scsi, which all its hosts have.
static OWN: Atomic<*mut scsi_host_template> = Atomic::new(null_mut());

/// A host that is held, and the queues that have been quiesced because something came for them.
///
/// # Invariants
///
/// There is a reference to each queue, which has been quiesced once for this.
struct Entry {
    hold: Arc<Hold>,
    queues: KVec<*mut request_queue>,
}

// SAFETY: Queues are not tied to a thread.
unsafe impl Send for Entry {}

global_lock! {
    // SAFETY: `init`, called when the module is loaded, initializes it before anything else in the
    // module can run.
    unsafe(uninit) static HELD: SpinLock<KVec<Entry>> = KVec::new();
}

/// Called by the module's init function.
pub(super) fn init() {
    // SAFETY: A module is loaded once, and this is called from its init function only.
    unsafe { HELD.init() };
}

impl Entry {
    fn is_for(&self, shost: *mut Scsi_Host) -> bool {
        self.hold.host.as_raw() == shost
    }

    /// Has nothing dispatched of a queue. If there is no memory, it is tried again and again.
    ///
    /// # Safety
    ///
    /// The queue must be valid.
    unsafe fn quiesce(&mut self, queue: *mut request_queue) {
        if self.queues.contains(&queue) || self.queues.reserve(1, GFP_ATOMIC).is_err() {
            return;
        }
        // SAFETY: By the safety requirements. It is not there for new users if it is going, but for
        // those who wait for its last requests.
        unsafe {
            if bindings::blk_get_queue(queue) {
                bindings::blk_mq_quiesce_queue_nowait(queue);
                // INVARIANT: As above; there is room.
                let _ = self.queues.push_within_capacity(queue);
            }
        }
    }
}

/// What a host is held by.
#[pin_data]
struct Hold {
    host: Host,
    #[pin]
    over: Completion,
}

impl Hold {
    /// Puts the host into the table, and gives it the copy of its template, unless its error
    /// handler is at work, or a device is being reset.
    fn try_take(self: &Arc<Self>) -> Result<bool> {
        let shost = self.host.as_raw();
        // SAFETY: By the type invariants of `Host` it is valid. The template is the driver's.
        let own = unsafe { bindings::scsi_template(shost) };

        let mut held = HELD.lock();
        if held.is_empty() {
            // SAFETY: The template is valid, and nobody else writes to the copy.
            unsafe {
                bindings::scsi_template_replace(
                    COPY.0.get(),
                    own,
                    Some(queue_later),
                    Some(abort_later),
                    Some(reset_later),
                )
            };
            OWN.store(own.cast_mut(), Release);
        }
        if OWN.load(Acquire).cast_const() != own || held.iter().any(|entry| entry.is_for(shost)) {
            return Err(EBUSY);
        }
        held.push(
            Entry {
                hold: self.clone(),
                queues: KVec::new(),
            },
            GFP_ATOMIC,
        )?;
        // SAFETY: The host is valid, and the copy is as described above.
        let taken = unsafe { bindings::scsi_host_take(shost, COPY.0.get()) };
        if !taken {
            // It has the one that has just been pushed.
            let entry = held.pop();
            drop(held);
            drop(entry);
        }
        Ok(taken)
    }

    /// Lets the driver go on, if it does not yet. Process context.
    fn release(&self) {
        let entry = {
            let mut held = HELD.lock();
            let index = held
                .iter()
                .position(|entry| core::ptr::eq(&*entry.hold, self));
            let entry = index.and_then(|index| held.remove(index).ok());
            if held.is_empty() {
                // A static is not dropped when its module is unloaded.
                *held = KVec::new();
            }
            entry
        };
        let Some(Entry { hold, queues }) = entry else {
            return;
        };
        // SAFETY: The host is valid, and its own template is there as long as its driver is bound.
        unsafe { bindings::scsi_host_put_back(self.host.as_raw(), OWN.load(Acquire)) };
        self.over.complete_all();
        for queue in queues {
            // SAFETY: By the type invariants of `Entry`.
            unsafe {
                bindings::blk_mq_unquiesce_queue(queue);
                bindings::blk_put_queue(queue);
            }
        }
        drop(hold);
    }
}

/// Lets a host go on when the system goes down: disks are told then to write back what they have,
/// which is waited for. The virtqueues are closed, so they get errors.
///
/// # Invariants
///
/// The notifier is registered from the end of [`Farewell::new`] until this is dropped.
#[pin_data(PinnedDrop)]
struct Farewell {
    #[pin]
    notifier: Opaque<notifier_block>,
    hold: Arc<Hold>,
}

// SAFETY: A notifier is not tied to a thread.
unsafe impl Send for Farewell {}

// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for Farewell {}

impl Farewell {
    fn new(hold: Arc<Hold>) -> Result<Pin<KBox<Self>>> {
        let this = KBox::pin(
            Self {
                notifier: Opaque::new(notifier_block {
                    notifier_call: Some(going_down),
                    ..Default::default()
                }),
                hold,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The notifier stays where it is until it is unregistered.
        to_result(unsafe { bindings::register_reboot_notifier(this.notifier.get()) })?;
        Ok(this)
    }
}

#[pinned_drop]
impl PinnedDrop for Farewell {
    fn drop(self: Pin<&mut Self>) {
        // A notification that is under way is waited for. A notifier that has not been registered
        // is not found, which does nothing.
        //
        // SAFETY: The notifier is valid.
        unsafe { bindings::unregister_reboot_notifier(self.notifier.get()) };
    }
}

unsafe extern "C" fn going_down(
    nb: *mut notifier_block,
    _action: usize,
    _data: *mut c_void,
) -> c_int {
    let nb = nb.cast::<Opaque<notifier_block>>();
    // SAFETY: The notifier is that of a `Farewell`, which waits for this when it is dropped.
    let farewell = unsafe { &*container_of!(nb, Farewell, notifier) };
    farewell.hold.release();
    // CAST: 0.
    bindings::NOTIFY_DONE as c_int
}

/// The host that the driver of a virtio SCSI device has registered.
///
/// # Invariants
///
/// The device is that of a SCSI host, which is there as long.
#[derive(Clone)]
pub struct Host(Child);

impl Host {
    /// Finds the host of a device. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none.
    pub fn of(dev: &Foreign<'_>) -> Result<Self, Failure> {
        Self::find(dev.0).ok_or(Failure::new(ENODEV, "the device has no SCSI host"))
    }

    fn find(dev: &Device<Bound>) -> Option<Self> {
        // INVARIANT: Devices of this type are those of SCSI hosts.
        Child::find(dev, None, Some(c"scsi_host")).map(Self)
    }

    fn as_raw(&self) -> *mut Scsi_Host {
        // SAFETY: By the type invariants.
        unsafe { bindings::dev_to_scsi_host(self.0.as_raw()) }
    }

    /// Keeps the host's driver from its virtqueues until what is returned is dropped: waits, as
    /// long as `patience` lasts, until those of these names are idle. May sleep.
    ///
    /// `polled` is the name of those without callbacks, and the index of the first one for
    /// commands. `events` are the callbacks that have been taken away before.
    ///
    /// # Errors
    ///
    /// Those of [`Patience::check`], if the error handler is at work, a logical unit is being
    /// reset, or there are commands left, [`EIO`] if a virtqueue is broken, [`ENOMEM`]. The host is
    /// as it was before.
    pub fn hold(
        self,
        queues: &Virtqueues<'_>,
        names: &[&CStr],
        polled: (&CStr, u32),
        events: Detached,
        patience: &Patience<'_>,
    ) -> Result<HeldHost, Failure> {
        let hold = Arc::pin_init(
            try_pin_init!(Hold {
                host: self,
                over <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        let farewell = Farewell::new(hold.clone())?;
        while !hold.try_take()? {
            patience
                .pause(Delta::from_millis(LOOK_MS))
                .map_err(|failure| {
                    failure.because(
                        ETIMEDOUT,
                        "errors were not handled, or resets done, in time",
                    )
                })?;
        }
        // From here on dropping it undoes all.
        let held = HeldHost {
            farewell: Some(farewell),
            hold,
            _events: events,
        };
        // Whoever has seen the driver's own template has added its commands, and notified the
        // device of them: the block layer dispatches with preemption disabled, or as good as that.
        // The error handler and who asks for a reset were not there when the template was replaced.
        Users::Atomic.wait();
        held.wait_idle(queues, names, polled, patience)?;
        Ok(held)
    }
}

/// A SCSI host whose driver is given nothing to do, until this is dropped.
pub struct HeldHost {
    farewell: Option<Pin<KBox<Farewell>>>,
    hold: Arc<Hold>,
    _events: Detached,
}

impl HeldHost {
    fn wait_idle(
        &self,
        queues: &Virtqueues<'_>,
        names: &[&CStr],
        polled: (&CStr, u32),
        patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        loop {
            let idle = names.iter().all(|name| queues.is_idle(name));
            // What the device has finished last may be what has broken it.
            queues.check()?;
            if self.hold.over.is_done() {
                return Err(Failure::new(EBUSY, "the system goes down"));
            }
            if idle {
                return Ok(());
            }
            patience
                .pause(Delta::from_millis(LOOK_MS))
                .map_err(|failure| {
                    failure.because(ETIMEDOUT, "commands were not finished in time")
                })?;
            // Of the end of some nobody is notified: whoever has made them polls, or not.
            queues.for_each_busy(polled.0, |index| self.poll(index - polled.1));
        }
    }

    /// Has the driver look for commands that have ended. The context is that of a callback.
    fn poll(&self, index: u32) {
        // SAFETY: The driver's template is valid, and the host, which has that many queues.
        unsafe { bindings::scsi_host_poll(self.hold.host.as_raw(), OWN.load(Acquire), index) };
    }
}

impl Gate for HeldHost {
    fn abandon(&mut self) {
        // SAFETY: The host is valid.
        unsafe { bindings::scsi_host_set_offline(self.hold.host.as_raw()) };
    }

    fn system_sleep(&self) -> SystemSleep {
        // The disks are put to sleep by commands.
        SystemSleep::Barred
    }
}

impl Drop for HeldHost {
    fn drop(&mut self) {
        self.farewell = None;
        self.hold.release();
    }
}

/// Waits until nobody scans the host of a device, if it has one, which is not held any more:
/// whoever begins to later finds the driver's own template. The driver waits for the same when it
/// is unbound. May sleep.
pub(super) fn wait_scanned(dev: &Device<Bound>) {
    if let Some(host) = Host::find(dev) {
        // SAFETY: The host is valid. Its driver is bound, and stays so.
        unsafe { bindings::scsi_host_wait_scanned(host.as_raw()) };
    }
}

/// Waits as long as a host is held. May sleep.
///
/// # Errors
///
/// [`EINTR`] if the task has been killed.
fn wait(shost: *mut Scsi_Host) -> Result {
    loop {
        let hold = HELD
            .lock()
            .iter()
            .find(|entry| entry.is_for(shost))
            .map(|entry| entry.hold.clone());
        let Some(hold) = hold else {
            return Ok(());
        };
        hold.over
            .wait_killable_timeout(msecs_to_jiffies(SLICE_MS))?;
    }
}

/// A command is to be given to the device: not now.
unsafe extern "C" fn queue_later(shost: *mut Scsi_Host, cmd: *mut scsi_cmnd) -> scsi_qc_status {
    let _inside = Inside::enter();

    // SAFETY: The SCSI midlayer passes a valid command of a logical unit of the host.
    if unsafe { bindings::scsi_cmnd_is_request(cmd) } {
        let mut held = HELD.lock();
        if let Some(entry) = held.iter_mut().find(|entry| entry.is_for(shost)) {
            // SAFETY: As above. The queue of a logical unit is valid as long as there are commands.
            unsafe { entry.quiesce(bindings::scsi_cmnd_queue(cmd)) };
            return bindings::scsi_qc_status_SCSI_MLQUEUE_HOST_BUSY;
        }
    } else if wait(shost).is_err() {
        return bindings::scsi_qc_status_SCSI_MLQUEUE_HOST_BUSY;
    }
    // SAFETY: As above. The template is that of the driver, which every host that has had the copy
    // has.
    unsafe { bindings::scsi_host_queue(shost, OWN.load(Acquire), cmd) }
}

/// What the driver has for the error handler, by its template.
type Handler = unsafe extern "C" fn(*const scsi_host_template, *mut scsi_cmnd) -> c_int;

/// Has the driver handle an error when the host is not held any more. May sleep.
///
/// # Safety
///
/// The command must be valid, and one of a logical unit of a host that has had the copy.
unsafe fn handle_later(cmd: *mut scsi_cmnd, handler: Handler) -> c_int {
    let _inside = Inside::enter();

    // SAFETY: By the safety requirements.
    if wait(unsafe { bindings::scsi_cmnd_host(cmd) }).is_err() {
        // CAST: A small number.
        return bindings::scsi_disposition_FAILED as c_int;
    }
    // SAFETY: By the safety requirements; the template is that of the driver, which every host that
    // has had the copy has.
    unsafe { handler(OWN.load(Acquire), cmd) }
}

unsafe extern "C" fn abort_later(cmd: *mut scsi_cmnd) -> c_int {
    // SAFETY: The error handler passes a valid command.
    unsafe { handle_later(cmd, bindings::scsi_cmnd_abort) }
}

unsafe extern "C" fn reset_later(cmd: *mut scsi_cmnd) -> c_int {
    // SAFETY: As above.
    unsafe { handle_later(cmd, bindings::scsi_cmnd_reset) }
}
