//! `[limits]` and its tables.

use std::{collections::BTreeMap, path::PathBuf};

use groq_limiter::settings::{ModelLimits, Plan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether the limits are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Requests wait, and are refused.
    #[default]
    Enforce,
    /// Requests pass at once; what enforcing would have done is counted.
    Observe,
}

/// `[limits]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Limits to start from: auto, free, developer or none; auto starts from free and follows Groq's headers.
    pub plan: Plan,
    /// enforce, or observe: nothing waits, is refused, capped or rewritten; what would have been is counted in metrics and logged. Live.
    pub mode: Mode,
    /// Share of every limit left to others, 0 to 0.9.
    #[schemars(range(min = 0.0, max = 0.9), example = 0.1, extend("x-help" = "a share: 20 % is 0.2"))]
    pub headroom: f64,
    /// File that keeps what remains of each limit across restarts; unset: not kept. A relative path is relative to the configuration file. Takes a restart.
    #[schemars(title = "a path", example = &"/var/lib/groq-shield/state.json")]
    pub state_file: Option<PathBuf>,
    /// Lower max_completion_tokens to what the limit can hold instead of answering 413, and report it in x-shield-fitted.
    pub fit_ceiling: bool,
    /// Every model without a table of its own. What is not set comes from the plan, headers or refusals. Live.
    pub default: ModelLimits,
    /// One model; the same keys. Live.
    pub model: BTreeMap<String, ModelLimits>,
}
