//! The cold start: until a first response has come, one request goes ahead as a probe.

use crate::{ablation::Mechanism, types::Ns};

/// A limiter that has never had an answer sends one request and waits so long for its head, ns.
const PROBE: Ns = 2_000_000_000;

/// What is known of the upstream's quotas.
#[derive(Debug, Default)]
enum Phase {
    /// Nothing: the first request is the probe.
    #[default]
    Unknown,
    /// The probe is on its way; others wait for its head until then.
    Probing { until: Ns },
    /// Answers have come, or waiting for one took too long.
    Known,
}

/// The cold start of one limiter.
#[derive(Debug, Default)]
pub(super) struct ColdStart {
    phase: Phase,
    /// Until when those in the queue wait for probes, where the first of these failed.
    waiting_until: Option<Ns>,
}

impl ColdStart {
    /// Whether anybody but a probe may go.
    pub(super) fn is_open(&mut self, in_flight: u32, now: Ns) -> bool {
        if self.probing_until().is_some_and(|until| until <= now) {
            self.phase = Phase::Known;
        }
        match self.phase {
            _ if !Mechanism::Probe.is_on() => true,
            Phase::Known => true,
            Phase::Unknown => in_flight == 0,
            Phase::Probing { .. } => false,
        }
    }

    /// Until when others wait for the head of the probe's answer, where one is on its way: until then limits are a guess.
    pub(super) fn probing_until(&self) -> Option<Ns> {
        match self.phase {
            Phase::Probing { until } => Some(until),
            Phase::Unknown | Phase::Known => None,
        }
    }

    /// A request goes; whether it is the probe.
    pub(super) fn granted(&mut self, now: Ns) -> bool {
        let is_probe = matches!(self.phase, Phase::Unknown);
        if is_probe {
            self.phase = Phase::Probing { until: self.waiting_until.take().unwrap_or(now + PROBE) };
        }
        is_probe
    }

    /// An answer has come, if only a refusal.
    pub(super) fn answered(&mut self) {
        self.phase = Phase::Known;
    }

    /// The probe has ended: without an answer it makes way for the next. `queued`: somebody waits for it.
    pub(super) fn probe_ended(&mut self, queued: bool) {
        if let Some(until) = self.probing_until() {
            self.phase = Phase::Unknown;
            // A waiting request goes on waiting for the next one, but not for longer in all.
            self.waiting_until = queued.then_some(until);
        }
    }
}
