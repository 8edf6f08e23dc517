//! What an operator decides: limits, room in the queue, where state is kept.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::types::Dimension;

/// Settings of all limiters of a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The limits themselves.
    pub limits: Arc<LimitSettings>,
    /// How many may wait.
    pub queue: QueueSettings,
    /// A file that keeps what is used across restarts.
    pub state_file: Option<PathBuf>,
    /// A Redis that several processes share their quotas through; `None`: this process is alone.
    pub redis: Option<RedisSettings>,
}

/// Limits before the upstream has stated its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitSettings {
    /// The table to start from.
    pub plan: Plan,
    /// Share of every limit that is left to others, 0 to 0.9.
    pub headroom: f64,
    /// The limits are the operator's own rules, and no upstream counts beside this limiter: no safety margin is kept.
    pub exact: bool,
    /// For models that `models` does not name.
    pub default: ModelLimits,
    /// By model.
    pub models: BTreeMap<String, ModelLimits>,
}

impl LimitSettings {
    /// What the operator says of a model: its own entry, or the default one.
    pub fn of_model(&self, model: &str) -> &ModelLimits {
        self.models.get(model).unwrap_or(&self.default)
    }
}

/// Which of Groq's tables to start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
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

/// One model's limits; what is `None` comes from the plan's table, the headers or refusals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ModelLimits {
    /// Requests a minute (RPM).
    #[cfg_attr(feature = "schemars", schemars(range(min = 1), example = 30))]
    pub requests_per_minute: Option<u64>,
    /// Requests a day (RPD).
    #[cfg_attr(feature = "schemars", schemars(range(min = 1), example = 1000))]
    pub requests_per_day: Option<u64>,
    /// Prompt and completion tokens a minute (TPM).
    #[cfg_attr(feature = "schemars", schemars(range(min = 1), example = 8000))]
    pub tokens_per_minute: Option<u64>,
    /// Prompt and completion tokens a day (TPD).
    #[cfg_attr(feature = "schemars", schemars(range(min = 1), example = 200000))]
    pub tokens_per_day: Option<u64>,
    /// Prompt tokens a minute (ITPM).
    #[cfg_attr(feature = "schemars", schemars(range(min = 1), example = 7000))]
    pub input_tokens_per_minute: Option<u64>,
    /// Completion tokens a minute (OTPM); tested, as by Groq, with the largest recent response to the same API key.
    #[cfg_attr(feature = "schemars", schemars(range(min = 1), example = 1000))]
    pub output_tokens_per_minute: Option<u64>,
    /// Seconds of audio an hour (ASPH).
    #[cfg_attr(feature = "schemars", schemars(range(min = 1), example = 7200))]
    pub audio_seconds_per_hour: Option<u64>,
    /// Seconds of audio a day (ASPD).
    #[cfg_attr(feature = "schemars", schemars(range(min = 1), example = 28800))]
    pub audio_seconds_per_day: Option<u64>,
    /// Completion tokens that Groq reserves for a request without `max_completion_tokens`; unset: learnt from its responses.
    #[cfg_attr(feature = "schemars", schemars(example = 2048))]
    pub assumed_completion_tokens: Option<u64>,
}

impl ModelLimits {
    /// The limit of every known dimension.
    pub fn by_dimension(&self) -> [(Dimension, Option<u64>); 8] {
        [
            (Dimension::RPM, self.requests_per_minute),
            (Dimension::RPD, self.requests_per_day),
            (Dimension::TPM, self.tokens_per_minute),
            (Dimension::TPD, self.tokens_per_day),
            (Dimension::ITPM, self.input_tokens_per_minute),
            (Dimension::OTPM, self.output_tokens_per_minute),
            (Dimension::ASPH, self.audio_seconds_per_hour),
            (Dimension::ASPD, self.audio_seconds_per_day),
        ]
    }
}

/// Bounds of all queues together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// Requests waiting at once.
    pub max_waiting: usize,
    /// Bytes that they hold.
    pub max_bytes: u64,
}

impl Default for QueueSettings {
    /// 1000 requests, 256 MiB.
    fn default() -> Self {
        Self { max_waiting: 1000, max_bytes: 256 << 20 }
    }
}

/// How to reach the Redis (or Valkey) that several processes share.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisSettings {
    /// `redis://` or `rediss://`
    pub url: String,
    /// Trusted roots of its certificate, PEM, in the place of Mozilla's.
    pub ca_file: Option<PathBuf>,
    /// First part of every key.
    pub prefix: String,
    /// No request waits longer for an answer of Redis.
    pub timeout: Duration,
    /// Processes to reckon with until Redis has told how many there are.
    pub replicas: u32,
}

impl RedisSettings {
    /// The defaults for this address: 250 ms, one process, keys that begin with `groq-shield`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ca_file: None, prefix: "groq-shield".into(), timeout: Duration::from_millis(250), replicas: 1 }
    }
}
