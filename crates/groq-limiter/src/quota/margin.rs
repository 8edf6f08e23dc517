//! The safety margin: the part of a limit that stays unused, because what the upstream counts may differ from what we know.
//!
//! The margin is a multiple of the typical cost of a request, within bounds that are shares of the limit. It grows after
//! refusals, and most of it is released while headers show no external usage.

use std::time::Duration;

use crate::{
    ablation::Mechanism,
    types::{Dimension, Ns, Unit},
};

/// What every refusal but the first adds to the margin, as a share of it. With a third, eight replicas without Redis are
/// still refused 5.2 of 1000 requests with one seed; with a half, the light app of the row rpm-foreign-M waits 26 s at p99
/// instead of 22 s.
const GROWTH: f64 = 0.4;
/// Half-life of what refusals have added, ns.
const GROWTH_HALF_LIFE: f64 = 1800e9;
/// The share of the margin that is released while there is no external usage. When the margin was released down to 1 % of
/// the limit, large requests on small limits were refused: 0.5 of 1000 in the rows S.
const RELEASED: f64 = 0.6;
/// The units that come back in this time are never released, and at least one unit. If a request reaches the upstream later
/// than the requests sent after it, its units come back later there than in our bucket. Causes are a retransmission (1 s
/// for a first packet) and a starved CPU.
const LATENESS: Duration = Duration::from_secs(2);
/// Weight of the newest request in the average cost.
const TYPICAL_GAIN: f64 = 0.02;

/// The safety margin of one dimension.
#[derive(Debug)]
pub(super) struct SafetyMargin {
    /// Running average of the units that a request takes; 0 before the first one.
    pub(super) typical: f64,
    /// The factor by which the margin is multiplied: 1 normally, less while there is no external usage, more after refusals.
    /// 0 turns the margin off for good.
    pub(super) kept: f64,
}

impl SafetyMargin {
    /// A margin with this factor: 1, or 0 to turn it off.
    pub(super) fn new(kept: f64) -> Self {
        Self { typical: 0.0, kept }
    }

    /// Returns the units that a request of `units` must leave unused of `limit`. The margin never keeps a request within the
    /// limit out of a full bucket.
    pub(super) fn units(&self, dimension: &Dimension, limit: u64, units: u64) -> u64 {
        if self.kept == 0.0 || !Mechanism::SafetyMargin.is_on() {
            return 0;
        }
        let whole = limit as f64;
        let a_day = dimension.period >= Duration::from_secs(86_400);
        let margin = match (dimension.unit, a_day) {
            // This part of a day's limit comes back in seven minutes. A twentieth, or the tokens of a large request, would
            // take more than an hour.
            (Unit::Requests, true) => (0.005 * whole).max(2.0),
            (Unit::Requests, false) => (0.05 * whole).max(2.0),
            // The upstream counts a completion when it ends, before this limiter sees its usage, so a margin would not help.
            (Unit::OutputTokens, _) => 0.0,
            (_, true) => (0.005 * whole).min(units as f64),
            (_, false) => (6.0 * self.typical).clamp(0.05 * whole, 0.30 * whole),
        };
        // Rounded up, because the margin is rounded down below, and the whole margin of 30 requests per minute is only two
        // units.
        let lateness = (whole * LATENESS.as_secs_f64() / dimension.period.as_secs_f64()).ceil();
        let least = if a_day { margin } else { lateness.min(margin) };
        ((self.kept * margin).max(least).min(0.40 * whole) as u64).min(limit.saturating_sub(units))
    }

    /// Sets how much of [`RELEASED`] is released, from 0 to 1. 0 restores the whole margin, and keeps what refusals have
    /// added.
    pub(super) fn release(&mut self, part: f64) {
        let kept = if part > 0.0 { 1.0 - RELEASED * part } else { self.kept.max(1.0) };
        self.kept = if self.kept > 0.0 { kept } else { 0.0 };
    }

    /// Adds a request of `units` to the average cost.
    pub(super) fn learn(&mut self, units: u64) {
        self.typical += if self.typical == 0.0 { 1.0 } else { TYPICAL_GAIN } * (units as f64 - self.typical);
    }

    /// Increases the margin after a repeated refusal.
    pub(super) fn grow(&mut self) {
        if Mechanism::MarginGrowth.is_on() && self.kept > 0.0 {
            self.kept += GROWTH;
        }
    }

    /// Lets what refusals have added decay over `passed` ns.
    pub(super) fn fade(&mut self, passed: Ns) {
        let growth = (self.kept - 1.0).max(0.0);
        self.kept -= growth * (1.0 - (-(passed as f64) / GROWTH_HALF_LIFE).exp2());
    }
}
