// SPDX-License-Identifier: GPL-2.0

//! Which test runs when.
//!
//! There are tests that are to share a guest, the kselftests, since booting takes longer than most
//! of them. The others have guests of their own, or none. A slot is what can run at a time. The
//! first slot begins with a guest for the kselftests, the others with the rest; and when nothing
//! is left of one kind, a slot goes over to the other. A guest takes a kselftest when it has
//! finished the one before, so that no plan has to be right. It should only have the long ones
//! begin first, and how long they take is known from before, see [`Durations`].

use crate::tree::Tree;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// More guests at a time than this have not been tried.
const MOST_SLOTS: usize = 2;

/// How many tests may run at a time, on this machine.
pub fn slots() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(MOST_SLOTS))
}

/// A test that shares its guest with no other.
pub struct Unit<'a> {
    pub name: String,
    pub run: Box<dyn FnOnce() + Send + 'a>,
}

/// The tests that share guests, as a slot sees them.
pub trait Shared: Sync {
    /// Whether some are left for which another guest is worth it.
    fn is_worth_a_guest(&self) -> bool;

    /// Runs them in a guest until none is left.
    fn run_guest(&self);
}

/// Runs all units, in this order, and what is shared; returns when all have been run.
pub fn run<'a>(slots: usize, units: Vec<Unit<'a>>, shared: &impl Shared) {
    let units = Mutex::new(VecDeque::from(units));
    let next = || {
        units
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let run_units = || {
        while let Some(unit) = next() {
            (unit.run)();
        }
    };
    let run_shared = || {
        if shared.is_worth_a_guest() {
            shared.run_guest();
        }
    };
    thread::scope(|scope| {
        for _ in 1..slots.max(1) {
            scope.spawn(|| {
                run_units();
                run_shared();
            });
        }
        run_shared();
        run_units();
    });
}

/// How long tests usually take, in whole seconds.
pub struct Durations(BTreeMap<String, u64>);

/// What a test takes of which nothing is known: some take longer.
const UNKNOWN: Duration = Duration::from_secs(30);

/// Where they are kept in the tree.
const DURATIONS: &str = "tools/virtio/lab/durations.toml";

const HEAD: &str = "\
# SPDX-License-Identifier: GPL-2.0
#
# How many seconds tests take on the stock kernel, two at a time on two cores: long ones are begun
# first.  A test that is not here is taken for one of 30 s.  `scripts/lab test --record` writes this
# file.

";

impl Durations {
    pub fn of(tree: &Tree) -> Result<Self> {
        let path = tree.join(DURATIONS);
        let text =
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        toml::from_str(text)
            .map(Self)
            .with_context(|| format!("can't understand {DURATIONS}"))
    }

    pub fn get(&self, test: &str) -> Duration {
        self.0
            .get(test)
            .map_or(UNKNOWN, |s| Duration::from_secs(*s))
    }

    /// Puts those that take longest first.
    pub fn sort<T>(&self, tests: &mut [T], name: impl Fn(&T) -> String) {
        tests.sort_by_key(|test| std::cmp::Reverse(self.get(&name(test))));
    }

    /// Takes over what was measured, and leaves out what `exists` does not know.
    pub fn record(
        &mut self,
        tree: &Tree,
        took: &[(String, Duration)],
        exists: impl Fn(&str) -> bool,
    ) -> Result<()> {
        for (name, time) in took {
            self.0.insert(name.clone(), time.as_secs().max(1));
        }
        self.0.retain(|name, _| exists(name));
        let path = tree.join(DURATIONS);
        fs::write(&path, self.text()).with_context(|| format!("can't write {}", path.display()))
    }

    fn text(&self) -> String {
        let mut text = String::from(HEAD);
        for (name, seconds) in &self.0 {
            // Names need no escapes: they are those of files.
            let _ = writeln!(text, "\"{name}\" = {seconds}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::Barrier;

    /// Tests that share guests, of which only their number matters.
    #[derive(Default)]
    struct Fake {
        left: AtomicUsize,
        guests: AtomicUsize,
        running: AtomicUsize,
        most: AtomicUsize,
    }

    impl Fake {
        fn with(left: usize) -> Self {
            Self {
                left: left.into(),
                ..Self::default()
            }
        }

        fn while_running(&self, work: impl FnOnce()) {
            let running = self.running.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(running, SeqCst);
            work();
            self.running.fetch_sub(1, SeqCst);
        }

        fn take(&self) -> bool {
            self.left
                .fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1))
                .is_ok()
        }
    }

    impl Shared for Fake {
        fn is_worth_a_guest(&self) -> bool {
            self.left.load(SeqCst) > 0
        }

        fn run_guest(&self) {
            self.guests.fetch_add(1, SeqCst);
            self.while_running(|| while self.take() {});
        }
    }

    fn unit<'a>(name: &str, run: impl FnOnce() + Send + 'a) -> Unit<'a> {
        Unit {
            name: name.into(),
            run: Box::new(run),
        }
    }

    #[test]
    fn everything_is_run_once_and_never_more_than_the_slots() {
        for slots in 1..4 {
            let (fake, ran) = (Fake::with(50), Mutex::new(Vec::new()));
            let units = (0..20).map(|number| {
                let (fake, ran) = (&fake, &ran);
                unit("", move || {
                    fake.while_running(|| ran.lock().unwrap().push(number));
                })
            });
            run(slots, units.collect(), &fake);
            let mut ran = ran.into_inner().unwrap();
            ran.sort_unstable();
            assert_eq!(ran, (0..20).collect::<Vec<_>>());
            assert_eq!(fake.left.load(SeqCst), 0);
            assert!(fake.most.load(SeqCst) <= slots);
            assert!((1..=slots).contains(&fake.guests.load(SeqCst)));
        }
    }

    #[test]
    fn a_unit_runs_beside_the_shared_guest() {
        /// One guest, which waits for somebody else to wait, too.
        struct Meets(Barrier, AtomicUsize);

        impl Shared for Meets {
            fn is_worth_a_guest(&self) -> bool {
                self.1.fetch_add(1, SeqCst) == 0
            }

            fn run_guest(&self) {
                self.0.wait();
            }
        }

        // It would not end if one came after the other.
        let meets = Meets(Barrier::new(2), AtomicUsize::new(0));
        run(2, vec![unit("", || _ = meets.0.wait())], &meets);
    }

    #[test]
    fn no_guest_for_nothing() {
        let fake = Fake::with(0);
        run(2, Vec::new(), &fake);
        assert_eq!(fake.guests.load(SeqCst), 0);
    }

    #[test]
    fn long_ones_come_first_and_unknown_ones_before_short_ones() {
        let durations = Durations::parse("'a' = 3\n'b' = 90\n'c' = 7").unwrap();
        let mut names = vec!["a", "new", "b", "c"];
        durations.sort(&mut names, |name| name.to_string());
        assert_eq!(names, ["b", "new", "c", "a"]);
    }

    #[test]
    fn what_is_recorded_can_be_read() {
        let durations = Durations::parse("\"guest/a.py\" = 3\n").unwrap();
        let again = Durations::parse(&durations.text()).unwrap();
        assert_eq!(again.0, durations.0);
    }

    #[test]
    fn the_table_of_the_tree() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let durations = Durations::of(&Tree::copy_at(root)).unwrap();
        assert!(!durations.0.is_empty());
    }
}
