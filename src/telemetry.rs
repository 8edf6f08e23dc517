//! Logs and metrics: set-up of tracing, one access line per request, the metric families.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

mod access;
mod blocked;
mod configuration;
mod counts;
mod early;
mod exposition;
mod fallbacks;
mod fields;
mod histogram;
mod log;
mod observed;
#[cfg(feature = "otlp")]
mod otlp;
mod recent;
mod record;
#[cfg(test)]
mod tests;
mod trend;
mod unpriced;
mod usage;

pub use blocked::BlockedAccount;
pub use configuration::Configuration;
pub use early::{EarlyHead, EarlySnapshot};
pub use exposition::{Format, Gauges};
pub use fallbacks::Fallback;
pub use log::{Handle, filter, init};
pub use observed::{ObservedRefusal, ObservedTotals};
pub use recent::{KEPT, RecentRequest};
pub use record::{Outcome, Record, Source};
pub use trend::{Slice, Trend};
pub use usage::AppUsage;

use blocked::BlockedAccounts;
use counts::Counts;
use fallbacks::FallbackCounts;
use recent::Recent;
use unpriced::Unpriced;

/// Outcomes of all requests since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that have ended.
    pub requests: u64,
    /// Those that waited, for a millisecond at least.
    pub waited: u64,
    /// Those that were sent more than once.
    pub retried: u64,
    /// Those that ended with an error status, or without any.
    pub failed: u64,
}

/// The metric families and the access log.
#[derive(Debug, Default)]
pub struct Telemetry {
    counts: Counts,
    /// Requests that have begun and not ended.
    in_flight: AtomicUsize,
    configuration: Mutex<Configuration>,
    fallbacks: FallbackCounts,
    observed_fallbacks: FallbackCounts,
    unpriced: Unpriced,
    recent: Recent,
    blocked: BlockedAccounts,
}

impl Telemetry {
    /// Counts one attempt.
    pub fn attempt(&self, outcome: Outcome) {
        self.counts.attempt(outcome);
    }

    /// Counts a refusal by Groq, by dimension code (`unknown` if its text names none).
    pub fn refused(&self, model: &str, dimension: &str) {
        self.counts.refused(model, dimension);
    }

    /// Observe mode: records the time that a request of `model` would have waited.
    pub fn observed_wait(&self, model: &str, wait: Duration) {
        self.counts.observed_wait(model, wait);
    }

    /// Observe mode: counts a request that would have been refused.
    pub fn observed_refusal(&self, reason: ObservedRefusal) {
        self.counts.observed_refusal(reason);
    }

    /// What observe mode has counted since the start.
    pub fn observed(&self) -> ObservedTotals {
        self.counts.sums().observed()
    }

    /// Gives apps with entries in the configuration labels of their own, regardless of the names that clients choose.
    pub fn name_apps<'a>(&self, apps: impl IntoIterator<Item = &'a str>) {
        apps.into_iter().for_each(|app| self.counts.name_app(app));
    }

    /// Records that Groq has blocked or restricted `organization`, with the error code `reason`.
    pub fn account_blocked(&self, organization: &Arc<str>, reason: &str) {
        self.blocked.blocked(organization, reason);
    }

    /// Records that Groq has served a request of `organization`, which is therefore not blocked.
    pub fn account_served(&self, organization: &Arc<str>) {
        self.blocked.succeeded(organization);
    }

    /// The organizations that Groq has blocked, until one of their requests succeeds.
    pub fn blocked_accounts(&self) -> Vec<BlockedAccount> {
        self.blocked.list()
    }

    /// Outcomes of all requests since the start.
    pub fn totals(&self) -> Totals {
        let sums = self.counts.sums();
        let failed = sums.requests.iter().filter(|(labels, _)| labels.status >= 400).map(|(_, n)| n).sum();
        Totals { requests: sums.requests.values().sum(), waited: sums.waited, retried: sums.retried, failed }
    }

    /// Requests that have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The last requests, newest first.
    pub fn recent_requests(&self) -> Vec<RecentRequest> {
        self.recent.list()
    }

    /// The models (or their labels) with responses that reached max completion tokens before they had any content: their number
    /// since the start, and the time of the last one.
    pub fn truncated(&self) -> Vec<(Arc<str>, u64, SystemTime)> {
        let models = self.counts.sums().models.into_iter();
        models.filter_map(|(model, counts)| Some((model, counts.truncated, counts.truncated_at?))).collect()
    }

    /// All metric families as text.
    pub fn metrics(&self, gauges: Gauges, format: Format) -> String {
        exposition::write(self, gauges, format)
    }

    /// Logs and counts a request that has ended.
    fn finished(&self, record: &Record) {
        self.counts.request(record);
        self.recent.add(record);
        access::write(record);
        #[cfg(feature = "otlp")]
        otlp::span(record);
    }
}
