//! The forecast of how long a request will wait in the queue.
//!
//! There are three upper bounds of the wait, each of which compares the requests ahead with the share of the limits that
//! serves them: those of the whole priority class, those of the app, and those of the app's size class. The forecast is the
//! smallest.

use std::time::Duration;

use super::{App, BATCH_SHARE, Backlog, FairQueue, QueuedRequest};
use crate::{
    ablation::Mechanism,
    quota::Quota,
    quota_set::QuotaSet,
    request::{AdmissionError, Cost},
    types::{Dimension, Ns, Priority, Unit},
};

/// The factor by which a forecast is multiplied, as a precaution, before it is compared with a max wait.
const CAUTION: f64 = 1.08;

/// A forecast wait, and the dimension that causes it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// The time from now to dispatch.
    pub wait: Duration,
    /// The slot of the dimension that causes the wait; `None` if there is no wait.
    pub slot: Option<usize>,
}

impl Forecast {
    /// Whether the wait, multiplied by 1.08 as a precaution, is longer than `left` ns.
    pub fn exceeds(&self, left: Ns) -> bool {
        let wait = self.wait.mul_f64(CAUTION);
        !wait.is_zero() && wait > Duration::from_nanos(left)
    }

    /// Returns the error of a request that cannot be sent before its deadline.
    pub fn not_in_time(&self, queued: &QueuedRequest, quotas: &QuotaSet) -> AdmissionError {
        let slot = self.slot.unwrap_or(0);
        let too_large = quotas.too_large_answer(&queued.cost).filter(|&(too_large, _)| too_large == slot);
        let max_wait = Duration::from_nanos(queued.deadline.saturating_sub(queued.since));
        let over = self.wait.mul_f64(CAUTION).saturating_sub(max_wait).as_secs_f64();
        AdmissionError::NotInTime {
            dimension: quotas.quotas.get(slot).map_or(Dimension::RPM, |quota| quota.dimension.clone()),
            wait: self.wait,
            fitting_max_completion_tokens: too_large.map(|(_, limit)| limit),
            // In whole seconds, after which the same request could be sent within its max wait.
            retry_after: Duration::from_secs_f64(over.ceil().max(1.0)),
        }
    }
}

/// The forecast for a request that has not been submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestForecast {
    /// Time that the request would wait in the queue.
    pub wait: Duration,
    /// The largest `max_completion_tokens` that would fit; `None` unless `max_completion_tokens` alone makes the request too
    /// large.
    pub fitting_max_completion_tokens: Option<u64>,
    /// Completion tokens of a response on average; `None` before the first response.
    pub completion: Option<u64>,
}

/// Returns the largest `max_completion_tokens` that would fit; `None` unless `max_completion_tokens` alone makes the request
/// too large.
pub fn fitting_max_completion_tokens(quotas: &QuotaSet, queued: &QueuedRequest, now: Ns) -> Option<u64> {
    let cost = &queued.cost;
    if let Some((slot, limit)) = quotas.too_large_answer(cost) {
        // A request for the whole limit would have to wait until nothing else is in use. Half of the limit is free sooner.
        let left = quotas.quotas[slot].bucket().remaining(now);
        return Some((limit / 2).max(left.max(0.0) as u64).max(1));
    }
    let tokens = quotas.quotas.iter().filter(|quota| quota.dimension.unit == Unit::Tokens && quota.is_certain(now));
    let room = tokens.filter_map(|quota| Some(quota.limit()?.saturating_sub(cost.input.into()))).min()?;
    (queued.states_max && room > 0 && room < cost.output.into()).then_some(room)
}

/// Returns the forecast for a request that is queued, or would be, at the place of its ticket.
pub fn forecast(quotas: &QuotaSet, queue: &FairQueue, request: &QueuedRequest, now: Ns) -> Forecast {
    let Some(app) = queue.apps.get(&request.app) else { return Forecast::default() };
    let [mut interactive, batch] = [Priority::Interactive, Priority::Batch].map(|class| queue.backlog(class));
    // The backlog that counts for this priority class, the share of the limiter that serves it, and the share of the class
    // itself.
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
    // In the request's own size class, only those with earlier tickets are ahead.
    let before = app.before(request.size, request.ticket) as f64 / own_size.count.max(1) as f64;
    let views = [(&everyone, 1.0, part), (&app.backlog(), 1.0, own), (own_size, before, own / sizes as f64)];
    let views = if Mechanism::ForecastViews.is_on() { &views[..] } else { &views[..1] };
    let views = views.iter().map(|(ahead, scale, share)| view(quotas, ahead, *scale, *share, &request.cost, now));
    views.min_by(|a, b| a.wait.cmp(&b.wait)).unwrap_or_default()
}

/// Returns the longest wait over all dimensions if `share` of each one's rate serves the backlog `ahead`, of which the
/// fraction `scale` counts.
fn view(quotas: &QuotaSet, ahead: &Backlog, scale: f64, share: f64, cost: &Cost, now: Ns) -> Forecast {
    let mut worst = Forecast::default();
    for (slot, quota) in quotas.quotas.iter().enumerate() {
        let units = quota.units(&quotas.expect(*cost));
        if units == 0 {
            continue;
        }
        let ahead = ahead.of(quota.dimension.unit);
        let alone = (quotas.ready_in(quota, cost, now) - now) as f64 / 1e9;
        // What the quota holds beyond the request's own need serves those ahead at once.
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

/// Returns the units per second that external usage leaves to us; at least a tenth of the limit's rate.
fn rate(quota: &Quota) -> f64 {
    quota.bucket().rate() * (1.0 - quota.external()).max(0.1)
}

/// Returns the share of its priority class that an app gets: its weight divided by those of all active apps.
fn own_share(queue: &FairQueue, app: &App) -> f64 {
    let others = queue.active_apps(app.key.class).filter(|other| other.key != app.key);
    app.weight / (app.weight + others.map(|other| other.weight).sum::<f64>())
}
