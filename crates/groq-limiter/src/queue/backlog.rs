//! Sums over what is queued, for forecasts.

use super::QueuedRequest;
use crate::types::Unit;

/// Sums over waiters, by unit, in expected use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Waiters.
    pub count: u32,
    /// Sum of requests.
    pub requests: u64,
    /// Sum of prompt tokens.
    pub input: u64,
    /// Sum of expected completion tokens.
    pub output: u64,
    /// Sum of seconds.
    pub seconds: u64,
}

impl Backlog {
    /// Nobody's.
    pub const NONE: Self = Self { count: 0, requests: 0, input: 0, output: 0, seconds: 0 };

    pub(super) fn add(&mut self, waiter: &QueuedRequest) {
        self.count += 1;
        self.requests += u64::from(waiter.cost.requests);
        self.input += u64::from(waiter.cost.input);
        self.output += u64::from(waiter.expected);
        self.seconds += u64::from(waiter.cost.seconds);
    }

    pub(super) fn take(&mut self, waiter: &QueuedRequest) {
        self.count -= 1;
        self.requests -= u64::from(waiter.cost.requests);
        self.input -= u64::from(waiter.cost.input);
        self.output -= u64::from(waiter.expected);
        self.seconds -= u64::from(waiter.cost.seconds);
    }

    /// The sum that a dimension of this unit counts.
    pub fn of(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Requests => self.requests,
            Unit::Tokens => self.input + self.output,
            Unit::InputTokens => self.input,
            Unit::OutputTokens => self.output,
            Unit::AudioSeconds => self.seconds,
        }
    }
}
