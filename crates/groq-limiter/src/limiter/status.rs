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

/// Every quota of the upstream's that has a limit, and what is shown beside it: the operator's bound where it is lower.
fn shown(quotas: &QuotaSet) -> impl Iterator<Item = (&Quota, &Bucket, &Quota, &Bucket)> {
    let all = quotas.quotas.iter();
    all.clone().filter(|quota| !quota.is_bound()).filter_map(move |quota| {
        let is_bound = |other: &&Quota| other.is_bound() && other.dimension == quota.dimension && other.limit().is_some();
        let bound = all.clone().find(is_bound).unwrap_or(quota);
        Some((quota, quota.bucket()?, bound, bound.bucket()?))
    })
}

/// Every dimension that has a limit.
pub(super) fn dimensions(quotas: &QuotaSet, now: Ns) -> Vec<DimensionSnapshot> {
    let each = shown(quotas).map(|(quota, bucket, bound, by)| {
        let remaining = bucket.remaining(now).min(by.remaining(now));
        let losing = bound.spending() - by.rate() * (1.0 - bound.external());
        let exhausted_in = Duration::try_from_secs_f64(remaining.max(0.0) / losing).ok();
        DimensionSnapshot {
            dimension: quota.dimension.clone(),
            limit: by.limit(),
            remaining,
            margin: bound.margin(bound.typical()),
            source: bound.statements.limit().1,
            configured: bound.statements.configured,
            stated: quota.statements.stated.map(|(limit, _)| limit),
            external: bound.external(),
            exhausted_in: exhausted_in.filter(|&after| losing > 0.0 && after < Duration::from_nanos(10 * by.period())),
            full_in: Duration::from_nanos(by.tat().saturating_sub(now)),
        }
    });
    each.collect()
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
    for (quota, bucket, _, by) in shown(quotas) {
        let full = bucket.tat().max(by.tat()).saturating_sub(now);
        visit(&quota.dimension, by.limit(), bucket.remaining(now).min(by.remaining(now)), Duration::from_nanos(full));
    }
}
