//! What a request costs in every dimension, by what is learnt of prompts, answers and of requests without
//! `max_completion_tokens`.

use std::sync::Arc;

use crate::{
    estimate::Estimates,
    queue::{QueuedRequest, Ticket},
    request::{ActualUsage, AdmissionRequest, Cost, CostEstimate},
    settings::LimitSettings,
    types::Ns,
};

/// Estimates are taken for so much too high before a request is called impossible, until answers have taught better.
const LEAST: f32 = 0.8;
/// Completion tokens of an answer, for forecasts before any has been seen.
const USUAL: u32 = 256;

/// A request that Groq has refused asks again.
#[derive(Clone, Copy, Debug)]
pub struct Requeue {
    /// Where it stood in the queue.
    pub ticket: Ticket,
    /// What Groq has said that it asks: a lower estimate would go before Groq lets it.
    pub least: Cost,
    /// `Requested`, where it is the sum of its prompt and of what Groq reserves without `max_completion_tokens`.
    pub requested: Option<u32>,
}

/// What a [`CostEstimate`] means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Priced {
    pub(super) cost: Cost,
    /// Prompt tokens before correction.
    pub(super) estimated: u32,
    /// Whether its client stated `max_completion_tokens`.
    pub(super) states_max: bool,
}

/// The prices of one limiter.
#[derive(Debug, Default)]
pub(super) struct Pricing {
    pub(super) estimates: Estimates,
    /// The operator's number for requests without `max_completion_tokens`.
    configured: Option<u32>,
}

impl Pricing {
    /// The operator's settings for a model.
    pub(super) fn configure(&mut self, settings: &Arc<LimitSettings>, model: &str) {
        let configured = settings.of_model(model).assumed_completion_tokens;
        self.configured = configured.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX));
    }

    /// A cost in units: pessimistic for the prompt, all of `max_completion_tokens` for the answer.
    pub(super) fn price(&self, request: &AdmissionRequest) -> Priced {
        let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let of = |cost, estimated, states_max| Priced { cost, estimated, states_max };
        match request.cost {
            CostEstimate::Tokens { prompt, max_completion_tokens } => {
                let input = if prompt == 0 { 0 } else { (prompt as f32 * self.estimates.prompt.high()).ceil() as u64 + 4 };
                let cost = Cost { requests: 1, input: cut(input), key: request.key, ..Cost::default() };
                match max_completion_tokens {
                    Some(max) => of(cost.with_output(cut(max)), cut(prompt), true),
                    None => of(self.with_assumed_output(cost), cut(prompt), false),
                }
            }
            CostEstimate::Audio { seconds } => of(Cost { requests: 1, seconds: cut(seconds), ..Cost::default() }, 0, true),
            CostEstimate::Free => of(Cost::default(), 0, true),
        }
    }

    /// Completion tokens that are reserved for a request without `max_completion_tokens`.
    pub(super) fn assumed(&self) -> u32 {
        self.configured.unwrap_or_else(|| self.estimates.assumed.tokens())
    }

    /// What a request without `max_completion_tokens` takes, the prompt included.
    pub(super) fn with_assumed_output(&self, prompt: Cost) -> Cost {
        let usual = self.estimates.completion.high().map_or(0, |usual| usual as u32);
        Cost { output: self.assumed().max(usual), expected: u32::MAX, ..prompt }
    }

    /// Completion tokens that a request will probably use: what is usual, at most `output` where its client stated so.
    pub(super) fn expected(&self, output: u32, states_max: bool) -> u32 {
        match self.estimates.completion.mean() {
            Some(usual) if states_max => (usual as u32).min(output),
            Some(usual) => usual as u32,
            None if states_max => output,
            None => USUAL,
        }
    }

    /// The least that a request can turn out to take.
    pub(super) fn least(&self, queued: &QueuedRequest) -> Cost {
        let input = queued.estimated as f32 * self.estimates.prompt.low().min(LEAST);
        Cost { input: input as u32, ..stated(queued) }
    }

    /// An answer has ended; its head showed `shown_used` in use, if its request was without `max_completion_tokens`.
    pub(super) fn answered(&mut self, usage: ActualUsage, queued: &QueuedRequest, shown_used: Option<u64>, now: Ns) {
        let ActualUsage::Tokens { completion, prompt_total, .. } = usage else { return };
        match (queued.requested, shown_used) {
            (Some(requested), _) => self.estimates.assumed.answered_after_refusal(requested.into(), prompt_total, now),
            (None, Some(used)) => self.estimates.assumed.at_most(used, prompt_total, now),
            (None, None) => {}
        }
        self.estimates.prompt.learn(queued.estimated.into(), prompt_total);
        if let Some(completion) = completion {
            self.estimates.completion.learn(completion as f32);
        }
    }
}

/// What a request takes by its client's own words: the estimated prompt and `max_completion_tokens`, if any.
pub(super) fn stated(queued: &QueuedRequest) -> Cost {
    let output = if queued.states_max { queued.cost.output } else { 0 };
    Cost { input: queued.estimated, ..queued.cost }.with_output(output)
}

/// What a request used that took `reserved`. `usual`: completion tokens of an answer, in the mean.
pub(super) fn used(reserved: Cost, usage: ActualUsage, usual: Option<f32>) -> Cost {
    let cut = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    // A limit on output reserves nothing while no answer has been seen lately. An answer of unknown size has used some of it.
    let unseen = reserved.expected.max(usual.map_or(0, |usual| usual as u32).min(reserved.output));
    match usage {
        ActualUsage::Nothing => Cost::default(),
        ActualUsage::Request => Cost { requests: reserved.requests, ..Cost::default() },
        // Audio is billed by the second, whatever the answer says of tokens.
        ActualUsage::Tokens { .. } | ActualUsage::Partial { .. } if reserved.seconds > 0 => reserved,
        ActualUsage::Tokens { prompt, completion, .. } => {
            let reserved = Cost { input: cut(prompt), ..reserved };
            completion.map_or(Cost { expected: unseen, ..reserved }, |completion| reserved.with_output(cut(completion)))
        }
        ActualUsage::Partial { completion } => reserved.with_output(cut(completion)),
        ActualUsage::Unknown => Cost { expected: unseen, ..reserved },
    }
}
