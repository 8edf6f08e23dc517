//! The guard that a request holds. It is settled exactly once, whoever drops it, wherever.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{ActualUsage, Requeue, limiter::Permit, registry::SharedLimiter};
use crate::types::{Dimension, Observation, UpstreamRefusal};

/// What was taken; settled exactly once. Dropped before it was sent: all comes back; after: the charge stands.
#[derive(Debug)]
pub struct Reservation {
    /// `None`: nothing was taken, or it is settled.
    held: Option<(Arc<SharedLimiter>, Box<Permit>)>,
    waited: Duration,
    bound_by: Option<Dimension>,
}

impl Reservation {
    pub(super) fn new(limiter: Arc<SharedLimiter>, charge: Box<Permit>) -> Self {
        let bound_by = charge.bound.and_then(|slot| limiter.with(|limiter| limiter.dimension(slot).cloned()));
        Self { waited: Duration::from_nanos(charge.waited), bound_by, held: Some((limiter, charge)) }
    }

    /// Of something that draws on no limit.
    pub(super) fn free() -> Self {
        Self { held: None, waited: Duration::ZERO, bound_by: None }
    }

    /// How long it waited.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The dimension that made it wait.
    pub fn bound_by(&self) -> Option<&Dimension> {
        self.bound_by.as_ref()
    }

    /// Right before the first byte goes out.
    pub fn sent(&mut self, now: Instant) {
        if let Some((limiter, charge)) = &mut self.held {
            let now = limiter.at(now);
            limiter.with(|limiter| limiter.sent(charge, now));
        }
    }

    /// An answer's head: its headers correct the quotas, by send position; its time is learnt.
    pub fn observe(&mut self, state: &Observation, now: Instant) {
        if let Some((limiter, charge)) = &mut self.held {
            let now = limiter.at(now);
            limiter.change(|limiter| limiter.observe(charge, state, now));
        }
    }

    /// Groq refused (429): the text corrects the quotas, the charge comes back, the place in the queue is kept, if there was one.
    pub fn refused(
        mut self,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Option<Requeue> {
        let (limiter, charge) = self.held.take()?;
        let now = limiter.at(now);
        Some(limiter.change(|limiter| limiter.refused(*charge, text, state, retry_after, now)))
    }

    /// The truth is known.
    pub fn settle(mut self, spent: ActualUsage, now: Instant) {
        self.end(spent, now);
    }

    fn end(&mut self, spent: ActualUsage, now: Instant) {
        if let Some((limiter, charge)) = self.held.take() {
            let now = limiter.at(now);
            limiter.change(|limiter| limiter.settle(*charge, spent, now));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some((_, charge)) = &self.held {
            let spent = if charge.is_sent() { ActualUsage::Unknown } else { ActualUsage::Nothing };
            self.end(spent, Instant::now());
        }
    }
}
