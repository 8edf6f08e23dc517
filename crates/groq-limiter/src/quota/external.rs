//! External usage: what others take from the same limit, as a share of its rate.

use crate::{ablation::Mechanism, types::Ns};

/// What headers show of others is averaged over this time, ns.
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
    /// By headers, whose corrections contain it: for forecasts only.
    observed: f64,
    /// By refusals, where no header shows the dimension: charged as time passes.
    learnt: f64,
}

impl ExternalUsage {
    /// The share of the limit's rate.
    pub(super) fn share(&self) -> f64 {
        self.learnt.max(self.observed)
    }

    /// A header has corrected the quota by so much, ns.
    pub(super) fn corrected(&mut self, error: i64) {
        if Mechanism::ExternalUsage.is_on() {
            self.observed = (self.observed + error as f64 / MEMORY).clamp(0.0, MOST);
        }
    }

    /// A refusal came so long after the last one, and showed so much more in use than we knew, ns.
    pub(super) fn refused(&mut self, gap: i64, since: Ns) {
        if Mechanism::ExternalUsage.is_on() {
            self.learnt = (self.learnt + 0.5 * gap.max(0) as f64 / (since as f64).max(SHORTEST_GAP)).min(MOST);
        }
    }

    /// So much time has passed. What others have taken meanwhile that no header will show, ns.
    pub(super) fn tick(&mut self, passed: Ns) -> Ns {
        let taken = (self.learnt * passed as f64) as Ns;
        self.learnt = vanish(self.learnt * (-(passed as f64) / LEARNT_HALF_LIFE).exp2());
        self.observed = vanish(self.observed * (-(passed as f64) / MEMORY).exp());
        taken
    }

    /// Under another limit refusals of the old one say nothing.
    pub(super) fn reset_learnt(&mut self) {
        self.learnt = 0.0;
    }
}

fn vanish(share: f64) -> f64 {
    if share < 1e-4 { 0.0 } else { share }
}
