//! The cold start: until a first response has come, one request goes ahead as a probe.

use super::{Limiter, SECOND, grant::Grant};
use crate::ablation::Mechanism;
use crate::bucket::Ns;

/// A limiter that has never had an answer sends one request and waits so long for its head.
pub(super) const PROBE: Ns = 2 * SECOND;

/// What is known of the upstream's quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColdStart {
    /// Nothing: the first request is the probe.
    Unknown,
    /// The probe is on its way; others wait for its head until then.
    Probing { until: Ns },
    /// Answers have come, or waiting for one took too long.
    Known,
}

impl Limiter {
    /// Whether anybody but a probe may go.
    pub(super) fn is_open(&mut self, now: Ns) -> bool {
        match self.cold_start {
            _ if !Mechanism::Probe.is_on() => true,
            ColdStart::Known => true,
            ColdStart::Unknown => self.in_flight == 0,
            ColdStart::Probing { until } if until <= now => {
                self.cold_start = ColdStart::Known;
                true
            }
            ColdStart::Probing { .. } => false,
        }
    }

    /// A probe that ended without an answer's head makes way for the next.
    pub(super) fn end_probe(&mut self, grant: &Grant) {
        if let ColdStart::Probing { until } = self.cold_start
            && grant.probe
        {
            self.cold_start = ColdStart::Unknown;
            // Who waits goes on waiting for the next, but not for longer in all.
            self.probing_until = Some(until).filter(|_| !self.queue.is_empty());
        }
    }
}
