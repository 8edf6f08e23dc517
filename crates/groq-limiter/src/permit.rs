//! [`Permit`]: the guard of a granted request's reservation. Settling consumes it, and dropping it settles it, too, so every
//! reservation is settled exactly once.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    limiter::{Grant, Requeue},
    request::ActualUsage,
    shared::SharedLimiter,
    types::{Dimension, Observation, UpstreamRefusal},
};

/// The reservation of a granted request, to be settled once. If it is dropped before its request was sent, the reservation is
/// returned. If it is dropped later, the reservation stays, because the usage is unknown.
#[derive(Debug)]
pub struct Permit {
    /// `None` if nothing was reserved, or after settling. Boxed, because a permit is moved at each step of its request.
    held: Option<(Arc<SharedLimiter>, Box<Grant>)>,
}

impl Permit {
    pub(crate) fn new(limiter: Arc<SharedLimiter>, grant: Box<Grant>) -> Self {
        Self { held: Some((limiter, grant)) }
    }

    /// The permit of a request that no limit counts.
    pub(crate) fn free() -> Self {
        Self { held: None }
    }

    /// The time that the request waited in the queue.
    pub fn waited(&self) -> Duration {
        self.held.as_ref().map_or(Duration::ZERO, |(_, grant)| Duration::from_nanos(grant.waited))
    }

    /// The dimension that made the request wait; `None` if it did not wait for one.
    pub fn bound_by(&self) -> Option<&Dimension> {
        self.held.as_ref()?.1.bound_by.as_ref()
    }

    /// Marks the request as sent. To be called right before its first byte is written.
    pub fn sent(&mut self, now: Instant) {
        if let Some((limiter, grant)) = &mut self.held {
            let now = limiter.at(now);
            limiter.with(|limiter| limiter.sent(grant, now));
        }
    }

    /// Takes the head of a response: its headers correct the quotas, and the time since sending updates the estimate of delays.
    /// Each limit in the headers is compared with what had been sent up to this request (its send position).
    pub fn observe(&mut self, state: &Observation, now: Instant) {
        if let Some((limiter, grant)) = &mut self.held {
            limiter.change(limiter.at(now), |limiter, now| limiter.observe(grant, state, now));
        }
    }

    /// Takes a refusal (429): its text corrects the quotas, and the reservation is returned. Returns what keeps the request's
    /// place in the queue for the next attempt; `None` if no limit counts the request.
    pub fn refused(
        mut self,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Option<Requeue> {
        let (limiter, grant) = self.held.take()?;
        Some(limiter.change(limiter.at(now), |limiter, now| limiter.refused(*grant, text, state, retry_after, now)))
    }

    /// Replaces the reservation by what the request has used.
    pub fn settle(mut self, usage: ActualUsage, now: Instant) {
        self.end(usage, now);
    }

    fn end(&mut self, usage: ActualUsage, now: Instant) {
        if let Some((limiter, grant)) = self.held.take() {
            limiter.change(limiter.at(now), |limiter, now| limiter.settle(*grant, usage, now));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((_, grant)) = &self.held {
            let usage = if grant.is_sent() { ActualUsage::Unknown } else { ActualUsage::Nothing };
            self.end(usage, Instant::now());
        }
    }
}
