//! The forecast wait of a request that arrives now: the least of three views of what is ahead of it.

use std::time::Duration;

use crate::ablation::Mechanism;
use crate::types::Priority;
use crate::{
    bucket::{Ns, Readiness},
    queue::{AppId, BATCH_SHARE, Backlog, FairQueue, Ticket},
    quota::Quota,
    quota_set::{Cost, QuotaSet},
};

/// A forecast, and the slot of the dimension that makes it so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// From now to dispatch.
    pub wait: Duration,
    /// What makes it wait.
    pub slot: Option<usize>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Whose.
    pub app: AppId,
    /// How urgent.
    pub class: Priority,
    /// Its size class.
    pub size: u8,
    /// What it takes.
    pub cost: Cost,
    /// A place that it had before.
    pub ticket: Option<Ticket>,
}

/// The wait for a newcomer (or one who comes back to its place).
pub fn forecast(quotas: &QuotaSet, queue: &FairQueue, arrival: &Arrival, now: Ns) -> Forecast {
    let Some(app) = queue.app_of(arrival.app) else { return Forecast::default() };
    let interactive = queue.backlog(Priority::Interactive);
    let batch = queue.backlog(Priority::Batch);
    // The limiter's part that this priority class has while the other one waits as well.
    let (everyone, part) = match arrival.class {
        Priority::Interactive if batch.count == 0 => (vec![interactive], 1.0),
        Priority::Interactive => (vec![interactive], 1.0 - BATCH_SHARE),
        Priority::Batch if interactive.count == 0 => (vec![batch], 1.0),
        Priority::Batch => (vec![interactive, batch], 1.0),
    };
    let batch_only = match arrival.class {
        Priority::Batch if interactive.count > 0 => BATCH_SHARE,
        _ => part,
    };
    let own = part.min(batch_only) * own_share(queue, arrival, now);
    let own_size = app.size_backlog(arrival.size);
    let sizes = app.active_sizes() + usize::from(own_size.count == 0);
    // With a place of its own only those before it in its size class are ahead.
    let before = match arrival.ticket {
        Some(ticket) if own_size.count > 0 => app.before(arrival.size, ticket) as f64 / f64::from(own_size.count),
        Some(_) => 0.0,
        None => 1.0,
    };
    let views: [(&[&Backlog], f64, f64); 3] =
        [(&everyone, 1.0, part), (&[app.backlog()], 1.0, own), (&[own_size], before, own / sizes as f64)];
    let views = if Mechanism::ForecastViews.is_on() { &views[..] } else { &views[..1] };
    views
        .iter()
        .map(|(ahead, scale, share)| view(quotas, ahead, *scale, *share, arrival, now))
        .min_by(|a, b| a.wait.cmp(&b.wait))
        .unwrap_or_default()
}

/// The longest wait over all dimensions, if `share` of each one's rate works off what is ahead.
fn view(quotas: &QuotaSet, ahead: &[&Backlog], scale: f64, share: f64, arrival: &Arrival, now: Ns) -> Forecast {
    let mut worst = Forecast::default();
    for (slot, quota) in quotas.all().iter().enumerate() {
        let unit = quota.dimension.unit;
        let units = quota.units(&quotas.expect(arrival.cost));
        let Some(rate) = rate(quota).filter(|_| units > 0) else { continue };
        let ahead: u64 = ahead.iter().map(|backlog| backlog.of(unit)).sum();
        let alone = match quotas.fit_level(quota, &arrival.cost, now) {
            Readiness::Now => 0.0,
            Readiness::At(at) => (at - now) as f64 / 1e9,
            Readiness::Never => continue,
        };
        // What the quota holds beyond this request's own need goes to those ahead.
        let spare = quota.bucket().map_or(0.0, |bucket| bucket.remaining(now) - (units + quota.margin(units)) as f64).max(0.0);
        let queue = (ahead as f64 * scale - spare).max(0.0) / (rate * share);
        let wait = Duration::try_from_secs_f64(alone + queue).unwrap_or(Duration::MAX);
        if wait > worst.wait {
            worst = Forecast { wait, slot: Some(slot) };
        }
    }
    worst
}

/// Units a second that are ours.
fn rate(quota: &Quota) -> Option<f64> {
    let bucket = quota.bucket()?;
    Some(bucket.rate() * (1.0 - quota.external()).max(0.1))
}

/// The share of the limiter that the arrival's app can count on.
fn own_share(queue: &FairQueue, arrival: &Arrival, now: Ns) -> f64 {
    let Some(app) = queue.app_of(arrival.app) else { return 1.0 };
    let (mut weights, mut others) = (app.weight, 0.0);
    for other in queue.apps().filter(|other| other.class == arrival.class && !std::ptr::eq(*other, app)) {
        if other.backlog().count > 0 {
            weights += other.weight;
        }
        others += other.rate(now);
    }
    // Rates are costs per second; a cost of 1 is about the limiter's minute.
    (app.weight / weights).max(1.0 - 60.0 * others).clamp(0.01, 1.0)
}
