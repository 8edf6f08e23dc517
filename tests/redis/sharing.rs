//! Replicas with a Redis share one limit.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use groq_limiter::{
    ActualUsage, AdmissionError, Limiters,
    settings::ModelLimits,
    types::{Dimension, Observation, RemoteQuota, Unit, UpstreamRefusal},
};
use tokio::time::{Instant, sleep};

use crate::{
    kit::{LONG_TIMEOUT, Redis, Upstream, admission, replica, tokens, until},
    load::{flood, with_both},
};

const LIMIT: u64 = 600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_of_one_replica_is_seen_by_another() {
    let redis = Redis::start(&[]).await;
    let [one, two] = [(); 2].map(|()| replica(&redis.url(), tokens(1000), LONG_TIMEOUT));
    until(false, &[one.clone(), two.clone()]).await;
    let soon = || Instant::now() + Duration::from_secs(5);
    let mut held = one.reserve(&admission("a", 1, 890), soon(), None).await.expect("room under the limit");
    held.sent(Instant::now());
    // The second replica has had no response yet: with local quotas it would send the request.
    let refused = two.reserve(&admission("a", 1, 890), soon(), None).await;
    assert!(matches!(refused, Err(AdmissionError::NotInTime { .. })), "{refused:?}");
    let again = admission("a", 1, 890);
    let waits = two.reserve(&again, Instant::now() + Duration::from_secs(100), None);
    let gives = async {
        sleep(Duration::from_millis(300)).await;
        held.settle(ActualUsage::Nothing, Instant::now());
    };
    let (granted, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), waits), gives);
    let granted = granted.expect("what the first gave back is the second's at once").expect("granted");
    assert!(granted.waited() >= Duration::from_millis(250), "{:?}", granted.waited());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_under_three_times_the_load() {
    loaded(2, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_replicas_under_three_times_the_load() {
    loaded(8, 6).await;
}

/// Runs load on `count` replicas and checks that nothing is refused and that more than 90 % of the limit is used.
async fn loaded(count: usize, clients: usize) {
    let redis = Redis::start(&[]).await;
    let replicas: Vec<_> = (0..count).map(|_| replica(&redis.url(), tokens(LIMIT), LONG_TIMEOUT)).collect();
    until(false, &replicas).await;
    let upstream = Upstream::new(LIMIT);
    upstream.reserve(LIMIT * 9 / 10).expect("an unused limit");
    let start = Instant::now();
    let (from, end) = (start + Duration::from_secs(4), start + Duration::from_secs(12));
    let tally = flood(with_both(&replicas), "m", &upstream, clients, from, end).await;
    let possible = 8 * LIMIT / 60;
    let used = tally.used.load(Relaxed) as f64 / possible as f64;
    let calls: u64 = replicas.iter().map(|replica| replica.store().expect("a store").calls()).sum();
    let sent = tally.sent.load(Relaxed);
    println!("{count} replicas: {:.1} % used, {tally:?}, {:.2} calls a request", 100.0 * used, calls as f64 / sent as f64);
    assert_eq!(tally.refused.load(Relaxed), 0, "refused");
    assert!(used > 0.9, "{used}");
    // Both apps always have requests. In each replica's fair queue they may differ by two of the largest requests, which reserve 1000
    // tokens and use 400.
    let [one, two] = [0, 1].map(|app| tally.apps[app].load(Relaxed));
    assert!(one.abs_diff(two) <= 5 * count as u64, "{one} and {two}");
    assert!(calls <= 2 * sent + 10 * count as u64, "{calls} calls for {sent} requests");
}

/// A small limit takes seconds to refill a unit. Waiting replicas forecast this time instead of polling the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_wait_for_a_small_limit_ask_seldom() {
    let redis = Redis::start(&[]).await;
    let model = ModelLimits { requests_per_minute: Some(10), ..tokens(8000) };
    let replicas: Vec<_> = (0..3).map(|_| replica(&redis.url(), model, LONG_TIMEOUT)).collect();
    until(false, &replicas).await;
    let upstream = Upstream::new(1 << 30);
    let start = Instant::now();
    let tally = flood(with_both(&replicas), "m", &upstream, 20, start, start + Duration::from_secs(8)).await;
    let calls: u64 = replicas.iter().map(|replica| replica.store().expect("a store").calls()).sum();
    println!("{tally:?}, {calls} calls");
    // Each of the three asks every 0.4 s while it waits.
    assert!(calls <= 2 * 3 * 8 * 5 / 2 + 4 * tally.sent.load(Relaxed), "{calls} calls, {tally:?}");
}

/// Replicas take turns after each request. An app on one of two replicas gets half of the turns if the other replica only has other
/// apps, and a fair share of that half if its own replica has other apps too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_on_one_of_two_replicas_gets_its_share_of_that_replica() {
    for (apps, least) in [([&[0][..], &[1][..]], 0.45), ([&[0][..], &[0, 1][..]], 0.2)] {
        let redis = Redis::start(&[]).await;
        let replicas = [(); 2].map(|()| replica(&redis.url(), tokens(LIMIT), LONG_TIMEOUT));
        until(false, &replicas).await;
        let upstream = Upstream::new(LIMIT);
        upstream.reserve(LIMIT * 9 / 10).expect("an unused limit");
        let (from, end) = (Instant::now() + Duration::from_secs(1), Instant::now() + Duration::from_secs(7));
        let both = replicas.iter().zip(apps).collect();
        let tally = flood(both, "m", &upstream, 20, from, end).await;
        let [one, two] = [0, 1].map(|app| tally.apps[app].load(Relaxed) as f64);
        println!("{apps:?}: {one} and {two}");
        assert!(two / (one + two) >= least, "{one} and {two}");
        assert_eq!(tally.refused.load(Relaxed), 0, "refused");
    }
}

/// One replica learns from a header that the limit is a tenth of the configured one, from a refusal a limit that is not configured,
/// and the length of responses. The others, which have sent nothing, apply all of this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_learns_of_the_limits_holds_for_the_others() {
    let redis = Redis::start(&[]).await;
    let [one, two] = [(); 2].map(|()| replica(&redis.url(), tokens(10_000), LONG_TIMEOUT));
    until(false, &[one.clone(), two.clone()]).await;
    let soon = || Instant::now() + Duration::from_secs(5);
    // The second replica has a limiter already and learns from an update; the third one learns from its first reply of the store.
    let limit = |replica: &Limiters, code: &str| {
        let limiter = replica.snapshot().into_iter().next();
        let found = limiter.and_then(|limiter| limiter.dimensions.into_iter().find(|quota| quota.dimension.code == code));
        found.map(|quota| quota.limit)
    };
    drop(two.reserve(&admission("a", 1, 1), soon(), None).await.expect("room"));
    let mut first = one.reserve(&admission("a", 1, 10), soon(), None).await.expect("room");
    first.sent(Instant::now());
    let shown = RemoteQuota { limit: 1000, remaining: 989 };
    first.observe(&Observation { tokens: Some(shown), ..Observation::default() }, Instant::now());
    first.settle(ActualUsage::Tokens { prompt: 1, completion: Some(5), prompt_total: 1 }, Instant::now());
    let mut second = one.reserve(&admission("a", 1, 10), soon(), None).await.expect("room");
    second.sent(Instant::now());
    let text = UpstreamRefusal {
        dimension: Some(Dimension::OTPM),
        code: Some("OTPM".into()),
        unit: Some(Unit::OutputTokens),
        limit: 500,
        used: Some(495),
        requested: 10,
        wait: Some(Duration::from_millis(600)),
    };
    second.refused(Some(&text), &Observation::default(), None, Instant::now());
    let third = replica(&redis.url(), tokens(10_000), LONG_TIMEOUT);
    until(false, std::slice::from_ref(&third)).await;
    drop(third.reserve(&admission("a", 1, 1), soon(), None).await.expect("room"));
    let start = Instant::now();
    while [&two, &third].iter().any(|other| limit(other, "TPM") != Some(1000) || limit(other, "OTPM") != Some(500)) {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", [&two, &third].map(|other| other.snapshot()));
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_and_quotas_are_restored_after_a_flush() {
    let redis = Redis::start(&[]).await;
    let replicas = [(); 2].map(|()| replica(&redis.url(), tokens(1000), LONG_TIMEOUT));
    until(false, &replicas).await;
    let soon = || Instant::now() + Duration::from_secs(5);
    let mut held = replicas[0].reserve(&admission("a", 1, 890), soon(), None).await.expect("room under the limit");
    held.sent(Instant::now());
    held.observe(&Observation::default(), Instant::now());
    redis.command(&["FLUSHALL"]);
    redis.command(&["SCRIPT", "FLUSH"]);
    // The first replica's next message restores the record.
    let own = replicas[0].reserve(&admission("a", 1, 890), soon(), None).await;
    assert!(matches!(own, Err(AdmissionError::NotInTime { .. })), "{own:?}");
    held.settle(ActualUsage::Tokens { prompt: 1, completion: Some(880), prompt_total: 1 }, Instant::now());
    sleep(Duration::from_millis(500)).await;
    let other = replicas[1].reserve(&admission("a", 1, 890), soon(), None).await;
    assert!(matches!(other, Err(AdmissionError::NotInTime { .. })), "{other:?}");
    assert!(replicas.iter().all(|replica| !replica.store().expect("a store").is_degraded()));
}
