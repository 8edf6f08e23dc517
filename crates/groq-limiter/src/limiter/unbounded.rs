//! Requests without a ceiling: their price follows what is learnt of the upstream, also for those that wait already.

use super::{Grant, Limiter};
use crate::{
    bucket::{Ns, Readiness},
    estimate::default_output::DEFAULT,
    queue::{Id, QueuedRequest},
    quota_set::Cost,
    types::{Unit, UpstreamRefusal},
};

/// Completion tokens of an answer, for forecasts before any has been seen.
const USUAL: u32 = 256;

impl Limiter {
    /// Completion tokens that are reserved for a request that names no ceiling.
    pub(super) fn assumed(&self) -> u32 {
        let configured =
            self.tables.of_model(&self.model).assumed_completion_tokens.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        configured.unwrap_or_else(|| self.estimates.assumed.tokens())
    }

    /// What a request without a ceiling takes beside its prompt.
    pub(super) fn unbounded(&self, prompt: Cost) -> Cost {
        let (output, usual) = (self.assumed(), self.estimates.completion.high());
        let answer = output.max(usual.map_or(DEFAULT, |usual| usual as u32));
        Cost { output, answer, expected: u32::MAX, ..prompt }
    }

    /// Completion tokens that a request will probably use: what is usual, at most its ceiling.
    pub(super) fn expected(&self, usual: Option<f32>, output: u32, has_ceiling: bool) -> u32 {
        match usual {
            Some(usual) if has_ceiling => (usual as u32).min(output),
            Some(usual) => usual as u32,
            None if has_ceiling => output,
            None => USUAL,
        }
    }

    /// Whether requests without a ceiling are still priced by a guess, and may be sent in slow start.
    pub(super) fn is_trying(&self) -> bool {
        !self.estimates.assumed.is_settled()
            && self.tables.of_model(&self.model).assumed_completion_tokens.is_none()
            && !self.is_linked()
    }

    /// Whether this one's price is a guess.
    pub(super) fn is_guess(&self, waiter: &QueuedRequest) -> bool {
        !waiter.has_ceiling && waiter.requested.is_none() && self.is_trying()
    }

    /// What a request's wait is forecast by: nobody is refused for tokens that may not be reserved.
    pub(super) fn forecast_cost(&self, waiter: &QueuedRequest) -> Cost {
        match waiter.cost {
            Cost { requests, expected, key, .. } if self.is_guess(waiter) => Cost { requests, expected, key, ..Cost::default() },
            cost => cost,
        }
    }

    /// A waiter that does not fit by a guessed price is sent as if nothing were reserved for its answer, if it is time for one
    /// and it fits then. Otherwise the limiter wakes up when it is time.
    pub(super) fn try_unpriced(&mut self, id: Id, now: Ns) -> bool {
        let Some(waiter) = self.queue.get(id).filter(|waiter| self.is_guess(waiter)) else { return false };
        let (cost, expected) = (Cost { output: 0, ..waiter.cost }, waiter.expected);
        if self.quotas.fit(&cost, now).0 != Readiness::Now {
            return false;
        }
        match self.estimates.assumed.try_now(now) {
            Ok(()) => {
                self.queue.reprice(id, cost, expected);
                true
            }
            Err(at) => {
                self.wake = self.wake.map(|wake| wake.min(at));
                false
            }
        }
    }

    /// Runs `learn`; where the price of requests without a ceiling changes, it does so for those that wait, too.
    pub(super) fn learn_assumed(&mut self, learn: impl FnOnce(&mut Self)) {
        let before = (self.assumed(), self.is_trying());
        learn(self);
        if (self.assumed(), self.is_trying()) == before || self.queue.is_empty() {
            return;
        }
        for id in self.queue.ids() {
            let Some(waiter) = self.queue.get(id).filter(|waiter| !waiter.has_ceiling && waiter.requested.is_none()) else {
                continue;
            };
            let (cost, expected) = (self.unbounded(waiter.cost), waiter.expected);
            self.queue.reprice(id, cost, expected);
        }
        // By another price some may not make it in time.
        self.guessed = true;
    }

    /// An answer's head has come. If Groq holds more for it than was charged here, the quotas show so from now on, and the
    /// difference comes back when the answer ends. `error`: by how much its header has corrected `slot`, ns.
    pub(super) fn hold_assumed(&mut self, grant: &mut Grant, slot: usize, error: Option<i64>, now: Ns) {
        let cost = grant.cost();
        let most = self.assumed();
        let held = match error.and_then(|error| u64::try_from(error).ok()) {
            _ if self.estimates.assumed.is_settled() => most,
            Some(error) => {
                let unit = self.quotas.all()[slot].bucket().map_or(1, |bucket| bucket.span(1));
                most.min(cost.output.saturating_add(u32::try_from(error / unit).unwrap_or(u32::MAX)))
            }
            None => return,
        };
        if held > cost.output {
            self.quotas.raise(&mut grant.reserved, Cost { output: held, ..cost }, slot, now);
        }
    }

    /// `Requested` of a request without a ceiling, where it is prompt and assumed completion tokens. What can never succeed
    /// says nothing of others: its prompt may be all of it.
    pub(super) fn requested_in_all(&self, grant: &Grant, text: Option<&UpstreamRefusal>) -> Option<u32> {
        let text = text.filter(|text| !grant.has_ceiling && !text.hopeless())?;
        let counts_all = self.named(text)?.unit == Unit::Tokens;
        counts_all.then(|| u32::try_from(text.requested).unwrap_or(u32::MAX))
    }
}
