//! A limiter's state for people and for the state file.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Limiter, nanos};
use crate::{
    DimensionSnapshot, LimiterSnapshot, WaitingSnapshot,
    bucket::Ns,
    queue::QueuedRequest,
    queue::forecast::{Arrival, forecast},
    quota::Quota,
    types::{Dimension, Priority},
};

impl Limiter {
    /// Levels, queue and forecast. The limiter's names are the caller's to give.
    pub fn snapshot(&mut self, organization: &Arc<str>, tier: &Arc<str>, now: Ns) -> LimiterSnapshot {
        let now = self.advance(now);
        let mut waiting: BTreeMap<(Arc<str>, Priority), WaitingSnapshot> = BTreeMap::new();
        for waiter in self.queue.iter() {
            let Some(app) = self.queue.app_of(waiter.app) else { continue };
            let entry = waiting.entry((app.name.clone(), app.class)).or_insert_with(|| WaitingSnapshot {
                app: app.name.clone(),
                class: app.class,
                count: 0,
                oldest: Duration::ZERO,
            });
            entry.count += 1;
            entry.oldest = entry.oldest.max(Duration::from_nanos(now.saturating_sub(waiter.since)));
        }
        let blocked_by = self.blocked.filter(|_| !self.queue.is_empty()).and_then(|(slot, until)| {
            let quota = self.quotas.all().get(slot?)?;
            Some((Dimension::clone(&quota.dimension), Duration::from_nanos(until.saturating_sub(now))))
        });
        LimiterSnapshot {
            organization: organization.clone(),
            model: self.model.clone(),
            tier: tier.clone(),
            dimensions: self.dimensions(now),
            waiting: waiting.into_values().collect(),
            blocked_by,
            forecast: self.typical_wait(now),
            in_flight: self.in_flight as usize,
            refusals: self.refusals,
        }
    }

    /// Every dimension that has a limit. Where the operator's bound is below the upstream's limit, it is what is shown.
    fn dimensions(&self, now: Ns) -> Vec<DimensionSnapshot> {
        let mut shown: Vec<DimensionSnapshot> = Vec::with_capacity(self.quotas.all().len());
        for quota in self.quotas.all() {
            let Some(this) = dimension(quota, now) else { continue };
            match shown.iter_mut().find(|other| quota.is_bound() && other.dimension == *quota.dimension) {
                Some(other) => {
                    let (stated, quota) = (other.stated, other.remaining.min(this.remaining));
                    *other = DimensionSnapshot { stated, remaining: quota, ..this };
                }
                None => shown.push(this),
            }
        }
        shown
    }

    /// Every dimension that has a limit: the limit, what is left, and the time until it is full. Where the operator's bound is below
    /// the upstream's limit, it is what is shown. Cheap, for every response has it.
    pub fn visit_quotas(&self, now: Ns, mut visit: impl FnMut(&Dimension, u64, f64, Duration)) {
        for quota in self.quotas.all() {
            let Some(bucket) = quota.bucket() else { continue };
            let (mut limit, mut remaining, mut tat) = (bucket.limit(), bucket.remaining(now), bucket.tat());
            if quota.is_bound() {
                continue;
            }
            let bound = self.quotas.bound_slot(&quota.dimension.code).and_then(|slot| self.quotas.all()[slot].bucket());
            if let Some(bound) = bound {
                limit = bound.limit();
                remaining = remaining.min(bound.remaining(now));
                tat = tat.max(bound.tat());
            }
            visit(&quota.dimension, limit, remaining, Duration::from_nanos(tat.saturating_sub(now)));
        }
    }

    /// What a request like the last in the queue would wait.
    fn typical_wait(&self, now: Ns) -> Duration {
        let Some(QueuedRequest { app, size, cost, .. }) = self.queue.iter().max_by_key(|waiter| waiter.ticket) else {
            return Duration::from_nanos(self.paused_until.saturating_sub(now));
        };
        let Some(class) = self.queue.app_of(*app).map(|app| app.class) else { return Duration::ZERO };
        let arrival = Arrival { app: *app, class, size: *size, cost: *cost, ticket: None };
        forecast(&self.quotas, &self.queue, &arrival, now).wait
    }

    /// Nobody waits or runs, and every quota is full again: dropping it loses only what was learnt.
    pub fn is_idle(&mut self, now: Ns) -> bool {
        let now = self.advance(now);
        self.queue.is_empty() && self.in_flight == 0 && self.quotas.all().iter().all(|quota| quota.is_full(now))
    }

    /// Nobody waits or runs.
    pub fn is_unused(&self) -> bool {
        self.queue.is_empty() && self.in_flight == 0
    }

    /// Whether Groq has said anything about its limits.
    pub fn has_learnt(&self) -> bool {
        self.quotas.all().iter().any(|quota| quota.statements().stated.is_some())
    }

    /// When it was last used.
    pub fn used_at(&self) -> Ns {
        self.used_at
    }

    /// The limiter's usual time from sending to an answer's head.
    pub fn usual_time_to_head(&self) -> Duration {
        self.estimates.usual_time_to_head()
    }

    /// A dimension by its slot.
    pub fn dimension(&self, slot: u8) -> Option<&Dimension> {
        self.quotas.all().get(usize::from(slot)).map(|quota| &*quota.dimension)
    }

    /// Whether anybody waits.
    pub fn has_waiters(&self) -> bool {
        !self.queue.is_empty()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that are granted and not settled.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The dimensions, for tests and for saving.
    pub fn all(&self) -> &[Quota] {
        self.quotas.all()
    }

    /// Whether the head is let pass by `delay` more: tests read the max wait of the queue here.
    pub fn blocked_until(&self) -> Option<Ns> {
        self.blocked.map(|(_, until)| until)
    }
}

fn dimension(quota: &Quota, now: Ns) -> Option<DimensionSnapshot> {
    let bucket = quota.bucket()?;
    let left = bucket.remaining(now);
    let losing = quota.spending() - bucket.rate() * (1.0 - quota.external());
    let exhausted_in = (losing > 0.0).then(|| Duration::try_from_secs_f64(left.max(0.0) / losing).ok()).flatten();
    Some(DimensionSnapshot {
        dimension: Dimension::clone(&quota.dimension),
        limit: bucket.limit(),
        remaining: left,
        margin: quota.margin(quota.typical()),
        source: quota.source(),
        configured: quota.statements().configured,
        stated: quota.statements().stated.map(|(limit, _)| limit),
        external: quota.external(),
        exhausted_in: exhausted_in.filter(|&at| nanos(at) < 10 * bucket.period()),
        full_in: Duration::from_nanos(bucket.tat().saturating_sub(now)),
    })
}
