//! Our own part of a limit, where it is not all of it: what the headroom leaves to us, and without the store what the other
//! replicas do. The upstream knows nothing of it; our own use alone is taken from it.

use std::time::Duration;

use crate::{
    bucket::{Bucket, Readiness},
    types::Ns,
};

/// The part of one dimension that is ours.
#[derive(Debug)]
pub(super) struct OwnShare {
    /// Share of the limit that is left to others.
    pub(super) headroom: f64,
    /// Without the store the rest is divided by so many replicas.
    replicas: Option<u32>,
    /// `None`: all of the limit is ours. Boxed: most limiters have none.
    bucket: Option<Box<Bucket>>,
}

impl OwnShare {
    pub(super) fn new(headroom: f64) -> Self {
        Self { headroom, replicas: None, bucket: None }
    }

    /// Whether the other replicas have their own, without the store.
    pub(super) fn is_alone(&self) -> bool {
        self.replicas.is_some()
    }

    pub(super) fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_deref()
    }

    /// Whether `units` fit once `before` units more were taken.
    pub(super) fn peek(&self, units: u64, before: u64, now: Ns) -> Readiness {
        self.bucket.as_ref().map_or(Readiness::Now, |share| share.peek(units.min(share.capacity()), before, now))
    }

    pub(super) fn take(&mut self, units: u64, now: Ns) {
        if let Some(share) = &mut self.bucket {
            share.take_or_debit(units, now);
        }
    }

    /// The truth replaces what was taken.
    pub(super) fn settle(&mut self, units: u64, used: u64, now: Ns) {
        if let Some(share) = &mut self.bucket {
            share.settle(units, used, now);
        }
    }

    /// From now on it is a part of this limit; what is used of it stays used.
    pub(super) fn resize(&mut self, whole: &Bucket, now: Ns) {
        let ours = (1.0 - self.headroom) / f64::from(self.replicas.unwrap_or(1).max(1));
        if ours >= 1.0 && self.replicas.is_none() {
            self.bucket = None;
            return;
        }
        let limit = whole.limit().map(|limit| ((limit as f64 * ours) as u64).max(1));
        match &mut self.bucket {
            Some(share) => share.requota(limit, now),
            None => self.bucket = Some(Box::new(Bucket::new(limit, Duration::from_nanos(whole.period())))),
        }
    }

    /// It starts anew, as full as the limit is.
    pub(super) fn restart(&mut self, whole: &Bucket, replicas: Option<u32>, now: Ns) {
        (self.replicas, self.bucket) = (replicas, None);
        self.resize(whole, now);
        if let Some(share) = &mut self.bucket {
            share.set_tat(whole.tat(), now);
        }
    }
}
