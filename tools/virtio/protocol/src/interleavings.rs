// SPDX-License-Identifier: GPL-2.0

//! Every interleaving of those who have to do with a device, through the state machine of the
//! controller as the kernel module has it.
//!
//! Two tasks that write to `request`, the work that looks at the device, the unbinding of the
//! driver, its probe, the virtio core (sleep, resets of the function, shutdown) and the device
//! itself take turns, at every point where they can. The locks `order` and the device lock are held
//! for as long as in the kernel; what is done with the state machine locked is one step, and so is
//! taking `order` or the device lock together with what comes next, because nobody can see the
//! difference. What a request does with the status is short here, see [`super::exhaustive`] for
//! that.

mod moves;
mod others;
mod sleep;
mod tasks;
mod world;

use std::{
    collections::HashMap,
    hash::{
        BuildHasher,
        RandomState, //
    },
    sync::Mutex, //
};

use stateright::{
    Checker,
    HasDiscoveries,
    Model,
    Property, //
};

use crate::{
    protocol::State,
    state_machine::Watch, //
};
use moves::{
    Move,
    Moves, //
};
use world::{
    At,
    Bus,
    Core,
    Kind,
    Pc,
    Stop,
    Violation,
    World,
    TASKS,
    WATCH, //
};

/// The steps from a state to others, which are numbered in the order in which they are found.
#[derive(Default)]
struct Graph {
    hasher: RandomState,
    /// By their hash: 64 bits tell them apart.
    numbers: HashMap<u64, u32>,
    quiet: Vec<bool>,
    steps: usize,
    /// The steps that come by themselves: from, to.
    progress: Vec<(u32, u32)>,
}

impl Graph {
    fn number(&mut self, world: &World) -> u32 {
        let next = self.quiet.len() as u32;
        let number = *self
            .numbers
            .entry(self.hasher.hash_one(world))
            .or_insert(next);
        if number == next {
            self.quiet.push(is_quiet(world));
        }
        number
    }

    /// Returns how many states there are from which nothing that comes by itself leads to rest.
    fn stuck(&self) -> usize {
        let mut reaches = self.quiet.clone();
        let mut back: Vec<Vec<u32>> = vec![Vec::new(); reaches.len()];
        for &(from, to) in &self.progress {
            back[to as usize].push(from);
        }
        let mut todo: Vec<u32> = (0..reaches.len() as u32)
            .filter(|&number| reaches[number as usize])
            .collect();
        while let Some(to) = todo.pop() {
            for &from in &back[to as usize] {
                if !std::mem::replace(&mut reaches[from as usize], true) {
                    todo.push(from);
                }
            }
        }
        reaches.iter().filter(|reaches| !**reaches).count()
    }
}

struct Interleavings {
    kind: Kind,
    start: Bus,
    graph: Mutex<Graph>,
}

/// Whether everything is at rest: nobody waits, and nothing is due.
fn is_quiet(w: &World) -> bool {
    w.tasks == [Pc::Idle; TASKS]
        && w.order.is_none()
        && (!w.pending || w.closed)
        && !others::deliverable(w)
        && !w.is_left()
        && matches!(w.bus, Bus::Bound | Bus::Unbound)
        && (matches!(w.core, Core::None | Core::Down) || sleeps(w))
}

/// Whether the system sleeps.
fn sleeps(w: &World) -> bool {
    matches!(w.core, Core::Stopped(Stop::Sleep) | Core::Asleep)
}

/// Whether everything is at rest, and the device is the controller's.
fn is_settled(w: &World) -> bool {
    let others = matches!(w.fate, world::Fate::Reset | world::Fate::Operating);
    is_quiet(w) && w.bus == Bus::Bound && w.core == Core::None && !others
}

impl Model for Interleavings {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.kind, self.start)]
    }

    fn actions(&self, from: &World, moves: &mut Vec<Move>) {
        if from.violation.is_some() {
            return;
        }
        let mut all = Moves {
            from,
            who: "device",
            moves,
        };
        others::device(&mut all);
        all.who = "bus";
        others::bus(&mut all);
        all.who = "core";
        others::core(&mut all);
        for (task, who) in ["writer 0", "writer 1", "watch"].into_iter().enumerate() {
            all.who = who;
            tasks::moves(&mut all, task);
        }

        let mut graph = self.graph.lock().unwrap();
        let number = graph.number(from);
        graph.steps += moves.len();
        for step in moves.iter() {
            let to = graph.number(&step.to);
            if step.progress {
                graph.progress.push((number, to));
            }
        }
    }

    fn next_state(&self, _from: &World, step: Move) -> Option<World> {
        Some(*step.to)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("announcements are in order", |_, w: &World| {
                w.violation != Some(Violation::OutOfOrder)
            }),
            Property::always("what was announced last is so", |_, w: &World| {
                w.order.is_some() || w.announced == w.machine.state()
            }),
            Property::always("a device of others is not touched", |_, w: &World| {
                w.violation != Some(Violation::Touched)
            }),
            Property::always("a device is stopped by one at a time", |_, w: &World| {
                !matches!(
                    w.violation,
                    Some(Violation::StoppedTwice | Violation::Model)
                )
            }),
            Property::always("a device is driven by one at a time", |_, w: &World| {
                w.tasks.iter().filter(|pc| World::drives(**pc)).count() <= 1
            }),
            Property::always("a request leaves the state consistent", |_, w: &World| {
                !is_quiet(w) || !w.machine.in_transition()
            }),
            Property::always("a device that runs is not gated", |_, w: &World| {
                !is_settled(w) || w.machine.state() != State::Running || !w.gated
            }),
            Property::always("a device that runs does", |_, w: &World| {
                !is_settled(w)
                    || w.kind == Kind::Extension
                    || w.machine.state() != State::Running
                    || w.device.gone
                    || w.device.at != At::NeedsReset && w.device.at != At::Reset
            }),
            Property::always("a suspended device is gated and minded", |_, w: &World| {
                !is_settled(w) || w.machine.state() != State::Suspended || w.gated && w.held
            }),
            Property::always("who waits for a failed device is told", |_, w: &World| {
                !is_settled(w) || w.machine.state() != State::Failed || w.told
            }),
            Property::always("a system does not sleep with a request", |_, w: &World| {
                !sleeps(w) || !w.tasks[..WATCH].iter().any(|pc| *pc != Pc::Idle)
            }),
            Property::sometimes("a device is suspended", |_, w: &World| {
                is_settled(w) && w.machine.state() == State::Suspended
            }),
            Property::sometimes("a device fails", |_, w: &World| {
                w.machine.state() == State::Failed
            }),
            Property::sometimes("a device is unbound", |_, w: &World| w.bus == Bus::Unbound),
            Property::always(
                "a device that keeps its state is suspended",
                |_, w: &World| w.core != Core::Asleep || w.gated || w.bus == Bus::Unbound,
            ),
            Property::sometimes("a system sleeps", |_, w: &World| {
                w.core == Core::Stopped(Stop::Sleep)
            }),
            Property::sometimes("a device keeps its state", |_, w: &World| {
                w.core == Core::Asleep && w.machine.state() == State::Running
            }),
            Property::sometimes("one that is suspended does, too", |_, w: &World| {
                w.core == Core::Asleep && w.machine.state() == State::Suspended
            }),
            Property::sometimes(
                "one is restarted by its own driver",
                |m: &Self, w: &World| m.kind == Kind::Native || w.core == Core::OwnRestart,
            ),
        ]
    }
}

fn check(kind: Kind, start: Bus) {
    let checker = Interleavings {
        kind,
        start,
        graph: Mutex::default(),
    }
    .checker()
    .threads(2)
    // One that is wrong may have many more states.
    .finish_when(HasDiscoveries::AnyFailures)
    .spawn_bfs()
    .join();

    println!(
        "{kind:?} from {start:?}: {} states, {} steps between them, at most {} one after another",
        checker.unique_state_count(),
        checker.model().graph.lock().unwrap().steps,
        checker.max_depth(),
    );
    for (name, path) in checker.discoveries() {
        if checker.model().property(name).expectation == stateright::Expectation::Always {
            println!("{name}:");
            for (world, step) in path.clone().into_vec() {
                println!("  {step:?}");
                if step.is_none() {
                    println!("{world:#?}");
                }
            }
        }
    }
    checker.assert_properties();
    let graph = checker.model().graph.lock().unwrap();
    assert_eq!(graph.quiet.len(), checker.unique_state_count());
    assert_eq!(graph.stuck(), 0, "states without a way out");
}

#[test]
fn native() {
    check(Kind::Native, Bus::ProbeStart);
}

#[test]
fn extension() {
    check(Kind::Extension, Bus::Bound);
}

#[test]
fn a_watch_ends() {
    let mut watch = Watch::new(60_000);
    let mut looks = 0;
    let mut ms = 0;
    let mut last = 0;
    while let Some(step) = watch.step() {
        assert!(Watch::STEP_MS.contains(&step) && step >= last);
        (looks, ms, last) = (looks + 1, ms + step, step);
    }
    assert!((60_000..61_000).contains(&ms), "{ms} ms");
    assert!(looks < 70, "{looks} looks");

    let mut watch = Watch::OFF;
    assert_eq!(watch.step(), None);
    let mut watch = Watch::new(u32::MAX);
    assert!((0..200_000).all(|_| watch.step().is_some()));
}
