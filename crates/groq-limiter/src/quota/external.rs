//! External usage: what other clients take from the same limit, as a share of the rate at which the limit fills.
//!
//! If headers show the dimension, their corrections already include external usage, so the estimate serves for forecasts
//! only. Otherwise it is learnt from refusals, and charged to the bucket as time passes.

use crate::{ablation::Mechanism, types::Ns};

/// The time over which corrections by headers are averaged, ns.
const MEMORY: f64 = 60e9;
/// Half-life of what was learnt from refusals, ns.
const LEARNT_HALF_LIFE: f64 = 900e9;
/// The shortest interval between refusals from which a rate is computed, ns; shorter ones count as this long.
const SHORTEST_GAP: f64 = 20e9;
/// The largest share that counts as external usage, so that some of every limit remains for our requests.
const MAX_SHARE: f64 = 0.9;

/// The estimated external usage of one dimension.
#[derive(Debug, Default)]
pub(super) struct ExternalUsage {
    /// The share of the limit's rate, from 0 to [`MAX_SHARE`].
    pub(super) share: f64,
}

impl ExternalUsage {
    /// Learns from a header that has corrected the quota by `error` ns.
    pub(super) fn corrected(&mut self, error: i64) {
        self.learn(error as f64 / MEMORY);
    }

    /// Learns from a refusal that came `since` ns after the last one, and showed `gap` ns more in use than our bucket did.
    pub(super) fn refused(&mut self, gap: i64, since: Ns) {
        self.learn(0.5 * gap.max(0) as f64 / (since as f64).max(SHORTEST_GAP));
    }

    fn learn(&mut self, more: f64) {
        if Mechanism::ExternalUsage.is_on() {
            self.share = (self.share + more).clamp(0.0, MAX_SHARE);
        }
    }

    /// Lets the estimate fade over `passed` ns. Returns the time, ns, by which external usage in that time moves the bucket;
    /// 0 if headers show it.
    pub(super) fn tick(&mut self, passed: Ns, is_visible: bool) -> Ns {
        let (taken, kept) = if is_visible {
            (0, (-(passed as f64) / MEMORY).exp())
        } else {
            ((self.share * passed as f64) as Ns, (-(passed as f64) / LEARNT_HALF_LIFE).exp2())
        };
        self.share *= kept;
        if self.share < 1e-4 {
            self.share = 0.0;
        }
        taken
    }
}
