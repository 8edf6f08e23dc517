//! Limits that refusals have stated, and how long they hold.

use std::time::Duration;

use tokio::time::Instant;

use super::{in_a_minute, per_minute, refusal, request, settings, shield, warm};
use crate::{
    ActualUsage, Limiters, Permit,
    settings::{LimitSettings, ModelLimits, Plan, Settings},
    types::{Dimension, Observation, RemoteQuota},
};

/// A request that Groq refuses because of a limit of 60 requests per minute, which no header shows.
fn refused(mut permit: Permit) {
    let text = refusal(Dimension::RPM, 60, Some(60), 1, Some(Duration::from_secs(1)));
    permit.sent(Instant::now());
    permit.refused(Some(&text), &Observation::default(), None, Instant::now());
}

async fn answered(limits: &Limiters, tokens_per_minute: u64) {
    let mut permit = limits.reserve(&request("app", 10, 10), in_a_minute(), None).await.expect("in time");
    permit.sent(Instant::now());
    let tokens = Some(RemoteQuota { limit: tokens_per_minute, remaining: tokens_per_minute - 20 });
    permit.observe(&Observation { tokens, ..Observation::default() }, Instant::now());
    permit.settle(ActualUsage::Tokens { prompt: 10, completion: Some(10), prompt_total: 10 }, Instant::now());
}

fn requests_per_minute(limits: &Limiters) -> Option<u64> {
    let dimensions = limits.dimensions(&request("app", 10, 10));
    dimensions.into_iter().find(|quota| quota.dimension == Dimension::RPM).map(|quota| quota.limit)
}

/// The organization changes to a larger plan. Headers show its tokens, and no header or refusal its requests.
#[tokio::test(start_paused = true)]
async fn a_limit_of_a_refusal_ends_when_headers_show_another_limit() {
    let limits = shield(ModelLimits::default());
    answered(&limits, 8000).await;
    refused(limits.reserve(&request("app", 10, 10), in_a_minute(), None).await.expect("in time"));
    answered(&limits, 8000).await;
    assert_eq!(requests_per_minute(&limits), Some(60), "it holds while headers show the same");
    answered(&limits, 250_000).await;
    assert_eq!(requests_per_minute(&limits), None);
}

/// The operator configures what is true now, after a refusal has stated another limit.
#[tokio::test(start_paused = true)]
async fn a_limit_of_a_refusal_ends_when_the_operator_changes_it() {
    let limits = shield(per_minute(120, 1_000_000));
    warm(&limits).await;
    refused(limits.reserve(&request("app", 10, 10), in_a_minute(), None).await.expect("in time"));
    let other = Settings {
        limits: LimitSettings { headroom: 0.1, ..(*settings(per_minute(120, 1_000_000)).limits).clone() }.into(),
        ..Settings::default()
    };
    limits.reconfigure(other);
    assert_eq!(requests_per_minute(&limits), Some(60), "another setting has changed");
    limits.reconfigure(settings(per_minute(240, 1_000_000)));
    assert_eq!(requests_per_minute(&limits), Some(240));
}

/// A request that is sent whatever the limits say may be refused, so its refusal does not enlarge the safety margin.
#[tokio::test(start_paused = true)]
async fn refusals_of_forced_requests_do_not_enlarge_the_margin() {
    let limits = Limiters::new(Settings {
        limits: LimitSettings { plan: Plan::None, default: per_minute(60, 1_000_000), ..LimitSettings::default() }.into(),
        ..Settings::default()
    });
    warm(&limits).await;
    let margin = |limits: &Limiters| limits.dimensions(&request("app", 10, 10))[0].margin;
    let before = margin(&limits);
    for _ in 0..20 {
        refused(limits.take(&request("app", 10, 10)));
    }
    assert_eq!(margin(&limits), before);
    for _ in 0..3 {
        refused(limits.reserve(&request("app", 10, 10), in_a_minute(), None).await.expect("in time"));
    }
    assert!(margin(&limits) > before, "a refusal of one that should have fit enlarges it");
}
