//! Budgets, and the amounts that are compared with them.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::calendar::Period;

/// What requests use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Requests.
    pub requests: u64,
    /// Tokens as Groq's limits count them: prompt and completion without cached prompt tokens.
    pub tokens: u64,
    /// Cost in billionths of a USD; a token costs at least 50.
    pub nano_usd: u64,
}

impl Amounts {
    /// The sum, saturating.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
            nano_usd: self.nano_usd.saturating_add(other.nano_usd),
        }
    }

    /// The maximum of each unit.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            requests: self.requests.max(other.requests),
            tokens: self.tokens.max(other.tokens),
            nano_usd: self.nano_usd.max(other.nano_usd),
        }
    }

    /// The difference, saturating at 0.
    #[must_use]
    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            tokens: self.tokens.saturating_sub(other.tokens),
            nano_usd: self.nano_usd.saturating_sub(other.nano_usd),
        }
    }

    /// The amount in one unit.
    pub fn of(self, unit: Unit) -> u64 {
        match unit {
            Unit::Requests => self.requests,
            Unit::Tokens => self.tokens,
            Unit::Cost => self.nano_usd,
        }
    }
}

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Requests.
    Requests,
    /// Tokens.
    Tokens,
    /// Cost in billionths of a USD.
    Cost,
}

impl Unit {
    /// All units, in the order of the fields of [`Amounts`].
    pub(super) const ALL: [Self; 3] = [Self::Requests, Self::Tokens, Self::Cost];

    /// Its name in messages, metrics and the `type` of the error object.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Cost => "cost",
        }
    }
}

/// A budget of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What it counts.
    pub unit: Unit,
    /// When it resets.
    pub period: Period,
    /// How much may be used in a period.
    pub limit: u64,
}

impl Budget {
    /// Its key in `[[app]]`: `tokens_per_day`, …
    pub fn key(self) -> String {
        format!("{}_per_{}", self.unit.as_str(), self.period.as_str())
    }
}

/// A spent budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The budget.
    pub budget: Budget,
    /// How much has been used, in the budget's unit.
    pub used: u64,
    /// Time until it resets.
    pub resets_in: Duration,
    /// Number of replicas that each use a share of the budget because the store is unreachable; otherwise 1.
    pub shares: u32,
}

/// An amount with its unit: `1200 tokens`, `0.25 USD`.
pub(super) struct InWords(pub(super) u64, pub(super) Unit);

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Unit::Cost => write!(f, "{} USD", self.0 as f64 / 1e9),
            unit => write!(f, "{} {}", self.0, unit.as_str()),
        }
    }
}

impl fmt::Display for Exceeded {
    /// `This app's budget of 10000 tokens a day is spent (10012 tokens used); it resets in 3600 s, at midnight UTC`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Budget { unit, period, limit } = self.budget;
        // The rest may be reserved by running requests.
        let state = if self.used < limit { "has no room for this request" } else { "is spent" };
        let when = match period {
            Period::Day => "at midnight UTC",
            Period::Month => "on the first of next month, UTC",
        };
        write!(
            f,
            "This app's budget of {} a {} {state} ({} used); it resets in {} s, {when}",
            InWords(limit, unit),
            period.as_str(),
            InWords(self.used, unit),
            self.resets_in.as_secs(),
        )?;
        match self.shares {
            0 | 1 => Ok(()),
            shares => {
                write!(f, "; the store is unreachable, so each of {shares} replicas may use only its share of what was left")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_spent_budget() {
        let exceeded = |unit, period, limit, used| Exceeded {
            budget: Budget { unit, period, limit },
            used,
            resets_in: Duration::from_secs(3600),
            shares: 1,
        };
        assert_eq!(
            exceeded(Unit::Tokens, Period::Day, 10_000, 10_012).to_string(),
            "This app's budget of 10000 tokens a day is spent (10012 tokens used); it resets in 3600 s, at midnight UTC"
        );
        assert_eq!(
            exceeded(Unit::Tokens, Period::Day, 10_000, 9000).to_string(),
            "This app's budget of 10000 tokens a day has no room for this request (9000 tokens used); it resets in 3600 s, at midnight UTC"
        );
        assert_eq!(
            exceeded(Unit::Cost, Period::Month, 2_500_000_000, 2_500_000_001).to_string(),
            "This app's budget of 2.5 USD a month is spent (2.500000001 USD used); it resets in 3600 s, on the first of next month, UTC"
        );
        let shared = Exceeded { shares: 3, ..exceeded(Unit::Requests, Period::Day, 9, 3) }.to_string();
        assert!(
            shared.ends_with(
                "midnight UTC; the store is unreachable, so each of 3 replicas may use only its share of what was left"
            )
        );
        assert_eq!(Budget { unit: Unit::Cost, period: Period::Day, limit: 1 }.key(), "cost_per_day");
    }
}
