//! A quota in a store that replicas share.
//!
//! With the store the bucket is a forecast: the store's last answer and what this replica has to tell it. Without it the quota
//! goes on alone: the bucket with its headers as ever, beside a share of limit ÷ replicas that starts as full as the bucket
//! is. Back with the store, what was used meanwhile is owed.

use std::mem;

use super::{Quota, Remote, SendSnapshot};
use crate::{
    request::Cost,
    store::protocol::{Cell, Observed, RemoteView, micros},
    types::Ns,
};

impl Quota {
    /// Shared from now on: with the store, or (`alone`) without it, as limit ÷ replicas.
    pub fn share(&mut self, alone: Option<u32>, now: Ns) {
        let tat = self.bucket.tat();
        let is_attached = self.is_attached();
        let is_visible = self.is_visible();
        match &mut self.remote {
            Some(_) if is_attached == alone.is_none() => return,
            Some(remote) if is_attached => remote.observation = None,
            // Groq's headers have shown what all replicas used: the store hears of that.
            Some(remote) if is_visible => (remote.tat, remote.settled) = (tat, 0),
            // Every replica owes its own part.
            Some(remote) => {
                if let Some(share) = self.share.bucket() {
                    let left = |tat: Ns| tat.saturating_sub(now) as f64;
                    let before = remote.tat.saturating_add_signed(remote.settled);
                    let part = self.bucket.span(1) as f64 / share.span(1) as f64;
                    let owed = (left(share.tat()) - left(before)) * part;
                    remote.settled = remote.settled.saturating_add(owed as i64);
                }
            }
            None => self.remote = Some(Box::new(Remote { tat, settled: 0, observation: None, outstanding: 0 })),
        }
        self.share.restart(&self.bucket, alone, now);
    }

    fn is_attached(&self) -> bool {
        self.remote.is_some() && !self.share.is_alone()
    }

    fn attached(&mut self) -> Option<&mut Remote> {
        self.remote.as_deref_mut().filter(|_| !self.share.is_alone())
    }

    /// A settlement, or what others have taken, ns.
    pub(super) fn add_settled(&mut self, span: i64) {
        if let Some(remote) = self.attached() {
            remote.settled = remote.settled.saturating_add(span);
        }
    }

    /// What a header has shown, for the store.
    pub(super) fn report(&mut self, observed: Observed) {
        if let Some(remote) = self.attached() {
            remote.observation = Some(observed);
        }
    }

    /// The store's record has begun anew: what headers have shown is measured by the old one.
    pub fn forget_observation(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.observation = None;
        }
    }

    /// Whether the store has to be told of a settlement.
    pub fn has_settled(&self) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.settled != 0)
    }

    /// Its part of a transaction. `None` without a limit.
    pub fn cell(&mut self, head: Option<&Cost>, now: Ns) -> Option<Cell> {
        let units = head.map_or(0, |cost| self.units(cost));
        let margin = self.margin(units);
        let bucket = &self.bucket;
        let limit = bucket.limit()?;
        let remote = self.remote.as_mut()?;
        // If the transaction is lost, the store may know of it or not. What has come back may come back later than it could.
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

    /// The store's state.
    pub fn follow(&mut self, view: &RemoteView, now: Ns) {
        let Some(remote) = &mut self.remote else { return };
        remote.tat = view.tat;
        self.bucket.set_tat(view.tat.saturating_add_signed(remote.settled), now);
        self.reconciler.corrections = view.corrections;
    }

    /// The store has charged `units`: how the quota stands.
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

    /// So much of what was reserved in the store has ended, or will not come back.
    pub fn ended(&mut self, units: u64) {
        let span = self.span(units);
        if let Some(remote) = &mut self.remote {
            remote.outstanding = remote.outstanding.saturating_sub(span);
        }
    }
}
