//! The forecast wait of a request that arrives now: the least of three views of what is ahead of it.

use std::time::Duration;

use super::{App, BATCH_SHARE, Backlog, FairQueue, QueuedRequest};
use crate::{
    ablation::Mechanism,
    bucket::Readiness,
    quota::Quota,
    quota_set::QuotaSet,
    request::Cost,
    types::{Ns, Priority},
};

/// Forecasts are taken for so much too short.
const CAUTION: f64 = 1.08;

/// A forecast, and the slot of the dimension that makes it so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// From now to dispatch.
    pub wait: Duration,
    /// What makes it wait.
    pub slot: Option<usize>,
}

impl Forecast {
    /// Whether the wait, taken with caution, is longer than what is left.
    pub fn exceeds(&self, left: Ns) -> bool {
        let wait = self.wait.mul_f64(CAUTION);
        !wait.is_zero() && wait > Duration::from_nanos(left)
    }

    /// After so long the same request would be sent within its max wait.
    pub fn retry_after(&self, max_wait: Ns) -> Duration {
        let over = self.wait.mul_f64(CAUTION).saturating_sub(Duration::from_nanos(max_wait));
        Duration::from_secs_f64(over.as_secs_f64().ceil().max(1.0))
    }
}

/// The wait of a request that is in the queue at its ticket's place, or would be.
pub fn forecast(quotas: &QuotaSet, queue: &FairQueue, request: &QueuedRequest, now: Ns) -> Forecast {
    let Some(app) = queue.apps.get(&request.app) else { return Forecast::default() };
    let [mut interactive, batch] = [Priority::Interactive, Priority::Batch].map(|class| queue.backlog(class));
    // What is ahead of this priority class, the limiter's part that works it off, and the class's own part.
    let (everyone, part, own_part) = match request.app.class {
        Priority::Interactive if batch.count == 0 => (interactive, 1.0, 1.0),
        Priority::Interactive => (interactive, 1.0 - BATCH_SHARE, 1.0 - BATCH_SHARE),
        Priority::Batch if interactive.count == 0 => (batch, 1.0, 1.0),
        Priority::Batch => {
            interactive += &batch;
            (interactive, 1.0, BATCH_SHARE)
        }
    };
    let own = own_part * own_share(queue, app);
    let own_size = app.size_backlog(request.size);
    let sizes = app.active_sizes() + usize::from(own_size.count == 0);
    // Of its own size class only those before it are ahead.
    let before = app.before(request.size, request.ticket) as f64 / own_size.count.max(1) as f64;
    let views = [(&everyone, 1.0, part), (&app.backlog(), 1.0, own), (own_size, before, own / sizes as f64)];
    let views = if Mechanism::ForecastViews.is_on() { &views[..] } else { &views[..1] };
    let views = views.iter().map(|(ahead, scale, share)| view(quotas, ahead, *scale, *share, &request.cost, now));
    views.min_by(|a, b| a.wait.cmp(&b.wait)).unwrap_or_default()
}

/// The longest wait over all dimensions, if `share` of each one's rate works off what is ahead.
fn view(quotas: &QuotaSet, ahead: &Backlog, scale: f64, share: f64, cost: &Cost, now: Ns) -> Forecast {
    let mut worst = Forecast::default();
    for (slot, quota) in quotas.quotas.iter().enumerate() {
        let units = quota.units(&quotas.expect(*cost));
        if units == 0 {
            continue;
        }
        let ahead = ahead.of(quota.dimension.unit);
        let alone = match quotas.readiness_in(quota, cost, now) {
            Readiness::Now => 0.0,
            Readiness::At(at) => (at - now) as f64 / 1e9,
            Readiness::Never => continue,
        };
        // What the quota holds beyond this request's own need goes to those ahead.
        let need = (units + quota.margin(units)) as f64;
        let spare = (quota.bucket().remaining(now) - need).max(0.0);
        let queued = (ahead as f64 * scale - spare).max(0.0) / (rate(quota) * share);
        let wait = Duration::try_from_secs_f64(alone + queued).unwrap_or(Duration::MAX);
        if wait > worst.wait {
            worst = Forecast { wait, slot: Some(slot) };
        }
    }
    worst
}

/// Units a second that are ours.
fn rate(quota: &Quota) -> f64 {
    quota.bucket().rate() * (1.0 - quota.external()).max(0.1)
}

/// The share of its priority class that an app can count on: its weight among those that wait.
fn own_share(queue: &FairQueue, app: &App) -> f64 {
    let others = queue.active_apps(app.key.class).filter(|other| other.key != app.key);
    app.weight / (app.weight + others.map(|other| other.weight).sum::<f64>())
}
