//! `[limits]` and its tables.

use std::{collections::BTreeMap, path::PathBuf};

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MAX_LIMIT;
use crate::config::rules::{finite, not_empty};

/// The starting table of limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// Starts from free and follows the headers.
    #[default]
    Auto,
    /// Groq's free plan.
    Free,
    /// Groq's developer plan.
    Developer,
    /// Only what is configured and what refusals teach.
    None,
}

/// Whether the limits are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Requests wait, and are refused.
    #[default]
    Enforce,
    /// Requests pass as they come; what would have become of them is counted.
    Observe,
}

/// `[limits]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
#[garde(allow_unvalidated)]
pub struct Limits {
    /// The starting table: auto, free, developer or none. auto starts from free and follows the headers.
    pub plan: Plan,
    /// enforce, or observe: nothing waits, is refused, capped or rewritten; what would have been is counted in metrics and the log. Live.
    pub mode: Mode,
    /// Share of every limit left to others, 0 to 0.9.
    #[garde(range(min = 0.0, max = 0.9), custom(finite))]
    pub headroom: f64,
    /// File that keeps what is left of each limit across restarts; unset: it is not kept. A relative path is relative to the configuration file. Takes a restart.
    #[garde(inner(custom(not_empty)))]
    #[schemars(title = "a path", example = &"/var/lib/groq-shield/levels.json")]
    pub state_file: Option<PathBuf>,
    /// Instead of a 413, lower max_completion_tokens to what the limit can hold, and say so in x-shield-fitted.
    pub fit_ceiling: bool,
    /// Every model that has no table of its own. What is not set comes from the plan, headers or refusals. Live.
    #[garde(dive)]
    pub default: ModelLimits,
    /// One model; the same keys. Live.
    #[garde(dive)]
    pub model: BTreeMap<String, ModelLimits>,
}

/// `[limits.default]` and `[limits.model."…"]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
#[garde(allow_unvalidated)]
pub struct ModelLimits {
    /// RPM
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = 30, extend("x-too-small" = "leave the key out where there is no such limit"))]
    pub requests_per_minute: Option<u64>,
    /// RPD
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = 1000, extend("x-too-small" = "leave the key out where there is no such limit"))]
    pub requests_per_day: Option<u64>,
    /// TPM: prompt and completion limit together.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = 8000, extend("x-too-small" = "leave the key out where there is no such limit"))]
    pub tokens_per_minute: Option<u64>,
    /// TPD
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = 200000, extend("x-too-small" = "leave the key out where there is no such limit"))]
    pub tokens_per_day: Option<u64>,
    /// ITPM: prompts alone.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = 7000, extend("x-too-small" = "leave the key out where there is no such limit"))]
    pub input_tokens_per_minute: Option<u64>,
    /// OTPM: answers alone; tested is the largest of the last minutes.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = 1000, extend("x-too-small" = "leave the key out where there is no such limit"))]
    pub output_tokens_per_minute: Option<u64>,
    /// ASPH: seconds of audio.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = 7200, extend("x-too-small" = "leave the key out where there is no such limit"))]
    pub audio_seconds_per_hour: Option<u64>,
    /// ASPD: seconds of audio.
    #[garde(range(min = 1, max = MAX_LIMIT))]
    #[schemars(example = 28800, extend("x-too-small" = "leave the key out where there is no such limit"))]
    pub audio_seconds_per_day: Option<u64>,
    /// Completion tokens that Groq reserves for a request without `max_completion_tokens`. Unset: learnt from its answers.
    #[garde(range(max = MAX_LIMIT))]
    #[schemars(example = 2048)]
    pub assumed_completion_tokens: Option<u64>,
}
