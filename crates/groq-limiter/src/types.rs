//! Leaf types that everything else may use: dimensions, and what an upstream says about its limits.

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Serialize};

/// Nanoseconds: an instant on a limiter's clock, or a span.
pub type Ns = u64;

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// All of them, in this order.
    pub const ALL: [Self; 5] = [Self::Requests, Self::Tokens, Self::InputTokens, Self::OutputTokens, Self::AudioSeconds];

    /// Groq's words and abbreviation.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Requests => ("requests", "R"),
            Self::Tokens => ("tokens", "T"),
            Self::InputTokens => ("input tokens", "IT"),
            Self::OutputTokens => ("output tokens", "OT"),
            Self::AudioSeconds => ("seconds of audio", "AS"),
        }
    }
}

/// One dimension of a limit: a unit over a period, by the code Groq prints (`TPM`, `ASPH`, …).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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

    /// All of these.
    pub const KNOWN: [Self; 8] = [Self::RPM, Self::RPD, Self::TPM, Self::TPD, Self::ITPM, Self::OTPM, Self::ASPH, Self::ASPD];

    const fn known(code: &'static str, unit: Unit, period: Duration) -> Self {
        Self { code: Cow::Borrowed(code), unit, period }
    }

    /// The dimension that a code, a unit and a period describe; `None` where they leave it open. `requested` tells a count of
    /// requests from a kind of token where the unit is not known.
    pub fn named(code: Option<&str>, unit: Option<Unit>, period: Option<Duration>, requested: u64) -> Option<Self> {
        let code = match code {
            Some("ASH") => Some("ASPH"),
            Some("ASD") => Some("ASPD"),
            other => other,
        };
        if let Some(known) = Self::KNOWN.into_iter().find(|known| Some(known.code.as_ref()) == code) {
            return Some(known);
        }
        let period = period?;
        let Some(code) = code else {
            let unit = unit?;
            let known = Self::KNOWN.into_iter().find(|known| known.unit == unit && known.period == period);
            // Groq's manner of abbreviating: `R10S`.
            let code = || format!("{}{}S", unit.names().1, period.as_secs().max(1));
            return known.or_else(|| Some(Self { code: code().into(), unit, period }));
        };
        // A unit never heard of: one at a time is a count of requests, more is most likely a kind of token.
        let unit = unit.unwrap_or(if requested <= 1 { Unit::Requests } else { Unit::Tokens });
        Some(Self { code: code.to_owned().into(), unit, period })
    }

    /// The dimension in words, as Groq prints it: `tokens per minute (TPM)`.
    pub fn words(&self) -> String {
        let period = match self.period {
            MINUTE => "minute".to_owned(),
            HOUR => "hour".to_owned(),
            DAY => "day".to_owned(),
            other => format!("{}s", other.as_secs_f64()),
        };
        format!("{} per {period} ({})", self.unit.names().0, self.code)
    }
}

/// One limit as the upstream describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteQuota {
    /// The whole limit.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
}

/// What one response says about the limits (Groq: its `x-ratelimit-*` headers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// `-requests`: requests per day.
    pub requests: Option<RemoteQuota>,
    /// `-tokens`: tokens per minute.
    pub tokens: Option<RemoteQuota>,
    /// `-audio-seconds`.
    pub audio: Option<RemoteQuota>,
}

/// A refusal (429, 413) of the upstream, as far as its text says.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamRefusal {
    /// The dimension, where the text names one (a code never seen before makes a dimension of its own).
    pub dimension: Option<Dimension>,
    /// The abbreviation as printed, where there is one.
    pub code: Option<String>,
    /// What is counted, where the words say.
    pub unit: Option<Unit>,
    /// `Limit n`
    pub limit: u64,
    /// `Used n`, absent from "request too large" texts.
    pub used: Option<u64>,
    /// `Requested n`
    pub requested: u64,
    /// `Please try again in W`
    pub wait: Option<Duration>,
}

/// `Used` is rounded up, so a period derived from fewer units than this would be a guess.
const ENOUGH_UNITS: u64 = 20;

impl UpstreamRefusal {
    /// Whether the request can never succeed, whatever the status says.
    pub fn hopeless(&self) -> bool {
        self.requested > self.limit
    }

    /// Whether it is about a limit on output, which tests what is expected of an answer.
    pub fn counts_expected_output(&self) -> bool {
        self.dimension.as_ref().map(|dimension| dimension.unit).or(self.unit) == Some(Unit::OutputTokens)
    }

    /// The named dimension, or one whose period follows from the wait: `W × L / (U + R − L)`.
    /// `None` where the text has neither a name nor enough units over its limit to tell.
    pub fn dimension_or_derived(&self) -> Option<Dimension> {
        if self.dimension.is_some() {
            return self.dimension.clone();
        }
        let over = self.used?.saturating_add(self.requested).checked_sub(self.limit).filter(|over| *over >= ENOUGH_UNITS)?;
        let period = self.wait?.as_secs_f64() * self.limit as f64 / over as f64;
        // `Used` is up to one too high, so the period is up to 5 % too short.
        let usual = [1.0, 60.0, 3600.0, 86_400.0].into_iter().find(|usual| (period / usual - 1.0).abs() < 0.06);
        let period = Duration::try_from_secs_f64(usual.unwrap_or(period)).ok().filter(|period| !period.is_zero())?;
        Dimension::named(self.code.as_deref(), self.unit.or(Some(Unit::Tokens)), Some(period), self.requested)
    }
}

/// A limit that Groq has stated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatedLimit {
    /// The dimension.
    pub dimension: Dimension,
    /// The limit.
    pub limit: u64,
    /// By headers, or by a refusal.
    pub source: Source,
}

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// Nobody does: served while interactive requests leave room, and 5 % of the limit in any case.
    Batch,
}

/// Where a limit's number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The operator said so.
    Configured,
    /// The plan's table.
    Plan,
    /// Groq's headers.
    Headers,
    /// A refusal's text.
    UpstreamRefusal,
}
