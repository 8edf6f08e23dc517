//! Expected output: what Groq tests against a limit on output tokens per minute.
//!
//! Observed in September 2026: the `Requested` of an OTPM refusal is not the request's max completion tokens but the
//! largest answer that its API key got in the last minutes, at most the max completion tokens. The output itself is
//! charged when the answer ends.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// What is tested against `output_tokens_per_minute`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputTest {
    /// The smaller of the request's max completion tokens and the largest answer of its API key within `window`; without
    /// such an answer, nothing. Nothing is held either, unless `hold` says so; the answer is charged when it ends. Groq.
    Expected {
        /// For how long an answer counts. Groq went on refusing for 65 to 150 s.
        window: Duration,
        /// Holds what was tested until the answer ends.
        hold: bool,
    },
    /// The request's max completion tokens (2048 where it names none), held and settled as [`Charging`](crate::Charging) says.
    MaxCompletionTokens,
}

impl Default for OutputTest {
    fn default() -> Self {
        Self::Expected { window: Duration::from_secs(150), hold: false }
    }
}

/// The answers of each API key that may still be its largest one. Times are nanoseconds since the simulator's start.
#[derive(Debug, Default)]
pub(crate) struct RecentAnswers {
    /// When each answer ended and its completion tokens. Later answers are at the back, and each is smaller than those before it.
    by_key: HashMap<String, VecDeque<(u64, u64)>>,
}

impl RecentAnswers {
    /// Completion tokens of the largest answer of `key` that ended less than `window` ago; 0 without one.
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
        // A smaller answer that ended earlier can never be the largest again.
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
    fn the_largest_answer_counts_until_it_is_as_old_as_the_window() {
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
