//! The side of a quota that is shared through a store.
//!
//! With the store, the local bucket is a forecast: the store's last state and what this replica has not reported yet.
//! Without the store, the quota decides alone: the bucket follows the headers as always, and beside it there is a bucket for
//! this replica's share (limit ÷ replicas), which starts as full as the whole one. When the store is back, what was used in
//! between is reported to it.

use std::mem;

use super::{Quota, Remote, SendSnapshot};
use crate::{
    request::Cost,
    store::protocol::{Cell, Observed, RemoteView, micros},
    types::Ns,
};

impl Quota {
    /// Shares the quota from now on, through the store or, without the store, as limit ÷ `alone` replicas.
    pub fn share(&mut self, alone: Option<u32>, now: Ns) {
        let tat = self.bucket.tat();
        let is_attached = self.is_attached();
        let is_visible = self.is_visible();
        match &mut self.remote {
            Some(_) if is_attached == alone.is_none() => return,
            Some(remote) if is_attached => remote.observation = None,
            // Headers have shown what all replicas used in between, so the store gets this bucket's state, as `Cell::known`.
            Some(remote) if is_visible => (remote.tat, remote.settled) = (tat, 0),
            // No header shows this dimension, so each replica reports what it used itself, as a settlement. Its share is a
            // smaller bucket, in which a unit is a longer span.
            Some(remote) => {
                if let Some(share) = self.share.bucket() {
                    let left = |tat: Ns| tat.saturating_sub(now) as f64;
                    let before = remote.tat.saturating_add_signed(remote.settled);
                    let part = self.bucket.span(1) as f64 / share.span(1) as f64;
                    let used = (left(share.tat()) - left(before)) * part;
                    remote.settled = remote.settled.saturating_add(used as i64);
                }
            }
            None => self.remote = Some(Box::new(Remote { tat, settled: 0, observation: None, outstanding: 0 })),
        }
        self.share.restart(&self.bucket, alone, now);
    }

    /// Whether the quota follows the store at present.
    fn is_attached(&self) -> bool {
        self.remote.is_some() && !self.share.is_alone()
    }

    /// The store's side; `None` if the quota does not follow the store at present.
    fn attached(&mut self) -> Option<&mut Remote> {
        self.remote.as_deref_mut().filter(|_| !self.share.is_alone())
    }

    /// Adds a settlement or external usage, ns, to what the next transaction reports.
    pub(super) fn add_settled(&mut self, span: i64) {
        if let Some(remote) = self.attached() {
            remote.settled = remote.settled.saturating_add(span);
        }
    }

    /// Keeps what a header has shown for the next transaction. A newer observation replaces an older one.
    pub(super) fn report(&mut self, observed: Observed) {
        if let Some(remote) = self.attached() {
            remote.observation = Some(observed);
        }
    }

    /// Drops what a header has shown, because the store has a new record: the observation is relative to the old one.
    pub fn forget_observation(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.observation = None;
        }
    }

    /// Whether there is a settlement to report to the store.
    pub fn has_settled(&self) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.settled != 0)
    }

    /// This dimension's part of a transaction that asks for a reservation for `head`, if there is one. `None` without a
    /// limit.
    pub fn cell(&mut self, head: Option<&Cost>, now: Ns) -> Option<Cell> {
        let units = head.map_or(0, |cost| self.units(cost));
        let margin = self.margin(units);
        let bucket = &self.bucket;
        let limit = bucket.limit()?;
        let remote = self.remote.as_mut()?;
        // If the transaction is lost, it may have been applied or not. Its settlements are not reported again: `tat`
        // includes them, and the store gets `tat` as `known` when it is back. At worst, what was given back becomes
        // available later than possible.
        let known = mem::replace(&mut remote.tat, bucket.tat());
        let settled = mem::take(&mut remote.settled);
        Some(Cell {
            code: self.code.clone().into_owned(),
            whole: micros(bucket.span(limit)),
            known: micros(known) - micros(now),
            settled: -settled.saturating_neg().div_euclid(1000),
            observed: remote.observation.take().map(|observed| observed.since(now)),
            outstanding: micros(remote.outstanding),
            units: micros(bucket.span(units).saturating_add(999)),
            margin: micros(bucket.span(margin).saturating_add(999)),
        })
    }

    /// Takes over the store's state, and adds what has not been reported yet.
    pub fn follow(&mut self, view: &RemoteView, now: Ns) {
        let Some(remote) = &mut self.remote else { return };
        remote.tat = view.tat;
        self.bucket.set_tat(view.tat.saturating_add_signed(remote.settled), now);
        self.reconciler.corrections = view.corrections;
    }

    /// Counts `units` that the store has reserved. Returns the send snapshot that belongs to this reservation.
    pub fn booked(&mut self, units: u64, now: Ns) -> SendSnapshot {
        self.count(units, now);
        let span = self.span(units);
        self.sends.reserved(span);
        let corrections = self.reconciler.corrections;
        self.remote.as_mut().map_or_else(SendSnapshot::default, |remote| {
            remote.outstanding = remote.outstanding.saturating_add(span);
            SendSnapshot { tat: remote.tat, corrections }
        })
    }

    /// Removes `units` from what is outstanding, because the reservation has ended, or because Groq counts them from now on.
    pub fn ended(&mut self, units: u64) {
        let span = self.span(units);
        if let Some(remote) = &mut self.remote {
            remote.outstanding = remote.outstanding.saturating_sub(span);
        }
    }
}
