// SPDX-License-Identifier: GPL-2.0

//! Stopping all or nothing, waiting, and having all go on, whatever happens.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::allocator;
use crate::handles::{Handles, Step};
use crate::memory;
use crate::plan::{stop_all, Outcome, Steps};
use crate::sys;
use crate::sysfs::Root;
use crate::waiting::{wait, End, Signals, Source};
use crate::watchdog::Watchdog;

/// How late the first process may be before the watchdog takes over.
const GRACE: Duration = Duration::from_secs(5);
/// How long the first process goes on asking devices that do not resume, before it leaves them to
/// the watchdog.
const PATIENCE: Duration = Duration::from_secs(30);

/// All that is needed, opened, read and locked into memory; nothing has been stopped.
pub struct Hold<'a> {
    steps: &'a [Step],
    signals: &'a Signals,
    handles: Handles,
    watchdog: Watchdog,
    stuck: Vec<Option<Errno>>,
}

/// What came of it.
pub struct Report {
    pub outcome: Outcome,
    /// Why it is over, unless a device refused.
    pub end: Option<End>,
    /// Of those that did not go on, why; the watchdog asks them again.
    pub stuck: Vec<Option<Errno>>,
    /// For how long all stood still.
    pub held: Duration,
    /// Of memory, meanwhile.
    pub allocations: u64,
    /// Without, and with something to be read from a disk, meanwhile.
    pub faults: (i64, i64),
}

/// The handles, and those who are to be told and asked between two steps.
struct Guarded<'a> {
    handles: &'a mut Handles,
    watchdog: &'a Watchdog,
    signals: &'a Signals,
    /// How many steps have been begun.
    begun: usize,
    end: Option<End>,
}

impl Steps for Guarded<'_> {
    fn stop(&mut self, number: usize) -> Result<(), Errno> {
        let time = self.handles.cost(number) + GRACE;
        self.begun = number + 1;
        self.watchdog.limit(self.begun, time);
        self.handles.stop(number)
    }

    fn go_on(&mut self, number: usize) -> Result<(), Errno> {
        let time = self.handles.cost(number) + GRACE;
        self.watchdog.limit(self.begun, time);
        self.handles.go_on(number)
    }

    fn is_over(&mut self) -> bool {
        self.end = self.signals.next(None);
        if self.end.is_none() && self.watchdog.is_gone() {
            self.end = Some(End::Unguarded);
        }
        self.end.is_some()
    }
}

impl<'a> Hold<'a> {
    /// Gets ready; what can't be had but is not needed is told on standard error.
    pub fn prepare(root: &Root, steps: &'a [Step], signals: &'a Signals) -> Result<Self, String> {
        let handles = Handles::open(root, steps)?;
        let stuck = vec![None; handles.len()];
        let watchdog = Watchdog::start(root, steps)?;
        // After that: what is written after a fork is copied, which is done here, too.
        for warning in memory::lock()? {
            eprintln!("virtio-suspend: {warning}");
        }
        let mut hold = Self {
            steps,
            signals,
            handles,
            watchdog,
            stuck,
        };
        match hold.handles.set_timeouts(steps) {
            Ok(()) => Ok(hold),
            Err(error) => {
                hold.handles.restore_timeouts();
                hold.watchdog.dismiss();
                Err(error)
            }
        }
    }

    /// Stops all, or none, and leaves them so.
    pub fn stop(self) -> Report {
        self.carry_out(|_| None)
    }

    /// Stops all, or none; waits for something, but not for longer than `limit`; has all go on.
    pub fn run(self, limit: Duration, source: &mut dyn Source) -> Report {
        self.carry_out(|hold| {
            hold.watchdog.limit(hold.handles.len(), limit + GRACE);
            source.begun(limit);
            Some(wait(hold.signals, &hold.watchdog, source, limit))
        })
    }

    /// With nothing allocated, opened or printed from the first step to the last. What is waited
    /// for returns why it was over, or nothing if all are to be left as they are.
    fn carry_out(mut self, meanwhile: impl FnOnce(&mut Self) -> Option<End>) -> Report {
        allocator::seal();
        let before = sys::page_faults();
        let mut guarded = Guarded {
            handles: &mut self.handles,
            watchdog: &self.watchdog,
            signals: self.signals,
            begun: 0,
            end: None,
        };
        let outcome = stop_all(&mut guarded, &mut self.stuck);
        let mut end = guarded.end;
        let began = Instant::now();
        let mut held = Duration::ZERO;
        let mut left_so = false;
        if outcome == Outcome::All {
            end = meanwhile(&mut self);
            held = began.elapsed();
            left_so = end.is_none();
        }
        if !left_so {
            let count = self.handles.len();
            let costs: Duration = (0..count).map(|number| self.handles.cost(number)).sum();
            self.watchdog.limit(count, PATIENCE + costs + GRACE);
            self.handles.go_on_all(&mut self.stuck, Some(PATIENCE));
        }
        let after = sys::page_faults();
        let allocations = allocator::unseal();
        match self.stuck.iter().any(Option::is_some) {
            true => self.watchdog.hand_over(),
            false => {
                self.handles.restore_timeouts();
                self.watchdog.dismiss();
            }
        }
        debug_assert_eq!(self.stuck.len(), self.steps.len());
        Report {
            outcome,
            end,
            stuck: self.stuck,
            held,
            allocations,
            faults: (after.0 - before.0, after.1 - before.1),
        }
    }
}
