// SPDX-License-Identifier: GPL-2.0

//! In which order things are stopped, and all or nothing: pure logic.

use rustix::io::Errno;

/// What is stopped, in this order: whoever writes to a file system while it is frozen waits in
/// memory, and what an interface still sends when a disk stands still may come from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    FileSystem,
    Other,
    Interface,
    Disk,
}

/// Whatever can be stopped and can go on.
pub trait Steps {
    /// Stops the thing of that number. If it fails, the thing is as it was before.
    fn stop(&mut self, number: usize) -> Result<(), Errno>;

    /// Has the thing of that number go on. It has been stopped.
    fn go_on(&mut self, number: usize) -> Result<(), Errno>;

    /// Whether to stop nothing more.
    fn is_over(&mut self) -> bool;
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All have been stopped.
    All,
    /// This one refused. What had been stopped has been told to go on.
    Refused(usize, Errno),
    /// It was over before it was done. What had been stopped has been told to go on.
    Over,
}

/// Stops `count` things, one after the other, or none.
///
/// `stuck` has room for that many; of what could not be told to go on it gets the errors. Nothing is
/// allocated.
pub fn stop_all(steps: &mut impl Steps, stuck: &mut [Option<Errno>]) -> Outcome {
    for number in 0..stuck.len() {
        let outcome = match steps.is_over() {
            true => Outcome::Over,
            false => match steps.stop(number) {
                Ok(()) => continue,
                Err(error) => Outcome::Refused(number, error),
            },
        };
        go_on_all(steps, &mut stuck[..number]);
        return outcome;
    }
    Outcome::All
}

/// Has all go on, in reverse; `stuck` has room for as many as there are. One that can't is no reason
/// to leave the others.
pub fn go_on_all(steps: &mut impl Steps, stuck: &mut [Option<Errno>]) {
    for (number, stuck) in stuck.iter_mut().enumerate().rev() {
        *stuck = steps.go_on(number).err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// What the things do, and what became of them.
    #[derive(Debug, Default)]
    struct World {
        refuses: Vec<bool>,
        stays: Vec<bool>,
        over_at: Option<usize>,
        asked: usize,
        stopped: Vec<bool>,
        log: Vec<(char, usize)>,
    }

    impl Steps for World {
        fn stop(&mut self, number: usize) -> Result<(), Errno> {
            assert!(!self.stopped[number], "stopped twice");
            self.log.push(('s', number));
            if self.refuses[number] {
                return Err(Errno::TIMEDOUT);
            }
            self.stopped[number] = true;
            Ok(())
        }

        fn go_on(&mut self, number: usize) -> Result<(), Errno> {
            assert!(self.stopped[number], "was never stopped");
            self.log.push(('g', number));
            if self.stays[number] {
                return Err(Errno::NODEV);
            }
            self.stopped[number] = false;
            Ok(())
        }

        fn is_over(&mut self) -> bool {
            self.asked += 1;
            self.over_at.is_some_and(|at| self.asked > at)
        }
    }

    fn world() -> impl Strategy<Value = World> {
        let things = vec(
            (prop::bool::weighted(0.1), prop::bool::weighted(0.2)),
            0..12,
        );
        (things, prop::option::weighted(0.2, 0..12usize)).prop_map(|(things, over_at)| World {
            stopped: vec![false; things.len()],
            refuses: things.iter().map(|thing| thing.0).collect(),
            stays: things.iter().map(|thing| thing.1).collect(),
            over_at,
            ..World::default()
        })
    }

    proptest! {
        #[test]
        fn all_or_nothing(mut world in world()) {
            let count = world.stopped.len();
            let mut stuck = vec![None; count];
            let outcome = stop_all(&mut world, &mut stuck);
            match outcome {
                Outcome::All => {
                    prop_assert!(world.stopped.iter().all(|stopped| *stopped));
                    prop_assert!(!world.refuses.contains(&true));
                }
                Outcome::Refused(number, error) => {
                    // The first that does, and it is not asked again.
                    prop_assert_eq!(world.refuses.iter().position(|r| *r), Some(number));
                    prop_assert_eq!(error, Errno::TIMEDOUT);
                }
                Outcome::Over => prop_assert!(world.over_at.is_some()),
            }
            if outcome != Outcome::All {
                for (number, stopped) in world.stopped.iter().enumerate() {
                    // None but those that can't go on, which are named.
                    prop_assert!(!stopped || world.stays[number]);
                    prop_assert_eq!(*stopped, stuck[number].is_some());
                }
            }
            // Stopped in the order given, and told to go on in reverse: each that was stopped.
            let of = |kind| {
                let log = world.log.iter().filter(move |(which, _)| *which == kind);
                log.map(|(_, number)| *number).collect::<Vec<_>>()
            };
            let mut stops = of('s');
            prop_assert_eq!(&stops, &(0..stops.len()).collect::<Vec<_>>());
            if matches!(outcome, Outcome::Refused(..)) {
                stops.pop();
            }
            stops.reverse();
            match outcome {
                Outcome::All => prop_assert!(of('g').is_empty()),
                _ => prop_assert_eq!(of('g'), stops),
            }
        }

        #[test]
        fn each_is_told_to_go_on(mut world in world()) {
            let count = world.stopped.len();
            world.stopped = vec![true; count];
            let mut stuck = vec![None; count];
            go_on_all(&mut world, &mut stuck);
            let expected: Vec<_> = (0..count).rev().map(|number| ('g', number)).collect();
            prop_assert_eq!(&world.log, &expected);
            let named: Vec<_> = stuck.iter().map(Option::is_some).collect();
            prop_assert_eq!(named, world.stays);
        }
    }

    #[test]
    fn file_systems_come_first_and_disks_last() {
        let mut ranks = [Rank::Disk, Rank::Interface, Rank::FileSystem, Rank::Other];
        ranks.sort();
        let expected = [Rank::FileSystem, Rank::Other, Rank::Interface, Rank::Disk];
        assert_eq!(ranks, expected);
    }
}
