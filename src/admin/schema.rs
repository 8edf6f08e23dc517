//! The schema of `/status`: the admin server writes it, `groq-shield status` reads it, and so may scripts.
//!
//! Times are in seconds, points in time are Unix time in seconds.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

/// A word from the list in the field's documentation.
pub type Word = Cow<'static, str>;

/// The whole status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the shield.
    pub version: Word,
    /// Time since its start.
    pub uptime_s: f64,
    /// `running` or `draining`
    pub state: Word,
    /// `enforce` or `observe` (`limits.mode`)
    pub mode: Word,
    /// When this was written.
    pub now: f64,
    /// The host that requests go to.
    pub upstream: String,
    /// Where apps connect; `null` if the system chose the port.
    pub app_url: Option<String>,
    /// Open connections of apps.
    pub connections: usize,
    /// The configuration in effect.
    pub config: Config,
    /// Where quotas are kept.
    pub store: Store,
    /// Outcomes of all requests since the start.
    pub totals: Totals,
    /// The organizations that Groq has blocked or restricted.
    pub blocked_accounts: Vec<BlockedAccount>,
    /// The models with responses that reached max completion tokens before they had any content.
    pub truncated: Vec<Truncated>,
    /// The limiters of all organizations, models and tiers that are in use.
    pub limiters: Vec<Limiter>,
    /// Apps, highest usage first, and last the sum of those without a row of their own, as `other`.
    pub apps: Vec<App>,
    /// Requests that another model served, since the start.
    pub fallbacks: Vec<Fallback>,
    /// What observe mode has counted since the start.
    pub observed: Observed,
    /// The last quarter of an hour.
    pub history: History,
}

/// The configuration in effect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Its file; `null` if there are only defaults, flags and environment variables.
    pub file: Option<String>,
    /// When it took effect.
    pub loaded_at: Option<f64>,
    /// How many configurations have taken effect, including the first one.
    pub loads: u64,
    /// Why the last one was rejected; `null` once another has taken effect.
    pub error: Option<ConfigError>,
}

/// A rejected configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigError {
    /// When it was rejected.
    pub at: f64,
    /// Its faults.
    pub message: String,
}

/// Where quotas are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// `local` or `redis`
    pub kind: Word,
    /// Whether it is unreachable; each replica then uses its share of every limit.
    pub degraded: bool,
    /// The last error; `null` while it is reachable.
    pub why: Option<Arc<str>>,
    /// The last known number of replicas that share it; `null` if it is local.
    pub replicas: Option<u32>,
}

/// Outcomes of all requests since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests that have ended.
    pub requests: u64,
    /// Those with a status of 500 or more.
    pub failed: u64,
    /// Those that the shield refused, because they are too large or for lack of room.
    pub refused_by_shield: u64,
    /// Attempts that Groq refused.
    pub refused_by_groq: u64,
    /// Sends after a request's first.
    pub resends: u64,
}

/// An organization that Groq has blocked or restricted, until one of its requests succeeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockedAccount {
    /// The organization.
    pub organization: String,
    /// The code of Groq's error.
    pub reason: String,
    /// Since when.
    pub since: f64,
}

/// A model with responses that reached max completion tokens before they had any content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Truncated {
    /// The model.
    pub model: Arc<str>,
    /// How many since the start.
    pub count: u64,
    /// When the last one ended.
    pub last: f64,
}

/// The limiter of one organization, model and tier.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limiter {
    /// The organization.
    pub organization: Arc<str>,
    /// The model.
    pub model: Arc<str>,
    /// The service tier.
    pub tier: Arc<str>,
    /// Its limits.
    pub dimensions: Vec<Dimension>,
    /// Its queue, by app and class.
    pub waiting: Vec<Waiting>,
    /// What the head of the queue waits for.
    pub blocked_by: Option<BlockedBy>,
    /// The wait that a typical new request would see.
    pub forecast_s: f64,
    /// Requests that were sent and have not ended.
    pub in_flight: usize,
    /// Groq's refusals.
    pub refusals: u64,
    /// The breaker of its organization and model.
    pub breaker: Breaker,
}

/// One dimension of a limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dimension {
    /// Its code: `TPM`, `RPD`, …
    pub dimension: Word,
    /// `requests`, `tokens`, `input tokens`, `output tokens`, `seconds of audio`
    pub unit: Word,
    /// The time in which an exhausted limit becomes full.
    pub period_s: f64,
    /// The limit.
    pub limit: u64,
    /// What is left of it; below zero in debt.
    pub remaining: f64,
    /// The safety margin: the part that is never used, because of usage that the shield cannot see.
    pub safety_margin: u64,
    /// Where the limit comes from: `configured`, `plan`, `headers`, `refusal`
    pub source: Word,
    /// The configured bound, if any.
    pub configured: Option<u64>,
    /// The limit that Groq has stated, if it has.
    pub stated: Option<u64>,
    /// External usage: the share of the limit that is used outside of the shield.
    pub external: f64,
    /// Time until it is exhausted at the current rate; `null` if it will not be.
    pub exhausted_in_s: Option<f64>,
    /// Time until it is full if nothing more is sent.
    pub full_in_s: f64,
}

/// The waiting requests of one app and class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The app.
    pub app: Arc<str>,
    /// `interactive` or `batch`
    pub class: Word,
    /// How many.
    pub count: usize,
    /// How long the oldest has waited.
    pub oldest_s: f64,
}

/// What the head of a queue waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockedBy {
    /// The code of a dimension.
    pub dimension: Word,
    /// For how long.
    pub for_s: f64,
}

/// A breaker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Breaker {
    /// Whether it lets only a probe pass.
    pub open: bool,
    /// Time until the next probe.
    pub probe_in_s: Option<f64>,
}

/// An app.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct App {
    /// Its name.
    pub app: Arc<str>,
    /// What it has used since the start.
    #[serde(flatten)]
    pub usage: Usage,
    /// The same by model: the ten with the highest usage, and last the sum of all others, as `other`.
    pub models: Vec<ModelUsage>,
    /// Its caps.
    pub caps: Vec<Cap>,
    /// Requests that wait for its caps.
    pub waiting: usize,
    /// Its budgets.
    pub budgets: Vec<Budget>,
    /// Models without a price that it has used although it has a budget in USD; that usage does not count towards the budget.
    pub unpriced_models: Vec<Arc<str>>,
}

/// What requests have used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Requests that have ended, including failed ones.
    pub requests: u64,
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the cache.
    pub cached_tokens: u64,
    /// Completion tokens.
    pub completion_tokens: u64,
    /// Cost by the prices of `[price]`.
    pub cost_usd: f64,
}

/// An app's usage of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelUsage {
    /// The model; empty for requests without one.
    pub model: Arc<str>,
    /// Its usage.
    #[serde(flatten)]
    pub usage: Usage,
}

/// A cap of an app: its requests wait for room under it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cap {
    /// `RPM` or `TPM`
    pub cap: Word,
    /// `requests` or `tokens`
    pub unit: Word,
    /// Amount per minute.
    pub limit: u64,
    /// What is left now; below zero in debt.
    pub remaining: f64,
    /// Time until it is full if nothing more is sent.
    pub full_in_s: f64,
}

/// A budget of an app: its requests are refused once it is used up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Its key in `[[app]]`: `tokens_per_day`, `cost_per_month`, …
    pub budget: Word,
    /// `requests`, `tokens` or `USD`
    pub unit: Word,
    /// `day` or `month`, of UTC
    pub period: Word,
    /// Amount per period.
    pub limit: f64,
    /// How much is used.
    pub used: f64,
    /// How much requests in flight have reserved.
    pub reserved: f64,
    /// What is neither used nor reserved.
    pub remaining: f64,
    /// Time until the next period.
    pub resets_in_s: f64,
}

/// Requests that another model served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fallback {
    /// The model that they named.
    pub from: String,
    /// The model that served them.
    pub to: String,
    /// `daily_limit`, `too_large`, `decommissioned`, `unavailable`, `wait`
    pub reason: Word,
    /// How many.
    pub count: u64,
}

/// What observe mode has counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Requests that would have been sent, at once or after a wait.
    pub admitted: u64,
    /// Median of their waits.
    pub wait_p50_s: Option<f64>,
    /// 99th percentile of their waits.
    pub wait_p99_s: Option<f64>,
    /// Requests that would have been refused, by reason; reasons without any are omitted.
    pub refusals: BTreeMap<Word, u64>,
    /// Requests that another model would have served, which are among those that would have been sent.
    #[serde(default)]
    pub fallbacks: Vec<Fallback>,
}

/// The last quarter of an hour in slices, oldest first; the last entry is the running one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The length of a slice.
    pub slice_s: f64,
    /// Requests that ended.
    pub requests: Vec<u64>,
    /// Those with a status of 500 or more.
    pub failed: Vec<u64>,
    /// Those that the shield refused, because they are too large or for lack of room.
    pub refused_by_shield: Vec<u64>,
    /// Attempts that Groq refused.
    pub refused_by_groq: Vec<u64>,
    /// Sends after a request's first.
    pub resends: Vec<u64>,
    /// Median wait.
    pub wait_p50_s: Vec<Option<f64>>,
    /// 99th percentile of waits.
    pub wait_p99_s: Vec<Option<f64>>,
}
