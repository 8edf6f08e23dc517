//! The guard that a request holds. It is settled exactly once, whoever drops it, wherever.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    limiter::{Grant, Requeue},
    request::ActualUsage,
    shared::SharedLimiter,
    types::{Dimension, Observation, UpstreamRefusal},
};

/// What was taken; settled exactly once. Dropped before it was sent: all comes back; after: it stays reserved.
#[derive(Debug)]
pub struct Permit {
    /// `None`: nothing was taken, or it is settled. Boxed: a permit is moved at each step of its request.
    held: Option<(Arc<SharedLimiter>, Box<Grant>)>,
}

impl Permit {
    pub(crate) fn new(limiter: Arc<SharedLimiter>, grant: Box<Grant>) -> Self {
        Self { held: Some((limiter, grant)) }
    }

    /// Of something that draws on no limit.
    pub(crate) fn free() -> Self {
        Self { held: None }
    }

    /// How long it waited.
    pub fn waited(&self) -> Duration {
        self.held.as_ref().map_or(Duration::ZERO, |(_, grant)| Duration::from_nanos(grant.waited))
    }

    /// The dimension that made it wait.
    pub fn bound_by(&self) -> Option<&Dimension> {
        self.held.as_ref()?.1.bound_by.as_ref()
    }

    /// Right before the first byte goes out.
    pub fn sent(&mut self, now: Instant) {
        if let Some((limiter, grant)) = &mut self.held {
            let now = limiter.at(now);
            limiter.with(|limiter, _| limiter.sent(grant, now));
        }
    }

    /// An answer's head: its headers correct the quotas, by send position; its time is learnt.
    pub fn observe(&mut self, state: &Observation, now: Instant) {
        if let Some((limiter, grant)) = &mut self.held {
            let now = limiter.at(now);
            limiter.change(|limiter, _| limiter.observe(grant, state, now));
        }
    }

    /// Groq refused (429): the text corrects the quotas, what was taken comes back, the place in the queue is kept, if there was one.
    pub fn refused(
        mut self,
        text: Option<&UpstreamRefusal>,
        state: &Observation,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Option<Requeue> {
        let (limiter, grant) = self.held.take()?;
        let now = limiter.at(now);
        Some(limiter.change(|limiter, _| limiter.refused(*grant, text, state, retry_after, now)))
    }

    /// The truth is known.
    pub fn settle(mut self, usage: ActualUsage, now: Instant) {
        self.end(usage, now);
    }

    fn end(&mut self, usage: ActualUsage, now: Instant) {
        if let Some((limiter, grant)) = self.held.take() {
            let now = limiter.at(now);
            limiter.change(|limiter, _| limiter.settle(*grant, usage, now));
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
