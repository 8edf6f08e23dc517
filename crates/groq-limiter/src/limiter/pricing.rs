//! What a request costs in every dimension, and whether it can ever fit.

use super::Limiter;
use crate::ablation::Mechanism;
use crate::{
    AdmissionError, AdmissionRequest, CostEstimate,
    bucket::Ns,
    queue::forecast::Arrival,
    queue::{AppId, QueuedRequest, Ticket},
    quota_set::Cost,
    types::Unit,
};

/// Estimates are taken for so much too high before a request is called impossible, until answers have taught better.
const LEAST: f32 = 0.8;

/// A request that Groq has refused asks again.
#[derive(Clone, Copy, Debug)]
pub struct Requeue {
    /// Where it stood in the queue.
    pub ticket: Ticket,
    /// What Groq has said that it asks: a lower estimate would go before Groq lets it.
    pub least: Cost,
    /// `Requested`, where it is the sum of its prompt and of what Groq reserves for a request without a ceiling.
    pub requested: Option<u32>,
}

impl Limiter {
    /// The ceiling that a request's own would have to be lowered to, where its ceiling alone is what can never fit.
    pub fn fitting_max_completion_tokens(&self, request: &AdmissionRequest, now: Ns) -> Option<u64> {
        let (cost, _, given) = self.cost(request);
        if let (CostEstimate::Tokens { .. }, Some((slot, limit))) = (request.cost, self.quotas.too_large_answer(&cost)) {
            // The whole limit would have to be free for itself; half of it is sooner.
            let left = self.quotas.all()[slot].bucket().map_or(0.0, |bucket| bucket.remaining(now));
            return Some((limit / 2).max(left.max(0.0) as u64).max(1));
        }
        if !given {
            return None;
        }
        let room = self
            .quotas
            .all()
            .iter()
            .filter(|quota| quota.is_certain(now))
            .filter_map(|quota| match quota.dimension.unit {
                Unit::Tokens => Some(quota.limit()?.saturating_sub(cost.input.into())),
                _ => None,
            })
            .min()?;
        (room > 0 && room < cost.output.into()).then_some(room)
    }

    /// What a request asks, as a waiter would hold it.
    pub(super) fn read(
        &mut self,
        request: &AdmissionRequest,
        app: AppId,
        now: Ns,
        deadline: Ns,
        requeue: Option<Requeue>,
    ) -> (QueuedRequest, Arrival) {
        let (cost, estimated, has_ceiling) = self.cost(request);
        let cost = match requeue {
            // The refusal gave the sum of both parts.
            Some(Requeue { requested: Some(requested), .. }) if !has_ceiling => {
                Cost { output: requested.saturating_sub(cost.input), ..cost }
            }
            Some(requeue) => cost.at_least(requeue.least),
            None => cost,
        };
        let ticket = requeue.map(|requeue| requeue.ticket);
        let size = self.size(&cost);
        let usual = self.queue.app_of(app).and_then(|app| app.completion.mean()).or(self.estimates.completion.mean());
        let expected = self.expected(usual, cost.output, has_ceiling);
        let waiter = QueuedRequest {
            app,
            size,
            cost,
            expected,
            estimated,
            has_ceiling,
            requested: requeue.and_then(|requeue| requeue.requested),
            ticket: ticket.unwrap_or_else(|| self.queue.ticket()),
            since: now,
            deadline,
            bypass_budget: None,
        };
        let arrival = Arrival { app, class: request.class, size, cost: self.forecast_cost(&waiter), ticket };
        (waiter, arrival)
    }

    /// What a cost means in units: pessimistic for the prompt, the whole ceiling for the completion.
    fn cost(&self, request: &AdmissionRequest) -> (Cost, u32, bool) {
        let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match request.cost {
            CostEstimate::Tokens { prompt, max_completion_tokens: ceiling } => {
                let input = if prompt == 0 { 0 } else { (prompt as f32 * self.estimates.prompt.high()).ceil() as u64 + 4 };
                let cost = Cost { requests: 1, input: cut(input), key: request.key, ..Cost::default() };
                let cost = ceiling.map_or_else(|| self.unbounded(cost), |ceiling| cost.with_output(cut(ceiling)));
                (cost, cut(prompt), ceiling.is_some())
            }
            CostEstimate::Audio { seconds } => (Cost { requests: 1, seconds: cut(seconds), ..Cost::default() }, 0, true),
            CostEstimate::Free => (Cost::default(), 0, true),
        }
    }

    /// Size class: by the share of the tightest limit it asks for.
    fn size(&self, cost: &Cost) -> u8 {
        if !Mechanism::SizeClasses.is_on() {
            return 0;
        }
        let cost = &self.quotas.expect(*cost);
        let share = self
            .quotas
            .all()
            .iter()
            .filter(|quota| quota.dimension.unit != Unit::Requests)
            .filter_map(|quota| Some(quota.units(cost) as f64 / quota.limit()? as f64))
            .fold(0.0, f64::max);
        [1.0 / 32.0, 1.0 / 8.0, 0.5].iter().filter(|&&bound| share > bound).count() as u8
    }

    /// Its certain sum is over a certain limit.
    pub(super) fn never(&self, waiter: &QueuedRequest, now: Ns) -> Option<AdmissionError> {
        let least = self.estimates.prompt.low().min(LEAST);
        let input = (waiter.estimated as f32 * least) as u32;
        let output = if waiter.has_ceiling { waiter.cost.output } else { 0 };
        let (dimension, limit, _) = self.quotas.never(&Cost { input, ..waiter.cost }.with_output(output), now)?;
        // What people are told is the estimate itself, not its lower bound.
        let prompt = if input == 0 { 0 } else { u64::from(waiter.estimated) };
        let told = Cost { input: waiter.estimated, ..waiter.cost }.with_output(output);
        let parts = (dimension.unit == Unit::Tokens).then_some((prompt, u64::from(output)));
        Some(AdmissionError::TooLarge {
            dimension: dimension.clone(),
            limit,
            requested: told.of(dimension.unit).max(limit + 1),
            parts,
        })
    }
}
