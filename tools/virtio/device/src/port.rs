// SPDX-License-Identifier: GPL-2.0

//! How the threads of a device type reach the device: the guest's memory, for as long as they may
//! touch it, and what they have to say.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use crate::memory::Memory;
use crate::request::{Completion, Token};

/// What may be done with the guest's memory.
#[derive(Debug, Default)]
struct Grant {
    memory: Memory,
    /// For each queue the first token that counts: those before were dropped by a reset.
    first: Vec<Token>,
}

/// What the threads had to say since the device last looked.
#[derive(Debug, Default)]
struct Inbox {
    done: Vec<Completion>,
    /// Queues to look at.
    look: Vec<u16>,
    /// The configuration may change.
    refresh: bool,
}

#[derive(Default)]
struct Shared {
    grant: RwLock<Grant>,
    inbox: Mutex<Inbox>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// The way from a device type's threads to the device; a clone is the same port.
///
/// [`Port::complete`], [`Port::look`] and [`Port::refresh_config`] may take the lock of the device. They are not for the
/// methods of [`crate::virtio_device::VirtioDevice`], which run under it, nor for who has [`Port::enter`]ed: a
/// reset waits for those, under that lock.
#[derive(Clone, Default)]
pub struct Port(Arc<Shared>);

/// The guest's memory, while a request may touch it. A reset waits until this is dropped.
pub struct Entered<'a>(RwLockReadGuard<'a, Grant>);

impl std::ops::Deref for Entered<'_> {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.0.memory
    }
}

impl Port {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's memory for the request of `token`; none if a reset has dropped that.
    pub fn enter(&self, queue: u16, token: Token) -> Option<Entered<'_>> {
        let grant = self.0.grant.read().unwrap_or_else(PoisonError::into_inner);
        let first = grant.first.get(usize::from(queue))?;
        (token >= *first).then_some(Entered(grant))
    }

    /// Requests are finished. `done` is empty afterwards.
    pub fn complete(&self, done: &mut Vec<Completion>) {
        self.inbox().done.append(done);
        self.wake();
    }

    /// Something has happened for which [`crate::virtio_device::VirtioDevice::wants`] may want a buffer.
    pub fn look(&self, queue: u16) {
        self.inbox().look.push(queue);
        self.wake();
    }

    /// Something has happened by which the configuration changes.
    pub fn refresh_config(&self) {
        self.inbox().refresh = true;
        self.wake();
    }

    fn wake(&self) {
        if let Some(wake) = self.0.wake.get() {
            wake();
        }
    }

    /// What is called when a thread has something to say; without it, who owns the device looks
    /// by itself.
    pub(crate) fn on_wake(&self, wake: impl Fn() + Send + Sync + 'static) {
        // Once a process: the port of a device that is served already stays as it is.
        let _ = self.0.wake.set(Box::new(wake));
    }

    /// Moves what the threads said to `done` and `look`; returns whether there was anything.
    pub(crate) fn take(&self, done: &mut Vec<Completion>, look: &mut Vec<u16>) -> bool {
        let mut inbox = self.inbox();
        done.append(&mut inbox.done);
        look.append(&mut inbox.look);
        !(done.is_empty() && look.is_empty())
    }

    /// Whether the configuration may have changed since this was last asked.
    pub(crate) fn take_refresh(&self) -> bool {
        std::mem::take(&mut self.inbox().refresh)
    }

    fn change(&self, change: impl FnOnce(&mut Grant)) {
        change(&mut self.0.grant.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The guest's memory is this from now on. Waits for those that use what it was.
    pub(crate) fn set_memory(&self, memory: &Memory) {
        self.change(|grant| grant.memory = memory.clone());
    }

    /// Drops all requests before `first`, and waits for those that touch memory right now.
    pub(crate) fn revoke(&self, queues: usize, first: Token) {
        self.change(|grant| grant.first = vec![first; queues]);
    }

    /// Drops the requests of one queue.
    pub(crate) fn revoke_queue(&self, queue: u16, first: Token) {
        self.change(|grant| {
            if let Some(queue) = grant.first.get_mut(usize::from(queue)) {
                *queue = first;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_dropped_does_not_get_in() {
        let port = Port::default();
        assert!(port.enter(0, 0).is_none());
        port.revoke(2, 5);
        assert!(port.enter(0, 4).is_none());
        assert!(port.enter(1, 5).is_some());
        assert!(port.enter(2, 5).is_none());
        port.revoke_queue(1, 9);
        assert!(port.enter(1, 8).is_none());
        assert!(port.enter(0, 8).is_some());
    }

    #[test]
    fn a_reset_waits_for_who_is_in() {
        let port = Port::default();
        port.revoke(1, 0);
        let dropped = Arc::new(AtomicBool::new(false));
        let entered = port.enter(0, 0).unwrap();
        let thread = {
            let (port, dropped) = (port.clone(), Arc::clone(&dropped));
            thread::spawn(move || {
                port.revoke(1, 1);
                assert!(dropped.load(Ordering::SeqCst));
            })
        };
        thread::sleep(Duration::from_millis(50));
        dropped.store(true, Ordering::SeqCst);
        drop(entered);
        thread.join().unwrap();
        assert!(port.enter(0, 0).is_none());
    }

    #[test]
    fn what_is_said_is_heard_once() {
        let port = Port::default();
        let heard = Arc::new(Mutex::new(0));
        let count = Arc::clone(&heard);
        port.on_wake(move || *count.lock().unwrap() += 1);
        let mut done = vec![Completion {
            queue: 1,
            token: 7,
            result: Ok(3),
        }];
        port.complete(&mut done);
        port.look(4);
        assert_eq!(*heard.lock().unwrap(), 2);
        assert!(done.is_empty());
        let mut look = Vec::new();
        assert!(port.take(&mut done, &mut look));
        assert_eq!((done.len(), done[0].token, &look[..]), (1, 7, &[4][..]));
        done.clear();
        look.clear();
        assert!(!port.take(&mut done, &mut look));
        port.refresh_config();
        assert!(port.take_refresh());
        assert!(!port.take_refresh());
    }
}
