//! The safety margin: what is never spent of a limit, because what the upstream has seen may differ from what we know.

use std::time::Duration;

use crate::{
    ablation::Mechanism,
    types::{Dimension, Ns, Unit},
};

/// The growth after refusals halves in this time, ns.
const GROWTH_HALF_LIFE: f64 = 1800e9;
/// So much of the margin is given back where nobody else uses the limits. Down to 1 % of the limit, large requests on small limits
/// were refused: 0.5 of 1000 on S.
const RELEASED: f64 = 0.6;
/// What comes back in so long is never given back, and never less than one unit. A request that reaches the upstream later than
/// those after it starts the upstream's bucket later than ours: by a retransmission (1 s of a first packet) or a starved CPU.
const LATENESS: Duration = Duration::from_secs(2);
/// Weight of the newest request in the typical cost.
const TYPICAL_GAIN: f64 = 0.02;

/// The margin of one dimension: some typical requests, and one more after every refusal but the first.
#[derive(Debug, Default)]
pub(super) struct SafetyMargin {
    /// Nothing is kept.
    none: bool,
    typical: f64,
    growth: f64,
    /// The part that is given back, 0 to 1.
    released: f64,
}

impl SafetyMargin {
    /// No margin, whatever happens.
    pub(super) fn none() -> Self {
        Self { none: true, ..Self::default() }
    }

    /// Whether nothing is ever kept.
    pub(super) fn is_none(&self) -> bool {
        self.none
    }

    /// What a request of `units` must leave untouched of `limit`. A legal request always fits a full bucket.
    pub(super) fn units(&self, dimension: &Dimension, limit: u64, units: u64) -> u64 {
        if self.none || !Mechanism::SafetyMargin.is_on() {
            return 0;
        }
        let whole = limit as f64;
        let a_day = dimension.period >= Duration::from_secs(86_400);
        let margin = match (dimension.unit, a_day) {
            // Seven minutes of a day: who finds it used up would wait for a twentieth for more than an hour.
            (Unit::Requests, true) => (0.005 * whole).max(2.0),
            (Unit::Requests, false) => (0.05 * whole).max(2.0),
            // The upstream takes an answer when it ends, which is before this limiter knows of it.
            (Unit::OutputTokens, _) => 0.0,
            (_, true) => units as f64,
            (_, false) => (6.0 * self.typical).clamp(0.05 * whole, 0.30 * whole),
        };
        let margin = if a_day { margin } else { self.without_released(margin, dimension, whole) };
        ((margin + self.growth).min(0.40 * whole) as u64).min(limit.saturating_sub(units))
    }

    fn without_released(&self, margin: f64, dimension: &Dimension, limit: f64) -> f64 {
        // In whole units: the margin is cut to whole ones, and a limit of 30 requests a minute has no more than two.
        let least = (limit * LATENESS.as_secs_f64() / dimension.period.as_secs_f64()).ceil();
        (margin * (1.0 - RELEASED * self.released)).max(least.min(margin))
    }

    /// From now on this part is given back, 0 to 1.
    pub(super) fn release(&mut self, part: f64) {
        self.released = part;
    }

    /// What a request usually takes.
    pub(super) fn typical(&self) -> u64 {
        self.typical as u64
    }

    /// A request has taken so much.
    pub(super) fn learn(&mut self, units: u64) {
        self.typical += if self.typical == 0.0 { 1.0 } else { TYPICAL_GAIN } * (units as f64 - self.typical);
    }

    /// The upstream has refused again.
    pub(super) fn grow(&mut self, unit: Unit) {
        if Mechanism::MarginGrowth.is_on() {
            self.growth += if unit == Unit::Requests { 1.0 } else { self.typical };
        }
    }

    /// So much time has passed.
    pub(super) fn fade(&mut self, passed: Ns) {
        self.growth *= (-(passed as f64) / GROWTH_HALF_LIFE).exp2();
        if self.growth < 1e-4 {
            self.growth = 0.0;
        }
    }

    /// Under another limit refusals of the old one say nothing.
    pub(super) fn reset_growth(&mut self) {
        self.growth = 0.0;
    }
}
