//! A limiter's quotas and queue for people.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    bucket::Bucket,
    queue::FairQueue,
    quota::Quota,
    quota_set::QuotaSet,
    snapshot::{DimensionSnapshot, WaitingSnapshot},
    types::{Dimension, Ns, Priority},
};

/// Every quota of the upstream's that has a limit, and the operator's bound beside it, which is what is shown where it is lower.
fn shown(quotas: &QuotaSet) -> impl Iterator<Item = (&Quota, &Bucket, Option<(&Quota, &Bucket)>)> {
    quotas.quotas.iter().filter(|quota| !quota.is_bound()).filter_map(move |quota| {
        let bound = quotas.quotas.iter().find(|bound| bound.is_bound() && bound.dimension == quota.dimension);
        Some((quota, quota.bucket()?, bound.and_then(|bound| Some((bound, bound.bucket()?)))))
    })
}

/// Every dimension that has a limit.
pub(super) fn dimensions(quotas: &QuotaSet, now: Ns) -> Vec<DimensionSnapshot> {
    let each = shown(quotas).map(|(quota, bucket, bound)| {
        let (of, by) = bound.unwrap_or((quota, bucket));
        let stated = quota.statements.stated.map(|(limit, _)| limit);
        DimensionSnapshot { stated, remaining: bucket.remaining(now).min(by.remaining(now)), ..dimension(of, by, now) }
    });
    each.collect()
}

fn dimension(quota: &Quota, bucket: &Bucket, now: Ns) -> DimensionSnapshot {
    let left = bucket.remaining(now);
    let losing = quota.spending() - bucket.rate() * (1.0 - quota.external());
    let exhausted_in = (losing > 0.0).then(|| Duration::try_from_secs_f64(left.max(0.0) / losing).ok()).flatten();
    DimensionSnapshot {
        dimension: quota.dimension.clone(),
        limit: bucket.limit(),
        remaining: left,
        margin: quota.margin(quota.typical()),
        source: quota.statements.limit().1,
        configured: quota.statements.configured,
        stated: quota.statements.stated.map(|(limit, _)| limit),
        external: quota.external(),
        exhausted_in: exhausted_in.filter(|&after| after < Duration::from_nanos(10 * bucket.period())),
        full_in: Duration::from_nanos(bucket.tat().saturating_sub(now)),
    }
}

/// The waiting requests, by app and priority class.
pub(super) fn waiting(queue: &FairQueue, now: Ns) -> Vec<WaitingSnapshot> {
    let mut waiting: BTreeMap<(Arc<str>, Priority), WaitingSnapshot> = BTreeMap::new();
    for queued in queue.iter() {
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

/// Every dimension that has a limit: the limit, what is left, and the time until it is full. Cheap, for every response has it.
pub(super) fn visit(quotas: &QuotaSet, now: Ns, mut visit: impl FnMut(&Dimension, u64, f64, Duration)) {
    for (quota, bucket, bound) in shown(quotas) {
        let by = bound.map_or(bucket, |(_, bound)| bound);
        let full = bucket.tat().max(by.tat()).saturating_sub(now);
        visit(&quota.dimension, by.limit(), bucket.remaining(now).min(by.remaining(now)), Duration::from_nanos(full));
    }
}
