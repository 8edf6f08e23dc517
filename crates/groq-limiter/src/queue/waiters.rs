//! The queued requests, and the orders in which they are looked at.

use std::collections::BTreeSet;

use super::request::{AppId, Backlog, Id, QueuedRequest, Start};
use crate::request::Cost;

/// The queued requests of one limiter.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    places: Vec<Option<QueuedRequest>>,
    free: Vec<Id>,
    /// Head of every size class of every app, smallest first: who may pass a blocked head.
    pub(super) heads: BTreeSet<(u64, Id)>,
    /// The apps that wait, by priority class, the next one first.
    pub(super) active: [BTreeSet<(Start, AppId)>; 2],
    /// What waits, by priority class.
    pub(super) backlogs: [Backlog; 2],
}

impl Waiters {
    pub(super) fn get(&self, id: Id) -> Option<&QueuedRequest> {
        self.places.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut QueuedRequest> {
        self.places.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &QueuedRequest)> {
        (0..).zip(&self.places).filter_map(|(id, queued)| Some((id, queued.as_ref()?)))
    }

    /// Takes a place.
    pub(super) fn insert(&mut self, queued: QueuedRequest) -> Id {
        let id = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as Id
        });
        self.places[id as usize] = Some(queued);
        id
    }

    /// Leaves its place.
    pub(super) fn remove(&mut self, id: Id) -> Option<QueuedRequest> {
        let queued = self.places.get_mut(id as usize)?.take()?;
        self.free.push(id);
        if self.free.len() == self.places.len() {
            // The room of a long queue is not kept for the next one.
            (self.places, self.free) = Default::default();
        }
        Some(queued)
    }

    /// It is the head of its size class from now on.
    pub(super) fn add_head(&mut self, id: Id) {
        if let Some(queued) = self.get(id) {
            self.heads.insert((size(&queued.cost), id));
        }
    }

    /// It no longer is; whether it was.
    pub(super) fn remove_head(&mut self, id: Id) -> bool {
        let key = self.get(id).map(|queued| (size(&queued.cost), id));
        key.is_some_and(|key| self.heads.remove(&key))
    }
}

/// How much of a limiter a request occupies, for "smaller than".
fn size(cost: &Cost) -> u64 {
    u64::from(cost.input) + u64::from(cost.output) + u64::from(cost.seconds)
}
