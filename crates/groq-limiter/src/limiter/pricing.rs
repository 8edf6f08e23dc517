//! Pricing: converts the caller's estimate for a request into its cost in every dimension.
//!
//! The estimates behind it are learnt from responses: how far prompts are from their estimates, how long responses are, and what
//! Groq reserves for a request without `max_completion_tokens`.

use std::sync::Arc;

use crate::{
    estimate::Estimates,
    queue::QueuedRequest,
    quota_set::QuotaSet,
    request::{ActualUsage, AdmissionError, AdmissionRequest, Cost, CostEstimate, saturated},
    settings::LimitSettings,
    types::{Ns, Unit},
};

/// The lowest possible prompt, as a share of its estimate, unless responses have shown a lower share. A request is refused as too
/// large only if its cost with this prompt is over a limit.
const MIN_PROMPT_SHARE: f32 = 0.8;
/// Completion tokens assumed by forecasts before the first response.
const DEFAULT_COMPLETION: u32 = 256;

/// The estimates and settings that determine costs, of one limiter.
#[derive(Debug, Default)]
pub(super) struct Pricing {
    pub(super) estimates: Estimates,
    /// Configured completion tokens of requests without `max_completion_tokens`; `None` if they are learnt.
    configured: Option<u32>,
}

impl Pricing {
    /// Applies the settings for a model.
    pub(super) fn configure(&mut self, settings: &Arc<LimitSettings>, model: &str) {
        self.configured = settings.of_model(model).assumed_completion_tokens.map(saturated);
    }

    /// The cost of a request: a high estimate of the prompt, and all of `max_completion_tokens`.
    pub(super) fn cost(&self, request: &AdmissionRequest) -> Cost {
        let one = Cost { requests: 1, key: request.key, ..Cost::default() };
        match request.cost {
            CostEstimate::Tokens { prompt, max_completion_tokens } => {
                let high = (prompt as f32 * self.estimates.prompt.high()).ceil() as u32;
                let prompt = Cost { input: if prompt == 0 { 0 } else { high.saturating_add(4) }, ..one };
                match max_completion_tokens {
                    Some(max) => prompt.with_output(saturated(max)),
                    None => self.with_assumed_output(prompt),
                }
            }
            CostEstimate::Audio { seconds } => Cost { seconds: saturated(seconds), ..one },
            CostEstimate::Free => Cost::default(),
        }
    }

    /// Completion tokens that are reserved for a request without `max_completion_tokens`.
    pub(super) fn assumed(&self) -> u32 {
        self.configured.unwrap_or_else(|| self.estimates.assumed.tokens())
    }

    /// The cost of a request without `max_completion_tokens`, whose prompt is given.
    pub(super) fn with_assumed_output(&self, prompt: Cost) -> Cost {
        let usual = self.estimates.completion.high().map_or(0, |usual| usual as u32);
        Cost { output: self.assumed().max(usual), expected: u32::MAX, ..prompt }
    }

    /// Completion tokens that a request will probably use: the mean of responses, at most `output` if the request has
    /// `max_completion_tokens`.
    pub(super) fn expected(&self, output: u32, states_max: bool) -> u32 {
        let usual = self.estimates.completion.mean().map(|usual| usual as u32);
        if states_max { usual.unwrap_or(output).min(output) } else { usual.unwrap_or(DEFAULT_COMPLETION) }
    }

    /// The lowest possible cost of a request.
    pub(super) fn least(&self, queued: &QueuedRequest) -> Cost {
        let input = queued.estimated as f32 * self.estimates.prompt.low().min(MIN_PROMPT_SHARE);
        Cost { input: input as u32, ..queued.stated() }
    }

    /// The error of a request whose lowest possible cost is more than a limit that is known for certain; `None` if it fits.
    pub(super) fn too_large(&self, queued: &QueuedRequest, quotas: &QuotaSet, now: Ns) -> Option<AdmissionError> {
        let (dimension, limit) = quotas.never(&self.least(queued), now)?;
        // The error reports the estimate itself instead of its lower bound.
        let stated = queued.stated();
        Some(AdmissionError::TooLarge {
            dimension: dimension.clone(),
            limit,
            requested: stated.of(dimension.unit).max(limit + 1),
            parts: (dimension.unit == Unit::Tokens).then_some((stated.input.into(), stated.output.into())),
        })
    }

    /// Learns from a complete response.
    pub(super) fn answered(&mut self, usage: ActualUsage, queued: &QueuedRequest, now: Ns) {
        let ActualUsage::Tokens { completion, prompt_total, .. } = usage else { return };
        if let (Some((Unit::Tokens, requested)), false) = (queued.requested, queued.states_max) {
            self.estimates.assumed.answered_after_refusal(requested.into(), prompt_total, now);
        }
        self.estimates.prompt.learn(queued.estimated.into(), prompt_total);
        if let Some(completion) = completion {
            self.estimates.completion.learn(completion as f32);
        }
    }
}

/// What a request with the reservation `reserved` has used. `usual` is the mean of completion tokens; `None` before the first
/// response.
pub(super) fn used(reserved: Cost, usage: ActualUsage, usual: Option<f32>) -> Cost {
    // Limits on output reserve nothing if there was no response lately, but a response of unknown size has used some of them.
    let unseen = reserved.expected.max(usual.map_or(0, |usual| usual as u32).min(reserved.output));
    match usage {
        ActualUsage::Nothing => Cost::default(),
        ActualUsage::Request => Cost { requests: reserved.requests, ..Cost::default() },
        // Audio is charged by the second, whatever the response says of tokens.
        ActualUsage::Tokens { .. } | ActualUsage::Partial { .. } if reserved.seconds > 0 => reserved,
        ActualUsage::Tokens { prompt, completion, .. } => {
            let reserved = Cost { input: saturated(prompt), ..reserved };
            completion.map_or(Cost { expected: unseen, ..reserved }, |completion| reserved.with_output(saturated(completion)))
        }
        ActualUsage::Partial { completion } => reserved.with_output(saturated(completion)),
        ActualUsage::Unknown => Cost { expected: unseen, ..reserved },
    }
}
