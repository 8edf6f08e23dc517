//! Settings of the limiters: the limits, the bounds of the queue, the state file, and the Redis that replicas share.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::types::Dimension;

/// Settings of all limiters of a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The limits.
    pub limits: Arc<LimitSettings>,
    /// The bounds of the queue.
    pub queue: QueueSettings,
    /// The file that keeps used amounts over a restart; `None` if they are not kept.
    pub state_file: Option<PathBuf>,
    /// The Redis through which replicas share quotas; `None` if this process limits alone.
    pub redis: Option<RedisSettings>,
}

/// The configured limits, and the plan whose limits apply until the upstream has stated its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitSettings {
    /// The plan whose table is used at first.
    pub plan: Plan,
    /// Share of every limit that is left to other programs, 0 to 0.9.
    pub headroom: f64,
    /// Whether the limits are enforced by this limiter alone and not by an upstream, so that no safety margin is needed.
    pub exact: bool,
    /// Limits of the models that are not in `models`.
    pub default: ModelLimits,
    /// Limits by model.
    pub models: BTreeMap<String, ModelLimits>,
}

impl LimitSettings {
    /// The configured limits of a model: its entry in `models`, or else the default.
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
    /// The limit of every known dimension; `None` if it is not set.
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

/// Bounds of the queues of all limiters together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// Maximum number of waiting requests.
    pub max_waiting: usize,
    /// Maximum sum of [`AdmissionRequest::bytes`](crate::AdmissionRequest::bytes) of waiting requests.
    pub max_bytes: u64,
}

impl Default for QueueSettings {
    /// 1000 requests, 256 MiB.
    fn default() -> Self {
        Self { max_waiting: 1000, max_bytes: 256 << 20 }
    }
}

/// How to reach the Redis (or Valkey) that replicas share.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisSettings {
    /// Address, with the scheme `redis://` or `rediss://`.
    pub url: String,
    /// PEM file of the certificate authorities to trust; `None` for Mozilla's list.
    pub ca_file: Option<PathBuf>,
    /// Prefix of every key in Redis.
    pub prefix: String,
    /// Maximum time that a request waits for a reply of Redis.
    pub timeout: Duration,
    /// Number of processes that is assumed until Redis has reported how many there are.
    pub replicas: u32,
}

impl RedisSettings {
    /// Settings for this address, with a timeout of 250 ms, one process, and the prefix `groq-shield`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ca_file: None, prefix: "groq-shield".into(), timeout: Duration::from_millis(250), replicas: 1 }
    }
}
