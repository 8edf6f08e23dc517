//! The cold start: until a first response has come, one request goes ahead as a probe.

use crate::{ablation::Mechanism, types::Ns};

/// A limiter that has never had an answer sends one request and waits so long for its head, ns.
const PROBE: Ns = 2_000_000_000;

/// What is known of the upstream's quotas.
#[derive(Debug)]
pub(super) enum ColdStart {
    /// Nothing: the first request is the probe. Those in the queue that have waited for a probe which failed wait for the next one, but
    /// not for longer in all than until then.
    Unknown { until: Option<Ns> },
    /// The probe is on its way; others wait for its head until then.
    Probing { until: Ns },
    /// Answers have come, or waiting for one took too long.
    Known,
}

impl Default for ColdStart {
    fn default() -> Self {
        Self::Unknown { until: None }
    }
}

impl ColdStart {
    /// Whether anybody but a probe may go.
    pub(super) fn is_open(&mut self, in_flight: u32, now: Ns) -> bool {
        match *self {
            _ if !Mechanism::Probe.is_on() => true,
            Self::Known => true,
            Self::Unknown { .. } => in_flight == 0,
            Self::Probing { until } => {
                if until <= now {
                    *self = Self::Known;
                }
                until <= now
            }
        }
    }

    /// Until when others wait for the head of the probe's answer, where one is on its way: until then limits are a guess.
    pub(super) fn probing_until(&self) -> Option<Ns> {
        if let Self::Probing { until } = *self { Some(until) } else { None }
    }

    /// A request goes; whether it is the probe.
    pub(super) fn granted(&mut self, now: Ns) -> bool {
        let Self::Unknown { until } = *self else { return false };
        *self = Self::Probing { until: until.unwrap_or(now + PROBE) };
        true
    }

    /// An answer has come, if only a refusal.
    pub(super) fn answered(&mut self) {
        *self = Self::Known;
    }

    /// The probe has ended: without an answer it makes way for the next. `queued`: somebody waits for it.
    pub(super) fn probe_ended(&mut self, queued: bool) {
        if let Self::Probing { until } = *self {
            *self = Self::Unknown { until: queued.then_some(until) };
        }
    }
}
