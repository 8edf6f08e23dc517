//! The shared side of a quota: what it has to tell the store, and how it goes on without one.
//!
//! With the store the bucket is a forecast: the store's last answer and what this replica has to tell it. Without it the quota
//! goes on alone: the bucket with its headers as ever, beside a share of limit ÷ replicas that starts as full as the bucket
//! is. Back with the store, what was used meanwhile is owed.

use super::send_history::SendSnapshot;
use crate::{
    bucket::Bucket,
    store::protocol::{Cell, Observed, RemoteView, micros},
    types::Ns,
};

/// The store's side of a quota.
#[derive(Debug)]
pub struct Remote {
    /// Settlements that the store has not been told, ns.
    settled: i64,
    /// What the transaction under way tells of them, ns.
    told: i64,
    observation: Option<Observed>,
    /// The store's last answer or update.
    view: RemoteView,
    /// Reserved in the store and not ended, without what Groq counts as soon as it is sent, ns.
    outstanding: Ns,
    /// Without the store: when the quota was full again as it was lost.
    detached: Option<Ns>,
}

impl Remote {
    /// Of a quota that is full again at `tat`.
    pub(super) fn new(tat: Ns) -> Self {
        let view = RemoteView { tat, ..RemoteView::default() };
        Self { settled: 0, told: 0, observation: None, view, outstanding: 0, detached: None }
    }

    /// A settlement, or what others have taken, ns.
    pub(super) fn add_settled(&mut self, span: i64) {
        if self.detached.is_none() {
            self.settled = self.settled.saturating_add(span);
        }
    }

    /// What a header has shown, for the store.
    pub(super) fn report(&mut self, observation: Observed) {
        if self.detached.is_none() && self.observation.is_none_or(|before| observation.is_after(&before)) {
            self.observation = Some(observation);
        }
    }

    /// Whether the store has to be told of a settlement, and of what a header has shown.
    pub(crate) fn has_pending(&self) -> (bool, bool) {
        (self.settled != 0, self.observation.is_some())
    }

    /// The quota's part of a transaction: a head takes `units` and leaves `margin`. Spans are rounded so that nobody is faster than
    /// the upstream.
    pub(super) fn cell(&mut self, bucket: &Bucket, code: String, units: u64, margin: u64, now: Ns) -> Cell {
        self.told = std::mem::take(&mut self.settled);
        Cell {
            code,
            whole: micros(bucket.span(bucket.limit())),
            known: micros(self.view.tat) - micros(now),
            settled: -self.told.saturating_neg().div_euclid(1000),
            observed: self.observation.take().map(|observation| observation.since(now)),
            outstanding: micros(self.outstanding),
            units: micros(bucket.span(units).saturating_add(999)),
            margin: micros(bucket.span(margin).saturating_add(999)),
        }
    }

    /// The transaction under way is lost, and may have been applied or not. What it took is told again, what it gave back is not:
    /// rather too much in use, until headers show better.
    pub(crate) fn retract(&mut self) {
        self.settled = self.settled.saturating_add(std::mem::take(&mut self.told).max(0));
    }

    /// The store's record has begun anew: what headers have shown is measured by the old one.
    pub(crate) fn renew(&mut self) {
        self.observation = None;
    }

    /// The store's state. When the quota is full again by it and by what is not told yet; `None` without the store.
    pub(super) fn update(&mut self, view: &RemoteView) -> Option<Ns> {
        (self.view, self.told) = (*view, 0);
        self.detached.is_none().then(|| view.tat.saturating_add_signed(self.settled))
    }

    /// The store has charged so much, ns: how the quota stands.
    pub(super) fn booked(&mut self, span: Ns) -> SendSnapshot {
        self.outstanding = self.outstanding.saturating_add(span);
        SendSnapshot { tat: self.view.tat, corrections: self.view.corrections }
    }

    /// So much of what was reserved in the store has ended, or will not come back, ns.
    pub(super) fn ended(&mut self, span: Ns) {
        self.outstanding = self.outstanding.saturating_sub(span);
    }

    /// The limit has changed, under which one unit was so long, ns.
    pub(super) fn requota(&mut self, bucket: &Bucket, unit: Ns) {
        self.outstanding = bucket.rescale(self.outstanding, unit);
    }

    /// The store is lost, with the quota full again at `tat`. Whether it was attached.
    pub(super) fn detach(&mut self, tat: Ns) -> bool {
        let is_news = self.detached.is_none();
        if is_news {
            (self.detached, self.observation) = (Some(tat), None);
        }
        is_news
    }

    /// The store is back: what was used meanwhile is owed. Where Groq's headers have shown what all replicas used (`visible`), the
    /// store hears of that; elsewhere every replica owes its own part, as its `share` tells. Whether it was attached.
    pub(super) fn attach(&mut self, bucket: Option<&Bucket>, share: Option<&Bucket>, visible: bool, now: Ns) -> bool {
        let Some(before) = self.detached.take() else { return false };
        if let (Some(bucket), Some(share)) = (bucket, share) {
            if visible {
                self.view.tat = bucket.tat();
                self.settled = 0;
            } else {
                let left = |tat: Ns| tat.saturating_sub(now) as f64;
                let part = bucket.span(1) as f64 / share.span(1) as f64;
                let owed = ((left(share.tat()) - left(before)) * part) as i64;
                self.settled = self.settled.saturating_add(owed);
            }
        }
        true
    }
}
