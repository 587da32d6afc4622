// SPDX-License-Identifier: GPL-2.0

//! The threads that carry requests out.
//!
//! They end with the process: a device lives as long.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::execute::{Disk, Executor};
use super::request::Terms;
use crate::port::Port;
use crate::request::{Completion, Request};

/// Most requests that a thread takes at a time.
const BATCH: usize = 16;
/// A thread gives back what it has finished when that is as many bytes, however many it took.
const BATCH_BYTES: u64 = 128 * 1024;

/// Something to do.
struct Job {
    request: Request,
    terms: Arc<Terms>,
}

#[derive(Default)]
struct Shared {
    jobs: Mutex<VecDeque<Job>>,
    more: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work and takes this thread's share of it.
    fn take(&self, threads: usize, batch: &mut Vec<Job>) {
        let mut jobs = self.lock();
        while jobs.is_empty() {
            jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        let share = jobs.len().div_ceil(threads).min(BATCH);
        batch.extend(jobs.drain(..share));
    }
}

/// The threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    /// Jobs that no thread was told of yet.
    new: usize,
}

impl Pool {
    /// Starts `threads` threads.
    pub fn start(threads: usize, disk: &Arc<Disk>, port: &Port) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        for index in 0..threads {
            let (shared, port) = (Arc::clone(&shared), port.clone());
            let executor = Executor::new(Arc::clone(disk));
            thread::Builder::new()
                .name(format!("blk{index}"))
                .spawn(move || work(&shared, threads, &port, executor))?;
        }
        Ok(Self {
            shared,
            threads,
            new: 0,
        })
    }

    /// A request to carry out, once [`Pool::submit`] is called.
    pub fn push(&mut self, request: Request, terms: Arc<Terms>) {
        self.shared.lock().push_back(Job { request, terms });
        self.new += 1;
    }

    /// Tells the threads of what is new.
    pub fn submit(&mut self) {
        for _ in 0..std::mem::take(&mut self.new).min(self.threads) {
            self.shared.more.notify_one();
        }
    }

    /// Forgets what no thread has begun with, if `which` says so.
    pub fn forget(&self, which: impl Fn(&Request) -> bool) {
        self.shared.lock().retain(|job| !which(&job.request));
    }
}

fn work(shared: &Shared, threads: usize, port: &Port, mut executor: Executor) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut done = Vec::with_capacity(BATCH);
    loop {
        shared.take(threads, &mut batch);
        let mut bytes = 0;
        for Job { request, terms } in batch.drain(..) {
            let Some(mem) = port.enter(request.queue, request.token) else {
                continue;
            };
            let result = executor.execute(&request, &terms, &mem);
            drop(mem);
            bytes += request.buffer.head.writable_len;
            bytes += request
                .buffer
                .readable
                .iter()
                .map(|s| u64::from(s.len))
                .sum::<u64>();
            done.push(Completion {
                queue: request.queue,
                token: request.token,
                result,
            });
            if bytes >= BATCH_BYTES {
                port.complete(&mut done);
                bytes = 0;
            }
        }
        if !done.is_empty() {
            port.complete(&mut done);
        }
    }
}
