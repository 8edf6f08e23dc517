//! A limiter's session with the store that replicas share: the transaction under way, the head of the queue for which it
//! asks, and when to send the next one.

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
/// A waiting replica asks again at least this often. The store removes it from the row of waiting replicas after a second of
/// silence.
const TURN: Ns = 400 * MILLISECOND;
/// As long as any replica has outstanding reservations, each replica sends a transaction at least this often. The store
/// releases the reservations of a replica after 8 s of silence.
const RENEWAL: Ns = 2 * SECOND;

/// The session of one limiter. It continues when the store is lost.
#[derive(Debug, Default)]
pub(super) struct StoreSession {
    /// Number of the last transaction.
    pub(super) serial: u64,
    /// When the transaction under way was made; `None` if there is none.
    pub(super) under_way: Option<Ns>,
    /// The last known version of the store's record.
    pub(super) version: u64,
    /// What is taken by the heads of the replicas that wait before this one, in millionths of the limit. `None` if this
    /// replica has no place in the row of waiting replicas.
    pub(super) ahead: Option<u64>,
    pub(super) head: Head,
    /// When the store last answered a request for a reservation.
    pub(super) asked_at: Ns,
    /// When there is room according to that answer; 0 after a later update, which makes it obsolete.
    pub(super) room_at: Ns,
    /// When the next transaction is due; `None` if there is nothing to report.
    pub(super) flush_at: Option<Ns>,
}

/// The state of the request at the head of the queue, for which the store is asked.
#[derive(Debug, Default)]
pub(super) enum Head {
    /// The store is not asked for any request.
    #[default]
    None,
    /// The next transaction asks for this one.
    Requested(Ticket),
    /// The transaction under way asks for this one, at this cost.
    Asked(Ticket, Cost),
    /// The store has made the reservation, and the request is to be dispatched.
    Granted(Ticket, Reserved),
    /// The store had no room. The limiter has yet to check whether the request can still meet its deadline.
    Denied(Ticket),
}

impl StoreSession {
    /// The request for which the store has made a reservation.
    pub(super) fn granted(&self) -> Option<Ticket> {
        if let Head::Granted(ticket, _) = self.head { Some(ticket) } else { None }
    }

    /// Takes the store's reservation for this request; `None` if there is none.
    pub(super) fn take_granted(&mut self, ticket: Ticket) -> Option<Reserved> {
        match std::mem::take(&mut self.head) {
            Head::Granted(granted, reserved) if granted == ticket => Some(reserved),
            other => {
                self.head = other;
                None
            }
        }
    }

    /// Takes the request for which the store had no room; `None` if there is none.
    pub(super) fn take_denied(&mut self) -> Option<Ticket> {
        let Head::Denied(ticket) = self.head else { return None };
        self.head = Head::None;
        Some(ticket)
    }

    /// Makes a transaction due after `within`, unless one is due earlier.
    pub(super) fn flush_within(&mut self, within: Ns, now: Ns) {
        let at = now + within;
        self.flush_at = Some(self.flush_at.map_or(at, |before| before.min(at)));
    }

    /// Takes over a state of the record, from an answer or an update.
    pub(super) fn update(&mut self, state: &State, now: Ns) {
        (self.version, self.ahead, self.room_at) = (state.version, state.ahead, 0);
        if state.holds_reservations() {
            self.flush_within(RENEWAL, now);
        }
    }

    /// Requests a reservation for the head of the queue by the next transaction, if it is time to do so. Otherwise returns
    /// the slot of the quota that it waits for (if any), and when to try again. Returns `None` if the head was requested, or
    /// if a transaction is under way.
    pub(super) fn request(&mut self, head: &QueuedRequest, quotas: &QuotaSet, now: Ns) -> Option<(Option<usize>, Ns)> {
        if self.under_way.is_some() {
            return None;
        }
        let instant = |ready: Readiness| if ready == Readiness::Never { now + SECOND } else { ready.instant(now) };
        // Without a place in the row the replica asks at once, to get one.
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
