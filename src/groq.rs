//! What does Groq say on the wire? Paths, headers, durations, refusal texts, usage. Pure: no socket, no clock.
//! Sources: GROQ's documentation and captured traffic; every text here is one of the captured ones.

use std::{borrow::Cow, time::Duration};

use http::HeaderMap;

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Requests, one each.
    Requests,
    /// Prompt and completion tokens.
    Tokens,
    /// Prompt tokens.
    InputTokens,
    /// Completion tokens.
    OutputTokens,
    /// Seconds of audio, whole.
    AudioSeconds,
}

impl Unit {
    /// The error object's `type` for a refusal in this unit.
    pub fn error_type(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens | Self::InputTokens | Self::OutputTokens => "tokens",
            Self::AudioSeconds => "seconds",
        }
    }
}

/// One dimension of a limit: a unit over a period, by the code Groq prints (`TPM`, `ASPH`, …).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dimension {
    /// Groq's abbreviation.
    pub code: Cow<'static, str>,
    /// What is counted.
    pub unit: Unit,
    /// The time in which an empty bucket fills.
    pub period: Duration,
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

impl Dimension {
    /// Requests per minute.
    pub const RPM: Self = Self::known("RPM", Unit::Requests, MINUTE);
    /// Requests per day.
    pub const RPD: Self = Self::known("RPD", Unit::Requests, DAY);
    /// Tokens per minute.
    pub const TPM: Self = Self::known("TPM", Unit::Tokens, MINUTE);
    /// Tokens per day.
    pub const TPD: Self = Self::known("TPD", Unit::Tokens, DAY);
    /// Input tokens per minute.
    pub const ITPM: Self = Self::known("ITPM", Unit::InputTokens, MINUTE);
    /// Output tokens per minute.
    pub const OTPM: Self = Self::known("OTPM", Unit::OutputTokens, MINUTE);
    /// Seconds of audio per hour.
    pub const ASPH: Self = Self::known("ASPH", Unit::AudioSeconds, HOUR);
    /// Seconds of audio per day.
    pub const ASPD: Self = Self::known("ASPD", Unit::AudioSeconds, DAY);

    const fn known(code: &'static str, unit: Unit, period: Duration) -> Self {
        Self { code: Cow::Borrowed(code), unit, period }
    }

    /// The dimension in words, as Groq prints it: `tokens per minute (TPM)`.
    pub fn words(&self) -> String {
        let unit = match self.unit {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
            Unit::InputTokens => "input tokens",
            Unit::OutputTokens => "output tokens",
            Unit::AudioSeconds => "seconds of audio",
        };
        let period = match self.period {
            MINUTE => "minute".to_owned(),
            HOUR => "hour".to_owned(),
            DAY => "day".to_owned(),
            other => format!("{}s", other.as_secs_f64()),
        };
        format!("{unit} per {period} ({})", self.code)
    }
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `chat/completions`
    Chat,
    /// `responses`
    Responses,
    /// `embeddings`
    Embeddings,
    /// `audio/transcriptions`
    Transcription,
    /// `audio/translations`
    Translation,
    /// `audio/speech`
    Speech,
    /// `models`, `models/{id}`
    Models,
    /// `batches…`
    Batches,
    /// `files…`
    Files,
    /// `/v1/fine_tunings…`
    FineTunings,
    /// Anything else: passed through.
    Other,
}

/// One bucket as the headers describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The whole limit.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// Time until full.
    pub reset: Option<Duration>,
}

/// What the `x-ratelimit-*` headers of one answer say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateState {
    /// `-requests`: requests per day.
    pub requests: Option<Snapshot>,
    /// `-tokens`: tokens per minute.
    pub tokens: Option<Snapshot>,
    /// `-audio-seconds`.
    pub audio: Option<Snapshot>,
}

impl RateState {
    /// Reads the headers; what is absent or unparsable is `None`.
    pub fn of(_headers: &HeaderMap) -> Self {
        Self::default()
    }
}

/// A refusal's text, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct RefusalText {
    /// The dimension, where the text names one (a code never seen before makes a dimension of its own).
    pub dimension: Option<Dimension>,
    /// `Limit n`
    pub limit: u64,
    /// `Used n`, absent from "request too large" texts.
    pub used: Option<u64>,
    /// `Requested n`
    pub requested: u64,
    /// `Please try again in W`
    pub wait: Option<Duration>,
}

impl RefusalText {
    /// Parses the message of a 429, 413 or 400; `None` if it is not a limit's refusal.
    pub fn parse(_message: &str) -> Option<Self> {
        None
    }

    /// Whether the request can never succeed, whatever the status says.
    pub fn hopeless(&self) -> bool {
        self.requested > self.limit
    }
}

/// What an answer says that it used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub prompt: u64,
    /// Completion tokens, reasoning included.
    pub completion: u64,
    /// Prompt tokens that came from the cache and do not count against limits.
    pub cached: u64,
}

/// Parses a Go duration (`7.66s`, `2m59.56s`, `370ms`, `16.239999999s`).
pub fn parse_duration(_text: &str) -> Option<Duration> {
    None
}
