//! Does the upstream count a bucket or windows? Each answer's `reset` is held against the bucket law.

use super::Level;
use crate::{
    groq::Snapshot,
    limits::{bucket::Ns, window::Window},
};

/// So many answers in a row whose `reset` contradicts the bucket law: the upstream counts windows.
const CONTRADICTIONS: u8 = 3;
/// So many in a row that agree: it counts a bucket after all.
const AGREEMENTS: u8 = 50;

impl Level {
    /// Holds an answer's `reset` against the bucket law. `true`: from now on windows are counted.
    pub fn judge(&mut self, position: u64, shown: &Snapshot, now: Ns) -> bool {
        let used = shown.limit.saturating_sub(shown.remaining);
        let Some(reset) = shown.reset.filter(|_| used > 0) else { return false };
        let law = used as f64 * self.dimension.period.as_secs_f64() / shown.limit as f64;
        // A full window's `reset` is near the law, too, for a while: only exact agreement speaks for a bucket.
        let off = (reset.as_secs_f64() - law).abs();
        if off > (0.1 * law).max(0.3) {
            (self.contradictions, self.agreements) = (self.contradictions.saturating_add(1), 0);
        } else if off <= (0.005 * law).max(0.05) {
            (self.contradictions, self.agreements) = (0, self.agreements.saturating_add(1));
            if self.agreements >= AGREEMENTS {
                self.window = None;
            }
        }
        let turns = self.contradictions >= CONTRADICTIONS && self.window.is_none();
        if turns {
            self.count_windows(now);
        }
        if let Some(window) = &mut self.window {
            window.observe(position, used, Ns::try_from(reset.as_nanos()).unwrap_or(Ns::MAX).min(now), now);
        }
        turns
    }

    /// Counts windows from now on. What the bucket shows as used is taken for this window's.
    pub fn count_windows(&mut self, now: Ns) {
        if let Some(bucket) = self.bucket.as_ref().filter(|_| self.window.is_none()) {
            let used = (bucket.limit() as f64 - bucket.level(now)).max(0.0) as u64;
            self.window = Some(Box::new(Window::new(bucket.limit(), bucket.period(), used, now)));
        }
    }

    /// Whether windows are counted.
    pub fn counts_windows(&self) -> bool {
        self.window.is_some()
    }
}
