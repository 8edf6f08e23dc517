//! What have this lane's answers taught? How far estimates are off, how long completions are, how soon heads come.

use std::time::Duration;

use super::bucket::Ns;

/// Ratios from 1/4 to 4 in steps of 4.4 %, and both ends.
const BINS: usize = 64;
/// Old samples fade: half after this many new ones.
const HALF_LIFE: f32 = 500.0;

/// Quantiles of actual ÷ estimated, over the newest thousand or so.
#[derive(Clone, Debug)]
pub struct Ratio {
    bins: [f32; BINS],
    total: f32,
    /// Weight of the next sample; grows instead of all bins shrinking.
    weight: f32,
    /// The quantiles that every request asks for.
    low: f32,
    high: f32,
}

impl Default for Ratio {
    /// Before the first sample: estimates are right, within a tenth.
    fn default() -> Self {
        let mut ratio = Self { bins: [0.0; BINS], total: 0.0, weight: 1.0, low: 1.0, high: 1.0 };
        for (of, count) in [(0.9, 2.0), (1.0, 6.0), (1.1, 2.0)] {
            ratio.bins[bin(of)] += count;
            ratio.total += count;
        }
        ratio.read();
        ratio
    }
}

impl Ratio {
    /// One more answer: the estimate, and what it really was.
    pub fn learn(&mut self, estimated: u64, actual: u64) {
        if estimated == 0 || actual == 0 {
            return;
        }
        self.bins[bin(actual as f32 / estimated as f32)] += self.weight;
        self.total += self.weight;
        self.weight *= 1.0 + std::f32::consts::LN_2 / HALF_LIFE;
        if self.weight > 1e6 {
            for bin in &mut self.bins {
                *bin /= self.weight;
            }
            self.total /= self.weight;
            self.weight = 1.0;
        }
        self.read();
    }

    /// A hundredth of answers lies below.
    pub fn low(&self) -> f32 {
        self.low
    }

    /// A hundredth of answers lies above.
    pub fn high(&self) -> f32 {
        self.high
    }

    fn read(&mut self) {
        (self.low, self.high) = (self.quantile(0.01), self.quantile(0.99));
    }

    /// The ratio under which this share of answers lies; the bin's upper end.
    fn quantile(&self, share: f32) -> f32 {
        let (mut left, mut last) = (self.total * share, 0);
        for (bin, &count) in self.bins.iter().enumerate() {
            if count > 0.0 {
                last = bin;
                left -= count;
                if left <= 0.0 {
                    break;
                }
            }
        }
        2f32.powf((last as f32 + 1.0) / 16.0 - 2.0)
    }
}

fn bin(ratio: f32) -> usize {
    (((ratio.log2() + 2.0) * 16.0).max(0.0) as usize).min(BINS - 1)
}

/// A mean and a mean deviation that follow the newest few dozen samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usual {
    mean: f32,
    deviation: f32,
    samples: u32,
}

impl Usual {
    /// One more sample.
    pub fn learn(&mut self, sample: f32) {
        self.samples = self.samples.saturating_add(1);
        let gain = (1.0 / self.samples as f32).max(0.05);
        let off = sample - self.mean;
        self.mean += gain * off;
        if self.samples > 1 {
            self.deviation += gain * (off.abs() - self.deviation);
        }
    }

    /// The mean, once there is one.
    pub fn mean(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.mean)
    }

    /// Most samples are below.
    pub fn high(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.mean + 2.0 * self.deviation)
    }
}

/// Everything that a lane learns beside its levels.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// Prompt tokens, actual ÷ estimated.
    pub prompt: Ratio,
    /// Completion tokens of a request.
    pub completion: Usual,
    /// Seconds from sending to an answer's head.
    head: Usual,
    soonest_head: Option<Ns>,
    /// What Groq counts for a request without a ceiling, as its refusals have said.
    pub assumed: Option<u32>,
}

impl Calibration {
    /// An answer's head came after so long.
    pub fn head(&mut self, after: Ns) {
        self.head.learn((after as f64 / 1e9) as f32);
        self.soonest_head = Some(self.soonest_head.map_or(after, |soonest| soonest.min(after)));
    }

    /// Usual time from sending to an answer's head.
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
    fn quantiles_follow_the_samples() {
        let mut ratio = Ratio::default();
        assert!((1.0..1.2).contains(&ratio.quantile(0.99)));
        for n in 0..2000u64 {
            ratio.learn(1000, 1200 + n % 100);
        }
        assert!((1.25..1.4).contains(&ratio.quantile(0.99)), "{}", ratio.quantile(0.99));
        assert!((1.15..1.4).contains(&ratio.quantile(0.01)), "{}", ratio.quantile(0.01));
        for _ in 0..100_000 {
            ratio.learn(1000, 700);
        }
        assert!((0.65..0.75).contains(&ratio.quantile(0.99)), "{}", ratio.quantile(0.99));
    }

    #[test]
    fn nonsense_stays_within_the_bins() {
        let mut ratio = Ratio::default();
        ratio.learn(1, u64::MAX);
        ratio.learn(u64::MAX, 1);
        ratio.learn(0, 5);
        assert!(ratio.quantile(1.0) <= 4.01);
    }
}
