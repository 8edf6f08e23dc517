//! Basic types without dependencies on other modules: dimensions, and what an upstream states about its limits.

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Serialize};

/// Nanoseconds: a time on a limiter's clock, or a duration.
pub type Ns = u64;

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Requests.
    Requests,
    /// Prompt and completion tokens.
    Tokens,
    /// Prompt tokens.
    InputTokens,
    /// Completion tokens.
    OutputTokens,
    /// Whole seconds of audio.
    AudioSeconds,
}

impl Unit {
    /// All units, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Requests, Self::Tokens, Self::InputTokens, Self::OutputTokens, Self::AudioSeconds];

    /// The unit's name and abbreviation as Groq writes them.
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

/// A dimension of Groq's limits: a unit per period, identified by the code that Groq prints (`TPM`, `ASPH`, …).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dimension {
    /// Groq's abbreviation.
    pub code: Cow<'static, str>,
    /// What the limit counts.
    pub unit: Unit,
    /// The time in which an empty bucket refills.
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

    /// All dimensions that Groq documents.
    pub const KNOWN: [Self; 8] = [Self::RPM, Self::RPD, Self::TPM, Self::TPD, Self::ITPM, Self::OTPM, Self::ASPH, Self::ASPD];

    const fn known(code: &'static str, unit: Unit, period: Duration) -> Self {
        Self { code: Cow::Borrowed(code), unit, period }
    }

    /// The dimension that a code, a unit and a period describe; `None` if they do not determine one. If the unit is not known,
    /// `requested` decides between requests and tokens.
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
            // In the manner of Groq's codes, for example `R10S` for requests per 10 seconds.
            let code = || format!("{}{}S", unit.names().1, period.as_secs().max(1));
            return known.or_else(|| Some(Self { code: code().into(), unit, period }));
        };
        // The unit is not known. A limit that counts one per request counts requests; any other most likely counts tokens.
        let unit = unit.unwrap_or(if requested <= 1 { Unit::Requests } else { Unit::Tokens });
        Some(Self { code: code.to_owned().into(), unit, period })
    }

    /// The dimension in words, as Groq prints it, for example `tokens per minute (TPM)`.
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

/// One limit and what is left of it, as the upstream states them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteQuota {
    /// The limit, in units.
    pub limit: u64,
    /// Units left.
    pub remaining: u64,
}

/// What one response states about the limits: Groq's `x-ratelimit-*` headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// `x-ratelimit-*-requests`: requests per day.
    pub requests: Option<RemoteQuota>,
    /// `x-ratelimit-*-tokens`: tokens per minute.
    pub tokens: Option<RemoteQuota>,
    /// `x-ratelimit-*-audio-seconds`: seconds of audio.
    pub audio: Option<RemoteQuota>,
}

/// A refusal (429 or 413) of the upstream, as parsed from its text.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamRefusal {
    /// The dimension; `None` if the text names none. An unknown code makes a new dimension.
    pub dimension: Option<Dimension>,
    /// The dimension's code as printed; `None` if the text has none.
    pub code: Option<String>,
    /// What the limit counts; `None` if the text does not say.
    pub unit: Option<Unit>,
    /// The limit: `Limit n`.
    pub limit: u64,
    /// Units in use: `Used n`; `None` in "request too large" texts.
    pub used: Option<u64>,
    /// Units that the request takes: `Requested n`.
    pub requested: u64,
    /// Time until the request would fit: `Please try again in n`; `None` if the text does not say.
    pub wait: Option<Duration>,
}

/// Minimum number of units over the limit for deriving its period. `Used` is rounded up, so with fewer units the error is
/// too large.
const MIN_UNITS_OVER: u64 = 20;

impl UpstreamRefusal {
    /// Whether the request is larger than the limit, so that it can never succeed.
    pub fn hopeless(&self) -> bool {
        self.requested > self.limit
    }

    /// Whether the limit is one on output, which counts the expected completion tokens.
    pub fn counts_expected_output(&self) -> bool {
        self.dimension.as_ref().map(|dimension| dimension.unit).or(self.unit) == Some(Unit::OutputTokens)
    }

    /// The named dimension, or else the one whose period follows from the text: `wait × limit / (used + requested − limit)`.
    /// `None` if the text names no dimension and the request was too few units over the limit to derive the period.
    pub fn dimension_or_derived(&self) -> Option<Dimension> {
        if self.dimension.is_some() {
            return self.dimension.clone();
        }
        let over = self.used?.saturating_add(self.requested).checked_sub(self.limit).filter(|over| *over >= MIN_UNITS_OVER)?;
        let period = self.wait?.as_secs_f64() * self.limit as f64 / over as f64;
        // `Used` is up to one unit too high, so the derived period is up to 5 % too short.
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
    /// The limit, in units.
    pub limit: u64,
    /// Whether it was stated by headers or by a refusal.
    pub source: Source,
}

/// The priority class of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// A user waits for the response.
    #[default]
    Interactive,
    /// No user waits: served while interactive requests leave room, and 5 % of the limit in any case.
    Batch,
}

/// Where a limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The operator's settings.
    Configured,
    /// The table of Groq's plan.
    Plan,
    /// The headers of a response.
    Headers,
    /// The text of a refusal.
    UpstreamRefusal,
}
