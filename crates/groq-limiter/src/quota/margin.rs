//! The safety margin: what is never spent of a limit, because what the upstream has seen may differ from what we know.

use std::time::Duration;

use crate::{
    ablation::Mechanism,
    types::{Dimension, Ns, Unit},
};

/// Every refusal but the first adds so much of the margin to it. With a third eight replicas without Redis are still refused 5.2 of
/// 1000 with one seed; with a half the light app of rpm-foreign-M waits 26 s at p99 for 22.
const GROWTH: f64 = 0.4;
/// What refusals have added halves in this time, ns.
const GROWTH_HALF_LIFE: f64 = 1800e9;
/// So much of the margin is given back where nobody else uses the limits. Down to 1 % of the limit, large requests on small limits
/// were refused: 0.5 of 1000 on S.
const RELEASED: f64 = 0.6;
/// What comes back in so long is never given back, and never less than one unit. A request that reaches the upstream later than
/// those after it starts the upstream's bucket later than ours: by a retransmission (1 s of a first packet) or a starved CPU.
const LATENESS: Duration = Duration::from_secs(2);
/// Weight of the newest request in the typical cost.
const TYPICAL_GAIN: f64 = 0.02;

/// The margin of one dimension: some typical requests.
#[derive(Debug)]
pub(super) struct SafetyMargin {
    /// What a request usually takes.
    pub(super) typical: f64,
    /// The part of it that is kept: 1 is all of it, less while headers show nobody else, more after refusals; 0 is none for good.
    kept: f64,
}

impl Default for SafetyMargin {
    fn default() -> Self {
        Self { typical: 0.0, kept: 1.0 }
    }
}

impl SafetyMargin {
    /// No margin, whatever happens.
    pub(super) fn none() -> Self {
        Self { typical: 0.0, kept: 0.0 }
    }

    /// Whether nothing is ever kept.
    pub(super) fn is_none(&self) -> bool {
        self.kept == 0.0
    }

    /// What a request of `units` must leave untouched of `limit`. A legal request always fits a full bucket.
    pub(super) fn units(&self, dimension: &Dimension, limit: u64, units: u64) -> u64 {
        if self.kept == 0.0 || !Mechanism::SafetyMargin.is_on() {
            return 0;
        }
        let whole = limit as f64;
        let a_day = dimension.period >= Duration::from_secs(86_400);
        let margin = match (dimension.unit, a_day) {
            // A day refills this in seven minutes, and a twentieth, or a large request's tokens, in more than an hour.
            (Unit::Requests, true) => (0.005 * whole).max(2.0),
            (Unit::Requests, false) => (0.05 * whole).max(2.0),
            // The upstream takes an answer when it ends, which is before this limiter knows of it.
            (Unit::OutputTokens, _) => 0.0,
            (_, true) => (0.005 * whole).min(units as f64),
            (_, false) => (6.0 * self.typical).clamp(0.05 * whole, 0.30 * whole),
        };
        // In whole units: the margin is cut to whole ones, and a limit of 30 requests a minute has no more than two.
        let lateness = (whole * LATENESS.as_secs_f64() / dimension.period.as_secs_f64()).ceil();
        let least = if a_day { margin } else { lateness.min(margin) };
        ((self.kept * margin).max(least).min(0.40 * whole) as u64).min(limit.saturating_sub(units))
    }

    /// From now on this part is given back, 0 to 1.
    pub(super) fn release(&mut self, part: f64) {
        let kept = if part > 0.0 { 1.0 - RELEASED * part } else { self.kept.max(1.0) };
        self.kept = if self.kept > 0.0 { kept } else { 0.0 };
    }

    /// A request has taken so much.
    pub(super) fn learn(&mut self, units: u64) {
        self.typical += if self.typical == 0.0 { 1.0 } else { TYPICAL_GAIN } * (units as f64 - self.typical);
    }

    /// The upstream has refused again.
    pub(super) fn grow(&mut self) {
        if Mechanism::MarginGrowth.is_on() && self.kept > 0.0 {
            self.kept += GROWTH;
        }
    }

    /// So much time has passed.
    pub(super) fn fade(&mut self, passed: Ns) {
        let growth = (self.kept - 1.0).max(0.0);
        self.kept -= growth * (1.0 - (-(passed as f64) / GROWTH_HALF_LIFE).exp2());
    }
}
