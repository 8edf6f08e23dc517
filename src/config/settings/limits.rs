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
    /// Requests pass as they come; what would have become of them is counted.
    Observe,
}

/// `[limits]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The starting table: auto, free, developer or none. auto starts from free and follows the headers.
    pub plan: Plan,
    /// enforce, or observe: nothing waits, is refused, capped or rewritten; what would have been is counted in metrics and the log. Live.
    pub mode: Mode,
    /// Share of every limit left to others, 0 to 0.9.
    #[schemars(range(min = 0.0, max = 0.9), example = 0.1, extend("x-help" = "a share: 20 % is 0.2"))]
    pub headroom: f64,
    /// File that keeps what is left of each limit across restarts; unset: it is not kept. A relative path is relative to the configuration file. Takes a restart.
    #[schemars(title = "a path", example = &"/var/lib/groq-shield/state.json")]
    pub state_file: Option<PathBuf>,
    /// Instead of a 413, lower max_completion_tokens to what the limit can hold, and say so in x-shield-fitted.
    pub fit_ceiling: bool,
    /// Every model that has no table of its own. What is not set comes from the plan, headers or refusals. Live.
    pub default: ModelLimits,
    /// One model; the same keys. Live.
    pub model: BTreeMap<String, ModelLimits>,
}
