//! External usage: what others take from the same limit, as a share of its rate.
//!
//! Where headers show the dimension their corrections contain it, and it is for forecasts only. Elsewhere refusals teach it, and it is
//! charged as time passes.

use crate::{ablation::Mechanism, types::Ns};

/// What headers show is averaged over this time, ns.
const MEMORY: f64 = 60e9;
/// What refusals taught halves in this time, ns.
const LEARNT_HALF_LIFE: f64 = 900e9;
/// Refusals closer together than this say no more of a rate, ns.
const SHORTEST_GAP: f64 = 20e9;
/// Some of every limit is ours.
const MOST: f64 = 0.9;

/// What others take of one dimension.
#[derive(Debug, Default)]
pub(super) struct ExternalUsage {
    /// The share of the limit's rate.
    pub(super) share: f64,
}

impl ExternalUsage {
    /// A header has corrected the quota by so much, ns.
    pub(super) fn corrected(&mut self, error: i64) {
        self.learn(error as f64 / MEMORY);
    }

    /// A refusal came so long after the last one, and showed so much more in use than we knew, ns.
    pub(super) fn refused(&mut self, gap: i64, since: Ns) {
        self.learn(0.5 * gap.max(0) as f64 / (since as f64).max(SHORTEST_GAP));
    }

    fn learn(&mut self, more: f64) {
        if Mechanism::ExternalUsage.is_on() {
            self.share = (self.share + more).clamp(0.0, MOST);
        }
    }

    /// So much time has passed. What others have taken meanwhile that no header will show, ns.
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
