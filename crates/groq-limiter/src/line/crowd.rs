//! Who waits? Everyone's place, and who is next in each order.

use std::collections::BTreeSet;

use super::{Amount, AppId, Backlog, Id, Start, Waiter};

/// Those who wait in one lane.
#[derive(Debug)]
pub(super) struct Crowd {
    places: Vec<Option<Waiter>>,
    free: Vec<Id>,
    /// Head of every size class of every app, smallest first: who may pass a blocked head.
    pub(super) heads: BTreeSet<(u64, Id)>,
    /// The apps that wait, by urgency: who is next.
    pub(super) active: [BTreeSet<(Start, AppId)>; 2],
    /// What waits, by urgency.
    pub(super) backlogs: [Backlog; 2],
}

/// Nobody.
pub(super) const NOBODY: Crowd = Crowd {
    places: Vec::new(),
    free: Vec::new(),
    heads: BTreeSet::new(),
    active: [const { BTreeSet::new() }; 2],
    backlogs: [Backlog::NONE; 2],
};

impl Crowd {
    pub(super) fn get(&self, id: Id) -> Option<&Waiter> {
        self.places.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Waiter> {
        self.places.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn waiters(&self) -> impl Iterator<Item = &Waiter> {
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
    pub(super) fn join(&mut self, id: Id, waiter: Waiter) {
        match self.places.get_mut(id as usize) {
            Some(place) => *place = Some(waiter),
            None => self.places.push(Some(waiter)),
        }
    }

    /// Leaves the place.
    pub(super) fn part(&mut self, id: Id) -> Option<Waiter> {
        let waiter = self.places.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(waiter)
    }

    /// It is the head of its size class from now on.
    pub(super) fn lead(&mut self, id: Id) {
        if let Some(waiter) = self.get(id) {
            self.heads.insert((reach(&waiter.amount), id));
        }
    }

    /// It no longer is; whether it was.
    pub(super) fn follow(&mut self, id: Id) -> bool {
        let key = self.get(id).map(|waiter| (reach(&waiter.amount), id));
        key.is_some_and(|key| self.heads.remove(&key))
    }
}

/// How much of a lane a request occupies, for "smaller than".
fn reach(amount: &Amount) -> u64 {
    u64::from(amount.input) + u64::from(amount.output) + u64::from(amount.seconds)
}
