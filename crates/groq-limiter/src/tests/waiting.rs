//! The order in which requests are granted, and which requests are refused at once.

use std::time::Duration;

use tokio::time::{Instant, advance, sleep};

use super::{in_a_minute, per_minute, request, settings, shield, warm};
use crate::{
    ActualUsage, AdmissionError, AdmissionRequest, Limiters,
    settings::{LimitSettings, Plan, QueueSettings, Settings},
    types::{Dimension, Observation},
};

#[tokio::test(start_paused = true)]
async fn thirty_a_minute_in_order() {
    let limits = shield(per_minute(30, 1_000_000));
    warm(&limits).await;
    let start = Instant::now();
    let mut running = Vec::new();
    for n in 0..50u64 {
        let limits = limits.clone();
        running.push(tokio::spawn(async move {
            sleep(Duration::from_millis(n)).await;
            let mut reservation = limits.reserve(&request("app", 10, 10), in_a_minute(), None).await.expect("in time");
            reservation.sent(Instant::now());
            reservation.observe(&Observation::default(), Instant::now());
            reservation.settle(ActualUsage::Unknown, Instant::now());
            start.elapsed()
        }));
    }
    let mut last = Duration::ZERO;
    for (n, task) in running.into_iter().enumerate() {
        let at = task.await.expect("it ran");
        assert!(at >= last, "request {n} went at {at:?}, before its predecessor");
        last = at;
        // The safety margin is two requests. After the burst, one request is granted every two seconds.
        let earliest = Duration::from_secs(2) * (n as u32).saturating_sub(27);
        assert!(at + Duration::from_millis(1) >= earliest && at <= earliest + Duration::from_millis(60), "{n}: {at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_on_arrival_with_a_true_retry_after() {
    let limits = shield(per_minute(30, 1_000_000));
    warm(&limits).await;
    let mut held = Vec::new();
    for _ in 0..28 {
        held.push(limits.reserve(&request("app", 10, 10), Instant::now(), None).await.expect("the burst"));
    }
    let soon = Instant::now() + Duration::from_secs(1);
    let before = Instant::now();
    let Err(AdmissionError::NotInTime { dimension, wait, retry_after, fitting_max_completion_tokens: None }) =
        limits.reserve(&request("app", 10, 10), soon, None).await
    else {
        panic!("it cannot go within a second")
    };
    assert_eq!(Instant::now(), before, "refused at once");
    assert_eq!(dimension, Dimension::RPM);
    assert!(wait > Duration::from_secs(1) && wait < Duration::from_millis(2100), "{wait:?}");
    for permit in &mut held {
        permit.sent(Instant::now());
        permit.observe(&Observation::default(), Instant::now());
    }
    for permit in held {
        permit.settle(ActualUsage::Unknown, Instant::now());
    }
    advance(retry_after).await;
    limits.reserve(&request("app", 10, 10), Instant::now() + Duration::from_secs(1), None).await.expect("as stated");
}

#[tokio::test(start_paused = true)]
async fn leaving_the_queue_changes_no_quota() {
    let limits = shield(per_minute(30, 1_000_000));
    warm(&limits).await;
    let mut held = Vec::new();
    for _ in 0..28 {
        held.push(limits.reserve(&request("app", 10, 10), Instant::now(), None).await.expect("the burst"));
    }
    let mine = request("app", 10, 10);
    let impatient = tokio::time::timeout(Duration::from_millis(100), limits.reserve(&mine, in_a_minute(), None));
    assert!(impatient.await.is_err());
    assert_eq!(limits.waiting(), 0);
    // They were never sent, so everything is given back.
    drop(held);
    let limiter = &limits.snapshot()[0];
    assert_eq!(limiter.in_flight, 0);
    assert!(limiter.dimensions.iter().all(|dimension| dimension.full_in.is_zero()), "{:?}", limiter.dimensions);
}

#[tokio::test(start_paused = true)]
async fn a_settlement_lets_the_next_request_go_at_once() {
    let limits = shield(per_minute(1000, 10_000));
    warm(&limits).await;
    let mut first = limits.reserve(&request("app", 100, 6000), in_a_minute(), None).await.expect("fits");
    first.sent(Instant::now());
    let second = tokio::spawn({
        let limits = limits.clone();
        async move {
            limits.reserve(&request("app", 100, 6000), in_a_minute(), None).await.map(|r| (r.waited(), r.bound_by().cloned()))
        }
    });
    sleep(Duration::from_secs(1)).await;
    first.settle(ActualUsage::Tokens { prompt: 100, completion: Some(50), prompt_total: 100 }, Instant::now());
    let (waited, bound) = second.await.expect("it ran").expect("in time");
    assert_eq!(waited, Duration::from_secs(1));
    assert_eq!(bound, Some(Dimension::TPM));
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_refused_as_too_large() {
    let limits = shield(per_minute(30, 8000));
    let refusal = limits.reserve(&request("app", 881, 11_000), in_a_minute(), None).await.expect_err("never");
    assert_eq!(
        refusal,
        AdmissionError::TooLarge { dimension: Dimension::TPM, limit: 8000, requested: 11_881, parts: Some((881, 11_000)) }
    );
    // A request of exactly the limit must be possible, although estimates are increased by a margin.
    limits.reserve(&request("app", 1000, 7000), in_a_minute(), None).await.expect("exactly the limit");
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_by_count_and_bytes() {
    let queue = QueueSettings { max_waiting: 2, max_bytes: 250 };
    let limits = Limiters::new(Settings { queue, ..settings(per_minute(1, 100)) });
    warm(&limits).await;
    let _held = limits.reserve(&request("app", 1, 1), in_a_minute(), None).await.expect("one");
    let waiter = |bytes| {
        let limits = limits.clone();
        tokio::spawn(async move {
            let request = AdmissionRequest { bytes, ..request("app", 1, 1) };
            limits.reserve(&request, Instant::now() + Duration::from_secs(600), None).await.map(drop)
        })
    };
    let first = waiter(200);
    sleep(Duration::from_millis(1)).await;
    let big = waiter(100).await.expect("it ran");
    assert!(matches!(big, Err(AdmissionError::QueueFull { .. })), "{big:?}");
    let second = waiter(50);
    sleep(Duration::from_millis(1)).await;
    assert!(matches!(waiter(0).await.expect("it ran"), Err(AdmissionError::QueueFull { .. })));
    assert_eq!(limits.waiting(), 2);
    first.abort();
    second.abort();
}

#[tokio::test(start_paused = true)]
async fn organizations_never_mix() {
    let limits = shield(per_minute(1, 100));
    warm(&limits).await;
    let _mine = limits.reserve(&request("app", 1, 1), Instant::now(), None).await.expect("one");
    assert!(limits.reserve(&request("app", 1, 1), Instant::now(), None).await.is_err());
    let theirs = AdmissionRequest { organization: "another".into(), ..request("app", 1, 1) };
    limits.reserve(&theirs, Instant::now(), None).await.expect("a limiter of its own");
}

#[tokio::test(start_paused = true)]
async fn headroom_is_left_to_others() {
    let limits =
        LimitSettings { plan: Plan::None, headroom: 0.5, default: per_minute(30, 1_000_000), ..LimitSettings::default() };
    let limits = Limiters::new(Settings { limits: limits.into(), ..Settings::default() });
    warm(&limits).await;
    let mut sent = 0;
    let end = Instant::now() + Duration::from_secs(60);
    while let Ok(mut permit) = limits.reserve(&request("app", 1, 1), end, None).await {
        permit.sent(Instant::now());
        permit.settle(ActualUsage::Unknown, Instant::now());
        sent += 1;
    }
    // Half of the burst, and half of what is regained in a minute.
    assert!((26..=30).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn limiters_are_shared_between_runtimes() {
    let limits = shield(per_minute(60, 1_000_000));
    warm(&limits).await;
    let mut held = Vec::new();
    for _ in 0..57 {
        held.push(limits.reserve(&request("app", 1, 1), in_a_minute(), None).await.expect("the burst"));
    }
    let other = std::thread::spawn({
        let limits = limits.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(async move { limits.reserve(&request("app", 1, 1), in_a_minute(), None).await.map(drop) })
        }
    });
    while limits.waiting() == 0 && !other.is_finished() {
        std::thread::yield_now();
    }
    drop(held);
    assert!(tokio::task::spawn_blocking(move || other.join().expect("it ran")).await.expect("joined").is_ok());
}

/// Nothing waits when observing begins. Later requests, when limits are enforced again, were not waiting then.
#[tokio::test(start_paused = true)]
async fn a_release_of_waiting_requests_is_not_for_later_ones() {
    let limits = shield(per_minute(30, 1_000_000));
    warm(&limits).await;
    limits.release_waiting();
    let mut held = Vec::new();
    for _ in 0..28 {
        held.push(limits.reserve(&request("app", 10, 10), Instant::now(), None).await.expect("room"));
    }
    let next = limits.reserve(&request("app", 10, 10), in_a_minute(), None).await.expect("in time");
    assert!(next.waited() > Duration::from_secs(1), "{:?}", next.waited());
}
