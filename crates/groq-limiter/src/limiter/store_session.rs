//! A limiter's session with the store that replicas share: what was told last, and when to tell and to ask again.

use crate::{
    bucket::Readiness,
    queue::{QueuedRequest, Ticket},
    quota_set::{QuotaSet, Reserved},
    request::Cost,
    store::protocol::State,
    types::Ns,
};

const MILLISECOND: Ns = 1_000_000;
const SECOND: Ns = 1000 * MILLISECOND;
/// A replica that waits asks again at least this often, or the store lets others pass.
const TURN: Ns = 400 * MILLISECOND;
/// As long as any replica has something reserved, all tell the store at least this often that they are there.
const RENEWAL: Ns = 2 * SECOND;

/// One session, with the store there or not.
#[derive(Debug, Default)]
pub(super) struct StoreSession {
    /// Of the last transaction.
    pub(super) serial: u64,
    /// When the transaction under way was made, if there is one.
    pub(super) under_way: Option<Ns>,
    /// Of the store's record, as last heard.
    pub(super) version: u64,
    /// What others take that wait before this replica, in millionths of the limit; `None`: it has no place among those that wait.
    pub(super) ahead: Option<u64>,
    pub(super) head: Head,
    /// When the store last answered for a head.
    pub(super) asked_at: Ns,
    /// When there is room by the answer, if no update has come since.
    pub(super) room_at: Ns,
    /// When the store is to be told.
    pub(super) flush_at: Option<Ns>,
}

/// A head of the queue that the store decides about.
#[derive(Debug, Default)]
pub(super) enum Head {
    /// None.
    #[default]
    None,
    /// The next transaction asks for it.
    Requested(Ticket),
    /// The transaction under way asks for it, at this cost.
    Asked(Ticket, Cost),
    /// Charged in the store, and not gone yet.
    Granted(Ticket, Reserved),
    /// The store has no room for it, and it may be too late.
    Denied(Ticket),
}

impl StoreSession {
    /// The head that is charged, and goes.
    pub(super) fn granted(&self) -> Option<Ticket> {
        if let Head::Granted(ticket, _) = self.head { Some(ticket) } else { None }
    }

    /// What the store has charged for this one.
    pub(super) fn take_granted(&mut self, ticket: Ticket) -> Option<Reserved> {
        match std::mem::take(&mut self.head) {
            Head::Granted(granted, reserved) if granted == ticket => Some(reserved),
            other => {
                self.head = other;
                None
            }
        }
    }

    /// The head that the store has denied.
    pub(super) fn take_denied(&mut self) -> Option<Ticket> {
        let Head::Denied(ticket) = self.head else { return None };
        self.head = Head::None;
        Some(ticket)
    }

    /// The store is to be told after so long at the latest.
    pub(super) fn flush_within(&mut self, within: Ns, now: Ns) {
        let at = now + within;
        self.flush_at = Some(self.flush_at.map_or(at, |before| before.min(at)));
    }

    /// The store's state, as answered or published.
    pub(super) fn heard(&mut self, state: &State, now: Ns) {
        (self.version, self.ahead, self.room_at) = (state.version, state.ahead, 0);
        if state.holds_reservations() {
            self.flush_within(RENEWAL, now);
        }
    }

    /// Asks for this head of the queue, or says what makes it wait, and until when.
    pub(super) fn request(&mut self, head: &QueuedRequest, quotas: &QuotaSet, now: Ns) -> Option<(Option<usize>, Ns)> {
        if self.under_way.is_some() {
            return None;
        }
        let instant = |ready: Readiness| if ready == Readiness::Never { now + SECOND } else { ready.instant(now) };
        // Without a place it asks at once, to have one.
        let turn = self.ahead.map_or(now, |ahead| {
            let room = instant(quotas.readiness_after(&head.cost, ahead, now));
            room.max(self.room_at).max(self.asked_at + MILLISECOND).min(self.asked_at + TURN)
        });
        let at = turn.max(instant(quotas.own_readiness(&head.cost, now)));
        if at > now {
            return Some((quotas.readiness(&head.cost, now).1, at));
        }
        self.head = Head::Requested(head.ticket);
        None
    }
}
