//! Tests of the limiters through their public interface, in virtual time.

use std::time::Duration;

use tokio::time::Instant;

use super::{ActualUsage, AdmissionRequest, CostEstimate, Limiters};
use crate::{
    settings::{LimitSettings, ModelLimits, Plan, Settings},
    types::{Dimension, Observation, Priority, UpstreamRefusal},
};

mod keeping;
mod lateness;
mod learning;
mod output;
mod refusals;
mod waiting;

fn settings(model: ModelLimits) -> Settings {
    let limits = LimitSettings { plan: Plan::None, default: model, ..LimitSettings::default() };
    Settings { limits: limits.into(), ..Settings::default() }
}

fn shield(model: ModelLimits) -> Limiters {
    Limiters::new(settings(model))
}

fn request(app: &str, prompt: u64, output_limit: u64) -> AdmissionRequest {
    AdmissionRequest {
        organization: "org".into(),
        key: 0,
        model: "m".into(),
        tier: "on_demand".into(),
        app: app.into(),
        weight: 1.0,
        class: Priority::Interactive,
        cost: CostEstimate::Tokens { prompt, max_completion_tokens: Some(output_limit) },
        bytes: 100,
    }
}

fn per_minute(requests: u64, tokens: u64) -> ModelLimits {
    ModelLimits { requests_per_minute: Some(requests), tokens_per_minute: Some(tokens), ..ModelLimits::default() }
}

/// Ends the cold start with one answered request, which uses nothing.
async fn warm(limits: &Limiters) {
    let mut first = limits.reserve(&request("warm", 1, 1), Instant::now(), None).await.expect("the first goes");
    first.sent(Instant::now());
    first.observe(&Observation::default(), Instant::now());
    first.settle(ActualUsage::Nothing, Instant::now());
}

/// A refusal whose text names its dimension: `Limit`, `Used`, `Requested`, and when to try again.
fn refusal(dimension: Dimension, limit: u64, used: Option<u64>, requested: u64, wait: Option<Duration>) -> UpstreamRefusal {
    let (code, unit) = (Some(dimension.code.clone().into_owned()), Some(dimension.unit));
    UpstreamRefusal { dimension: Some(dimension), code, unit, limit, used, requested, wait }
}

fn in_a_minute() -> Instant {
    Instant::now() + Duration::from_secs(60)
}
