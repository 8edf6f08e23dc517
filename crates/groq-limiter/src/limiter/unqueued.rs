//! Requests that are sent whatever the limits say, and what a second limiter, which tells what the limits would have said, has to
//! know of this one.

use std::time::Duration;

use super::{Grant, Limiter};
use crate::{AdmissionRequest, Source, bucket::Ns, types::Dimension};

impl Limiter {
    /// Takes what `request` costs without a turn in the queue, into debt if need be. The caller dispatches.
    pub fn take(&mut self, request: &AdmissionRequest, now: Ns) -> Grant {
        let now = self.advance(now);
        self.used_at = now;
        let app = self.queue.app(&request.app, request.class, request.weight, now);
        let (waiter, _) = self.read(request, app, now, now, None);
        let grant = self.grant(waiter, None, None, now);
        self.quotas.tell_taken(&grant.reserved);
        self.add_pending(now);
        grant
    }

    /// How long a request like `request` would wait.
    pub fn forecast_of(&mut self, request: &AdmissionRequest, now: Ns) -> Duration {
        let now = self.advance(now);
        let app = self.queue.app(&request.app, request.class, request.weight, now);
        let (_, arrival) = self.read(request, app, now, now, None);
        self.forecast(&arrival, now).wait
    }

    /// Completion tokens that an answer has on average; `None` before the first one.
    pub fn usual_completion(&self) -> Option<u64> {
        self.estimates.completion.mean().map(|mean| mean as u64)
    }

    /// The limits that Groq has stated.
    pub(crate) fn stated_limits(&self) -> Vec<(Dimension, u64, Source)> {
        let quotas = self.quotas.all().iter().filter(|quota| !quota.is_bound());
        quotas
            .filter_map(|quota| {
                let (limit, source) = quota.statements().stated?;
                Some((Dimension::clone(&quota.dimension), limit, source))
            })
            .collect()
    }

    /// Takes up limits that Groq has stated to another limiter. What is used stays.
    pub(crate) fn adopt_limits(&mut self, stated: &[(Dimension, u64, Source)], now: Ns) {
        let now = self.advance(now);
        let is_known = |(dimension, limit, _): &&(Dimension, u64, Source)| {
            let slot = self.quotas.slot(&dimension.code);
            slot.and_then(|slot| self.quotas.all()[slot].statements().stated).map(|(known, _)| known) == Some(*limit)
        };
        if stated.iter().all(|limit| is_known(&limit)) {
            return;
        }
        for (dimension, limit, source) in stated {
            self.restore_limit(dimension, *limit, *source, now);
        }
        self.follow_plan(now);
    }
}
