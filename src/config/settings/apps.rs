//! `[[app]]` and `[price."MODEL"]`.

use groq_limiter::types::Priority;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

use crate::{
    accounts::{Budget, Period, Unit},
    config::formats::Digest,
};

/// Largest amount of money: its billionths fit a u64.
const MAX_USD: f64 = 1e9;

/// `[[app]]`
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub struct App {
    /// Its name in status and metrics; "*" is the entry of every other app, each counted by itself.
    #[schemars(title = "a name of 1 to 128 printable bytes", example = &"chat")]
    pub name: String,
    /// Environment variable with its token, which it sends as Bearer token.
    #[schemars(title = "the name of an environment variable", example = &"CHAT_TOKEN")]
    pub token_env: Option<String>,
    /// SHA-256 of its token, hex.
    pub token_sha256: Option<Digest>,
    /// Its share, relative to other apps' weights.
    #[schemars(extend("exclusiveMinimum" = 0))]
    #[default(1.0)]
    pub weight: f64,
    /// interactive or batch, for requests that do not say.
    pub class: Priority,
    /// Whether its requests may fall back to another model (`[[fallback]]`).
    #[default(true)]
    pub fallback: bool,
    /// Cap: requests a minute. Further ones wait; other apps are not affected.
    #[schemars(range(min = 1), example = &30)]
    pub requests_per_minute: Option<u64>,
    /// Cap: tokens a minute. Further requests wait; other apps are not affected.
    #[schemars(range(min = 1), example = &20_000)]
    pub tokens_per_minute: Option<u64>,
    /// Budget: requests a UTC day. When it is spent: 429 until midnight.
    #[schemars(range(min = 1), example = &1000)]
    pub requests_per_day: Option<u64>,
    /// Budget: tokens a UTC day. When it is spent: 429 until midnight.
    #[schemars(range(min = 1), example = &500_000)]
    pub tokens_per_day: Option<u64>,
    /// Budget: USD a UTC day, by the prices of `[price]`.
    #[schemars(range(min = 0.000_001, max = MAX_USD), example = &2.5)]
    pub cost_per_day: Option<f64>,
    /// Budget: USD a UTC month, by the prices of `[price]`.
    #[schemars(range(min = 0.000_001, max = MAX_USD), example = &40.0)]
    pub cost_per_month: Option<f64>,
}

impl App {
    /// The name of the entry for apps without an entry of their own.
    pub const EVERYONE_ELSE: &str = "*";

    /// Whether it has a cap.
    pub fn is_capped(&self) -> bool {
        self.requests_per_minute.is_some() || self.tokens_per_minute.is_some()
    }

    /// Whether it has a budget in USD.
    pub fn has_budget_in_usd(&self) -> bool {
        self.cost_per_day.is_some() || self.cost_per_month.is_some()
    }

    /// Its budgets.
    pub fn budgets(&self) -> Vec<Budget> {
        let nano_usd = |usd: Option<f64>| usd.map(|usd| (usd * 1e9).round() as u64);
        [
            (Unit::Requests, Period::Day, self.requests_per_day),
            (Unit::Tokens, Period::Day, self.tokens_per_day),
            (Unit::Cost, Period::Day, nano_usd(self.cost_per_day)),
            (Unit::Cost, Period::Month, nano_usd(self.cost_per_month)),
        ]
        .into_iter()
        .filter_map(|(unit, period, limit)| Some(Budget { unit, period, limit: limit? }))
        .collect()
    }
}

/// `[price."MODEL"]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelPrice {
    /// USD per million prompt tokens.
    #[schemars(range(min = 0.0, max = MAX_USD), example = &0.15)]
    pub input: Option<f64>,
    /// USD per million cached prompt tokens; unset: as input.
    #[schemars(range(min = 0.0, max = MAX_USD), example = &0.075)]
    pub cached_input: Option<f64>,
    /// USD per million completion tokens.
    #[schemars(range(min = 0.0, max = MAX_USD), example = &0.6)]
    pub output: Option<f64>,
    /// USD per hour of audio.
    #[schemars(range(min = 0.0, max = MAX_USD), example = &0.04)]
    pub audio_hour: Option<f64>,
}
