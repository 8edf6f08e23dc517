//! `[[fallback]]`: other models for requests that their own model cannot serve.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

/// `[[fallback]]`
#[derive(Clone, Debug, PartialEq, Eq, SmartDefault, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["model", "to"]))]
pub struct Fallback {
    /// The model that requests name.
    #[schemars(example = &"openai/gpt-oss-120b")]
    pub model: String,
    /// The models to try instead, in order.
    #[schemars(length(min = 1), extend("uniqueItems" = true), example = ["openai/gpt-oss-20b"])]
    pub to: Vec<String>,
    /// The reasons: daily_limit, too_large, decommissioned, unavailable (breaker open), wait (longer than the deadline).
    #[schemars(length(min = 1))]
    #[default(FallbackReason::DEFAULT.to_vec())]
    pub when: Vec<FallbackReason>,
}

/// Why a request falls back to another model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FallbackReason {
    /// A daily limit of the model is spent.
    DailyLimit,
    /// The request can never fit under the model's limits.
    TooLarge,
    /// Groq does not serve the model (any more).
    Decommissioned,
    /// The model's breaker is open.
    Unavailable,
    /// The wait would exceed the client's deadline.
    Wait,
}

impl FallbackReason {
    /// The reasons that apply where `when` is not given: all but [`Self::Wait`].
    pub const DEFAULT: [Self; 4] = [Self::DailyLimit, Self::TooLarge, Self::Decommissioned, Self::Unavailable];

    /// Its name in the configuration, in `x-shield-fallback` and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DailyLimit => "daily_limit",
            Self::TooLarge => "too_large",
            Self::Decommissioned => "decommissioned",
            Self::Unavailable => "unavailable",
            Self::Wait => "wait",
        }
    }
}
