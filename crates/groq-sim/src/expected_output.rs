//! Expected output, which Groq tests against a limit on output tokens per minute.
//!
//! Observed in September 2026: the `Requested` of an OTPM refusal is not the request's max completion tokens but the
//! size of the largest response to its API key in the last minutes, and at most the max completion tokens. The actual output is
//! charged when the response ends.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// What is tested against `output_tokens_per_minute`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputTest {
    /// The smaller of the request's max completion tokens and the largest response to its API key within `window`; 0 without
    /// such a response. The output is charged when the response ends. Groq's behaviour, without `hold`.
    Expected {
        /// For how long a response counts. Groq was observed to refuse for 65 to 150 s.
        window: Duration,
        /// Whether the tested tokens are reserved until the response ends.
        hold: bool,
    },
    /// The request's max completion tokens (2048 if it has none), reserved and settled according to
    /// [`Charging`](crate::Charging).
    MaxCompletionTokens,
}

impl Default for OutputTest {
    fn default() -> Self {
        Self::Expected { window: Duration::from_secs(150), hold: false }
    }
}

/// By API key, the responses that can be the largest within a window. Times are in nanoseconds since the simulator's start.
#[derive(Debug, Default)]
pub(crate) struct RecentAnswers {
    /// End and completion tokens of each response, oldest first. Each is smaller than the one before.
    by_key: HashMap<String, VecDeque<(u64, u64)>>,
}

impl RecentAnswers {
    /// Completion tokens of the largest response to `key` that ended less than `window` ago; 0 if there is none.
    pub(crate) fn largest(&mut self, key: &str, now: u64, window: Duration) -> u64 {
        let Some(answers) = self.by_key.get_mut(key) else { return 0 };
        let window = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        while answers.front().is_some_and(|(ended, _)| ended.saturating_add(window) <= now) {
            answers.pop_front();
        }
        answers.front().map_or(0, |(_, tokens)| *tokens)
    }

    pub(crate) fn record(&mut self, key: &str, now: u64, tokens: u64) {
        let answers = self.by_key.entry(key.to_owned()).or_default();
        // A smaller response that ended earlier can never be the largest again.
        while answers.back().is_some_and(|(_, smaller)| *smaller <= tokens) {
            answers.pop_back();
        }
        answers.push_back((now, tokens));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_response_counts_for_one_window() {
        const SECOND: u64 = 1_000_000_000;
        let window = Duration::from_secs(150);
        let mut answers = RecentAnswers::default();
        assert_eq!(answers.largest("a", 0, window), 0);
        for (at, tokens) in [(0, 500), (10, 1089), (20, 40), (30, 300)] {
            answers.record("a", at * SECOND, tokens);
        }
        assert_eq!(answers.largest("a", 160 * SECOND - 1, window), 1089);
        assert_eq!(answers.largest("a", 160 * SECOND, window), 300);
        assert_eq!(answers.largest("b", 160 * SECOND, window), 0);
        assert_eq!(answers.largest("a", 180 * SECOND, window), 0);
    }
}
