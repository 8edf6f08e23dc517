//! The cold start: until a first response has come, one request goes ahead as a probe.

use crate::{ablation::Mechanism, types::Ns};

/// A limiter that has never had an answer sends one request and waits so long for its head, ns.
const PROBE: Ns = 2_000_000_000;

/// What is known of the upstream's quotas.
#[derive(Debug, Default)]
pub(super) enum ColdStart {
    /// Nothing: the first request is the probe.
    #[default]
    Unknown,
    /// The probe is on its way; others wait for its head until then.
    Probing { until: Ns },
    /// Answers have come, or waiting for one took too long.
    Known,
}

impl ColdStart {
    /// Whether anybody but a probe may go.
    pub(super) fn is_open(&mut self, in_flight: u32, now: Ns) -> bool {
        match *self {
            _ if !Mechanism::Probe.is_on() => true,
            Self::Known => true,
            Self::Unknown => in_flight == 0,
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
        let is_probe = matches!(self, Self::Unknown);
        if is_probe {
            *self = Self::Probing { until: now + PROBE };
        }
        is_probe
    }

    /// An answer has come, if only a refusal.
    pub(super) fn answered(&mut self) {
        *self = Self::Known;
    }

    /// The probe has ended: without an answer it makes way for the next.
    pub(super) fn probe_ended(&mut self) {
        if matches!(self, Self::Probing { .. }) {
            *self = Self::Unknown;
        }
    }
}
