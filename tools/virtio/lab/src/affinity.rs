// SPDX-License-Identifier: GPL-2.0

//! Gives the guest's processor one of the machine's for itself.
//!
//! A device that has come to share it waits for its turn, for milliseconds, now and then, which
//! would be measured as if the driver had to wait.

use anyhow::{bail, Context, Result};
use rustix::process::Pid;
use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};
use std::fs;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

/// Ends the name of the thread that is all processors of the guest.
const VCPU: &str = "/TCG";
/// Until QEMU has started it.
const PATIENCE: Duration = Duration::from_secs(10);

/// While this is there, what its thread starts keeps off one of the machine's processors.
pub struct Apart {
    all: CpuSet,
    own: CpuSet,
}

impl Apart {
    /// There is none on a machine with one processor.
    pub fn begin() -> Result<Option<Self>> {
        let all = sched_getaffinity(None).context("can't ask for the processors")?;
        let Some(first) = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)) else {
            bail!("there are no processors");
        };
        if all.count() < 2 {
            return Ok(None);
        }
        let (mut own, mut others) = (CpuSet::new(), all);
        own.set(first);
        others.unset(first);
        sched_setaffinity(None, &others).context("can't leave a processor")?;
        Ok(Some(Self { all, own }))
    }

    /// Has the guest of this QEMU run on that processor, unless QEMU has ended.
    pub fn give_to(&self, qemu: &mut Child) -> Result<()> {
        let start = Instant::now();
        while qemu.try_wait().context("can't look at QEMU")?.is_none() {
            if let Some(thread) = find_vcpu(qemu.id()) {
                return self.give(thread);
            }
            if start.elapsed() > PATIENCE {
                let _ = qemu.kill();
                let _ = qemu.wait();
                bail!("QEMU has no thread for the guest's processor");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn give(&self, thread: Pid) -> Result<()> {
        sched_setaffinity(Some(thread), &self.own).context("can't give the guest a processor")
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.all);
    }
}

fn find_vcpu(qemu: u32) -> Option<Pid> {
    let threads = fs::read_dir(format!("/proc/{qemu}/task")).ok()?;
    threads
        .filter_map(Result::ok)
        .find(|entry| {
            fs::read_to_string(entry.path().join("comm"))
                .is_ok_and(|name| name.trim_end().ends_with(VCPU))
        })
        .and_then(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn what_is_started_keeps_off_one_processor_and_the_guest_gets_it() {
        // Affinity is the thread's: that of the test is of no other.
        let before = sched_getaffinity(None).unwrap();
        let Some(apart) = Apart::begin().unwrap() else {
            assert_eq!(before.count(), 1);
            return;
        };
        let (stop, stopped) = mpsc::channel::<()>();
        let (start, started) = mpsc::channel();
        let inside = thread::Builder::new()
            .name("ALL CPUs/TCG".into())
            .spawn(move || {
                // A thread names itself: by now it has.
                start.send(()).unwrap();
                let _ = stopped.recv();
                sched_getaffinity(None).unwrap()
            })
            .unwrap();
        started.recv().unwrap();
        assert_eq!(sched_getaffinity(None).unwrap().count(), before.count() - 1);
        apart.give(find_vcpu(std::process::id()).unwrap()).unwrap();
        drop(stop);
        let given = inside.join().unwrap();
        assert_eq!(given.count(), 1);
        assert!((0..CpuSet::MAX_CPU)
            .all(|cpu| !(given.is_set(cpu) && sched_getaffinity(None).unwrap().is_set(cpu))));
        drop(apart);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
