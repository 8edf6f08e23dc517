//! Estimates that a limiter learns from responses: the error of prompt estimates, the length of completions, the time to a
//! response.

use std::time::Duration;

use self::{default_output::AssumedOutput, running_mean::RunningMean};
use crate::types::Ns;

pub mod default_output;
pub mod expected_output;
pub mod running_mean;

/// The error of prompt estimates: actual prompt tokens ÷ estimated ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptRatio(RunningMean);

impl PromptRatio {
    /// The smallest and the largest ratio; samples are clamped to them.
    const BOUNDS: (f32, f32) = (0.25, 4.0);

    /// Adds a response: the estimate of its prompt, and the actual number of tokens.
    pub fn learn(&mut self, estimated: u64, actual: u64) {
        if estimated > 0 && actual > 0 {
            self.0.learn((actual as f32 / estimated as f32).clamp(Self::BOUNDS.0, Self::BOUNDS.1));
        }
    }

    /// Returns a ratio that few prompts fall below. Before the first response, estimates are assumed to be within a tenth.
    pub fn low(&self) -> f32 {
        self.0.low().unwrap_or(0.9).max(Self::BOUNDS.0)
    }

    /// Returns a ratio that few prompts exceed.
    pub fn high(&self) -> f32 {
        self.0.high().unwrap_or(1.1).min(Self::BOUNDS.1)
    }
}

/// The estimates of one limiter.
#[derive(Clone, Debug, Default)]
pub struct Estimates {
    /// Completion tokens of a request.
    pub completion: RunningMean,
    /// Seconds from sending a request to the head of its response.
    head: RunningMean,
    /// The shortest such time so far, ns.
    soonest_head: Option<Ns>,
    /// Completion tokens that Groq reserves for a request without an output limit.
    pub assumed: AssumedOutput,
    /// Prompt tokens: actual ÷ estimated.
    pub prompt: PromptRatio,
}

impl Estimates {
    /// Adds the time from sending a request to the head of its response, ns.
    pub fn head(&mut self, after: Ns) {
        self.head.learn((after as f64 / 1e9) as f32);
        self.soonest_head = Some(self.soonest_head.map_or(after, |soonest| soonest.min(after)));
    }

    /// Returns the mean time from sending a request to the head of its response; zero before the first one.
    pub fn usual_time_to_head(&self) -> Duration {
        Duration::from_secs_f32(self.head.mean().unwrap_or(0.0).max(0.0))
    }

    /// Returns the estimated time that a request takes to reach Groq, ns: half of the shortest response time, and at most 25
    /// ms.
    pub fn one_way(&self) -> Ns {
        self.soonest_head.map_or(0, |soonest| (soonest / 2).min(25_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_follows_the_samples() {
        let mut ratio = PromptRatio::default();
        assert_eq!((ratio.low(), ratio.high()), (0.9, 1.1));
        for n in 0..2000u64 {
            ratio.learn(1000, 1200 + n % 100);
        }
        assert!((1.25..1.4).contains(&ratio.high()), "{}", ratio.high());
        assert!((1.1..1.25).contains(&ratio.low()), "{}", ratio.low());
        for _ in 0..1000 {
            ratio.learn(1000, 700);
        }
        assert!((0.69..0.72).contains(&ratio.high()) && (0.68..0.71).contains(&ratio.low()), "{ratio:?}");
    }

    #[test]
    fn nonsense_stays_within_bounds() {
        let mut ratio = PromptRatio::default();
        ratio.learn(0, 5);
        ratio.learn(1, u64::MAX);
        assert_eq!(ratio.high(), 4.0);
        for _ in 0..1000 {
            ratio.learn(u64::MAX, 1);
        }
        assert!(ratio.low() == 0.25 && ratio.high() < 0.3, "{ratio:?}");
    }
}
