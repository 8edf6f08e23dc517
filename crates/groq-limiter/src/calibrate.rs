//! What have this lane's answers taught? How far estimates are off, how long completions are, how soon heads come.

use std::time::Duration;

use super::{assumed::AssumedOutput, bucket::Ns};

/// Ratios from 1/4 to 4 in steps of 4.4 %, and both ends.
const BINS: usize = 64;
/// Old samples fade: half after this many new ones.
const HALF_LIFE: f32 = 500.0;

/// Quantiles of actual ÷ estimated, over the newest thousand or so.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Ratio {
    total: f32,
    /// Weight of the next sample; grows instead of all bins shrinking.
    weight: f32,
    /// The quantiles that every request asks for.
    low: Quantile,
    high: Quantile,
    bins: [f32; BINS],
}

impl Default for Ratio {
    /// Before the first sample: estimates are right, within a tenth.
    fn default() -> Self {
        let mut ratio = Self { bins: [0.0; BINS], total: 0.0, weight: 1.0, low: Quantile::of(0.01), high: Quantile::of(0.99) };
        for (of, count) in [(0.9, 2.0), (1.0, 6.0), (1.1, 2.0)] {
            ratio.add(of, count);
        }
        ratio
    }
}

impl Ratio {
    /// One more answer: the estimate, and what it really was.
    pub fn learn(&mut self, estimated: u64, actual: u64) {
        if estimated == 0 || actual == 0 {
            return;
        }
        self.add(actual as f32 / estimated as f32, self.weight);
        self.weight *= 1.0 + std::f32::consts::LN_2 / HALF_LIFE;
        if self.weight > 1e6 {
            for bin in &mut self.bins {
                *bin /= self.weight;
            }
            self.total = self.bins.iter().sum();
            self.weight = 1.0;
            for quantile in [&mut self.low, &mut self.high] {
                // From the start: sums that were followed for so long have become inexact.
                *quantile = Quantile::of(quantile.share);
                quantile.follow(&self.bins, self.total);
            }
        }
    }

    /// A hundredth of answers lies below.
    pub fn low(&self) -> f32 {
        self.low.end
    }

    /// A hundredth of answers lies above.
    pub fn high(&self) -> f32 {
        self.high.end
    }

    fn add(&mut self, ratio: f32, weight: f32) {
        let at = bin(ratio);
        self.bins[usize::from(at)] += weight;
        self.total += weight;
        for quantile in [&mut self.low, &mut self.high] {
            if at < quantile.bin {
                quantile.below += weight;
            }
            quantile.follow(&self.bins, self.total);
        }
    }
}

/// The bin in which a quantile lies. It is followed from sample to sample: most of a lane that rests has left the caches,
/// and this looks at one bin.
#[derive(Clone, Debug)]
struct Quantile {
    share: f32,
    bin: u8,
    /// What all bins before it hold.
    below: f32,
    /// The bin's upper end.
    end: f32,
}

impl Quantile {
    fn of(share: f32) -> Self {
        Self { share, bin: 0, below: 0.0, end: upper_end(0) }
    }

    fn follow(&mut self, bins: &[f32; BINS], total: f32) {
        let (wanted, before) = (total * self.share, self.bin);
        while self.bin > 0 && self.below >= wanted {
            self.bin -= 1;
            self.below -= bins[usize::from(self.bin)];
        }
        while usize::from(self.bin) + 1 < BINS && self.below + bins[usize::from(self.bin)] < wanted {
            self.below += bins[usize::from(self.bin)];
            self.bin += 1;
        }
        if self.bin != before {
            self.end = upper_end(self.bin);
        }
    }
}

fn upper_end(bin: u8) -> f32 {
    2f32.powf((f32::from(bin) + 1.0) / 16.0 - 2.0)
}

fn bin(ratio: f32) -> u8 {
    ((ratio.log2() + 2.0) * 16.0).clamp(0.0, BINS as f32 - 1.0) as u8
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

/// Everything that a lane learns beside its levels. One bin of many is looked at: they stand last.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Calibration {
    /// Completion tokens of a request.
    pub completion: Usual,
    /// Seconds from sending to an answer's head.
    head: Usual,
    soonest_head: Option<Ns>,
    /// What Groq reserves for a request without a ceiling.
    pub assumed: AssumedOutput,
    /// Prompt tokens, actual ÷ estimated.
    pub prompt: Ratio,
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_follow_the_samples() {
        let mut ratio = Ratio::default();
        assert!((1.0..1.2).contains(&ratio.high()));
        for n in 0..2000u64 {
            ratio.learn(1000, 1200 + n % 100);
        }
        assert!((1.25..1.4).contains(&ratio.high()), "{}", ratio.high());
        assert!((1.15..1.4).contains(&ratio.low()), "{}", ratio.low());
        for _ in 0..100_000 {
            ratio.learn(1000, 700);
        }
        assert!((0.65..0.75).contains(&ratio.high()), "{}", ratio.high());
        assert!((0.65..0.75).contains(&ratio.low()), "{}", ratio.low());
    }

    #[test]
    fn nonsense_stays_within_the_bins() {
        let mut ratio = Ratio::default();
        for n in 0..2000u64 {
            ratio.learn(1, u64::MAX - n);
        }
        assert!((3.9..=4.01).contains(&ratio.high()), "{}", ratio.high());
        for n in 0..200_000u64 {
            ratio.learn(u64::MAX - n, 1);
        }
        assert!((0.2..0.3).contains(&ratio.low()) && ratio.low() == ratio.high(), "{} {}", ratio.low(), ratio.high());
        ratio.learn(0, 5);
        assert!(ratio.high() < 0.3);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        /// Followed from sample to sample, beside all bins added up anew.
        #[test]
        fn a_followed_quantile_is_the_one_that_is_added_up(
            runs in prop::collection::vec((1u64..4000, 1u64..400, 1usize..4000), 1..8)
        ) {
            let mut ratio = Ratio::default();
            let mut n = 0;
            for (middle, spread, count) in runs {
                for _ in 0..count {
                    n += 1;
                    ratio.learn(1000, middle + n * 7919 % spread);
                }
                for (share, told) in [(0.01, ratio.low()), (0.99, ratio.high())] {
                    let reach = |within: f64| {
                        let (mut sum, wanted) = (0.0, f64::from(ratio.total) * (share + within));
                        ratio.bins.iter().position(|&bin| { sum += f64::from(bin); sum >= wanted }).unwrap_or(BINS - 1) as u8
                    };
                    // A ten-thousandth is what adding up may be off by.
                    let (least, most) = (upper_end(reach(-1e-4)), upper_end(reach(1e-4)));
                    prop_assert!((least..=most).contains(&told), "{told} is not within {least} and {most}");
                }
            }
        }
    }
}
