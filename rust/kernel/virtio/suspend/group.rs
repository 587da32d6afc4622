// SPDX-License-Identifier: GPL-2.0

//! All devices at once.
//!
//! A device that can be suspended has a [`Seat`] in the [`Group`] while it is bound. What is asked
//! of the group is asked of each of them, as through the device's own file, by work of its own, so
//! that they do it side by side; whoever asks waits for all. There is one deadline.

use core::ptr::null_mut;

use kernel::{
    device::Bound,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        new_mutex,
        Arc,
        Mutex, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Monotonic, //
    },
};

use super::{
    failure::Failure,
    later::Later,
    patience::Limit,
    protocol::{
        Goal,
        State, //
    }, //
};
use crate::{
    bindings,
    compat::{
        BoundInternal,
        EALREADY,
        EOPNOTSUPP, //
    },
    sync::{
        Completion,
        NoIo, //
    },
    Device, //
};

#[path = "group/sysfs.rs"]
mod sysfs;

pub(crate) use self::sysfs::Directory;

/// How long whoever waits for the devices goes without looking, in milliseconds.
const LOOK_MS: u32 = 1_000;

/// How many devices can be left out.
const MAX_EXCEPTIONS: usize = 256;

/// When a device has its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// What others wait for: such a device is suspended last and resumed first.
    Storage,
    /// What brings in new work.
    Other,
}

impl Turn {
    fn of(device_type: u32) -> Self {
        match device_type {
            bindings::VIRTIO_ID_BLOCK
            | bindings::VIRTIO_ID_SCSI
            | bindings::VIRTIO_ID_9P
            | bindings::VIRTIO_ID_FS
            | bindings::VIRTIO_ID_PMEM => Self::Storage,
            _ => Self::Other,
        }
    }

    const fn order(goal: Goal) -> [Self; 2] {
        match goal {
            Goal::Suspend => [Self::Other, Self::Storage],
            Goal::Resume => [Self::Storage, Self::Other],
        }
    }
}

/// The place of a device in the group.
#[pin_data]
pub(super) struct Seat {
    dev: ARef<Device>,
    turn: Turn,
    /// Does what is asked of the device.
    #[pin]
    work: Later,
    /// Whether something is to be done, and the work has not begun yet.
    assigned: Atomic<bool>,
    /// Whether the device has been suspended by a request to the group.
    held: Atomic<bool>,
}

impl Seat {
    /// The device does not stay as the group has left it.
    pub(super) fn let_go(&self) {
        self.held.store(false, Release);
    }

    fn is_held(&self) -> bool {
        self.held.load(Acquire)
    }
}

/// Something that is asked of the group.
struct Round {
    goal: Goal,
    started: Instant<Monotonic>,
    timeout_ms: u32,
    /// How many devices have not done it yet.
    pending: usize,
    /// How many have.
    done: usize,
    /// Why one has not, if that is no failure: it is where it is to go already, or can't be
    /// suspended.
    excuse: Option<Error>,
    /// The first failure, and the number of its device.
    failure: Option<(u32, Failure)>,
}

struct Inner {
    seats: KVec<Arc<Seat>>,
    round: Option<Round>,
    timeout_ms: u32,
    /// The numbers of the devices that are left out.
    excepted: KVec<u32>,
    last_error: Option<(u32, Failure)>,
}

impl Inner {
    fn state(&self) -> State {
        match &self.round {
            Some(round) if round.goal == Goal::Suspend => State::Suspending,
            Some(_) => State::Resuming,
            None if self.seats.iter().any(|seat| seat.is_held()) => State::Suspended,
            None => State::Running,
        }
    }
}

/// The devices that can be suspended, as long as the module is there.
///
/// # Invariants
///
/// [`GROUP`] points to this from the end of [`Group::new`] until it is dropped. The device of each
/// seat is bound.
#[pin_data(PinnedDrop)]
pub(crate) struct Group {
    /// Only locked for a moment, never while a device is waited for.
    #[pin]
    inner: Mutex<Inner>,
    /// Done when no device has something to do any more.
    #[pin]
    done: Completion,
    /// Whether those that have are to give up.
    called_off: Atomic<bool>,
}

/// The [`Group`] of the module, null while there is none.
static GROUP: Atomic<*mut c_void> = Atomic::new(null_mut());

/// Calls `f` with the group. For those who are gone before it is: devices, and the files.
fn with<R>(f: impl FnOnce(&Group) -> Result<R>) -> Result<R> {
    let group = GROUP.load(Acquire).cast::<Group>();
    if group.is_null() {
        return Err(ENODEV);
    }
    // SAFETY: By the type invariants it is there. It is dropped when the module is unloaded, which
    // no driver is left then that could have a device, and when the files are gone.
    f(unsafe { &*group })
}

/// Has the device of a controller take part. `work` is to call [`carry_out`]. May sleep.
///
/// # Errors
///
/// [`ENOMEM`].
pub(super) fn join(dev: &Device<Bound>, work: fn(&Device<Bound>)) -> Result<Arc<Seat>> {
    // What is suspended may be what memory is written back to, and its resume needs the lock.
    let _no_io = NoIo::enter();
    let turn = Turn::of(dev.device_type());
    let shared: &Device = dev;
    let seat = Arc::pin_init(
        pin_init!(Seat {
            dev: shared.into(),
            turn,
            work <- Later::waiting(work),
            assigned: Atomic::new(false),
            held: Atomic::new(false),
        }),
        GFP_KERNEL,
    )?;
    // INVARIANT: The device is bound, and `leave` is called before it is not.
    with(|group| {
        let mut inner = group.inner.lock();
        Ok(inner.seats.push(seat.clone(), GFP_KERNEL)?)
    })?;
    Ok(seat)
}

/// The device is about to be unbound, and requests that wait for it have been ended. Waits until
/// nothing is done for the group with it. May sleep.
pub(super) fn leave(seat: &Arc<Seat>) {
    let _ = with(|group| {
        group
            .inner
            .lock()
            .seats
            .retain(|other| !Arc::ptr_eq(other, seat));
        seat.work.close();
        if seat.assigned.xchg(false, Full) {
            group.finish(
                seat,
                Err(Failure::new(ENODEV, "the driver is being unbound")),
            );
        }
        Ok(())
    });
}

/// Does what the device of a seat is asked to, if it is: `request` is called with the goal and the
/// time that there is for it.
pub(super) fn carry_out(
    seat: &Seat,
    request: impl FnOnce(Goal, &Limit<'_>) -> Result<(), Failure>,
) {
    let _ = with(|group| {
        if !seat.assigned.xchg(false, Full) {
            return Ok(());
        }
        let inner = group.inner.lock();
        // There is a round as long as a device has not finished.
        let Some(round) = &inner.round else {
            return Ok(());
        };
        let goal = round.goal;
        let limit = Limit::new(round.started, round.timeout_ms, &group.called_off);
        drop(inner);
        let result = request(goal, &limit);
        group.finish(seat, result);
        Ok(())
    });
}

impl Group {
    /// For the module's init function. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Pin<KBox<Self>>> {
        let this = KBox::pin_init(
            pin_init!(Self {
                inner <- new_mutex!(Inner {
                    seats: KVec::new(),
                    round: None,
                    timeout_ms: super::controller::DEFAULT_TIMEOUT_MS,
                    excepted: KVec::new(),
                    last_error: None,
                }),
                done <- Completion::new(),
                called_off: Atomic::new(false),
            }),
            GFP_KERNEL,
        )?;
        // INVARIANT: It stays where it is.
        GROUP.store(core::ptr::from_ref(&*this).cast_mut().cast(), Release);
        Ok(this)
    }

    /// Suspends all devices that can be and are not left out, or none; or resumes those that have
    /// been suspended so. Returns when that is done. May sleep.
    ///
    /// # Errors
    ///
    /// As in Documentation/ABI/testing/sysfs-bus-virtio-suspend.
    fn request(&self, goal: Goal) -> Result {
        let _no_io = NoIo::enter();
        let mut inner = self.inner.lock();
        match (goal, inner.state()) {
            (_, State::Suspending | State::Resuming) => return Err(EBUSY),
            (Goal::Suspend, State::Suspended) | (Goal::Resume, State::Running) => {
                return Err(EALREADY)
            }
            _ => {}
        }
        let timeout_ms = inner.timeout_ms;
        inner.round = Some(Round::new(goal, timeout_ms));
        drop(inner);

        self.called_off.store(false, Release);
        self.take_turns(goal, true);
        let mut inner = self.inner.lock();
        let round = inner.round.as_ref();
        let failure = round.and_then(|round| round.failure);
        let nobody = round.and_then(|round| match (round.done, round.excuse) {
            (0, None) => Some(ENODEV),
            (0, excuse) => excuse,
            _ => None,
        });
        if failure.is_some() {
            inner.last_error = failure;
            if goal == Goal::Suspend {
                // All or nothing.
                inner.round = Some(Round::new(Goal::Resume, timeout_ms));
                drop(inner);
                self.called_off.store(false, Release);
                self.take_turns(Goal::Resume, false);
                inner = self.inner.lock();
            }
        }
        inner.round = None;
        drop(inner);
        match (failure, nobody) {
            (Some((_, failure)), _) => Err(failure.error),
            // Whoever has resumed a device by hand since has spared us that.
            (None, Some(error)) if goal == Goal::Suspend => Err(error),
            _ => Ok(()),
        }
    }

    /// Has all devices do what the round asks for, those of one turn after those of the other.
    ///
    /// If the task is killed and that counts, they are called off. They are waited for in any case.
    fn take_turns(&self, goal: Goal, is_killable: bool) {
        for turn in Turn::order(goal) {
            if !self.assign(goal, turn) {
                continue;
            }
            let slice = || msecs_to_jiffies(LOOK_MS);
            let mut is_killable = is_killable;
            loop {
                let is_done = if is_killable {
                    self.done
                        .wait_killable_timeout(slice())
                        .unwrap_or_else(|_| {
                            self.called_off.store(true, Release);
                            is_killable = false;
                            false
                        })
                } else {
                    self.done.wait_timeout(slice())
                };
                if is_done {
                    break;
                }
            }
            let inner = self.inner.lock();
            let has_failed = inner.round.as_ref().is_some_and(|r| r.failure.is_some());
            // What has been begun of a resume is for each device to end by itself.
            if has_failed && goal == Goal::Suspend {
                return;
            }
        }
    }

    /// Sets those devices to work whose turn it is. Returns whether there are any.
    fn assign(&self, goal: Goal, turn: Turn) -> bool {
        let mut inner = self.inner.lock();
        let Inner {
            seats,
            round,
            excepted,
            ..
        } = &mut *inner;
        let Some(round) = round else {
            return false;
        };
        self.done.reinit();
        round.pending = 0;
        let is_meant = |seat: &&Arc<Seat>| {
            seat.turn == turn
                && match goal {
                    Goal::Suspend => !excepted.contains(&seat.dev.index()),
                    Goal::Resume => seat.is_held(),
                }
        };
        // None of them is done with it before the lock is released.
        for seat in seats.iter().filter(is_meant) {
            round.pending += 1;
            seat.assigned.store(true, Release);
            // SAFETY: By the type invariants the device is bound. Before it is not, `leave` takes
            // the seat away, for which the lock is needed that is held here, and has the work
            // closed.
            let dev = unsafe { &*seat.dev.as_raw().cast::<Device<BoundInternal>>() };
            seat.work.schedule_now(dev);
        }
        round.pending != 0
    }

    /// A device has done what it was asked to, or has not.
    fn finish(&self, seat: &Seat, result: Result<(), Failure>) {
        let mut inner = self.inner.lock();
        let Some(round) = &mut inner.round else {
            return;
        };
        match (round.goal, result) {
            (Goal::Suspend, Ok(())) => {
                seat.held.store(true, Release);
                round.done += 1;
            }
            (Goal::Resume, Ok(())) => {
                seat.let_go();
                round.done += 1;
            }
            // Somebody else has resumed it.
            (Goal::Resume, Err(Failure { error, .. })) if error == EALREADY => seat.let_go(),
            (Goal::Suspend, Err(Failure { error, .. }))
                if error == EALREADY || error == EOPNOTSUPP =>
            {
                round.excuse = Some(error);
            }
            (_, Err(failure)) => {
                round.failure.get_or_insert((seat.dev.index(), failure));
            }
        }
        round.pending -= 1;
        if round.pending == 0 {
            self.done.complete_all();
        }
    }
}

impl Round {
    fn new(goal: Goal, timeout_ms: u32) -> Self {
        Self {
            goal,
            started: Instant::now(),
            timeout_ms,
            pending: 0,
            done: 0,
            excuse: None,
            failure: None,
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Group {
    fn drop(self: Pin<&mut Self>) {
        GROUP.store(null_mut(), Release);
    }
}
