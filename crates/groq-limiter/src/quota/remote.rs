//! The state of a quota in the store that replicas share.
//!
//! With the store, the local bucket is a forecast: the store's last state and what this replica has not reported yet.
//! Without the store, the quota decides alone: the bucket follows the headers as always, and beside it there is a bucket for
//! this replica's share (limit ÷ replicas), which starts as full as the whole one. When the store is back, what was used in
//! between is reported to it.

use std::mem;

use crate::{
    bucket::{Bucket, BucketState},
    store::protocol::{Cell, Observed, micros},
    types::Ns,
};

/// The state of a quota in the store, and the changes that are not reported to the store yet.
#[derive(Debug)]
pub(super) struct Remote {
    /// The time at which the quota is full again according to the store.
    pub(super) tat: Ns,
    /// Sum of the changes to report, such as settlements, ns.
    pub(super) settled: i64,
    /// What the newest header has shown, if that is not reported yet: the bucket when its request was sent, when Groq
    /// received the request, and when the bucket was full again by the header.
    pub(super) observation: Option<(BucketState, Ns, Ns)>,
    /// What this replica has reserved in the store for requests that have not ended, ns. A request leaves it when it is
    /// sent, except for its output, which Groq counts at the end.
    pub(super) outstanding: Ns,
}

impl Remote {
    /// The state of a quota that is full again at `tat`.
    pub(super) fn new(tat: Ns) -> Self {
        Self { tat, settled: 0, observation: None, outstanding: 0 }
    }

    /// The store is back, after this replica has used its share of the limit: what it used is to be reported. `share` is the
    /// bucket of that share; `None` if headers show the dimension.
    pub(super) fn rejoin(&mut self, whole: &Bucket, share: Option<&Bucket>, now: Ns) {
        let Some(share) = share else {
            // Headers have shown what all replicas used in between, so the store gets this bucket's state, as `Cell::known`.
            (self.tat, self.settled) = (whole.tat(), 0);
            return;
        };
        // Each replica reports what it used itself, as a settlement. Its share is a smaller bucket, in which a unit is a longer
        // span.
        let left = |tat: Ns| tat.saturating_sub(now) as f64;
        let before = self.tat.saturating_add_signed(self.settled);
        let part = whole.span(1) as f64 / share.span(1) as f64;
        let used = (left(share.tat()) - left(before)) * part;
        self.settled = self.settled.saturating_add(used as i64);
    }

    /// The part of a transaction for the dimension with this code, which asks for `units` and leaves `margin` units. `None`
    /// without a limit.
    pub(super) fn cell(&mut self, code: &str, bucket: &Bucket, units: u64, margin: u64, now: Ns) -> Option<Cell> {
        let limit = bucket.limit()?;
        // If the transaction is lost, it may have been applied or not. Its settlements are not reported again: `tat`
        // includes them, and the store gets `tat` as `known` when it is back. At worst, what was given back becomes
        // available later than possible.
        let known = mem::replace(&mut self.tat, bucket.tat());
        let settled = mem::take(&mut self.settled);
        Some(Cell {
            code: code.to_owned(),
            whole: micros(bucket.span(limit)),
            known: micros(known) - micros(now),
            settled: -settled.saturating_neg().div_euclid(1000),
            observed: self.observation.take().map(|(before, at, truth)| Observed::new(before, at, truth, now)),
            outstanding: micros(self.outstanding),
            units: micros(bucket.span(units).saturating_add(999)),
            margin: micros(bucket.span(margin).saturating_add(999)),
        })
    }
}
