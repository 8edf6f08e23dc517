//! A limiter's quotas and queue, for people and for the headers of responses.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::Limiter;
use crate::{
    queue::QueuedRequest,
    quota::Quota,
    request::Scope,
    types::{Dimension, Ns, Priority, Source},
};

/// One limiter, for people.
#[derive(Clone, Debug)]
pub struct LimiterSnapshot {
    /// Whose.
    pub organization: Arc<str>,
    /// Which model.
    pub model: Arc<str>,
    /// Which tier.
    pub tier: Arc<str>,
    /// Its dimensions.
    pub dimensions: Vec<DimensionSnapshot>,
    /// Its queue.
    pub waiting: Vec<WaitingSnapshot>,
    /// The dimension that blocks the head of the queue, and for how long.
    pub blocked_by: Option<(Dimension, Duration)>,
    /// Wait that a typical new request would see.
    pub forecast: Duration,
    /// Sent and not settled.
    pub in_flight: usize,
    /// Groq's refusals so far.
    pub refusals: u64,
}

/// One dimension of a limiter, for people.
#[derive(Clone, Debug)]
pub struct DimensionSnapshot {
    /// Which.
    pub dimension: Dimension,
    /// The limit.
    pub limit: u64,
    /// What is left now; below zero in debt.
    pub remaining: f64,
    /// Never usage below this.
    pub margin: u64,
    /// Where the limit's number comes from.
    pub source: Source,
    /// The operator's bound, where there is one.
    pub configured: Option<u64>,
    /// What Groq states, where it has.
    pub stated: Option<u64>,
    /// Share of the limit's rate that others take.
    pub external: f64,
    /// Time until exhausted at the present rate of use, `None` if it is not heading there.
    pub exhausted_in: Option<Duration>,
    /// Time until full if nothing more is sent.
    pub full_in: Duration,
}

/// The requests that wait in a limiter, per app and class.
#[derive(Clone, Debug)]
pub struct WaitingSnapshot {
    /// The app.
    pub app: Arc<str>,
    /// Its class.
    pub class: Priority,
    /// How many.
    pub count: usize,
    /// The longest wait so far.
    pub oldest: Duration,
}

impl Limiter {
    /// Quotas, queue and forecast of the limiter, which is that of `scope`.
    pub fn snapshot(&mut self, scope: &Scope, now: Ns) -> LimiterSnapshot {
        let now = self.advance(now);
        let blocked_by = self.blocked.filter(|_| !self.queue.is_empty()).and_then(|(slot, until)| {
            Some((self.quotas()[slot?].dimension.clone(), Duration::from_nanos(until.saturating_sub(now))))
        });
        // What a request like the last in the queue would wait.
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

    /// Every dimension of the upstream's that has a limit, with the operator's bound where it is lower.
    pub fn dimensions(&self, now: Ns) -> Vec<DimensionSnapshot> {
        let upstreams = self.quotas().iter().filter(|quota| !quota.is_bound() && quota.limit().is_some());
        let each = upstreams.map(|quota| {
            let is_bound = |other: &&Quota| other.is_bound() && other.dimension == quota.dimension && other.limit().is_some();
            let bound = self.quotas().iter().find(is_bound).unwrap_or(quota);
            let (bucket, by) = (quota.bucket(), bound.bucket());
            let remaining = bucket.remaining(now).min(by.remaining(now));
            let losing = bound.spending() - by.rate() * (1.0 - bound.external());
            let exhausted_in = Duration::try_from_secs_f64(remaining.max(0.0) / losing).ok();
            DimensionSnapshot {
                dimension: quota.dimension.clone(),
                limit: by.capacity(),
                remaining,
                margin: bound.margin(bound.typical()),
                source: bound.statements.limit().1,
                configured: bound.statements.configured,
                stated: quota.statements.stated.map(|(limit, _)| limit),
                external: bound.external(),
                exhausted_in: exhausted_in.filter(|&after| losing > 0.0 && after < Duration::from_nanos(10 * by.period())),
                full_in: Duration::from_nanos(bucket.tat().max(by.tat()).saturating_sub(now)),
            }
        });
        each.collect()
    }

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
