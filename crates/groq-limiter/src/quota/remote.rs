//! The shared side of a quota: what it has to tell the store, and how it goes on without one.
//!
//! With the store the bucket is a forecast: the last word of the store and what this replica has to tell it. Without it
//! the quota goes on alone: the bucket with its observer as ever, beside a share of limit ÷ replicas that starts as full
//! as the bucket is. Back with the store, what the share has grown beyond its part of the old quota is owed.

use super::send_history::{JITTER, SendSnapshot};
use crate::{
    bucket::Bucket,
    store::protocol::{BookingOrder, Cell, RemoteView, SentObservation},
    types::Ns,
};

/// Replicas whose pending bookings are less apart go in any order: clocks differ, and news takes its time.
const ABREAST: Ns = 300_000_000;

/// Without the store.
#[derive(Clone, Copy, Debug)]
struct Detached {
    /// When the quota was full again as the store was lost.
    tat: Ns,
    /// The limit is divided by so many meanwhile.
    replicas: u32,
}

/// The store's side of a quota.
#[derive(Debug)]
pub(super) struct Remote {
    /// Settlements that the store has not been told, ns.
    settled: i64,
    /// The same of reservations given up.
    given_up: i64,
    /// What the transaction under way tells: settlements, and everything.
    unacknowledged: (i64, i64),
    observation: Option<SentObservation>,
    /// The store's last answer or news.
    view: RemoteView,
    /// What its sums of settlements lack since its record began anew, ns.
    before: i64,
    /// Back with the store, which is to hear of it: when the quota is full again at the earliest, by Groq's headers.
    claim: Option<Ns>,
    /// Reserved in the store and not ended, without what Groq counts as soon as it is sent, ns.
    outstanding: Ns,
    detached: Option<Detached>,
}

impl Remote {
    /// By how much settlements, corrections and reservations given up have moved the quota for this place since it stood
    /// so, ns.
    fn since(&self, snapshot: &SendSnapshot, order: BookingOrder) -> i64 {
        let adjusted = self.view.adjusted.wrapping_add(self.before).wrapping_sub(snapshot.adjusted);
        let gone = self.view.gone.iter().filter(|gone| gone.version > order.version && gone.position < order.position);
        let gained: i64 = gone.map(|gone| gone.span as i64).sum();
        adjusted.saturating_add(self.settled).saturating_add(self.unacknowledged.0).saturating_sub(gained)
    }

    /// What was taken before this place and goes hardly before it, or after it, ns: Groq may not have seen it yet.
    fn abreast(&self, order: BookingOrder, now: Ns) -> Ns {
        let pending_bookings =
            self.view.pending_bookings.iter().filter(|turn| turn.position < order.position && turn.due + ABREAST > now);
        pending_bookings.fold(0, |sum, turn| sum.saturating_add(turn.span))
    }

    /// Of a quota that is shared from now on, with so many replicas: detached until the store has answered.
    pub(super) fn new(replicas: u32, tat: Ns) -> Self {
        Self {
            settled: 0,
            given_up: 0,
            unacknowledged: (0, 0),
            observation: None,
            view: RemoteView::default(),
            before: 0,
            claim: None,
            outstanding: 0,
            detached: Some(Detached { tat, replicas }),
        }
    }

    /// Whether the quota does without the store.
    pub(super) fn is_detached(&self) -> bool {
        self.detached.is_some()
    }

    /// The part of the limit that the other replicas leave to this one.
    pub(super) fn part(&self) -> f64 {
        self.detached.map_or(1.0, |detached| 1.0 / f64::from(detached.replicas.max(1)))
    }

    /// A settlement, or what others have taken, ns.
    pub(super) fn add_settled(&mut self, span: i64) {
        if self.detached.is_none() {
            self.settled = self.settled.saturating_add(span);
        }
    }

    /// Groq's word, for the store.
    pub(super) fn report(&mut self, observation: SentObservation) {
        if self.detached.is_none() && self.observation.is_none_or(|before| before.position < observation.position) {
            // In the sums of the store's record.
            let adjusted = observation.snapshot.adjusted.wrapping_sub(self.before);
            let snapshot = SendSnapshot { adjusted, ..observation.snapshot };
            self.observation = Some(SentObservation { snapshot, ..observation });
        }
    }

    /// Whether the store has to be told something; and whether that changes what others may take.
    pub(super) fn has_pending(&self) -> (bool, bool) {
        let spans = self.settled != 0 || self.given_up != 0;
        (spans || self.claim.is_some() || self.observation.is_some(), spans)
    }

    /// The quota's part of a transaction: a head takes `units` and leaves `margin`. A hello tells nothing.
    pub(super) fn cell(&mut self, bucket: &Bucket, code: Box<str>, hello: bool, units: u64, margin: u64) -> Cell {
        let owed = self.settled.saturating_add(self.given_up);
        let tat = self.detached.map_or(bucket.tat(), |detached| detached.tat);
        let mut cell = Cell {
            code,
            whole: bucket.span(bucket.limit()),
            known: tat.saturating_add_signed(owed.saturating_neg()),
            settled: 0,
            given_up: 0,
            claimed: false,
            observation: None,
            outstanding: self.outstanding,
            asked: bucket.span(units),
            margin: bucket.span(margin),
        };
        if !hello {
            if let Some(claim) = self.claim.take() {
                (cell.known, cell.claimed) = (claim, true);
            }
            (cell.settled, cell.given_up, cell.observation) = (self.settled, self.given_up, self.observation.take());
            self.unacknowledged = (self.settled, owed);
            (self.settled, self.given_up) = (0, 0);
        }
        cell
    }

    /// A transaction that was lost was never applied: everything is owed again.
    pub(super) fn retract(&mut self, cell: &Cell) {
        // What is claimed counts it already.
        if self.claim.is_none() {
            self.settled = self.settled.saturating_add(cell.settled);
            self.given_up = self.given_up.saturating_add(cell.given_up);
        }
    }

    /// The store's record has begun anew, like this: what was booked under the old one keeps its time.
    pub(super) fn renew(&mut self, view: &RemoteView) {
        self.before = self.before.wrapping_add(self.view.adjusted).wrapping_sub(view.adjusted);
        // Its snapshot is of the old record.
        self.observation = None;
    }

    /// The store's state. `mine`: an answer to what was told; else news of another replica's doing. When the quota is full
    /// again by it and by what is not told yet; `None` without the store.
    pub(super) fn update(&mut self, view: &RemoteView, mine: bool) -> Option<Ns> {
        self.view.clone_from(view);
        if mine {
            self.unacknowledged = (0, 0);
        }
        let owed = self.settled.saturating_add(self.given_up).saturating_add(self.unacknowledged.1);
        self.detached.is_none().then(|| view.tat.max(self.claim.unwrap_or(0)).saturating_add_signed(owed))
    }

    /// The store has charged so much, ns: how the quota stands, and when it would be full again with what is left untouched.
    pub(super) fn booked(&mut self, span: Ns) -> (SendSnapshot, Ns) {
        self.outstanding = self.outstanding.saturating_add(span);
        let &RemoteView { tat, corrections, adjusted, recent, room, .. } = &self.view;
        (SendSnapshot { tat, corrections, adjusted: adjusted.wrapping_add(self.before), recent }, room)
    }

    /// What the store has charged goes out now: Groq has seen what was given back since, and counts it from now. Where the
    /// quota had room before the others had, what has come back since it was charged is owed: the span, ns.
    pub(super) fn sent(&mut self, bucket: &Bucket, units: u64, order: BookingOrder, snapshot: &mut SendSnapshot, now: Ns) -> Ns {
        snapshot.tat = snapshot.tat.saturating_add_signed(self.since(snapshot, order));
        snapshot.corrections = self.view.corrections;
        snapshot.adjusted = self.view.adjusted.wrapping_add(self.before);
        snapshot.recent = snapshot.recent.max(self.view.recent).saturating_add(self.abreast(order, now));
        let drained = bucket.tat_of(units, now).saturating_sub(snapshot.tat);
        if units == 0 || drained <= JITTER {
            return 0;
        }
        let drained = drained.min(bucket.span(units));
        snapshot.tat = snapshot.tat.saturating_add(drained);
        snapshot.adjusted = snapshot.adjusted.saturating_add(drained as i64);
        self.add_settled(drained as i64);
        drained
    }

    /// So much of what was reserved in the store has ended, or will not come back, ns.
    pub(super) fn ended(&mut self, span: Ns) {
        self.outstanding = self.outstanding.saturating_sub(span);
    }

    /// The limit has changed, under which one unit was so long, ns.
    pub(super) fn requota(&mut self, bucket: &Bucket, unit: Ns) {
        self.outstanding = bucket.rescale(self.outstanding, unit);
    }

    /// A reservation of the store's is not used: before its time, so nobody that came before gains from it.
    pub(super) fn give_up(&mut self, span: Ns) {
        self.given_up = self.given_up.saturating_sub(i64::try_from(span).unwrap_or(i64::MAX));
    }

    /// When the quota would be full again with a head that the store has charged when it stood so, with its room until then.
    pub(super) fn due(&self, room: Ns, order: BookingOrder, snapshot: &SendSnapshot) -> Ns {
        room.saturating_add_signed(self.since(snapshot, order))
    }

    /// The store is lost, with the quota full again at `tat`. Whether that is news.
    pub(super) fn detach(&mut self, replicas: u32, tat: Ns) -> bool {
        if self.detached.is_some() {
            return false;
        }
        self.detached = Some(Detached { tat, replicas });
        (self.claim, self.unacknowledged, self.observation) = (None, (0, 0), None);
        true
    }

    /// The store is back: what was used meanwhile is owed. Where Groq's headers have shown what all replicas used (`visible`), the
    /// store hears of that; elsewhere every replica owes its own part, as its `share` tells. Whether that is news.
    pub(super) fn attach(&mut self, bucket: Option<&Bucket>, share: Option<&Bucket>, visible: bool, now: Ns) -> bool {
        let Some(detached) = self.detached.take() else { return false };
        if let (Some(bucket), Some(share)) = (bucket, share) {
            if visible {
                self.claim = Some(bucket.tat());
            } else {
                let left = |tat: Ns| tat.saturating_sub(now) as f64;
                let part = bucket.span(1) as f64 / share.span(1) as f64;
                let owed = ((left(share.tat()) - left(detached.tat)) * part) as i64;
                self.settled = self.settled.saturating_add(owed);
            }
        }
        true
    }
}
