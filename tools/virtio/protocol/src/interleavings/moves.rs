// SPDX-License-Identifier: GPL-2.0

//! The steps that those who have to do with a device can take.

use super::world::World;

/// A step that somebody can take.
#[derive(Clone, PartialEq)]
pub struct Move {
    pub who: &'static str,
    pub what: &'static str,
    /// Whether it comes by itself, however the device and user space behave.
    pub progress: bool,
    pub to: Box<World>,
}

impl std::fmt::Debug for Move {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.who, self.what)
    }
}

/// The steps that can be taken in a state of the world.
pub struct Moves<'a> {
    pub from: &'a World,
    pub who: &'static str,
    pub moves: &'a mut Vec<Move>,
}

impl Moves<'_> {
    fn add(&mut self, what: &'static str, progress: bool, f: impl FnOnce(&mut World)) {
        let mut to = Box::new(self.from.clone());
        f(&mut to);
        to.sort_writers();
        self.moves.push(Move {
            who: self.who,
            what,
            progress,
            to,
        });
    }

    /// A step that is taken sooner or later.
    pub fn step(&mut self, what: &'static str, f: impl FnOnce(&mut World)) {
        self.add(what, true, f);
    }

    /// What may come, or not.
    pub fn event(&mut self, what: &'static str, f: impl FnOnce(&mut World)) {
        self.add(what, false, f);
    }
}
