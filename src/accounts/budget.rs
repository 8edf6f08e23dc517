//! Budgets and the amounts that they are held against.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::calendar::Period;

/// What requests use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Requests.
    pub requests: u64,
    /// Tokens as Groq's limits count them: prompt and completion, cached prompt tokens apart.
    pub tokens: u64,
    /// Cost, billionths of a USD: a token costs 50 of them or more.
    pub nano_usd: u64,
}

impl Amounts {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
            nano_usd: self.nano_usd.saturating_add(other.nano_usd),
        }
    }

    /// The larger of both, in each unit.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            requests: self.requests.max(other.requests),
            tokens: self.tokens.max(other.tokens),
            nano_usd: self.nano_usd.max(other.nano_usd),
        }
    }

    /// What is left without `other`; nothing is less than 0.
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
    /// Cost, billionths of a USD.
    Cost,
}

impl Unit {
    /// All of them, as [`Amounts`] has them.
    pub(super) const ALL: [Self; 3] = [Self::Requests, Self::Tokens, Self::Cost];

    /// Its name in messages, metrics and the error object's `type`.
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

/// A budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The budget.
    pub budget: Budget,
    /// How much has been used, in its unit.
    pub used: u64,
    /// Time until it resets.
    pub resets_in: Duration,
    /// So many replicas cannot ask each other, and each has its share; 1: there is but one, or they can.
    pub shares: u32,
}

/// An amount in words: `1200 tokens`, `0.25 USD`.
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
    /// `This app's budget of 10000 tokens a day is spent (10012 used); it resets in 3600 s, at midnight UTC`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Budget { unit, period, limit } = self.budget;
        let when = match period {
            Period::Day => "at midnight UTC",
            Period::Month => "on the first of next month, UTC",
        };
        write!(
            f,
            "This app's budget of {} a {} is spent ({} used); it resets in {} s, {when}",
            InWords(limit, unit),
            period.as_str(),
            InWords(self.used, unit),
            self.resets_in.as_secs(),
        )?;
        match self.shares {
            0 | 1 => Ok(()),
            shares => write!(f, "; the store is out of reach, so that each of {shares} replicas has its share of what was left"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_in_words() {
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
            exceeded(Unit::Cost, Period::Month, 2_500_000_000, 2_500_000_001).to_string(),
            "This app's budget of 2.5 USD a month is spent (2.500000001 USD used); it resets in 3600 s, on the first of next month, UTC"
        );
        let shared = Exceeded { shares: 3, ..exceeded(Unit::Requests, Period::Day, 9, 3) }.to_string();
        assert!(
            shared
                .ends_with("midnight UTC; the store is out of reach, so that each of 3 replicas has its share of what was left")
        );
        assert_eq!(Budget { unit: Unit::Cost, period: Period::Day, limit: 1 }.key(), "cost_per_day");
    }
}
