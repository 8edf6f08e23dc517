//! Snapshots of a limiter's quotas and queue, for the status page, metrics and the headers of responses.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::Limiter;
use crate::{
    queue::{FairQueue, QueuedRequest},
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

impl LimiterSnapshot {
    /// A snapshot of a limiter, whose scope is `scope`.
    pub(crate) fn of(limiter: &mut Limiter, scope: &Scope, now: Ns) -> Self {
        let now = limiter.advance(now);
        let until = |at: Ns| Duration::from_nanos(at.saturating_sub(now));
        let blocked = limiter.blocked.filter(|_| !limiter.queue.is_empty());
        let blocked_by = blocked.and_then(|(slot, at)| Some((limiter.quotas()[slot?].dimension.clone(), until(at))));
        // The forecast of a request like the last one in the queue, but behind it.
        let last = limiter.queue.iter().max_by_key(|queued| queued.ticket).cloned();
        let forecast = last.map(|last| limiter.forecast(&QueuedRequest { ticket: u64::MAX, ..last }, now).wait);
        Self {
            organization: scope.organization.clone(),
            model: scope.model.clone(),
            tier: scope.tier.clone(),
            dimensions: DimensionSnapshot::all(limiter, now),
            waiting: WaitingSnapshot::by_app(&limiter.queue, now),
            blocked_by,
            forecast: forecast.unwrap_or_else(|| until(limiter.closed_until(now))),
            in_flight: limiter.in_flight as usize,
            refusals: limiter.refusals,
        }
    }
}

impl DimensionSnapshot {
    /// Every dimension in which the upstream has a limit. If the operator's limit is lower, the values are those of that limit.
    pub fn all(limiter: &Limiter, now: Ns) -> Vec<Self> {
        let limited = || limiter.quotas().iter().filter(|quota| quota.limit().is_some());
        let snapshots = limited().filter(|quota| !quota.is_bound).map(|quota| {
            let bound = limited().find(|other| other.is_bound && other.dimension == quota.dimension);
            Self::of(quota, bound.unwrap_or(quota), now)
        });
        snapshots.collect()
    }

    /// A snapshot of the upstream's `quota`, and of the operator's `bound` on it.
    fn of(quota: &Quota, bound: &Quota, now: Ns) -> Self {
        let (bucket, bound_bucket) = (quota.bucket(), bound.bucket());
        let remaining = bucket.remaining(now).min(bound_bucket.remaining(now));
        let net_use = bound.spending() - bound_bucket.rate() * (1.0 - bound.external());
        let exhausted_in = Duration::try_from_secs_f64(remaining.max(0.0) / net_use).ok();
        Self {
            dimension: quota.dimension.clone(),
            limit: bound_bucket.capacity(),
            remaining,
            margin: bound.margin(bound.typical()),
            source: bound.statements.limit().1,
            configured: bound.statements.configured,
            stated: quota.statements.stated.map(|(limit, _)| limit),
            external: bound.external(),
            exhausted_in: exhausted_in.filter(|&after| net_use > 0.0 && after < Duration::from_nanos(10 * bound_bucket.period())),
            full_in: Duration::from_nanos(bucket.tat().max(bound_bucket.tat()).saturating_sub(now)),
        }
    }
}

impl WaitingSnapshot {
    /// The requests in a queue, by app and priority class.
    fn by_app(queue: &FairQueue, now: Ns) -> Vec<Self> {
        let mut waiting: BTreeMap<(Arc<str>, Priority), Self> = BTreeMap::new();
        for queued in queue.iter() {
            let app = &queued.app;
            let entry = waiting.entry((app.name.clone(), app.class)).or_insert_with(|| Self {
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
