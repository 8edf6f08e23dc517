//! Snapshots of a limiter's quotas and queue, for the status page, metrics and the headers of responses.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::Limiter;
use crate::{
    queue::QueuedRequest,
    quota::Quota,
    request::Scope,
    types::{Dimension, Ns, Priority, Source},
};

/// A snapshot of one limiter.
#[derive(Clone, Debug)]
pub struct LimiterSnapshot {
    /// The organization: its configured name, or the digest of its API key.
    pub organization: Arc<str>,
    /// The model.
    pub model: Arc<str>,
    /// The service tier.
    pub tier: Arc<str>,
    /// Every dimension that has a limit.
    pub dimensions: Vec<DimensionSnapshot>,
    /// Waiting requests by app and priority class.
    pub waiting: Vec<WaitingSnapshot>,
    /// The dimension that blocks the head of the queue, and for how long; `None` if the head is not blocked by a dimension.
    pub blocked_by: Option<(Dimension, Duration)>,
    /// Forecast wait of a new request like the last one in the queue.
    pub forecast: Duration,
    /// Requests that are granted and not settled.
    pub in_flight: usize,
    /// Groq's refusals so far.
    pub refusals: u64,
}

/// A snapshot of one dimension of a limiter.
#[derive(Clone, Debug)]
pub struct DimensionSnapshot {
    /// The dimension.
    pub dimension: Dimension,
    /// The limit in force.
    pub limit: u64,
    /// Units left now; negative in debt.
    pub remaining: f64,
    /// The safety margin: units that are never used.
    pub margin: u64,
    /// Where the limit comes from.
    pub source: Source,
    /// The configured limit; `None` if there is none.
    pub configured: Option<u64>,
    /// The limit as Groq states it; `None` if it has not.
    pub stated: Option<u64>,
    /// Share of the limit's rate, 0 to 1, that other programs use.
    pub external: f64,
    /// Time until the limit is exhausted at the present rate of use; `None` if it will not be.
    pub exhausted_in: Option<Duration>,
    /// Time until the limit is unused again if nothing more is sent.
    pub full_in: Duration,
}

/// Waiting requests of one app in one priority class.
#[derive(Clone, Debug)]
pub struct WaitingSnapshot {
    /// The app's name.
    pub app: Arc<str>,
    /// The priority class.
    pub class: Priority,
    /// Number of requests.
    pub count: usize,
    /// The longest wait so far.
    pub oldest: Duration,
}

impl Limiter {
    /// A snapshot of this limiter, whose scope is `scope`.
    pub fn snapshot(&mut self, scope: &Scope, now: Ns) -> LimiterSnapshot {
        let now = self.advance(now);
        let blocked_by = self.blocked.filter(|_| !self.queue.is_empty()).and_then(|(slot, until)| {
            Some((self.quotas()[slot?].dimension.clone(), Duration::from_nanos(until.saturating_sub(now))))
        });
        // The forecast of a request like the last one in the queue, but behind it.
        let last = self.queue.iter().max_by_key(|queued| queued.ticket).cloned();
        let forecast = last.map(|last| self.forecast(&QueuedRequest { ticket: u64::MAX, ..last }, now).wait);
        LimiterSnapshot {
            organization: scope.organization.clone(),
            model: scope.model.clone(),
            tier: scope.tier.clone(),
            dimensions: self.dimensions(now),
            waiting: self.waiting_by_app(now),
            blocked_by,
            forecast: forecast.unwrap_or_else(|| Duration::from_nanos(self.pause.until.saturating_sub(now))),
            in_flight: self.in_flight as usize,
            refusals: self.refusals,
        }
    }

    /// Every dimension in which the upstream has a limit. If the operator's limit is lower, the values are those of that limit.
    pub fn dimensions(&self, now: Ns) -> Vec<DimensionSnapshot> {
        let upstreams = self.quotas().iter().filter(|quota| !quota.is_bound() && quota.limit().is_some());
        let snapshots = upstreams.map(|quota| {
            let is_bound = |other: &&Quota| other.is_bound() && other.dimension == quota.dimension && other.limit().is_some();
            let bound = self.quotas().iter().find(is_bound).unwrap_or(quota);
            let (bucket, bound_bucket) = (quota.bucket(), bound.bucket());
            let remaining = bucket.remaining(now).min(bound_bucket.remaining(now));
            let net_use = bound.spending() - bound_bucket.rate() * (1.0 - bound.external());
            let exhausted_in = Duration::try_from_secs_f64(remaining.max(0.0) / net_use).ok();
            DimensionSnapshot {
                dimension: quota.dimension.clone(),
                limit: bound_bucket.capacity(),
                remaining,
                margin: bound.margin(bound.typical()),
                source: bound.statements.limit().1,
                configured: bound.statements.configured,
                stated: quota.statements.stated.map(|(limit, _)| limit),
                external: bound.external(),
                exhausted_in: exhausted_in
                    .filter(|&after| net_use > 0.0 && after < Duration::from_nanos(10 * bound_bucket.period())),
                full_in: Duration::from_nanos(bucket.tat().max(bound_bucket.tat()).saturating_sub(now)),
            }
        });
        snapshots.collect()
    }

    /// Waiting requests by app and priority class.
    fn waiting_by_app(&self, now: Ns) -> Vec<WaitingSnapshot> {
        let mut waiting: BTreeMap<(Arc<str>, Priority), WaitingSnapshot> = BTreeMap::new();
        for queued in self.queue.iter() {
            let app = &queued.app;
            let entry = waiting.entry((app.name.clone(), app.class)).or_insert_with(|| WaitingSnapshot {
                app: app.name.clone(),
                class: app.class,
                count: 0,
                oldest: Duration::ZERO,
            });
            entry.count += 1;
            entry.oldest = entry.oldest.max(Duration::from_nanos(now.saturating_sub(queued.since)));
        }
        waiting.into_values().collect()
    }
}
