//! A limiter whose quotas replicas share: its session with the store.

use super::Limiter;
use crate::{
    store::protocol::{Answer, State, Transaction},
    types::Ns,
};

impl Limiter {
    /// Shares its quotas between so many replicas from now on. `up`: the store can be reached.
    pub fn share(&mut self, up: bool, replicas: u32, now: Ns) {
        self.quotas.detach(replicas, now);
        self.store = Some(Box::default());
        if up {
            self.reached(now);
        }
    }

    /// Whether its quotas are shared.
    pub fn is_shared(&self) -> bool {
        self.store.is_some()
    }

    pub(super) fn store_decides(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.decides())
    }

    /// What the store is to be told or asked now, if anything. One at a time: its end is [`Limiter::answered`] or
    /// [`Limiter::lost`].
    pub fn transaction(&mut self, now: Ns) -> Option<Transaction> {
        let now = self.advance(now);
        self.store.as_mut()?.transaction(&mut self.quotas, &self.queue, now)
    }

    /// The store's answer to this transaction. The caller dispatches.
    pub fn answered(&mut self, serial: u64, answer: &Answer, now: Ns) {
        let now = self.advance(now);
        let Some(store) = &mut self.store else { return };
        if let Some(at) = store.answered(serial, answer, &mut self.quotas, &self.queue, now) {
            self.quotas.hear(&answer.state, at, now);
        }
    }

    /// What another replica has changed. The caller dispatches.
    pub fn updated(&mut self, state: &State, now: Ns) {
        let now = self.advance(now);
        let Some(store) = &mut self.store else { return };
        if store.updated(state, &mut self.quotas, now) {
            self.quotas.hear(state, now, now);
        }
    }

    /// The store does not answer: alone, among so many replicas. The caller dispatches.
    pub fn lost(&mut self, replicas: u32, now: Ns) {
        let now = self.advance(now);
        if let Some(store) = &mut self.store {
            store.lost(replicas, &mut self.quotas, now);
        }
    }

    /// Whether this transaction is under way.
    pub fn waits_for(&self, serial: u64) -> bool {
        self.store.as_ref().is_some_and(|store| store.waits_for(serial))
    }

    /// The store can be reached. The caller dispatches.
    pub fn reached(&mut self, now: Ns) {
        if let Some(store) = &mut self.store {
            store.reached(&mut self.quotas, now);
        }
    }

    /// What there is to tell is told now, or (`hurry`: not set) soon. The caller dispatches.
    pub fn flush_pending(&mut self, hurry: bool, now: Ns) {
        if let Some(store) = &mut self.store {
            store.flush_pending(hurry, &mut self.quotas, now);
        }
    }

    /// Whether the store knows everything, or cannot be told.
    pub fn is_flushed(&mut self) -> bool {
        self.store.as_ref().is_none_or(|store| store.is_flushed(&mut self.quotas))
    }
}
