//! How full is one limit? Groq's law, a continuously draining bucket, and two laws that it might have had instead.
//!
//! Exact: a bucket's level is counted in units × nanoseconds of its window, so that draining for one nanosecond takes
//! off exactly `limit` and nothing is ever rounded but what is printed.

use std::collections::VecDeque;

/// How a limit forgets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Algorithm {
    /// Drains all the time, at limit ÷ window: Groq's.
    #[default]
    Bucket,
    /// Forgets everything at once, whenever a window ends.
    Fixed,
    /// Forgets each request a window after it came.
    Sliding,
}

/// One dimension's state. Times are nanoseconds since the simulator's start.
#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) limit: u64,
    window: u64,
    law: Law,
    /// Units charged in all, refunds taken off.
    pub(crate) spent: i128,
}

#[derive(Debug)]
enum Law {
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

impl Level {
    /// A level of which `used` (a share of the limit, over 1 for debt) is taken already.
    pub(crate) fn new(algorithm: Algorithm, limit: u64, window: u64, used: f64, now: u64) -> Self {
        let limit = limit.max(1);
        let units = (used * limit as f64) as u64;
        let law = match algorithm {
            Algorithm::Bucket => Law::Bucket { scaled: i128::from(units) * i128::from(window), at: now },
            Algorithm::Fixed => Law::Fixed { used: units.into(), window: now / window },
            Algorithm::Sliding => Law::Sliding(VecDeque::from([Entry { id: u64::MAX, at: now, units }])),
        };
        Self { limit, window, law, spent: 0 }
    }

    /// Forgets what has passed by `now`.
    fn drain(&mut self, now: u64) {
        let (limit, span) = (i128::from(self.limit), self.window);
        match &mut self.law {
            Law::Bucket { scaled, at } => {
                *scaled = (*scaled - i128::from(now.saturating_sub(*at)) * limit).max(0);
                *at = now.max(*at);
            }
            Law::Fixed { used, window } if now / span > *window => (*used, *window) = (0, now / span),
            Law::Fixed { .. } => {}
            Law::Sliding(entries) => entries.retain(|entry| entry.at + span > now),
        }
    }

    /// `None`: `units` fit. Else the nanoseconds until they do, rounded down; `u64::MAX` if they never will.
    pub(crate) fn wait(&mut self, now: u64, units: u64) -> Option<u64> {
        self.drain(now);
        let (limit, span, asked) = (i128::from(self.limit), i128::from(self.window), i128::from(units));
        let over = match &self.law {
            Law::Bucket { scaled, .. } => *scaled + (asked - limit) * span,
            Law::Fixed { used, .. } => used + asked - limit,
            Law::Sliding(entries) => entries.iter().map(|entry| i128::from(entry.units)).sum::<i128>() + asked - limit,
        };
        if over <= 0 {
            return None;
        }
        Some(match &self.law {
            Law::Bucket { .. } => u64::try_from(over / limit).unwrap_or(u64::MAX),
            _ if asked > limit => u64::MAX,
            Law::Fixed { window, .. } => (window + 1) * self.window - now,
            Law::Sliding(entries) => {
                let mut left = over;
                let enough = |entry: &&Entry| {
                    left -= i128::from(entry.units);
                    left <= 0
                };
                entries.iter().find(enough).map_or(u64::MAX, |entry| entry.at + self.window - now)
            }
        })
    }

    /// Takes `units`, fitting or not.
    pub(crate) fn take(&mut self, now: u64, id: u64, units: u64) {
        self.drain(now);
        self.spent += i128::from(units);
        match &mut self.law {
            Law::Bucket { scaled, .. } => *scaled += i128::from(units) * i128::from(self.window),
            Law::Fixed { used, .. } => *used += i128::from(units),
            Law::Sliding(entries) => entries.push_back(Entry { id, at: now, units }),
        }
    }

    /// Corrects what request `id` took at `since`, now that it is known.
    pub(crate) fn correct(&mut self, now: u64, id: u64, since: u64, taken: u64, used: u64) {
        self.drain(now);
        let more = i128::from(used) - i128::from(taken);
        self.spent += more;
        match &mut self.law {
            Law::Bucket { scaled, .. } => *scaled = (*scaled + more * i128::from(self.window)).max(0),
            Law::Fixed { used, window } if more > 0 || since / self.window == *window => *used = (*used + more).max(0),
            Law::Fixed { .. } => {}
            Law::Sliding(entries) => {
                if let Some(entry) = entries.iter_mut().find(|entry| entry.id == id) {
                    entry.units = used;
                }
            }
        }
    }

    /// Units in use, rounded down and up.
    pub(crate) fn used(&mut self, now: u64) -> (u64, u64) {
        self.drain(now);
        let whole = |units: i128| u64::try_from(units).unwrap_or(u64::MAX);
        match &self.law {
            Law::Bucket { scaled, .. } => {
                let window = i128::from(self.window);
                (whole(scaled / window), whole((scaled + window - 1) / window))
            }
            Law::Fixed { used, .. } => (whole(*used), whole(*used)),
            Law::Sliding(entries) => {
                let used = entries.iter().map(|entry| entry.units).sum();
                (used, used)
            }
        }
    }

    /// Whole units that are free.
    pub(crate) fn remaining(&mut self, now: u64) -> u64 {
        self.limit.saturating_sub(self.used(now).1)
    }

    /// Nanoseconds until nothing is used: by the whole units that headers show (Groq), or exactly.
    pub(crate) fn reset(&mut self, now: u64, exact: bool) -> u64 {
        self.drain(now);
        match &self.law {
            Law::Bucket { scaled, .. } if exact => u64::try_from(scaled / i128::from(self.limit)).unwrap_or(u64::MAX),
            Law::Bucket { .. } => {
                let shown = u128::from(self.limit - self.remaining(now));
                u64::try_from(shown * u128::from(self.window) / u128::from(self.limit)).unwrap_or(u64::MAX)
            }
            Law::Fixed { used: 0, .. } => 0,
            Law::Fixed { window, .. } => (window + 1) * self.window - now,
            Law::Sliding(entries) => entries.back().map_or(0, |entry| entry.at + self.window - now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;

    #[test]
    fn thirty_at_once_then_one_every_two_seconds() {
        let mut level = Level::new(Algorithm::Bucket, 30, MINUTE, 0.0, 0);
        for id in 0..30 {
            assert_eq!(level.wait(0, 1), None);
            level.take(0, id, 1);
        }
        assert_eq!(level.wait(0, 1), Some(2 * SECOND));
        assert_eq!(level.wait(2 * SECOND - 1, 1), Some(1));
        assert_eq!(level.wait(2 * SECOND, 1), None);
    }

    #[test]
    fn a_day_gives_back_139_tokens_a_minute() {
        let mut level = Level::new(Algorithm::Bucket, 200_000, 1440 * MINUTE, 1.0, 0);
        assert_eq!(level.remaining(MINUTE), 138);
        assert_eq!(level.wait(MINUTE, 139), Some(48_000_000));
    }

    #[test]
    fn debt_is_kept_and_refunds_never_go_below_nothing() {
        let mut level = Level::new(Algorithm::Bucket, 100, MINUTE, 0.0, 0);
        level.take(0, 1, 250);
        assert_eq!((level.used(0), level.remaining(0)), ((250, 250), 0));
        level.correct(0, 1, 0, 250, 10);
        assert_eq!(level.used(0), (10, 10));
        level.take(MINUTE, 2, 50);
        level.correct(3 * MINUTE, 2, MINUTE, 50, 0);
        assert_eq!((level.used(3 * MINUTE), level.spent), ((0, 0), 10));
    }

    #[test]
    fn four_billion_neither_overflow_nor_drift() {
        let mut level = Level::new(Algorithm::Bucket, u32::MAX.into(), 1440 * MINUTE, 0.0, 0);
        level.take(0, 1, 100 * u64::from(u32::MAX));
        assert_eq!(level.wait(0, 1), Some(99 * 1440 * MINUTE + 20_116));
        assert_eq!(level.used(100 * 1440 * MINUTE), (0, 0));
    }

    #[test]
    fn a_fixed_window_forgets_at_its_end_and_not_before() {
        let mut level = Level::new(Algorithm::Fixed, 10, MINUTE, 0.0, 0);
        level.take(20 * SECOND, 1, 10);
        assert_eq!(level.wait(30 * SECOND, 1), Some(30 * SECOND));
        assert_eq!(level.reset(30 * SECOND, false), 30 * SECOND);
        assert_eq!(level.wait(MINUTE, 10), None);
        level.correct(MINUTE, 1, 20 * SECOND, 10, 0);
        assert_eq!(level.used(MINUTE), (0, 0));
        assert_eq!(level.wait(MINUTE, 11), Some(u64::MAX));
    }

    #[test]
    fn a_sliding_window_forgets_each_request_by_itself() {
        let mut level = Level::new(Algorithm::Sliding, 10, MINUTE, 0.0, 0);
        level.take(0, 1, 4);
        level.take(20 * SECOND, 2, 6);
        assert_eq!(level.wait(30 * SECOND, 4), Some(30 * SECOND));
        assert_eq!(level.wait(30 * SECOND, 5), Some(50 * SECOND));
        level.correct(30 * SECOND, 2, 20 * SECOND, 6, 1);
        assert_eq!(level.wait(30 * SECOND, 5), None);
        assert_eq!(level.reset(30 * SECOND, false), 50 * SECOND);
    }
}
