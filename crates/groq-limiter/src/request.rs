//! A request as the limits see it: what it asks for, what it may cost, why it may not go, and what it used in the end.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::types::{Dimension, Priority, Unit};

/// Whose limits, which model, which tier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope {
    /// Whose: a configured organization's name or the key's digest.
    pub organization: Arc<str>,
    /// The model.
    pub model: Arc<str>,
    /// The service tier.
    pub tier: Arc<str>,
}

impl Scope {
    /// The scope that a request belongs to.
    pub fn of(request: &AdmissionRequest) -> Self {
        Self { organization: request.organization.clone(), model: request.model.clone(), tier: request.tier.clone() }
    }
}

/// What a request draws on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostEstimate {
    /// Requests and tokens: chat, responses, embeddings, speech.
    Tokens {
        /// Estimated prompt tokens (or characters of speech), before the limiter's own correction.
        prompt: u64,
        /// The request's own `max_completion_tokens`; `None`: what the limiter assumes.
        max_completion_tokens: Option<u64>,
    },
    /// Requests and seconds of audio, rounded up, the 10 s floor included.
    Audio {
        /// Seconds.
        seconds: u64,
    },
    /// Nothing seen: models, files, batches.
    Free,
}

/// One request as the limits see it.
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// Whose limits: a configured organization's name or the key's digest (never the key).
    pub organization: Arc<str>,
    /// Which of its API keys, by any number of the caller's: a limit on output expects of a request what its key's answers were
    /// like.
    pub key: u32,
    /// The model.
    pub model: Arc<str>,
    /// The service tier: `on_demand` (and `auto`), `flex`, `performance`.
    pub tier: Arc<str>,
    /// The app, for fair shares.
    pub app: Arc<str>,
    /// The app's weight.
    pub weight: f64,
    /// Interactive before batch.
    pub class: Priority,
    /// What it may cost.
    pub cost: CostEstimate,
    /// Bytes that it holds while it waits.
    pub bytes: u64,
}

impl AdmissionRequest {
    /// An interactive request of the usual tier and of no app in particular.
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

/// Why a request gets no permit. No quota was changed.
#[derive(Clone, Debug, PartialEq)]
pub enum AdmissionError {
    /// More than a limit can ever hold.
    TooLarge {
        /// The limit's dimension.
        dimension: Dimension,
        /// The limit.
        limit: u64,
        /// What it would take.
        requested: u64,
        /// Prompt and `max_completion_tokens`, where tokens are meant.
        parts: Option<(u64, u64)>,
    },
    /// Not before the deadline.
    NotInTime {
        /// What makes it wait.
        dimension: Dimension,
        /// Forecast wait.
        wait: Duration,
        /// With a `max_completion_tokens` of at most so much it need not wait for a large answer to be forgotten.
        fitting_max_completion_tokens: Option<u64>,
        /// After so long the same request would be sent in time.
        retry_after: Duration,
    },
    /// The queue is full, by count or bytes.
    QueueFull {
        /// When there may be room.
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

/// What became of a sent request, for its charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActualUsage {
    /// Never sent, or refused by Groq: everything comes back.
    Nothing,
    /// Answered with a failure that is not charged (5xx): tokens come back, the request counts.
    Request,
    /// The truth from `usage`.
    Tokens {
        /// Prompt tokens that count (cached ones taken off).
        prompt: u64,
        /// Completion tokens; `None`: not stated, so what was reserved for them counts.
        completion: Option<u64>,
        /// Prompt tokens in all, for learning the estimate.
        prompt_total: u64,
    },
    /// A stream that was left: its prompt and the completion tokens seen so far.
    Partial {
        /// Completion tokens seen.
        completion: u64,
    },
    /// Unknown: what was reserved counts, until headers correct it.
    Unknown,
}

/// What a request takes, by unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Requests: one, or none for what is not counted.
    pub requests: u32,
    /// Prompt tokens.
    pub input: u32,
    /// Completion tokens that are reserved: the output limit, or without one what the upstream assumes or what is usual, whichever
    /// is more.
    pub output: u32,
    /// Completion tokens that a limit on output tests: the output limit (`u32::MAX` without one), at most what is expected.
    pub expected: u32,
    /// Seconds of audio.
    pub seconds: u32,
    /// The API key whose answers tell what to expect of this one.
    pub key: u32,
}

impl Cost {
    /// Raised to what a refusal has said of the request. Its answer is as its output limit and what is assumed have it now.
    pub fn at_least(self, other: Self) -> Self {
        Self {
            requests: self.requests.max(other.requests),
            input: self.input.max(other.input),
            seconds: self.seconds.max(other.seconds),
            ..self
        }
    }

    /// The same with so many completion tokens.
    pub fn with_output(self, tokens: u32) -> Self {
        Self { output: tokens, expected: tokens, ..self }
    }

    /// The same, raised to so much of a unit.
    pub fn raised(mut self, unit: Unit, to: u64) -> Self {
        let to = u32::try_from(to).unwrap_or(u32::MAX);
        let (part, to) = match unit {
            Unit::Requests => (&mut self.requests, to),
            Unit::Tokens => (&mut self.input, to.saturating_sub(self.output)),
            Unit::InputTokens => (&mut self.input, to),
            // What is expected follows from the answers, and from what refusals say of them.
            Unit::OutputTokens => return self,
            Unit::AudioSeconds => (&mut self.seconds, to),
        };
        *part = to.max(*part);
        self
    }

    /// How much of a limiter a request occupies, for "smaller than".
    pub fn size(&self) -> u64 {
        u64::from(self.input) + u64::from(self.output) + u64::from(self.seconds)
    }

    /// The part that a dimension of this unit counts.
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
