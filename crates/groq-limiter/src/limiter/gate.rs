//! What holds back all requests of a limiter, whatever they cost: a cold start, and refusals that no quota explains.
//!
//! A new limiter sends one request as a probe, because the limits are a guess until the first response. Other requests wait for
//! the head of its response, for at most two seconds. If the probe fails before, the next request is the probe, for the rest
//! of that time. Until there is a response, each request that is sent while no other is in flight is a probe.

use std::time::Duration;

use crate::{ablation::Mechanism, types::Ns};

const SECOND: Ns = 1_000_000_000;
/// Maximum wait for the head of the probe's response, ns.
const PROBE_TIMEOUT: Ns = 2 * SECOND;
/// Maximum length of a pause, whatever the refusal's `retry-after`.
const MAX_PAUSE: Ns = 3600 * SECOND;

/// Whether requests of a limiter may be granted at all.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Whether there was a response, which may be a refusal.
    is_known: bool,
    /// The time until which other requests wait for the probe's response, while one is in flight.
    probe_until: Ns,
    /// The end of the pause; in the past if there is none.
    pause_until: Ns,
    /// Unexplained refusals since the last response of another kind.
    refusals: u32,
}

impl Gate {
    /// Whether the limits are a guess, because the response of the probe has yet to come.
    pub(super) fn is_probing(&self, in_flight: u32, now: Ns) -> bool {
        !self.is_known && in_flight > 0 && now < self.probe_until && Mechanism::Probe.is_on()
    }

    /// The time until which no request may be granted; in the past if requests may be granted now.
    pub(super) fn closed_until(&self, in_flight: u32, now: Ns) -> Ns {
        if self.is_probing(in_flight, now) { self.pause_until.max(self.probe_until) } else { self.pause_until }
    }

    /// Notes that a request is granted, while `in_flight` others are in flight.
    pub(super) fn granted(&mut self, in_flight: u32, now: Ns) {
        if in_flight == 0 && self.probe_until <= now {
            self.probe_until = now + PROBE_TIMEOUT;
        }
    }

    /// Notes a response that is not a refusal.
    pub(super) fn answered(&mut self) {
        (self.is_known, self.refusals) = (true, 0);
    }

    /// Notes a refusal. If no quota explains it, all requests pause: for 1 s, doubled with every such refusal up to 32 s, or for
    /// the refusal's `retry-after` if that is longer.
    pub(super) fn refused(&mut self, is_explained: bool, retry_after: Option<Duration>, now: Ns) {
        self.is_known = true;
        if !is_explained {
            let stated = retry_after.map_or(0, |after| Ns::try_from(after.as_nanos()).unwrap_or(Ns::MAX));
            let pause = stated.max(SECOND << self.refusals).min(MAX_PAUSE);
            self.pause_until = self.pause_until.max(now + pause);
            self.refusals = (self.refusals + 1).min(5);
        }
    }
}
