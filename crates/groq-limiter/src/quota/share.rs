//! This process's own share of a limit, if it may not use all of it: the limit less the configured headroom and, while the
//! store is lost, divided by the number of replicas. Only our own usage is taken from the share, and no header corrects it,
//! because the upstream does not know about it.

use std::time::Duration;

use crate::{bucket::Bucket, types::Ns};

/// The own share of one dimension.
#[derive(Debug)]
pub(super) struct OwnShare {
    /// The part of the limit that is left to others, 0 to 1.
    pub(super) headroom: f64,
    /// The number of replicas that divide the rest while the store is lost; `None` otherwise.
    pub(super) replicas: Option<u32>,
    /// `None` if all of the limit may be used. Boxed, because most limiters have none.
    pub(super) bucket: Option<Box<Bucket>>,
}

impl OwnShare {
    /// A share of all but `headroom`. It has no bucket until the limit is known ([`Self::resize`]).
    pub(super) fn new(headroom: f64) -> Self {
        Self { headroom, replicas: None, bucket: None }
    }

    /// The first time at which `units` fit after another `before` units have been taken.
    pub(super) fn peek(&self, units: u64, before: u64, now: Ns) -> Ns {
        self.bucket.as_ref().map_or(now, |share| share.peek(units.min(share.capacity()), before, now))
    }

    /// Takes `units`, even if they do not fit.
    pub(super) fn take(&mut self, units: u64, now: Ns) {
        if let Some(share) = &mut self.bucket {
            share.take_or_debit(units, now);
        }
    }

    /// Replaces the `units` that were taken by those that were `used`.
    pub(super) fn settle(&mut self, units: u64, used: u64, now: Ns) {
        if let Some(share) = &mut self.bucket {
            share.settle(units, used, now);
        }
    }

    /// Adapts the share to the limit of `whole`, to the headroom, and to the number of replicas. What was used stays used.
    pub(super) fn resize(&mut self, whole: &Bucket, now: Ns) {
        let part = (1.0 - self.headroom) / f64::from(self.replicas.unwrap_or(1).max(1));
        if part >= 1.0 && self.replicas.is_none() {
            self.bucket = None;
            return;
        }
        let limit = whole.limit().map(|limit| ((limit as f64 * part) as u64).max(1));
        match &mut self.bucket {
            Some(share) => share.requota(limit, now),
            None => self.bucket = Some(Box::new(Bucket::new(limit, Duration::from_nanos(whole.period())))),
        }
    }

    /// Starts the share anew, as full as `whole` is.
    pub(super) fn restart(&mut self, whole: &Bucket, replicas: Option<u32>, now: Ns) {
        (self.replicas, self.bucket) = (replicas, None);
        self.resize(whole, now);
        if let Some(share) = &mut self.bucket {
            share.set_tat(whole.tat(), now);
        }
    }
}
