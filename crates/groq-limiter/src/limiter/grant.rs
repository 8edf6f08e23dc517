//! What a limiter returns for a request: the reservation once it is granted, and its place in the queue once it is refused.

use crate::{
    queue::{QueuedRequest, Ticket},
    quota_set::Reserved,
    request::{AdmissionError, Cost},
    types::{Dimension, Ns, Unit},
};

/// The result of submitting a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "callers match on it at once")]
pub enum Admission {
    /// The request may be sent.
    Granted(Grant),
    /// The request waits in the queue. An [`Event`] with this ticket reports the outcome.
    Queued(Ticket),
}

/// The outcome of a queued request: granted, or refused because it cannot be sent in time, or never.
pub type Event = (Ticket, Result<Grant, AdmissionError>);

/// The reservation of a granted request.
#[derive(Clone, Debug)]
pub struct Grant {
    pub(super) reserved: Reserved,
    /// The request as it was in the queue.
    pub(super) queued: QueuedRequest,
    /// The service that its app has been charged for it in fair queueing so far.
    pub(super) service: f64,
    /// Time in the queue, ns.
    pub waited: Ns,
    /// The dimension that made the request wait; `None` if it did not wait for one.
    pub bound_by: Option<Dimension>,
}

impl Grant {
    /// Whether the request has been sent.
    pub fn is_sent(&self) -> bool {
        self.reserved.is_sent()
    }

    /// The reserved cost.
    pub fn cost(&self) -> Cost {
        self.reserved.cost
    }

    /// What refusals have stated of the request, after one that states `units` of this unit.
    pub(super) fn stated(&self, unit: Unit, units: u32) -> Option<(Unit, u32)> {
        match unit {
            // `units` is the sum of prompt and `max_completion_tokens`, which may be lower in the next attempt.
            Unit::Tokens if self.queued.states_max => match units.saturating_sub(self.cost().output) {
                0 => self.queued.requested,
                prompt => Some((Unit::InputTokens, prompt)),
            },
            Unit::Tokens | Unit::InputTokens | Unit::AudioSeconds => Some((unit, units)),
            // Every request counts as one, and expected completion tokens are learnt separately, from responses and refusals.
            Unit::Requests | Unit::OutputTokens => self.queued.requested,
        }
    }
}

/// What a refused request is submitted again with.
#[derive(Clone, Copy, Debug)]
pub struct Requeue {
    /// The request's place in the queue.
    pub ticket: Ticket,
    /// What refusals have stated as `Requested`, which replaces the estimate: at a lower cost, the request would be sent before
    /// Groq accepts it. Tokens are those of a request without `max_completion_tokens`.
    pub requested: Option<(Unit, u32)>,
}
