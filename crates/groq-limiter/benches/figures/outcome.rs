//! The figures of a simulation (usage, refusals, waits, fairness), and whether they reach a row's targets.

use std::collections::BTreeMap;

use super::{
    MINUTE, Ns, SECOND, oracle,
    rows::{Row, Span, Target},
    world::{Job, WARM},
};

/// Waits in seconds, and the share of requests that failed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) failed: f64,
}

/// A row's figures.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Share of the binding limit that the shield's requests used.
    pub(crate) own: f64,
    /// Share of the binding limit that external traffic used.
    pub(crate) external: f64,
    /// Share of a limit on output that the oracle uses.
    pub(crate) possible: f64,
    /// Share of the limit that the upstream counted as used.
    pub(crate) counted: f64,
    pub(crate) sends: usize,
    pub(crate) refusals: usize,
    pub(crate) all: Waits,
    /// Waits of the row's first offer.
    pub(crate) watched: Waits,
    pub(crate) jain: f64,
    /// Duration of a burst divided by the minimum possible duration.
    pub(crate) stretch: f64,
}

impl Outcome {
    pub(crate) fn of(row: &Row, jobs: &[Job], end: Ns, net: i128) -> Self {
        let start = if matches!(row.span, Span::Steady(_)) { WARM } else { 0 };
        // Later arrivals can still be waiting when the run ends.
        let judged_until = if matches!(row.span, Span::Burst(_)) { end } else { end.saturating_sub(row.max_wait) };
        let (ours, others): (Vec<&Job>, Vec<&Job>) = jobs.iter().partition(|job| !job.app.is_empty());
        let measured = |at: Ns| at >= start && at < end;
        let use_of = |jobs: &[&Job]| share_used(row, jobs, start, end);
        let sends = ours.iter().flat_map(|job| &job.sent).filter(|&&at| measured(at)).count();
        let refusals = ours.iter().flat_map(|job| &job.refusals).filter(|&&at| measured(at)).count();
        let judged: Vec<&Job> = ours.iter().copied().filter(|job| job.arrived >= start && job.arrived <= judged_until).collect();
        let watched: Vec<&Job> = judged.iter().copied().filter(|job| job.offer == 0).collect();
        let last_sent = ours.iter().filter_map(|job| job.sent.last()).max().copied().unwrap_or(0);
        let used: u64 = ours.iter().map(|job| row.counted(&job.size)).sum();
        // To admit the last request, the limit must have room for the expected response, which is larger than the actual one.
        let beyond = row.output.map_or(0, |_| {
            let largest = ours.iter().map(|job| job.size.completion).max().unwrap_or(0);
            largest - ours.last().map_or(0, |job| job.size.completion)
        });
        let least = ((used + beyond) as f64 / row.binding() as f64 - 1.0) * MINUTE as f64;
        Self {
            own: use_of(&ours),
            external: use_of(&others),
            possible: row.output.map_or(0.0, |limit| {
                oracle::served(limit, jobs, end) as f64 / (limit as f64 * (end as f64 / MINUTE as f64 + 1.0))
            }),
            counted: net as f64 / (row.limits.1 as f64 * (end.saturating_sub(WARM)) as f64 / MINUTE as f64),
            sends,
            refusals,
            all: waits(&judged),
            watched: waits(&watched),
            jain: jain(row, &ours, start, end),
            stretch: last_sent as f64 / least,
        }
    }

    pub(crate) fn per_thousand(&self) -> f64 {
        1000.0 * self.refusals as f64 / self.sends.max(1) as f64
    }

    /// The names of the targets that are missed.
    pub(crate) fn misses(&self, target: &Target) -> Vec<&'static str> {
        let below = |name, figure: f64, bound: Option<f64>| bound.filter(|&bound| figure < bound).map(|_| name);
        let above = |name, figure: f64, bound: Option<f64>| bound.filter(|&bound| figure > bound).map(|_| name);
        let watched = target.watched;
        [
            below("used", self.own + self.external, target.used),
            below("counted", self.counted, target.counted),
            below("used of what is possible", self.own, target.of_possible.map(|share| share * self.possible)),
            above("refusals", self.per_thousand(), target.per_thousand),
            above("refusals", self.refusals as f64, target.refusals),
            above("too kind: used", self.own, target.used_at_most),
            below("too kind: refusals", self.per_thousand(), target.per_thousand_at_least),
            above("failed", self.all.failed, target.failed),
            above("p99", self.all.p99, target.p99),
            below("Jain", self.jain, target.jain),
            above("watched p50", self.watched.p50, watched.map(|w| w.p50)),
            above("watched p99", self.watched.p99, watched.map(|w| w.p99)),
            above("watched failed", self.watched.failed, watched.map(|w| w.failed)),
            above("time", self.stretch, target.stretch),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The share of the binding limit that was used: admitted tokens or requests, divided by what the limit allows.
fn share_used(row: &Row, jobs: &[&Job], start: Ns, end: Ns) -> f64 {
    let admitted = || jobs.iter().filter(|job| job.admitted.is_some_and(|at| at >= start && at < end));
    let tokens: u64 = admitted().map(|job| row.counted(&job.size)).sum();
    let minutes = (end - start) as f64 / MINUTE as f64;
    // At the start the limit also allows a burst, or there is debt.
    let extra = |initial: f64| if start == 0 { 1.0 - initial } else { 0.0 };
    let allowed = |limit: u64, initial: f64| limit as f64 * (minutes + extra(initial));
    let tokens = tokens as f64 / allowed(row.binding(), row.initial.1);
    let requests = admitted().count() as f64 / allowed(row.limits.0, row.initial.0);
    if matches!(row.span, Span::First(_)) {
        tokens.max(requests)
    } else if row.requests_bind {
        requests
    } else {
        tokens
    }
}

fn waits(jobs: &[&Job]) -> Waits {
    let sent = |job: &&&Job| job.admitted.is_some() || (!job.failed && !job.sent.is_empty());
    let served = jobs.iter().filter(sent);
    let mut waits: Vec<Ns> = served.filter_map(|job| Some(job.sent.last()? - job.arrived)).collect();
    waits.sort_unstable();
    let quantile = |q: usize| waits.get((waits.len() * q / 100).min(waits.len().saturating_sub(1)));
    let seconds = |q: usize| quantile(q).map_or(0.0, |&wait| wait as f64 / SECOND as f64);
    let failed = jobs.iter().filter(|job| job.failed).count() as f64 / jobs.len().max(1) as f64;
    Waits { p50: seconds(50), p99: seconds(99), failed }
}

/// Jain's fairness index over the tokens of the apps, each divided by its max-min fair share of the total.
fn jain(row: &Row, jobs: &[&Job], start: Ns, end: Ns) -> f64 {
    let mut got: BTreeMap<&str, f64> = row.offers.iter().map(|offer| (offer.app, 0.0)).collect();
    let mut wanted = got.clone();
    for job in jobs.iter().filter(|job| job.arrived >= start && job.arrived < end) {
        *wanted.entry(job.app).or_default() += job.size.used() as f64;
    }
    for job in jobs.iter().filter(|job| job.admitted.is_some_and(|at| at >= start && at < end)) {
        *got.entry(job.app).or_default() += job.size.used() as f64;
    }
    let mut left: f64 = got.values().sum();
    let mut order: Vec<_> = wanted.into_iter().filter(|&(_, wants)| wants > 0.0).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (mut sum, mut squares, count) = (0.0, 0.0, order.len());
    for (n, (app, wants)) in order.into_iter().enumerate() {
        let fair = wants.min(left / (count - n) as f64);
        left -= fair;
        let x = got[app] / fair.max(1.0);
        (sum, squares) = (sum + x, squares + x * x);
    }
    sum * sum / (count as f64 * squares).max(f64::MIN_POSITIVE)
}
