//! Is anything known of the upstream's levels? Until an answer's head has come, one request goes as a probe.

use super::{Lane, SECOND, charge::Charge};
use crate::ablation::Mechanism;
use crate::bucket::Ns;

/// A lane that has never had an answer sends one request and waits so long for its head.
pub(super) const PROBE: Ns = 2 * SECOND;

/// What is known of the upstream's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Knowledge {
    /// Nothing: the first request is the probe.
    Unknown,
    /// The probe is on its way; others wait for its head until then.
    Probing { until: Ns },
    /// Answers have come, or waiting for one took too long.
    Known,
}

impl Lane {
    /// Whether anybody but a probe may go.
    pub(super) fn is_open(&mut self, now: Ns) -> bool {
        match self.knowledge {
            _ if !Mechanism::Probe.is_on() => true,
            Knowledge::Known => true,
            Knowledge::Unknown => self.in_flight == 0,
            Knowledge::Probing { until } if until <= now => {
                self.knowledge = Knowledge::Known;
                true
            }
            Knowledge::Probing { .. } => false,
        }
    }

    /// A probe that ended without an answer's head makes way for the next.
    pub(super) fn end_probe(&mut self, charge: &Charge) {
        if let Knowledge::Probing { until } = self.knowledge
            && charge.probe
        {
            self.knowledge = Knowledge::Unknown;
            // Who waits goes on waiting for the next, but not for longer in all.
            self.probing_until = Some(until).filter(|_| !self.line.is_empty());
        }
    }
}
