//! Requests as the limiter sees them: the estimated cost, the errors of admission, and the usage in the end.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::types::{Dimension, Priority, Unit};

/// The scope of a limiter: Groq counts the requests of each organization, model and service tier separately.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope {
    /// The organization: its configured name, or the digest of its API key.
    pub organization: Arc<str>,
    /// The model.
    pub model: Arc<str>,
    /// The service tier.
    pub tier: Arc<str>,
}

impl Scope {
    /// The scope of a request.
    pub fn of(request: &AdmissionRequest) -> Self {
        Self { organization: request.organization.clone(), model: request.model.clone(), tier: request.tier.clone() }
    }
}

/// What a request will cost, as estimated by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostEstimate {
    /// One request and tokens: chat, responses, embeddings, speech.
    Tokens {
        /// Estimated prompt tokens (or characters of speech), before the limiter's own correction.
        prompt: u64,
        /// The request's `max_completion_tokens`; `None` if it has none, so that the limiter estimates it.
        max_completion_tokens: Option<u64>,
    },
    /// One request and seconds of audio.
    Audio {
        /// Billed seconds: rounded up, and at least 10.
        seconds: u64,
    },
    /// Not limited: models, files, batches.
    Free,
}

/// A request for admission.
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// The organization: its configured name, or the digest of its API key, never the key itself.
    pub organization: Arc<str>,
    /// The API key, as a number chosen by the caller. For limits on output, the completion tokens of a request are predicted from
    /// earlier responses to the same key.
    pub key: u32,
    /// The model.
    pub model: Arc<str>,
    /// The service tier: `on_demand` (and `auto`), `flex`, `performance`.
    pub tier: Arc<str>,
    /// The app, for fair queueing.
    pub app: Arc<str>,
    /// The app's weight in fair queueing.
    pub weight: f64,
    /// The priority class.
    pub class: Priority,
    /// The estimated cost.
    pub cost: CostEstimate,
    /// Bytes of memory that the request holds while it waits.
    pub bytes: u64,
}

impl AdmissionRequest {
    /// An interactive request of the tier `on_demand`, without an app.
    pub fn new(organization: impl Into<Arc<str>>, model: impl Into<Arc<str>>, cost: CostEstimate) -> Self {
        Self {
            organization: organization.into(),
            key: 0,
            model: model.into(),
            tier: "on_demand".into(),
            app: "".into(),
            weight: 1.0,
            class: Priority::default(),
            cost,
            bytes: 0,
        }
    }
}

/// Why a request was not admitted. Nothing is reserved for it.
#[derive(Clone, Debug, PartialEq)]
pub enum AdmissionError {
    /// The request is larger than a limit, so it can never be sent.
    TooLarge {
        /// The limit's dimension.
        dimension: Dimension,
        /// The limit, in units.
        limit: u64,
        /// Units that the request would take.
        requested: u64,
        /// Prompt tokens and `max_completion_tokens`; `None` if the limit counts another unit.
        parts: Option<(u64, u64)>,
    },
    /// The request cannot be sent before its deadline.
    NotInTime {
        /// The dimension that the request would wait for.
        dimension: Dimension,
        /// Forecast wait.
        wait: Duration,
        /// The largest `max_completion_tokens` with which the request fits into a limit on output for which, because of an
        /// earlier large response, too many completion tokens are expected; `None` if something else makes it wait.
        fitting_max_completion_tokens: Option<u64>,
        /// The time after which the same request could be sent before its deadline.
        retry_after: Duration,
    },
    /// The queue is full, by number of requests or by bytes.
    QueueFull {
        /// The time after which there may be room.
        retry_after: Duration,
    },
}

impl fmt::Display for AdmissionError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { dimension, limit, requested, .. } => {
                write!(formatter, "it takes {requested} of {}, whose limit is {limit}", dimension.words())
            }
            Self::NotInTime { dimension, wait, .. } => {
                write!(formatter, "it would wait {:.1} s for {}", wait.as_secs_f64(), dimension.words())
            }
            Self::QueueFull { .. } => formatter.write_str("the queue is full"),
        }
    }
}

impl Error for AdmissionError {}

/// What a request has used, which replaces its reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActualUsage {
    /// The request was not sent, or Groq refused it. The whole reservation is returned.
    Nothing,
    /// The response is a failure that is not charged (5xx). The request counts, its tokens are returned.
    Request,
    /// The usage as the response states it.
    Tokens {
        /// Prompt tokens that count, without cached ones.
        prompt: u64,
        /// Completion tokens; `None` if not stated, in which case the reserved ones count.
        completion: Option<u64>,
        /// All prompt tokens, from which the estimate of prompts is learnt.
        prompt_total: u64,
    },
    /// A stream that was not read to its end. The reserved prompt and these completion tokens count.
    Partial {
        /// Completion tokens read.
        completion: u64,
    },
    /// Unknown. The reservation counts until headers correct it.
    Unknown,
}

/// The cost of a request, by unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Requests: 1, or 0 for a request that is not counted.
    pub requests: u32,
    /// Prompt tokens.
    pub input: u32,
    /// Reserved completion tokens: `max_completion_tokens`, or without it the larger of what the upstream assumes and what
    /// is usual.
    pub output: u32,
    /// Completion tokens that limits on output count: `max_completion_tokens` (`u32::MAX` without it), which is lowered to
    /// what is expected by earlier responses.
    pub expected: u32,
    /// Seconds of audio.
    pub seconds: u32,
    /// The API key, whose earlier responses determine the expected completion tokens.
    pub key: u32,
}

impl Cost {
    /// This cost with `tokens` completion tokens.
    pub(crate) fn with_output(self, tokens: u32) -> Self {
        Self { output: tokens, expected: tokens, ..self }
    }

    /// This cost with the units that a refusal has stated for the request.
    pub(crate) fn corrected(mut self, unit: Unit, stated: u32) -> Self {
        match unit {
            Unit::Tokens => self.output = stated.saturating_sub(self.input),
            Unit::InputTokens => self.input = stated,
            Unit::AudioSeconds => self.seconds = stated,
            Unit::Requests | Unit::OutputTokens => {}
        }
        self
    }

    /// The units that a dimension with this unit counts.
    pub fn of(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Requests => self.requests.into(),
            Unit::Tokens => u64::from(self.input) + u64::from(self.output),
            Unit::InputTokens => self.input.into(),
            Unit::OutputTokens => self.expected.into(),
            Unit::AudioSeconds => self.seconds.into(),
        }
    }
}

/// A number of units as costs store it; a larger one becomes the largest.
pub(crate) fn saturated(units: u64) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}
