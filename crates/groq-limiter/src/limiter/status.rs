//! A limiter's quotas and queue for people.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    queue::FairQueue,
    quota::Quota,
    quota_set::QuotaSet,
    snapshot::{DimensionSnapshot, WaitingSnapshot},
    types::{Dimension, Ns, Priority},
};

/// Every dimension that has a limit. Where the operator's bound is below the upstream's limit, it is what is shown.
pub(super) fn dimensions(quotas: &QuotaSet, now: Ns) -> Vec<DimensionSnapshot> {
    let mut shown: Vec<DimensionSnapshot> = Vec::with_capacity(quotas.all().len());
    for quota in quotas.all() {
        let Some(this) = dimension(quota, now) else { continue };
        match shown.iter_mut().find(|other| quota.is_bound() && other.dimension == quota.dimension) {
            Some(other) => {
                let (stated, remaining) = (other.stated, other.remaining.min(this.remaining));
                *other = DimensionSnapshot { stated, remaining, ..this };
            }
            None => shown.push(this),
        }
    }
    shown
}

fn dimension(quota: &Quota, now: Ns) -> Option<DimensionSnapshot> {
    let bucket = quota.bucket()?;
    let left = bucket.remaining(now);
    let losing = quota.spending() - bucket.rate() * (1.0 - quota.external());
    let exhausted_in = (losing > 0.0).then(|| Duration::try_from_secs_f64(left.max(0.0) / losing).ok()).flatten();
    Some(DimensionSnapshot {
        dimension: quota.dimension.clone(),
        limit: bucket.limit(),
        remaining: left,
        margin: quota.margin(quota.typical()),
        source: quota.statements().limit().1,
        configured: quota.statements().configured,
        stated: quota.statements().stated.map(|(limit, _)| limit),
        external: quota.external(),
        exhausted_in: exhausted_in.filter(|&after| after < Duration::from_nanos(10 * bucket.period())),
        full_in: Duration::from_nanos(bucket.tat().saturating_sub(now)),
    })
}

/// The waiting requests, by app and priority class.
pub(super) fn waiting(queue: &FairQueue, now: Ns) -> Vec<WaitingSnapshot> {
    let mut waiting: BTreeMap<(Arc<str>, Priority), WaitingSnapshot> = BTreeMap::new();
    for (_, queued) in queue.iter() {
        let Some(app) = queue.app_of(queued.app) else { continue };
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

/// Every dimension that has a limit: the limit, what is left, and the time until it is full. Where the operator's bound is below
/// the upstream's limit, it is what is shown. Cheap, for every response has it.
pub(super) fn visit(quotas: &QuotaSet, now: Ns, mut visit: impl FnMut(&Dimension, u64, f64, Duration)) {
    for quota in quotas.all().iter().filter(|quota| !quota.is_bound()) {
        let Some(bucket) = quota.bucket() else { continue };
        let (mut limit, mut remaining, mut tat) = (bucket.limit(), bucket.remaining(now), bucket.tat());
        if let Some(bound) = quotas.bound_slot(&quota.dimension.code).and_then(|slot| quotas.get(slot)?.bucket()) {
            limit = bound.limit();
            remaining = remaining.min(bound.remaining(now));
            tat = tat.max(bound.tat());
        }
        visit(&quota.dimension, limit, remaining, Duration::from_nanos(tat.saturating_sub(now)));
    }
}
