//! Which queued request's deadline is next.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::request::Id;
use crate::types::Ns;

/// Deadlines, the earliest on top. Most requests leave before theirs: such entries are dropped lazily.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(Ns, Id)>>);

impl Deadlines {
    pub(super) fn add(&mut self, deadline: Ns, id: Id) {
        self.0.push(Reverse((deadline, id)));
    }

    pub(super) fn next(&self) -> Option<(Ns, Id)> {
        self.0.peek().map(|&Reverse(next)| next)
    }

    /// Drops what no longer waits until the top does, and everything when most of it does not. `waiting`: how many wait.
    pub(super) fn compact(&mut self, waiting: usize, waits: impl Fn(Ns, Id) -> bool) {
        if self.0.len() > 2 * waiting + 64 {
            self.0.retain(|&Reverse((deadline, id))| waits(deadline, id));
        }
        while self.next().is_some_and(|(deadline, id)| !waits(deadline, id)) {
            self.0.pop();
        }
    }
}
