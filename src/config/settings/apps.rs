//! `[[app]]` and `[price."MODEL"]`.

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MAX_LIMIT, Settings};
use crate::{
    accounts::{Budget, Period, Price, Unit},
    config::{
        formats::Digest,
        rules::{env_name, finite, positive, short_name},
    },
};

/// Largest amount of money: its billionths fit a u64.
const MAX_USD: f64 = 1e9;

/// How urgent an app's requests are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// Nobody does.
    Batch,
}

/// `[[app]]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
#[garde(allow_unvalidated)]
pub struct App {
    /// Its name in status and metrics; "*" stands for each app without an entry, every one by itself.
    #[garde(custom(short_name))]
    #[schemars(title = "text", example = &"chat")]
    pub name: String,
    /// Variable that holds its token, sent as the Bearer token.
    #[garde(inner(custom(env_name)))]
    #[schemars(title = "the name of an environment variable", example = &"CHAT_TOKEN")]
    pub token_env: Option<String>,
    /// SHA-256 of its token, hex.
    pub token_sha256: Option<Digest>,
    /// Its share relative to the others'.
    #[garde(custom(positive))]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub weight: f64,
    /// interactive or batch, where a request does not say.
    pub class: Class,
    /// Whether its requests may be served by another model, as `[[fallback]]` says.
    pub fallback: bool,
    /// Cap: requests a minute. More of them wait; other apps pass.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = &30)]
    pub requests_per_minute: Option<u64>,
    /// Cap: tokens a minute. More of them wait; other apps pass.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = &20_000)]
    pub tokens_per_minute: Option<u64>,
    /// Budget: requests a UTC day. Spent: 429 until midnight.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = &1000)]
    pub requests_per_day: Option<u64>,
    /// Budget: tokens a UTC day. Spent: 429 until midnight.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = &500_000)]
    pub tokens_per_day: Option<u64>,
    /// Budget: USD a UTC day, by the prices of `[price]`.
    #[garde(range(min = 0.000_001, max = MAX_USD), inner(custom(finite)))]
    #[schemars(example = &2.5)]
    pub cost_per_day: Option<f64>,
    /// Budget: USD a UTC month, by the prices of `[price]`.
    #[garde(range(min = 0.000_001, max = MAX_USD), inner(custom(finite)))]
    #[schemars(example = &40.0)]
    pub cost_per_month: Option<f64>,
}

impl App {
    /// The name of the entry that stands for each app without one.
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
#[garde(allow_unvalidated)]
pub struct ModelPrice {
    /// USD for a million prompt tokens.
    #[garde(range(min = 0.0, max = MAX_USD), inner(custom(finite)))]
    #[schemars(example = &0.15)]
    pub input: Option<f64>,
    /// USD for a million cached prompt tokens; unset: as input.
    #[garde(range(min = 0.0, max = MAX_USD), inner(custom(finite)))]
    #[schemars(example = &0.075)]
    pub cached_input: Option<f64>,
    /// USD for a million completion tokens.
    #[garde(range(min = 0.0, max = MAX_USD), inner(custom(finite)))]
    #[schemars(example = &0.6)]
    pub output: Option<f64>,
    /// USD for an hour of audio.
    #[garde(range(min = 0.0, max = MAX_USD), inner(custom(finite)))]
    #[schemars(example = &0.04)]
    pub audio_hour: Option<f64>,
}

impl Settings {
    /// The names of the apps that have entries of their own.
    pub fn named_apps(&self) -> impl Iterator<Item = &str> {
        self.app.iter().map(|app| app.name.as_str()).filter(|name| *name != App::EVERYONE_ELSE)
    }

    /// The price of a model, where one is given.
    pub fn price_of(&self, model: &str) -> Option<Price> {
        self.price.get(model).map(|price| {
            let input = price.input.unwrap_or(0.0);
            Price {
                input,
                cached_input: price.cached_input.unwrap_or(input),
                output: price.output.unwrap_or(0.0),
                audio_hour: price.audio_hour.unwrap_or(0.0),
            }
        })
    }
}
