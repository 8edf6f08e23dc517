//! The usage of one limit: Groq's continuously draining bucket, or a fixed or sliding window for comparison.
//!
//! The arithmetic is exact: usage is counted in units × nanoseconds of the window, so that one nanosecond drains exactly
//! `limit`. Only displayed values are rounded.

use std::collections::VecDeque;

/// How usage decays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Algorithm {
    /// Usage drains continuously at limit ÷ window, as Groq's does.
    #[default]
    Bucket,
    /// All usage expires at the end of a window.
    Fixed,
    /// The usage of each request expires one window after its admission.
    Sliding,
}

/// The state of one dimension. Times are in nanoseconds since the simulator's start.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) limit: u64,
    window: u64,
    state: State,
    /// Units charged since the start, minus refunds.
    pub(crate) charged: i128,
}

#[derive(Debug)]
enum State {
    Bucket { scaled: i128, at: u64 },
    Fixed { used: i128, window: u64 },
    Sliding(VecDeque<Entry>),
}

#[derive(Debug)]
struct Entry {
    id: u64,
    at: u64,
    units: u64,
}

impl Limit {
    /// Creates a limit, of which the share `used` is already used; above 1 for debt.
    pub(crate) fn new(algorithm: Algorithm, limit: u64, window: u64, used: f64, now: u64) -> Self {
        let limit = limit.max(1);
        let units = (used * limit as f64) as u64;
        let state = match algorithm {
            Algorithm::Bucket => State::Bucket { scaled: i128::from(units) * i128::from(window), at: now },
            Algorithm::Fixed => State::Fixed { used: units.into(), window: now / window },
            Algorithm::Sliding => State::Sliding(VecDeque::from([Entry { id: u64::MAX, at: now, units }])),
        };
        Self { limit, window, state, charged: 0 }
    }

    /// Removes the usage that has expired by `now`.
    fn drain(&mut self, now: u64) {
        let (limit, window_ns) = (i128::from(self.limit), self.window);
        match &mut self.state {
            State::Bucket { scaled, at } => {
                *scaled = (*scaled - i128::from(now.saturating_sub(*at)) * limit).max(0);
                *at = now.max(*at);
            }
            State::Fixed { used, window } if now / window_ns > *window => (*used, *window) = (0, now / window_ns),
            State::Fixed { .. } => {}
            State::Sliding(entries) => entries.retain(|entry| entry.at + window_ns > now),
        }
    }

    /// `None` if `units` fit now, else the nanoseconds until they do, rounded down; `u64::MAX` if they exceed the limit.
    pub(crate) fn wait(&mut self, now: u64, units: u64) -> Option<u64> {
        self.drain(now);
        let (limit, window_ns, requested) = (i128::from(self.limit), i128::from(self.window), i128::from(units));
        let over = match &self.state {
            State::Bucket { scaled, .. } => *scaled + (requested - limit) * window_ns,
            State::Fixed { used, .. } => used + requested - limit,
            State::Sliding(entries) => entries.iter().map(|entry| i128::from(entry.units)).sum::<i128>() + requested - limit,
        };
        if over <= 0 {
            return None;
        }
        Some(match &self.state {
            State::Bucket { .. } => u64::try_from(over / limit).unwrap_or(u64::MAX),
            _ if requested > limit => u64::MAX,
            State::Fixed { window, .. } => (window + 1) * self.window - now,
            State::Sliding(entries) => {
                let mut left = over;
                let enough = |entry: &&Entry| {
                    left -= i128::from(entry.units);
                    left <= 0
                };
                entries.iter().find(enough).map_or(u64::MAX, |entry| entry.at + self.window - now)
            }
        })
    }

    /// Adds `units` to the usage, whether they fit or not.
    pub(crate) fn take(&mut self, now: u64, id: u64, units: u64) {
        self.drain(now);
        self.charged += i128::from(units);
        match &mut self.state {
            State::Bucket { scaled, .. } => *scaled += i128::from(units) * i128::from(self.window),
            State::Fixed { used, .. } => *used += i128::from(units),
            State::Sliding(entries) => entries.push_back(Entry { id, at: now, units }),
        }
    }

    /// Replaces the `taken` units that request `id` added at `since` by the units that it `used`.
    pub(crate) fn correct(&mut self, now: u64, id: u64, since: u64, taken: u64, used: u64) {
        self.drain(now);
        let more = i128::from(used) - i128::from(taken);
        self.charged += more;
        match &mut self.state {
            State::Bucket { scaled, .. } => *scaled = (*scaled + more * i128::from(self.window)).max(0),
            State::Fixed { used, window } if more > 0 || since / self.window == *window => *used = (*used + more).max(0),
            State::Fixed { .. } => {}
            State::Sliding(entries) => {
                if let Some(entry) = entries.iter_mut().find(|entry| entry.id == id) {
                    entry.units = used;
                }
            }
        }
    }

    /// Used units, rounded down and rounded up.
    pub(crate) fn used(&mut self, now: u64) -> (u64, u64) {
        self.drain(now);
        let whole = |units: i128| u64::try_from(units).unwrap_or(u64::MAX);
        match &self.state {
            State::Bucket { scaled, .. } => {
                let window = i128::from(self.window);
                (whole(scaled / window), whole((scaled + window - 1) / window))
            }
            State::Fixed { used, .. } => (whole(*used), whole(*used)),
            State::Sliding(entries) => {
                let used = entries.iter().map(|entry| entry.units).sum();
                (used, used)
            }
        }
    }

    /// Remaining units, rounded down.
    pub(crate) fn remaining(&mut self, now: u64) -> u64 {
        self.limit.saturating_sub(self.used(now).1)
    }

    /// Nanoseconds until the usage is 0: computed from [`Self::remaining`] as Groq does, or `exact`.
    pub(crate) fn reset(&mut self, now: u64, exact: bool) -> u64 {
        self.drain(now);
        match &self.state {
            State::Bucket { scaled, .. } if exact => u64::try_from(scaled / i128::from(self.limit)).unwrap_or(u64::MAX),
            State::Bucket { .. } => {
                let shown = u128::from(self.limit - self.remaining(now));
                u64::try_from(shown * u128::from(self.window) / u128::from(self.limit)).unwrap_or(u64::MAX)
            }
            State::Fixed { used: 0, .. } => 0,
            State::Fixed { window, .. } => (window + 1) * self.window - now,
            State::Sliding(entries) => entries.back().map_or(0, |entry| entry.at + self.window - now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;

    #[test]
    fn a_bucket_admits_a_burst_then_the_refill_rate() {
        let mut limit = Limit::new(Algorithm::Bucket, 30, MINUTE, 0.0, 0);
        for id in 0..30 {
            assert_eq!(limit.wait(0, 1), None);
            limit.take(0, id, 1);
        }
        assert_eq!(limit.wait(0, 1), Some(2 * SECOND));
        assert_eq!(limit.wait(2 * SECOND - 1, 1), Some(1));
        assert_eq!(limit.wait(2 * SECOND, 1), None);
    }

    #[test]
    fn a_daily_limit_drains_continuously() {
        let mut limit = Limit::new(Algorithm::Bucket, 200_000, 1440 * MINUTE, 1.0, 0);
        assert_eq!(limit.remaining(MINUTE), 138);
        assert_eq!(limit.wait(MINUTE, 139), Some(48_000_000));
    }

    #[test]
    fn debt_is_kept_and_refunds_stop_at_zero() {
        let mut limit = Limit::new(Algorithm::Bucket, 100, MINUTE, 0.0, 0);
        limit.take(0, 1, 250);
        assert_eq!((limit.used(0), limit.remaining(0)), ((250, 250), 0));
        limit.correct(0, 1, 0, 250, 10);
        assert_eq!(limit.used(0), (10, 10));
        limit.take(MINUTE, 2, 50);
        limit.correct(3 * MINUTE, 2, MINUTE, 50, 0);
        assert_eq!((limit.used(3 * MINUTE), limit.charged), ((0, 0), 10));
    }

    #[test]
    fn large_limits_neither_overflow_nor_drift() {
        let mut limit = Limit::new(Algorithm::Bucket, u32::MAX.into(), 1440 * MINUTE, 0.0, 0);
        limit.take(0, 1, 100 * u64::from(u32::MAX));
        assert_eq!(limit.wait(0, 1), Some(99 * 1440 * MINUTE + 20_116));
        assert_eq!(limit.used(100 * 1440 * MINUTE), (0, 0));
    }

    #[test]
    fn usage_of_a_fixed_window_expires_at_its_end() {
        let mut limit = Limit::new(Algorithm::Fixed, 10, MINUTE, 0.0, 0);
        limit.take(20 * SECOND, 1, 10);
        assert_eq!(limit.wait(30 * SECOND, 1), Some(30 * SECOND));
        assert_eq!(limit.reset(30 * SECOND, false), 30 * SECOND);
        assert_eq!(limit.wait(MINUTE, 10), None);
        limit.correct(MINUTE, 1, 20 * SECOND, 10, 0);
        assert_eq!(limit.used(MINUTE), (0, 0));
        assert_eq!(limit.wait(MINUTE, 11), Some(u64::MAX));
    }

    #[test]
    fn usage_of_a_sliding_window_expires_by_request() {
        let mut limit = Limit::new(Algorithm::Sliding, 10, MINUTE, 0.0, 0);
        limit.take(0, 1, 4);
        limit.take(20 * SECOND, 2, 6);
        assert_eq!(limit.wait(30 * SECOND, 4), Some(30 * SECOND));
        assert_eq!(limit.wait(30 * SECOND, 5), Some(50 * SECOND));
        limit.correct(30 * SECOND, 2, 20 * SECOND, 6, 1);
        assert_eq!(limit.wait(30 * SECOND, 5), None);
        assert_eq!(limit.reset(30 * SECOND, false), 50 * SECOND);
    }
}
