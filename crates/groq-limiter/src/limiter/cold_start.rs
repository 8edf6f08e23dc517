//! The cold start: a new limiter sends one request as a probe, because the limits are a guess until the first response. Other
//! requests wait for the head of its response, for at most two seconds.

use crate::{ablation::Mechanism, types::Ns};

/// Maximum wait for the head of the probe's response, ns.
const PROBE_TIMEOUT: Ns = 2_000_000_000;

/// What is known of the upstream's quotas.
#[derive(Debug)]
pub(super) enum ColdStart {
    /// Nothing: the next request is the probe. After a probe that failed while requests were queued, `until` is the end of its
    /// timeout. It applies to the next probe, too, so that several failed probes do not add up.
    Unknown { until: Option<Ns> },
    /// The probe is in flight. Other requests wait for its response, at most until this time.
    Probing { until: Ns },
    /// There was a response, or the probe's timeout has passed.
    Known,
}

impl Default for ColdStart {
    fn default() -> Self {
        Self::Unknown { until: None }
    }
}

impl ColdStart {
    /// Whether a request may be granted: after the cold start any, before it only the probe.
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

    /// The time until which requests wait for the probe's response; `None` if no probe is in flight.
    pub(super) fn probing_until(&self) -> Option<Ns> {
        if let Self::Probing { until } = *self { Some(until) } else { None }
    }

    /// Notes that a request was granted. Returns whether it is the probe.
    pub(super) fn granted(&mut self, now: Ns) -> bool {
        let Self::Unknown { until } = *self else { return false };
        *self = Self::Probing { until: until.unwrap_or(now + PROBE_TIMEOUT) };
        true
    }

    /// Notes a response, which may be a refusal.
    pub(super) fn answered(&mut self) {
        *self = Self::Known;
    }

    /// Notes the end of the probe. If it had no response, the next request is the probe. `queued` is whether requests wait
    /// for it.
    pub(super) fn probe_ended(&mut self, queued: bool) {
        if let Self::Probing { until } = *self {
            *self = Self::Unknown { until: queued.then_some(until) };
        }
    }
}
