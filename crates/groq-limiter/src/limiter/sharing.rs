//! A limiter whose quotas replicas share. One transaction with the store at a time: it tells what has been settled and seen,
//! and asks for the head of the queue. When the store is lost, the limiter goes on alone and reports what it used when it is back.
//!
//! Replicas whose heads have to wait stand in a row in the store, one place each. Each asks when there is room for it and for
//! those before it, by its own forecast, which the store's updates keep. So nobody passes a large request, and a replica that
//! is granted one and has more goes to the end of the row.

use super::{
    Limiter,
    store_session::{Head, StoreSession},
};
use crate::{
    request::Cost,
    store::protocol::{Answer, State, Transaction},
    types::Ns,
};

/// Settlements ride on the next reservation, or go alone after so long; what headers say of others rides on either.
const SETTLEMENT_DELAY: Ns = 50_000_000;

impl Limiter {
    /// Shares its quotas from now on: with the store, or (`alone`) without it among so many replicas. The caller dispatches.
    pub fn share(&mut self, alone: Option<u32>, now: Ns) {
        let now = self.advance(now);
        let session = self.store.get_or_insert_default();
        if alone.is_some() {
            (session.under_way, session.ahead) = (None, None);
            if let Head::Requested(_) | Head::Asked(..) = session.head {
                session.head = Head::None;
            }
        }
        self.quotas.share(alone, now);
    }

    /// What the store is to be told or asked now, if anything. One at a time: its end is [`Limiter::answered`] or
    /// [`Limiter::unanswered`].
    pub fn transaction(&mut self, now: Ns) -> Option<Transaction> {
        let now = self.advance(now);
        let Self { store, quotas, queue, .. } = self;
        let session = store.as_mut().filter(|session| quotas.is_attached() && session.under_way.is_none())?;
        let head = if let Head::Requested(ticket) = session.head { queue.get(ticket) } else { None };
        let leaves = session.ahead.is_some() && queue.is_empty();
        let is_due = quotas.epoch() == Some("") || session.flush_at.is_some_and(|at| at <= now);
        if head.is_none() && !leaves && !is_due {
            return None;
        }
        session.serial += 1;
        (session.under_way, session.flush_at) = (Some(now), None);
        let cost = head.map(|queued| quotas.expect(queued.cost));
        if let Some((queued, cost)) = head.zip(cost) {
            session.head = Head::Asked(queued.ticket, cost);
        }
        Some(quotas.transaction(session.serial, cost.as_ref(), queue.len(), now))
    }

    /// The store's answer to this transaction; to one that is not under way any more it comes too late. The caller dispatches.
    pub fn answered(&mut self, serial: u64, answer: &Answer, now: Ns) {
        let now = self.advance(now);
        let Self { store: Some(session), quotas, queue, .. } = self else { return };
        let Some(since) = session.under_way.take_if(|_| session.serial == serial) else { return };
        let asked = match session.head {
            Head::Asked(ticket, cost) => Some((ticket, cost)),
            _ => None,
        };
        let charged = asked.filter(|_| answer.granted).map(|(_, cost)| cost);
        // Half way between: an error of clocks would be counted as usage.
        let reserved = quotas.follow(&answer.state, charged, since.midpoint(now), now);
        session.heard(&answer.state, now);
        let Some((ticket, _)) = asked else { return };
        let waits = queue.get(ticket).is_some();
        session.head = match reserved {
            Some(reserved) if waits => Head::Granted(ticket, reserved),
            Some(reserved) => {
                quotas.settle(reserved, Cost::default(), now);
                session.flush_within(0, now);
                Head::None
            }
            None if waits => Head::Denied(ticket),
            None => Head::None,
        };
        let wait = Ns::try_from(answer.wait).unwrap_or(0).saturating_mul(1000);
        (session.asked_at, session.room_at) = (now, now.saturating_add(wait));
    }

    /// The store does not answer this transaction: alone, among so many replicas. The caller dispatches.
    pub fn unanswered(&mut self, serial: u64, replicas: u32, now: Ns) {
        if self.store.as_ref().is_some_and(|session| session.under_way.is_some() && session.serial == serial) {
            self.share(Some(replicas), now);
        }
    }

    /// What another replica has changed. The caller dispatches.
    pub fn updated(&mut self, state: &State, now: Ns) {
        let now = self.advance(now);
        let Some(session) = &mut self.store else { return };
        // The answer of a transaction under way will say more.
        if session.under_way.is_none() && session.version < state.version && self.quotas.epoch() == Some(&state.epoch) {
            self.quotas.follow(state, None, now, now);
            session.heard(state, now);
        }
    }

    /// What there is to tell is told now, or (`hurry`: not set) soon. The caller dispatches.
    pub fn flush_pending(&mut self, hurry: bool, now: Ns) {
        let Some(session) = &mut self.store else { return };
        let has_settled = self.quotas.has_settled();
        if self.quotas.has_learnt() || (hurry && has_settled) {
            session.flush_within(0, now);
        } else if has_settled {
            session.flush_within(SETTLEMENT_DELAY, now);
        }
    }

    /// Whether the store knows everything, or cannot be told.
    pub fn is_flushed(&self) -> bool {
        let is_told =
            |session: &StoreSession| session.under_way.is_none() && !self.quotas.has_learnt() && !self.quotas.has_settled();
        !self.quotas.is_attached() || self.store.as_deref().is_none_or(is_told)
    }

    /// When the store is to be told something, if it listens.
    pub(super) fn flush_at(&self) -> Option<Ns> {
        let session = self.store.as_ref().filter(|session| self.quotas.is_attached() && session.under_way.is_none())?;
        session.flush_at
    }
}
