//! Does the upstream count a bucket or windows? Each answer's `reset` is held against the bucket law.

use super::Level;
use crate::ablation::Mechanism;
use crate::{bucket::Ns, types::RemoteQuota, window::Window};

/// So many answers in a row whose `reset` contradicts the bucket law: the upstream counts windows.
const CONTRADICTIONS: u8 = 3;
/// So many in a row that agree: it counts a bucket after all.
const AGREEMENTS: u8 = 50;

impl Level {
    /// Holds an answer's `reset` against the bucket law. `Some`: from now on windows are counted, or no longer.
    pub fn judge(&mut self, position: u64, shown: &RemoteQuota, now: Ns) -> Option<bool> {
        if !Mechanism::WindowMode.is_on() {
            return None;
        }
        let used = shown.limit.saturating_sub(shown.remaining);
        let reset = shown.reset.filter(|_| used > 0)?;
        // `remaining` is whole, `reset` perhaps not: up to a unit less is used, which of a thousand requests a day are 86 s.
        let unit = self.dimension.period.as_secs_f64() / shown.limit as f64;
        let (law, stated) = (used as f64 * unit, reset.as_secs_f64());
        // A full window's `reset` is near the law, too, for a while: only exact agreement speaks for a bucket.
        let off = (stated - law).max(law - unit - stated).max(0.0);
        let counted = self.counts_windows();
        if off > (0.1 * law).max(0.3) {
            (self.contradictions, self.agreements) = (self.contradictions.saturating_add(1), 0);
        } else if off <= (0.005 * law).max(0.05) {
            (self.contradictions, self.agreements) = (0, self.agreements.saturating_add(1));
            if self.agreements >= AGREEMENTS {
                self.count_bucket();
            }
        }
        if self.contradictions >= CONTRADICTIONS {
            self.count_windows(now);
        }
        if let Some(window) = &mut self.window {
            window.observe(position, used, Ns::try_from(reset.as_nanos()).unwrap_or(Ns::MAX).min(now), now);
        }
        Some(self.counts_windows()).filter(|counts| *counts != counted)
    }

    /// Counts windows from now on. What the bucket shows as used is taken for this window's.
    pub fn count_windows(&mut self, now: Ns) {
        if let Some(bucket) = self.bucket.as_ref().filter(|_| self.window.is_none()) {
            let used = bucket.used(now) as u64;
            self.window = Some(Box::new(Window::new(bucket.limit(), bucket.period(), used, now)));
        }
    }

    /// Counts a bucket again, which was kept up all the while.
    pub fn count_bucket(&mut self) {
        self.window = None;
    }

    /// Whether windows are counted.
    pub fn counts_windows(&self) -> bool {
        self.window.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{
        level::{Level, Terms},
        types::{Dimension, RemoteQuota},
    };

    const SECOND: u64 = 1_000_000_000;

    /// One request every 19 s of a thousand a day; each answer's `reset` is what this makes of the time until it is full again.
    fn after_thirty(reset: impl Fn(f64) -> f64) -> Level {
        let terms = Terms { configured: Some(1000), ..Terms::default() };
        let (mut level, mut full_at) = (Level::new(Dimension::RPD, terms, 0.0, 0), 0.0f64);
        for n in 0..30u64 {
            let now = 19.0 * n as f64;
            full_at = full_at.max(now) + 86.4;
            let remaining = (1000.0 - (full_at - now) / 86.4) as u64;
            let reset = Some(Duration::from_secs_f64(reset(full_at - now)));
            level.judge(n + 1, &RemoteQuota { limit: 1000, remaining, reset }, 19 * n * SECOND);
        }
        level
    }

    /// `reset` to the millisecond, `remaining` whole: they differ by up to a request's time, and speak for a bucket.
    #[test]
    fn a_bucket_whose_remainder_is_whole_is_no_window() {
        assert!(!after_thirty(|exact| exact).counts_windows());
        assert!(!after_thirty(|exact| (exact / 86.4).ceil() * 86.4).counts_windows());
    }

    #[test]
    fn a_days_window_is_told_by_its_reset() {
        assert!(after_thirty(|_| 40_000.0).counts_windows());
    }
}
