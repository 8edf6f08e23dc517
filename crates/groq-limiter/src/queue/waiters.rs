//! The queued requests, and the orders in which they are looked at.

use std::collections::BTreeSet;

use super::{AppId, Backlog, Cost, Id, QueuedRequest, Start};

/// Those who wait in one limiter.
#[derive(Debug)]
pub(super) struct Waiters {
    places: Vec<Option<QueuedRequest>>,
    free: Vec<Id>,
    /// Head of every size class of every app, smallest first: who may pass a blocked head.
    pub(super) heads: BTreeSet<(u64, Id)>,
    /// The apps that wait, by priority class: who is next.
    pub(super) active: [BTreeSet<(Start, AppId)>; 2],
    /// What waits, by priority class.
    pub(super) backlogs: [Backlog; 2],
}

/// Nobody.
pub(super) const NOBODY: Waiters = Waiters {
    places: Vec::new(),
    free: Vec::new(),
    heads: BTreeSet::new(),
    active: [const { BTreeSet::new() }; 2],
    backlogs: [Backlog::NONE; 2],
};

impl Waiters {
    pub(super) fn get(&self, id: Id) -> Option<&QueuedRequest> {
        self.places.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut QueuedRequest> {
        self.places.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &QueuedRequest> {
        self.places.iter().flatten()
    }

    /// Numbers in use are below this.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// A free place, for who joins next.
    pub(super) fn place(&mut self) -> Id {
        self.free.pop().unwrap_or(self.places.len() as Id)
    }

    /// Takes the place.
    pub(super) fn join(&mut self, id: Id, waiter: QueuedRequest) {
        match self.places.get_mut(id as usize) {
            Some(place) => *place = Some(waiter),
            None => self.places.push(Some(waiter)),
        }
    }

    /// Leaves the place.
    pub(super) fn part(&mut self, id: Id) -> Option<QueuedRequest> {
        let waiter = self.places.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(waiter)
    }

    /// It is the head of its size class from now on.
    pub(super) fn lead(&mut self, id: Id) {
        if let Some(waiter) = self.get(id) {
            self.heads.insert((reach(&waiter.cost), id));
        }
    }

    /// It no longer is; whether it was.
    pub(super) fn follow(&mut self, id: Id) -> bool {
        let key = self.get(id).map(|waiter| (reach(&waiter.cost), id));
        key.is_some_and(|key| self.heads.remove(&key))
    }
}

/// How much of a limiter a request occupies, for "smaller than".
fn reach(cost: &Cost) -> u64 {
    u64::from(cost.input) + u64::from(cost.output) + u64::from(cost.seconds)
}
