//! Where does a history begin? A lane past its cold start, and who asks it.

use std::sync::Arc;

use groq_limiter::{
    Ask, Pool, Spent,
    bucket::Ns,
    lane::{Lane, Verdict},
    settings::{LimitSettings, ModelLimits, Plan},
    types::{Observation, Priority},
};

pub(crate) const START: Ns = 8_640_000_000_000_000;
pub(crate) const MS: Ns = 1_000_000;
pub(crate) const SECOND: Ns = 1_000_000_000;

pub(crate) fn tables(model: ModelLimits) -> Arc<LimitSettings> {
    Arc::new(LimitSettings { plan: Plan::None, default: model, ..LimitSettings::default() })
}

/// Requests and tokens a minute, and nothing else.
pub(crate) fn limits(requests: Option<u64>, tokens: u64) -> ModelLimits {
    ModelLimits { requests_per_minute: requests, tokens_per_minute: Some(tokens), ..ModelLimits::default() }
}

pub(crate) fn ask(app: u8, prompt: u64, ceiling: u64) -> Ask {
    Ask {
        organization: "o".into(),
        model: "m".into(),
        tier: "t".into(),
        app: format!("app{app}").into(),
        weight: 1.0,
        class: Priority::Interactive,
        pool: Pool::Tokens { prompt, ceiling: Some(ceiling) },
        bytes: 0,
    }
}

/// A lane past its cold start.
pub(crate) fn warm(model: ModelLimits) -> Lane {
    let mut lane = Lane::new("m".into(), tables(model), START);
    let Verdict::Go(mut charge) = lane.submit(&ask(0, 1, 1), START, START + SECOND, None, true) else {
        panic!("an unused lane lets the first go")
    };
    lane.sent(&mut charge, START);
    lane.observe(&mut charge, &Observation::default(), START);
    lane.settle(*charge, Spent::Nothing, START);
    lane
}
