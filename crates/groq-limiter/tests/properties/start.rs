//! The start of a history: a limiter after its cold start, and requests.

use std::sync::Arc;

use groq_limiter::{
    ActualUsage, AdmissionRequest, CostEstimate,
    limiter::{Admission, Limiter},
    settings::{LimitSettings, ModelLimits, Plan},
    types::{Ns, Observation, Priority},
};

pub(crate) const START: Ns = 8_640_000_000_000_000;
pub(crate) const MS: Ns = 1_000_000;
pub(crate) const SECOND: Ns = 1_000_000_000;

pub(crate) fn tables(model: ModelLimits) -> Arc<LimitSettings> {
    Arc::new(LimitSettings { plan: Plan::None, default: model, ..LimitSettings::default() })
}

/// Limits on requests and tokens per minute only.
pub(crate) fn limits(requests: Option<u64>, tokens: u64) -> ModelLimits {
    ModelLimits { requests_per_minute: requests, tokens_per_minute: Some(tokens), ..ModelLimits::default() }
}

pub(crate) fn request(app: u8, prompt: u64, output_limit: u64) -> AdmissionRequest {
    AdmissionRequest {
        organization: "o".into(),
        key: 0,
        model: "m".into(),
        tier: "t".into(),
        app: format!("app{app}").into(),
        weight: 1.0,
        class: Priority::Interactive,
        cost: CostEstimate::Tokens { prompt, max_completion_tokens: Some(output_limit) },
        bytes: 0,
    }
}

/// A limiter after its cold start: one request has completed.
pub(crate) fn warm(model: ModelLimits) -> Limiter {
    let mut limiter = Limiter::new("m".into(), tables(model), START);
    let Ok(Admission::Granted(mut grant)) = limiter.submit(&request(0, 1, 1), START, START + SECOND, None, || true) else {
        panic!("an unused limiter admits the first request")
    };
    limiter.sent(&mut grant, START);
    limiter.observe(&mut grant, &Observation::default(), START);
    limiter.settle(grant, ActualUsage::Nothing, START);
    limiter
}
