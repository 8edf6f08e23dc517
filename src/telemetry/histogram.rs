//! Histograms of durations: counts between fixed bounds, from which quantiles are estimated.

use std::time::Duration;

/// Upper bounds in seconds, from no wait to the longest that clients accept.
pub(super) const BOUNDS: [f64; 18] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0];

/// Counts of durations between bounds, and their sum.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram {
    /// One for each bound, and one above all of them.
    counts: [u64; BOUNDS.len() + 1],
    /// Seconds.
    sum: f64,
}

impl Histogram {
    pub(super) fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.counts[BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
        self.sum += seconds;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (count, n) in self.counts.iter_mut().zip(other.counts) {
            *count += n;
        }
        self.sum += other.sum;
    }

    /// What was added since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let mut new = self.clone();
        for (count, n) in new.counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(n);
        }
        new.sum -= earlier.sum;
        new
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum
    }

    /// Bounds with their counts (not cumulative); the last bound is infinite.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        BOUNDS.into_iter().chain([f64::INFINITY]).zip(self.counts).collect()
    }

    /// The quantile `q`, seconds, interpolated linearly between bounds; `None` without durations.
    pub(super) fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = q * count as f64;
        let mut below = 0.0;
        let mut lower = 0.0;
        for (upper, n) in self.buckets() {
            let n = n as f64;
            if n > 0.0 && below + n >= rank {
                let upper = upper.min(2.0 * BOUNDS[BOUNDS.len() - 1]);
                return Some(lower + (upper - lower) * ((rank - below) / n));
            }
            below += n;
            lower = upper;
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let mut times = Histogram::default();
        assert_eq!(times.quantile(0.5), None);
        for _ in 0..90 {
            times.observe(Duration::from_millis(2));
        }
        for _ in 0..10 {
            times.observe(Duration::from_secs(4));
        }
        let (p50, p99) = (times.quantile(0.5).expect("some"), times.quantile(0.99).expect("some"));
        assert!((0.001..=0.005).contains(&p50), "{p50}");
        assert!((2.5..=5.0).contains(&p99), "{p99}");
        assert_eq!(times.since(&times).count(), 0);
        assert_eq!(times.since(&Histogram::default()), times);
    }

    #[test]
    fn a_time_on_a_bound_is_under_it_and_the_longest_are_counted() {
        let mut times = Histogram::default();
        times.observe(Duration::from_secs(1));
        times.observe(Duration::from_secs(100_000));
        let buckets = times.buckets();
        assert_eq!(buckets.iter().find(|(bound, _)| *bound == 1.0), Some(&(1.0, 1)));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1)));
    }
}
