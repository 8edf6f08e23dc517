//! A limiter whose quotas replicas share through a store. It has one transaction with the store at a time, which reports
//! settlements and observations and asks for a reservation for the head of the queue. While the store is lost, the limiter
//! decides alone; when the store is back, the limiter reports what it used in between.
//!
//! Replicas whose heads must wait form a row in the store, with one place each. A replica asks when there is room for its
//! head and for the heads before it. It calculates this by itself, from the record that the store publishes after every
//! change. So a large request is not passed by smaller ones of other replicas, and a replica that is granted one request and
//! has more goes to the end of the row.

use std::mem;

use crate::{
    queue::{FairQueue, Ticket},
    quota::Quota,
    quota_set::{QuotaSet, Reserved},
    request::Cost,
    store::protocol::{Answer, State, Transaction},
    types::Ns,
};

const MILLISECOND: Ns = 1_000_000;
/// Settlements are reported with the next reservation, or by themselves after this time. What headers have shown of the usage
/// goes along with either.
pub(super) const SETTLEMENT_DELAY: Ns = 50 * MILLISECOND;
/// A waiting replica asks again at least this often. The store removes it from the row of waiting replicas after a second of
/// silence.
const TURN: Ns = 400 * MILLISECOND;
/// As long as any replica has outstanding reservations, each replica sends a transaction at least this often. The store
/// releases the reservations of a replica after 8 s of silence.
const RENEWAL: Ns = 2000 * MILLISECOND;

/// What a limiter knows of its record in the store. It is kept while the store is lost.
#[derive(Debug, Default)]
pub(super) struct StoreSession {
    /// Number of the last transaction.
    serial: u64,
    /// When the transaction under way was made; `None` if there is none.
    pub(super) under_way: Option<Ns>,
    /// The epoch of the record that the quotas follow; empty before the first answer. A record that was lost gets a new
    /// epoch.
    epoch: String,
    /// The last known version of the record.
    version: u64,
    /// What is taken by the heads of the replicas that wait before this one, in millionths of the limit. `None` if this
    /// replica has no place in the row of waiting replicas.
    ahead: Option<u64>,
    head: Head,
    /// When the store last answered a request for a reservation.
    asked_at: Ns,
    /// When there is room according to that answer; 0 after a later update, which makes it obsolete.
    room_at: Ns,
    /// When the next transaction is due; `None` if there is nothing to report.
    report_at: Option<Ns>,
}

/// The state of the request at the head of the queue, for which the store is asked.
#[derive(Debug, Default)]
enum Head {
    /// The store is not asked for any request.
    #[default]
    None,
    /// The next transaction asks for this one.
    Requested(Ticket),
    /// The transaction under way asks for this one, at this cost.
    Asked(Ticket, Cost),
    /// The store has made the reservation, and the request is to be dispatched.
    Granted(Ticket, Reserved),
}

impl StoreSession {
    /// The request for which the store has made a reservation.
    pub(super) fn granted(&self) -> Option<Ticket> {
        if let Head::Granted(ticket, _) = self.head { Some(ticket) } else { None }
    }

    /// Takes the store's reservation for this request; `None` if there is none.
    pub(super) fn take_granted(&mut self, ticket: Ticket) -> Option<Reserved> {
        match mem::take(&mut self.head) {
            Head::Granted(granted, reserved) if granted == ticket => Some(reserved),
            other => {
                self.head = other;
                None
            }
        }
    }

    /// Makes a transaction due at this time, unless one is due earlier.
    pub(super) fn report_by(&mut self, at: Ns) {
        self.report_at = Some(self.report_at.map_or(at, |before| before.min(at)));
    }
}

/// A limiter's session with the store at one instant, with the parts of the limiter that it works on. The caller must
/// dispatch after every change.
pub struct Sharing<'a> {
    pub(super) session: &'a mut StoreSession,
    pub(super) quotas: &'a mut QuotaSet,
    pub(super) queue: &'a FairQueue,
    pub(super) now: Ns,
}

impl Sharing<'_> {
    /// Shares the quotas from now on, through the store or, without the store, by dividing them by `alone` replicas.
    pub fn share(self, alone: Option<u32>) {
        let Self { session, quotas, now, .. } = self;
        if alone.is_some() {
            session.epoch.clear();
            (session.under_way, session.ahead) = (None, None);
            if let Head::Requested(_) | Head::Asked(..) = session.head {
                session.head = Head::None;
            }
        }
        quotas.share(alone, now);
    }

    /// Whether the store answers and no transaction is under way.
    fn is_ready(&self) -> bool {
        self.quotas.is_attached() && self.session.under_way.is_none()
    }

    /// Makes a transaction due, with which the store learns that nothing is outstanding any more.
    pub fn report_last(self) {
        self.session.report_by(self.now);
    }

    /// Makes a transaction due if there is something to report: at once what Groq has stated, settlements after `delay` ns.
    pub fn report(self, delay: Ns) {
        if self.quotas.unreported {
            self.session.report_by(self.now);
        } else if self.quotas.has_settled() {
            self.session.report_by(self.now + delay);
        }
    }

    /// When the next transaction is due to report changes; `None` if there is nothing to report, without the store, and while
    /// a transaction is under way.
    pub(super) fn next_report(&self) -> Option<Ns> {
        self.session.report_at.filter(|_| self.is_ready())
    }

    /// Requests a reservation for the head of the queue by the next transaction, if it is time to do so. Otherwise returns
    /// the slot of the quota that it waits for (if any), and when to try again. Returns `None` if the head was requested, or
    /// if a transaction is under way.
    pub(super) fn request(&mut self, head: Ticket) -> Option<(Option<usize>, Ns)> {
        let now = self.now;
        let cost = self.queue.get(head).filter(|_| self.session.under_way.is_none())?.cost;
        // Without a place in the row the replica asks at once, to get one.
        let turn = self.session.ahead.map_or(now, |ahead| {
            let room = self.room_at(&cost, ahead).max(self.session.room_at);
            room.clamp(self.session.asked_at + MILLISECOND, self.session.asked_at + TURN)
        });
        // The store does not enforce this replica's own share of a limit.
        let expected = self.quotas.expect(cost);
        let in_share = |quota: &Quota| quota.peek_share(quota.units(&expected), now);
        let at = self.quotas.quotas.iter().map(in_share).fold(turn, Ns::max);
        if at > now {
            return Some((self.quotas.ready(&cost, now).1, at));
        }
        self.session.head = Head::Requested(head);
        None
    }

    /// The first time at which `cost` fits into all quotas after other requests that take `ahead` millionths of every limit.
    fn room_at(&self, cost: &Cost, ahead: u64) -> Ns {
        let cost = &self.quotas.expect(*cost);
        let each = self.quotas.quotas.iter().map(|quota| {
            let before = u128::from(ahead) * u128::from(quota.limit().unwrap_or(0)) / 1_000_000;
            quota.peek(quota.units(cost), u64::try_from(before).unwrap_or(u64::MAX), self.now)
        });
        each.fold(self.now, Ns::max)
    }

    /// The transaction that is due now; `None` if there is none. It is under way until [`Sharing::answered`] or
    /// [`Sharing::unanswered`] is called.
    pub fn transaction(self) -> Option<Transaction> {
        let is_ready = self.is_ready();
        let Self { session, quotas, queue, now } = self;
        let head = if let Head::Requested(ticket) = session.head { queue.get(ticket) } else { None };
        let leaves = session.ahead.is_some() && queue.is_empty();
        let is_due = session.epoch.is_empty() || session.report_at.is_some_and(|at| at <= now);
        if !is_ready || (head.is_none() && !leaves && !is_due) {
            return None;
        }
        session.serial += 1;
        (session.under_way, session.report_at) = (Some(now), None);
        let cost = head.map(|queued| quotas.expect(queued.cost));
        if let Some((queued, cost)) = head.zip(cost) {
            session.head = Head::Asked(queued.ticket, cost);
        }
        Some(Transaction {
            serial: session.serial,
            epoch: session.epoch.clone(),
            position: quotas.position,
            asks: head.is_some(),
            waiting: queue.len(),
            limits: mem::take(&mut quotas.unreported).then(|| serde_json::to_string(&quotas.stated()).unwrap_or_default()),
            cells: quotas.quotas.iter_mut().filter_map(|quota| quota.cell(cost.as_ref(), now)).collect(),
        })
    }

    /// Processes the store's answer to the transaction with this serial number. An answer to an earlier transaction is
    /// ignored.
    pub fn answered(mut self, serial: u64, answer: &Answer) {
        let Some(since) = self.session.under_way.take_if(|_| self.session.serial == serial) else { return };
        let asked = match self.session.head {
            Head::Asked(ticket, cost) => Some((ticket, cost)),
            _ => None,
        };
        let charged = asked.filter(|_| answer.granted).map(|(_, cost)| cost);
        // The record is assumed to be of the middle of the round trip: an error here would be counted as usage.
        let reserved = self.follow(&answer.state, charged, since.midpoint(self.now));
        let Self { session, quotas, queue, now } = self;
        let Some((ticket, _)) = asked else { return };
        session.head = match reserved {
            Some(reserved) if queue.get(ticket).is_some() => Head::Granted(ticket, reserved),
            Some(reserved) => {
                quotas.settle(reserved, Cost::default(), now);
                session.report_by(now);
                Head::None
            }
            None => Head::None,
        };
        let wait = Ns::try_from(answer.wait).unwrap_or(0).saturating_mul(1000);
        (session.asked_at, session.room_at) = (now, now.saturating_add(wait));
    }

    /// The store has not answered this transaction: the limiter goes on alone with its part of `replicas`.
    pub fn unanswered(self, serial: u64, replicas: u32) {
        if self.session.under_way.is_some() && self.session.serial == serial {
            self.share(Some(replicas));
        }
    }

    /// Processes a record that another replica has changed.
    pub fn updated(mut self, state: &State) {
        // The answer to a transaction under way will be newer.
        if self.is_ready() && self.session.epoch == state.epoch && self.session.version < state.version {
            self.follow(state, None, self.now);
        }
    }

    /// Takes over the record as of the time `at`. If the store has `charged` a request of this replica, it did so at the
    /// newest position; returns the reservation of that request.
    fn follow(&mut self, state: &State, charged: Option<Cost>, at: Ns) -> Option<Reserved> {
        let Self { session, quotas, now, .. } = self;
        let is_new = session.epoch != state.epoch;
        if is_new {
            session.epoch.clone_from(&state.epoch);
            quotas.forget_positions();
        }
        // Any number may come from the store, and later positions need room.
        quotas.position = quotas.position.max(state.position.min(u64::MAX / 2));
        for (code, bucket) in state.views(at) {
            if let Some(slot) = quotas.slot(code) {
                quotas.quotas[slot].follow(bucket, is_new, *now);
            }
        }
        let reserved = charged.map(|cost| quotas.booked(cost, *now));
        quotas.adopt(&state.limits(), *now);
        if quotas.unreported {
            session.report_by(*now);
        }
        (session.version, session.ahead, session.room_at) = (state.version, state.ahead, 0);
        if state.holds_reservations() {
            session.report_by(*now + RENEWAL);
        }
        reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limiter::{Admission, Limiter},
        request::{AdmissionRequest, CostEstimate},
        types::{Dimension, Source, StatedLimit},
    };

    const NOW: Ns = 1_000_000_000_000;

    /// A record with these limits and this newest position.
    fn record(limits: &str, position: u64) -> State {
        let record = serde_json::json!({ "epoch": "1", "now": 0.0, "version": 1, "position": position, "limits": limits,
            "quotas": {}, "replicas": {} });
        serde_json::from_value(record).expect("a record")
    }

    /// A limiter that knows a limit of Groq's, has followed `state`, and has made a transaction.
    fn after(state: State) -> Limiter {
        let mut limiter = Limiter::new("m".into(), std::sync::Arc::default(), NOW);
        limiter.adopt_limits(&[StatedLimit { dimension: Dimension::RPM, limit: 30, source: Source::UpstreamRefusal }], NOW);
        limiter.share(None, NOW);
        let first = limiter.sharing(NOW).and_then(|sharing| sharing.transaction()).expect("it follows no record yet");
        let answer = Answer { granted: false, wait: 0, state };
        limiter.sharing(NOW).expect("it is shared").answered(first.serial, &answer);
        limiter
    }

    fn next(limiter: &mut Limiter) -> Option<Transaction> {
        limiter.sharing(NOW).and_then(|sharing| sharing.transaction())
    }

    /// Another replica may have replaced the limits in the record by those that it knew.
    #[test]
    fn a_limit_that_the_record_lacks_is_reported_at_once() {
        let mut limiter = after(record("", 0));
        let limits = next(&mut limiter).and_then(|transaction| transaction.limits).expect("a report");
        assert!(limits.contains("RPM"), "{limits}");
    }

    /// Otherwise the store could release a reservation that has been used.
    #[test]
    fn the_last_report_is_made_without_anything_to_settle() {
        let mut limiter = after(record("", 0));
        let report = next(&mut limiter).expect("the limits");
        let answer = Answer { granted: false, wait: 0, state: record(&report.limits.unwrap_or_default(), 0) };
        limiter.sharing(NOW).expect("it is shared").answered(report.serial, &answer);
        assert_eq!(next(&mut limiter), None);
        limiter.sharing(NOW).expect("it is shared").report_last();
        assert!(next(&mut limiter).is_some());
    }

    #[test]
    fn any_position_of_the_store_leaves_room_for_later_ones() {
        let mut limiter = after(record("", u64::MAX));
        limiter.share(Some(1), NOW);
        let cost = CostEstimate::Tokens { prompt: 1, max_completion_tokens: Some(1) };
        let submitted = limiter.submit(&AdmissionRequest::new("o", "m", cost), NOW, NOW, None, || true);
        let Ok(Admission::Granted(mut grant)) = submitted else { panic!("{submitted:?}") };
        limiter.sent(&mut grant, NOW);
        assert!(grant.is_sent());
    }
}
