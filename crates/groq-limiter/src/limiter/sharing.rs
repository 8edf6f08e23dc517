//! A limiter whose quotas replicas share through a store. It has one transaction with the store at a time, which reports
//! settlements and observations and asks for a reservation for the head of the queue. While the store is lost, the limiter
//! decides alone; when the store is back, the limiter reports what it used in between.
//!
//! Replicas whose heads must wait form a row in the store, with one place each. A replica asks when there is room for its
//! head and for the heads before it. It calculates this by itself, from the record that the store publishes after every
//! change. So a large request is not passed by smaller ones of other replicas, and a replica that is granted one request and
//! has more goes to the end of the row.

use super::{Limiter, store_session::Head};
use crate::{
    request::Cost,
    store::protocol::{Answer, State, Transaction},
    types::Ns,
};

/// Settlements are reported with the next reservation, or by themselves after this time. What headers have shown of the usage
/// goes along with either.
const SETTLEMENT_DELAY: Ns = 50_000_000;

impl Limiter {
    /// Shares the quotas from now on, through the store or, without the store, by dividing them by `alone` replicas. The
    /// caller must dispatch afterwards.
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

    /// The transaction that is due now; `None` if there is none. It is under way until [`Limiter::answered`] or
    /// [`Limiter::unanswered`] is called.
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

    /// Processes the store's answer to the transaction with this serial number. An answer to an earlier transaction is
    /// ignored. The caller must dispatch afterwards.
    pub fn answered(&mut self, serial: u64, answer: &Answer, now: Ns) {
        let now = self.advance(now);
        let Self { store: Some(session), quotas, queue, .. } = self else { return };
        let Some(since) = session.under_way.take_if(|_| session.serial == serial) else { return };
        let asked = match session.head {
            Head::Asked(ticket, cost) => Some((ticket, cost)),
            _ => None,
        };
        let charged = asked.filter(|_| answer.granted).map(|(_, cost)| cost);
        // The record is assumed to be of the middle of the round trip: an error here would be counted as usage.
        let reserved = quotas.follow(&answer.state, charged, since.midpoint(now), now);
        session.update(&answer.state, now);
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

    /// The store has not answered this transaction: the limiter goes on alone with its part of `replicas`. The caller must
    /// dispatch afterwards.
    pub fn unanswered(&mut self, serial: u64, replicas: u32, now: Ns) {
        if self.store.as_ref().is_some_and(|session| session.under_way.is_some() && session.serial == serial) {
            self.share(Some(replicas), now);
        }
    }

    /// Processes a record that another replica has changed. The caller must dispatch afterwards.
    pub fn updated(&mut self, state: &State, now: Ns) {
        let now = self.advance(now);
        let Some(session) = &mut self.store else { return };
        // The answer to a transaction under way will be newer.
        if session.under_way.is_none() && session.version < state.version && self.quotas.epoch() == Some(&state.epoch) {
            self.quotas.follow(state, None, now, now);
            session.update(state, now);
        }
    }

    /// Makes a transaction due if there is something to report. Settlements may be delayed unless `hurry` is set. The caller
    /// must dispatch afterwards.
    pub fn flush_pending(&mut self, hurry: bool, now: Ns) {
        let Some(session) = &mut self.store else { return };
        let has_settled = self.quotas.has_settled();
        if self.quotas.has_learnt() || (hurry && has_settled) {
            session.flush_within(0, now);
        } else if has_settled {
            session.flush_within(SETTLEMENT_DELAY, now);
        }
    }

    /// Whether a transaction is under way.
    pub fn is_reporting(&self) -> bool {
        self.store.as_ref().is_some_and(|session| session.under_way.is_some())
    }

    /// When the next transaction is due; `None` without the store and while a transaction is under way.
    pub(super) fn flush_at(&self) -> Option<Ns> {
        let session = self.store.as_ref().filter(|session| self.quotas.is_attached() && session.under_way.is_none())?;
        session.flush_at
    }
}
