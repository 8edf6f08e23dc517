//! Persistence and eviction: quotas are kept when the process restarts, and limiters are kept while they are of use.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{in_a_minute, per_minute, request, settings, warm};
use crate::{
    ActualUsage, AdmissionRequest, Limiters,
    settings::Settings,
    shared::SharedLimiter,
    types::{Observation, RemoteQuota},
};

/// A hundred thousand limiters must not take more than 400 MB, including their quotas.
#[test]
fn a_limiter_is_one_small_block() {
    assert!(size_of::<SharedLimiter>() + 2 * size_of::<usize>() <= 2048, "{}", size_of::<SharedLimiter>());
}

#[tokio::test(start_paused = true)]
async fn quotas_outlive_the_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let state_file = Some(dir.path().join("state"));
    let config = Settings { state_file, ..settings(per_minute(30, 8000)) };
    let before = Limiters::new(config.clone());
    warm(&before).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut permit = before.reserve(&request("app", 1, 100), in_a_minute(), None).await.expect("fits");
        permit.sent(Instant::now());
        held.push(permit);
    }
    // The process ends with all requests in flight, so all reservations count as used.
    before.close().expect("saved");
    let after = Limiters::new(config.clone());
    let mut probe = after.reserve(&request("app", 1, 100), in_a_minute(), None).await.expect("the probe");
    probe.sent(Instant::now());
    probe.observe(&Observation::default(), Instant::now());
    probe.settle(ActualUsage::Nothing, Instant::now());
    let quota = |limits: &Limiters, n: usize| limits.snapshot()[0].dimensions[n].remaining;
    assert!((quota(&after, 0) - quota(&before, 0)).abs() < 1.1, "{} and {}", quota(&after, 0), quota(&before, 0));
    assert!((quota(&after, 1) - quota(&before, 1)).abs() < 200.0, "{} and {}", quota(&after, 1), quota(&before, 1));
}

#[tokio::test(start_paused = true)]
async fn a_torn_state_file_counts_as_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state");
    let config = Settings { state_file: Some(path.clone()), ..settings(per_minute(30, 8000)) };
    for torn in
        ["", "{\"format\":\"groq-shield limits 2\",\"clean\":tr", "[1,2,3]", "{\"format\":\"other\",\"clean\":true,\"lanes\":[]}"]
    {
        std::fs::write(&path, torn).expect("written");
        let limits = Limiters::new(config.clone());
        warm(&limits).await;
        limits.close().expect("written again");
    }
}

#[tokio::test(start_paused = true)]
async fn run_saves_what_has_changed_and_wakes_the_queue() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state");
    let config = Settings { state_file: Some(path.clone()), ..settings(per_minute(1, 8000)) };
    let limits = Limiters::new(config.clone());
    let running = tokio::spawn({
        let limits = limits.clone();
        async move { limits.run().await }
    });
    sleep(Duration::from_secs(3)).await;
    assert!(!path.exists(), "nothing to save yet");
    warm(&limits).await;
    for n in 0..2 {
        let deadline = Instant::now() + Duration::from_secs(100);
        let mut permit = limits.reserve(&request("app", 1, 1), deadline, None).await.expect("in time");
        assert_eq!(permit.waited().as_secs(), 60 * n);
        permit.sent(Instant::now());
        permit.settle(ActualUsage::Unknown, Instant::now());
    }
    sleep(Duration::from_secs(2)).await;
    assert!(path.exists());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_is_full_again_and_has_learnt_nothing_goes() {
    let limits = Limiters::new(settings(per_minute(30, 8000)));
    let running = tokio::spawn({
        let limits = limits.clone();
        async move { limits.run().await }
    });
    let request = |model: &str| AdmissionRequest { model: model.into(), ..request("app", 10, 10) };
    let _held = limits.reserve(&request("held"), in_a_minute(), None).await.expect("it goes");
    for model in ["plain", "learnt"] {
        let mut permit = limits.reserve(&request(model), in_a_minute(), None).await.expect("it goes");
        permit.sent(Instant::now());
        let shown = RemoteQuota { limit: 8000, remaining: 7980 };
        let tokens = (model == "learnt").then_some(shown);
        permit.observe(&Observation { tokens, ..Observation::default() }, Instant::now());
        permit.settle(ActualUsage::Unknown, Instant::now());
    }
    let there = || limits.snapshot().iter().map(|limiter| limiter.model.to_string()).collect::<Vec<_>>();
    sleep(Duration::from_secs(55)).await;
    assert_eq!(there(), ["held", "learnt", "plain"]);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(there(), ["held", "learnt"]);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn models_beyond_a_hundred_thousand_do_not_stay() {
    let limits = Limiters::new(Settings::default());
    for n in 0..110_000 {
        let request = AdmissionRequest { model: format!("m{n}").into(), ..request("app", 10, 10) };
        let mut permit = limits.reserve(&request, in_a_minute(), None).await.expect("nothing is known");
        permit.sent(Instant::now());
        let shown = RemoteQuota { limit: 8000, remaining: 7980 };
        permit.observe(&Observation { tokens: Some(shown), ..Observation::default() }, Instant::now());
        permit.settle(ActualUsage::Request, Instant::now());
    }
    assert!(limits.snapshot().len() <= 100_000);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_of_a_limiter_that_made_room_is_remembered() {
    let limits = Limiters::new(settings(per_minute(1, 8000)));
    let take = async |request: &AdmissionRequest| {
        let mut permit = limits.reserve(request, Instant::now() + Duration::from_secs(100), None).await.expect("in time");
        permit.sent(Instant::now());
        let waited = permit.waited().as_secs();
        permit.settle(ActualUsage::Unknown, Instant::now());
        waited
    };
    warm(&limits).await;
    let ours = request("app", 1, 1);
    assert_eq!(take(&ours).await, 0);
    let is_there = || limits.snapshot().iter().any(|limiter| *limiter.model == *ours.model);
    let mut others = 0;
    while is_there() {
        // Many between two checks, because each check takes a snapshot of all limiters.
        for _ in 0..20_000 {
            take(&AdmissionRequest { model: format!("m{others}").into(), ..request("app", 10, 10) }).await;
            others += 1;
        }
        assert!(others <= 200_000, "the limiter that was used longest ago is not evicted");
    }
    assert_eq!(take(&ours).await, 60);
}
