// SPDX-License-Identifier: GPL-2.0

//! What the device is to do at a later time, besides ending a transition.

use crate::fault::Effect;

/// Most timers at a time; more are not needed, and are dropped.
const MOST: usize = 256;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// An effect, if the device is suspended still.
    Effect(Effect, u64),
    /// Present that it is suspended, even if that was taken back.
    LateSuspend,
    /// Give up, if not suspended yet.
    DrainLimit,
    /// Run again by itself.
    Drop,
    /// Present that it has been reset.
    LateReset,
    /// Send a used-buffer notification of a queue that was held back.
    LateNotification(usize),
    /// Send a used-buffer notification of every queue, if suspended.
    NotifySuspended,
    /// Put the buffers in process into the used ring, if suspended.
    UseSuspended,
    /// Write to the buffers that are available, if suspended.
    WriteSuspended,
    /// A configuration change, held back if suspended.
    ConfigChange,
    /// A configuration change, notified although suspended.
    ConfigChangeNow,
}

/// The timers that run.
#[derive(Debug, Default)]
pub struct Timers {
    timers: Vec<(u64, Timer)>,
}

impl Timers {
    /// Starts one that is due at `due_us`; an equal one that runs already stays as it is.
    pub fn start(&mut self, due_us: u64, timer: Timer) {
        if self.timers.len() < MOST && !self.timers.iter().any(|(_, other)| *other == timer) {
            self.timers.push((due_us, timer));
        }
    }

    /// When the next one is due.
    pub fn next_us(&self) -> Option<u64> {
        self.timers.iter().map(|(due, _)| *due).min()
    }

    /// Takes the next one that is due at `now_us`.
    pub fn take_due(&mut self, now_us: u64) -> Option<Timer> {
        let next = self.next_us().filter(|due| *due <= now_us)?;
        let at = self.timers.iter().position(|(due, _)| *due == next)?;
        Some(self.timers.remove(at).1)
    }

    /// Takes the late notifications, due or not: the queues.
    pub fn take_late_notifications(&mut self) -> Vec<usize> {
        let mut queues = Vec::new();
        self.timers.retain(|(_, timer)| match timer {
            Timer::LateNotification(queue) => {
                queues.push(*queue);
                false
            }
            _ => true,
        });
        queues
    }

    /// Stops one.
    pub fn stop(&mut self, timer: Timer) {
        self.timers.retain(|(_, other)| *other != timer);
    }

    /// Stops all.
    pub fn clear(&mut self) {
        self.timers.clear();
    }

    /// Stops all but late notifications, which are owed to the driver.
    pub fn clear_faults(&mut self) {
        self.timers
            .retain(|(_, timer)| matches!(timer, Timer::LateNotification(_)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_of_time() {
        let mut timers = Timers::default();
        timers.start(20, Timer::Drop);
        timers.start(10, Timer::LateSuspend);
        timers.start(5, Timer::Drop);
        assert_eq!(timers.next_us(), Some(10));
        assert_eq!(timers.take_due(9), None);
        assert_eq!(timers.take_due(30), Some(Timer::LateSuspend));
        assert_eq!(timers.take_due(30), Some(Timer::Drop));
        assert_eq!(timers.take_due(30), None);
    }

    #[test]
    fn bounded_and_cleared() {
        let mut timers = Timers::default();
        for queue in 0..1000 {
            timers.start(queue as u64, Timer::LateNotification(queue));
        }
        assert_eq!(timers.timers.len(), MOST);
        timers.start(0, Timer::Drop);
        timers.clear_faults();
        assert_eq!(timers.take_late_notifications().len(), MOST);
        assert_eq!(timers.next_us(), None);
    }
}
