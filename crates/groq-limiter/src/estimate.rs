//! Figures learnt from responses: how far prompt estimates are off, how long completions are, how soon responses come.

use std::time::Duration;

use self::{default_output::AssumedOutput, running_mean::RunningMean};
use crate::types::Ns;

pub mod default_output;
pub mod expected_output;
pub mod running_mean;

/// How far prompt estimates are off: actual ÷ estimated.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptRatio(RunningMean);

impl PromptRatio {
    /// Ratios beyond these are taken for these.
    const BOUNDS: (f32, f32) = (0.25, 4.0);

    /// One more answer: the estimate, and what it really was.
    pub fn learn(&mut self, estimated: u64, actual: u64) {
        if estimated > 0 && actual > 0 {
            self.0.learn((actual as f32 / estimated as f32).clamp(Self::BOUNDS.0, Self::BOUNDS.1));
        }
    }

    /// Few prompts are shorter; before the first answer estimates are right, within a tenth.
    pub fn low(&self) -> f32 {
        self.0.low().unwrap_or(0.9).max(Self::BOUNDS.0)
    }

    /// Few prompts are longer.
    pub fn high(&self) -> f32 {
        self.0.high().unwrap_or(1.1).min(Self::BOUNDS.1)
    }
}

/// Everything that a limiter learns beside its quotas.
#[derive(Clone, Debug, Default)]
pub struct Estimates {
    /// Completion tokens of a request.
    pub completion: RunningMean,
    /// Seconds from sending to an answer's head.
    head: RunningMean,
    soonest_head: Option<Ns>,
    /// What Groq reserves for a request without an output limit.
    pub assumed: AssumedOutput,
    /// Prompt tokens, actual ÷ estimated.
    pub prompt: PromptRatio,
}

impl Estimates {
    /// An answer's head came after so long.
    pub fn head(&mut self, after: Ns) {
        self.head.learn((after as f64 / 1e9) as f32);
        self.soonest_head = Some(self.soonest_head.map_or(after, |soonest| soonest.min(after)));
    }

    /// RunningMean time from sending to an answer's head.
    pub fn usual_time_to_head(&self) -> Duration {
        Duration::from_secs_f32(self.head.mean().unwrap_or(0.0).max(0.0))
    }

    /// One way to Groq, ns: at most half of the soonest answer, and never taken for more than 25 ms.
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
