// SPDX-License-Identifier: GPL-2.0

//! An interface that is held, and what is to be done when it is let go.

use kernel::{
    container_of,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    },
    workqueue::{
        self,
        DelayedWork,
        WorkItem, //
    },
};

use super::{
    operations::{
        held_by,
        Asked,
        Table, //
    },
    rtnl::Rtnl,
    Interface, //
};
use crate::{
    bindings::{
        self,
        net_device,
        net_device_ops, //
    },
    sync::{
        lock_class,
        Completion, //
    },
};

/// How often it is looked whether RTNL can be had, in milliseconds.
const RTNL_MS: u32 = 10;

/// How often it is looked whether an interface is unregistered that can't be let go before, in
/// milliseconds.
const ABANDONED_MS: u32 = 1_000;

/// How many there are: code of this module may run for each of them.
static HOLDS: Atomic<usize> = Atomic::new(0);

/// Waits until everything that was asked of interfaces while they were held has been told to their
/// drivers, and nothing of this module is called for an interface any more. May sleep.
pub(in super::super) fn drain() {
    while HOLDS.load(Acquire) != 0 {
        fsleep(Delta::from_millis(1));
    }
}

/// VLANs that a device is told of, by their numbers: those of 802.1Q, and no other.
struct Vlans([u64; Self::COUNT / 64]);

impl Vlans {
    const COUNT: usize = 4096;

    const fn none() -> Self {
        Self([0; Self::COUNT / 64])
    }

    /// Adds those that the network stack has for an interface.
    ///
    /// Of one without an interface of its own, as a port of a bridge has them, the protocol is not
    /// to be had: it is taken for one of 802.1Q.
    ///
    /// # Safety
    ///
    /// The interface must be valid.
    unsafe fn add(&mut self, _rtnl: &Rtnl, netdev: *mut net_device) {
        unsafe extern "C" fn add(of: *mut net_device, vid: c_int, vlans: *mut c_void) -> c_int {
            // SAFETY: The network stack passes the valid interface of a VLAN, if it has one.
            if !of.is_null() && !unsafe { bindings::vlan_dev_is_8021q(of) } {
                return 0;
            }
            // SAFETY: What is passed below, which is used nowhere else meanwhile.
            let vlans = unsafe { &mut *vlans.cast::<Vlans>() };
            // CAST: A number of 12 bits.
            let vid = vid as usize;
            if let Some(word) = vlans.0.get_mut(vid / 64) {
                *word |= 1 << (vid % 64);
            }
            0
        }

        // SAFETY: By the safety requirements; RTNL is held.
        unsafe { bindings::vlan_for_each(netdev, Some(add), (&raw mut *self).cast()) };
    }

    /// Calls `f` for each that is in `self` and not in `others`.
    fn without(&self, others: &Self, mut f: impl FnMut(u16)) {
        for (index, (word, other)) in self.0.iter().zip(&others.0).enumerate() {
            for bit in (0..64).filter(|bit| (word & !other) >> bit & 1 != 0) {
                // CAST: It is less than 4096.
                f((index * 64 + bit) as u16);
            }
        }
    }
}

/// What an interface is held by.
///
/// It begins in [`Hold::take`]: the interface's operations are those of `closed`. From
/// [`Hold::release`] on they are those of `open`, with which the driver sends again, and in
/// [`Hold::settle`] the interface gets those of its driver again. The latter needs RTNL, for which
/// nobody who resumes a device waits, so it may be done by `later`.
///
/// # Invariants
///
/// - `own` are the operations of the interface's driver, which are valid as long as the interface
///   is registered.
/// - An interface whose operations are those of a table in here has them from [`Hold::take`] to
///   [`Hold::settle`], and there is a reference to this meanwhile: that of the [`HeldInterface`],
///   or that of `later`.
///
/// [`HeldInterface`]: super::HeldInterface
#[pin_data(PinnedDrop)]
pub(super) struct Hold {
    interface: Interface,
    own: *const net_device_ops,
    #[pin]
    closed: Table,
    #[pin]
    open: Table,
    /// For each transmit queue, whether it has been stopped here, rather than by the driver. With
    /// the lock of the queue.
    stopped: KVec<Atomic<bool>>,
    /// The features and the VLANs that the driver has been told of.
    features: u64,
    vlans: Vlans,
    asked: Asked,
    /// Whether the driver can't tell its device anything any more.
    broken: Atomic<bool>,
    #[pin]
    settled: Completion,
    /// Not a [`Later`], which ends with the binding: this is what keeps the hold, beyond the end of
    /// the binding if need be, until RTNL could be had. And it does not run while the system
    /// sleeps.
    ///
    /// [`Later`]: crate::suspend::Later
    #[pin]
    later: DelayedWork<Self>,
}

// SAFETY: None of it is tied to a thread; the operations are only read.
unsafe impl Send for Hold {}

// SAFETY: As above.
unsafe impl Sync for Hold {}

kernel::impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Hold { self.later }
}

impl Hold {
    /// Prepares to hold an interface.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(interface: Interface, rtnl: &Rtnl) -> Result<Arc<Self>> {
        let netdev = interface.as_raw();
        // SAFETY: By the type invariants of `Interface` it is valid, here and below.
        let (own, count) = unsafe {
            (
                bindings::netdev_ops(netdev),
                bindings::netdev_tx_queues(netdev),
            )
        };
        // CAST: A number of queues.
        let mut stopped = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for _ in 0..count {
            stopped
                .push_within_capacity(Atomic::new(false))
                .map_err(|_| ENOMEM)?;
        }
        let mut vlans = Vlans::none();
        // SAFETY: As above.
        unsafe { vlans.add(rtnl, netdev) };

        let (later, later_key) = lock_class!(c"virtio_suspend_interface");
        let (timer, timer_key) = lock_class!(c"virtio_suspend_interface_timer");
        let hold = Arc::pin_init(
            // INVARIANT: The interface does not have the operations in it yet.
            try_pin_init!(Self {
                interface,
                own,
                // SAFETY: The driver's operations are valid; these are the tables of a `Hold`.
                closed <- unsafe { Table::new(*own, true) },
                // SAFETY: As above.
                open <- unsafe { Table::new(*own, false) },
                stopped,
                // SAFETY: As above.
                features: unsafe { bindings::netdev_features(netdev) },
                vlans,
                asked: Asked::nothing(),
                broken: Atomic::new(false),
                settled <- Completion::new(),
                later <- DelayedWork::new(later, later_key, timer, timer_key),
            }),
            GFP_KERNEL,
        )?;
        HOLDS.fetch_add(1, Full);
        Ok(hold)
    }

    /// Returns what a table is part of.
    pub(super) fn of(table: &Table) -> &Self {
        let table = &raw const *table;
        // SAFETY: By the type invariants of `Table` it is one of both.
        unsafe {
            if (*table).holds() {
                &*container_of!(table, Self, closed)
            } else {
                &*container_of!(table, Self, open)
            }
        }
    }

    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    fn has_operations_of(&self, table: &Table) -> bool {
        // SAFETY: By the type invariants of `Interface`.
        core::ptr::eq(table.ops(), unsafe {
            bindings::netdev_ops(self.interface.as_raw())
        })
    }

    /// Calls `f` for each transmit queue, with its lock held.
    fn for_each_queue(&self, mut f: impl FnMut(*mut net_device, u32)) {
        let netdev = self.interface.as_raw();
        for index in 0..self.stopped.len() {
            // CAST: It was a `c_uint`.
            let index = index as u32;
            // SAFETY: The interface is valid, and has as many queues.
            unsafe { bindings::netdev_tx_lock(netdev, index) };
            f(netdev, index);
            // SAFETY: The lock has been taken above.
            unsafe { bindings::netdev_tx_unlock(netdev, index) };
        }
    }

    /// Stops a transmit queue. Its lock must be held.
    pub(super) fn stop(&self, index: u32) {
        // SAFETY: The interface is valid, and the queue one of it.
        let changed = unsafe { bindings::netdev_tx_stop(self.interface.as_raw(), index) };
        if changed {
            if let Some(stopped) = self.stopped.get(index as usize) {
                stopped.store(true, Relaxed);
            }
        }
    }

    /// Keeps the network stack from the driver.
    ///
    /// What the driver has begun to send, with the lock of a transmit queue held, has been given to
    /// the device when this returns. What comes by other ways may be under way.
    pub(super) fn take(&self, _rtnl: &Rtnl) {
        let netdev = self.interface.as_raw();
        // SAFETY: The interface is valid.
        unsafe {
            bindings::netdev_set_present(netdev, false);
            // INVARIANT: The caller has a reference, and passes it on.
            bindings::netdev_set_ops(netdev, self.closed.ops());
        }
        // One that the driver itself has stopped, because there is no room in its virtqueue, is
        // left to the driver: what it is then given is lost.
        self.for_each_queue(|_, index| self.stop(index));
    }

    /// Lets the driver send again. May be called without RTNL.
    ///
    /// `broken` says whether it can't tell the device anything.
    pub(super) fn release(&self, broken: bool) {
        let netdev = self.interface.as_raw();
        self.broken.store(broken, Relaxed);
        // SAFETY: The interface is valid.
        // INVARIANT: The caller has a reference, and passes it on.
        unsafe { bindings::netdev_set_ops(netdev, self.open.ops()) };
        self.for_each_queue(|netdev, index| {
            // Who has the lock after this sees the new operations.
            let ours = self.stopped.get(index as usize);
            // SAFETY: The interface is valid, and the lock of its queue held.
            unsafe {
                bindings::netdev_tx_excuse(netdev, index);
                if ours.is_some_and(|stopped| stopped.load(Relaxed)) {
                    bindings::netdev_tx_wake(netdev, index);
                }
            }
        });
    }

    /// Calls `f` for each VLAN that is to be received no longer.
    ///
    /// None can have been added: the network stack does not add any to an interface that is not
    /// present. It deletes them whatever the driver says.
    fn for_each_lost_vlan(&self, rtnl: &Rtnl, f: impl FnMut(u16)) {
        let mut now = Vlans::none();
        // SAFETY: The interface is valid.
        unsafe { now.add(rtnl, self.interface.as_raw()) };
        self.vlans.without(&now, f);
    }

    /// Returns whether there is something to tell the driver for which it may wait for the device.
    pub(super) fn is_waiting(&self, rtnl: &Rtnl) -> bool {
        let mut waiting = self.asked.features() != 0 || self.asked.detach();
        self.for_each_lost_vlan(rtnl, |_| waiting = true);
        waiting && !self.broken.load(Relaxed)
    }

    /// Gives the interface the operations of its driver again, and tells the driver what has been
    /// asked for meanwhile, for which that may wait for its device. Does nothing the second time.
    ///
    /// Returns [`false`] if the interface has not been released, and is registered.
    pub(super) fn settle(&self, rtnl: &Rtnl) -> bool {
        let netdev = self.interface.as_raw();
        // SAFETY: The interface is valid.
        let registered = unsafe { bindings::netdev_is_registered(netdev) };
        let closed = self.has_operations_of(&self.closed);
        if closed && registered {
            return false;
        }
        if closed || self.has_operations_of(&self.open) {
            // SAFETY: The interface is valid, and by the type invariants, the operations are those
            // of its driver; one that is not registered has no use for any.
            unsafe { bindings::netdev_set_ops(netdev, self.own) };
            if registered {
                self.tell(rtnl, netdev);
            }
        }
        self.settled.complete_all();
        true
    }

    fn tell(&self, rtnl: &Rtnl, netdev: *mut net_device) {
        // SAFETY: As above.
        let running = unsafe {
            bindings::netdev_set_present(netdev, true);
            bindings::netif_running(netdev)
        };
        if running {
            // SAFETY: As above. It ends when it finds an interface that is not present.
            unsafe { bindings::netdev_watchdog_up(netdev) };
        }
        if self.broken.load(Relaxed) {
            return;
        }
        // SAFETY: The interface is registered and RTNL is held, so the operations are valid, and
        // called as the network stack calls them.
        unsafe {
            // First: features can't be changed while there is a program.
            if self.asked.detach() {
                bindings::ndo_xdp_detach(self.own, netdev);
            }
            let asked = self.asked.features();
            if asked != 0 {
                // As the driver has them, so that it is asked for what differs.
                let now = bindings::netdev_features(netdev);
                bindings::netdev_set_features(netdev, now & !asked | self.features & asked);
                bindings::netdev_update_features(netdev);
            }
        }
        self.for_each_lost_vlan(rtnl, |vid| {
            // SAFETY: As above.
            unsafe { bindings::ndo_vlan_rx_kill_vid(self.own, netdev, vid) };
        });
        if running {
            // SAFETY: As above.
            unsafe { bindings::ndo_set_rx_mode(self.own, netdev) };
        }
    }

    /// Has the interface settled as soon as RTNL can be had; waits for that for a moment.
    pub(super) fn settle_later(self: Arc<Self>, wait_ms: u32) {
        let this = self.clone();
        // It is enqueued nowhere else but in `run`, which comes from here.
        let _ = workqueue::system_freezable().enqueue_delayed(self, 0);
        let _ = this
            .settled
            .wait_killable_timeout(msecs_to_jiffies(wait_ms));
    }

    /// Settles what is left from when an interface was held before. Returns whether that is done:
    /// whatever may wait for the device is left to `later`.
    pub(super) fn settle_former(interface: &Interface, rtnl: &Rtnl) -> bool {
        // SAFETY: The interface is valid, and RTNL is held.
        match unsafe { held_by(interface.as_raw()) } {
            None => true,
            Some(hold) => !hold.is_waiting(rtnl) && hold.settle(rtnl),
        }
    }
}

impl WorkItem for Hold {
    type Pointer = Arc<Self>;

    /// While the system sleeps this does not run: the driver has no virtqueues then.
    fn run(this: Arc<Self>) {
        let again = match Rtnl::try_lock() {
            None => RTNL_MS,
            Some(rtnl) if !this.settle(&rtnl) => ABANDONED_MS,
            Some(_) => return,
        };
        let _ = workqueue::system_freezable().enqueue_delayed(this, msecs_to_jiffies(again));
    }
}

#[pinned_drop]
impl PinnedDrop for Hold {
    fn drop(self: Pin<&mut Self>) {
        // Whoever has seen a table as the operations of the interface without RTNL has bottom
        // halves disabled, or is in an RCU read-side critical section, until it has returned from
        // what it has found there.
        //
        // SAFETY: The context may sleep.
        unsafe { bindings::synchronize_net() };
        HOLDS.fetch_sub(1, Full);
    }
}
