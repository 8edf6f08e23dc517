//! The lanes as requests see them, in virtual time.

use std::time::Duration;

use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::{
    config::ModelLimits,
    groq::{RateState, RefusalText, Snapshot, Unit},
};

fn limits(model: ModelLimits) -> config::Limits {
    config::Limits { plan: config::Plan::None, default: model, ..config::Limits::default() }
}

fn shield(model: ModelLimits) -> Limits {
    Limits::new(&limits(model), &config::Queue::default())
}

fn ask(app: &str, prompt: u64, ceiling: u64) -> Ask {
    Ask {
        organisation: "org".into(),
        model: "m".into(),
        tier: "on_demand".into(),
        app: app.into(),
        weight: 1.0,
        class: Class::Interactive,
        pool: Pool::Tokens { prompt, ceiling: Some(ceiling) },
        bytes: 100,
        fingerprint: 0,
        client_retry: false,
    }
}

fn per_minute(requests: u64, tokens: u64) -> ModelLimits {
    ModelLimits { requests_per_minute: Some(requests), tokens_per_minute: Some(tokens), ..ModelLimits::default() }
}

/// Ends the cold start: one answered request that used nothing to speak of.
async fn warm(limits: &Limits) {
    let mut first = limits.reserve(&ask("warm", 1, 1), Instant::now(), None).await.expect("the first goes");
    first.sent(Instant::now());
    first.observe(&RateState::default(), Instant::now());
    first.settle(Spent::Nothing, Instant::now());
}

fn in_a_minute() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

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
            let mut reservation = limits.reserve(&ask("app", 10, 10), in_a_minute(), None).await.expect("in time");
            reservation.sent(Instant::now());
            reservation.settle(Spent::Charge, Instant::now());
            start.elapsed()
        }));
    }
    let mut last = Duration::ZERO;
    for (n, one) in running.into_iter().enumerate() {
        let at = one.await.expect("it ran");
        assert!(at >= last, "request {n} went at {at:?}, before its predecessor");
        last = at;
        // Two stay in reserve, then one every two seconds.
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
        held.push(limits.reserve(&ask("app", 10, 10), Instant::now(), None).await.expect("the burst"));
    }
    let soon = Instant::now() + Duration::from_secs(1);
    let before = Instant::now();
    let Err(Refusal::NotInTime { dimension, wait, retry_after }) = limits.reserve(&ask("app", 10, 10), soon, None).await else {
        panic!("it cannot go within a second")
    };
    assert_eq!(Instant::now(), before, "told at once");
    assert_eq!(dimension, Dimension::RPM);
    assert!(wait > Duration::from_secs(1) && wait < Duration::from_millis(2100), "{wait:?}");
    for one in &mut held {
        one.sent(Instant::now());
    }
    for one in held {
        one.settle(Spent::Charge, Instant::now());
    }
    advance(retry_after).await;
    limits.reserve(&ask("app", 10, 10), Instant::now() + Duration::from_secs(1), None).await.expect("as told");
}

#[tokio::test(start_paused = true)]
async fn leaving_the_line_changes_no_level() {
    let limits = shield(per_minute(30, 1_000_000));
    warm(&limits).await;
    let mut held = Vec::new();
    for _ in 0..28 {
        held.push(limits.reserve(&ask("app", 10, 10), Instant::now(), None).await.expect("the burst"));
    }
    let mine = ask("app", 10, 10);
    let impatient = tokio::time::timeout(Duration::from_millis(100), limits.reserve(&mine, in_a_minute(), None));
    assert!(impatient.await.is_err());
    assert_eq!(limits.waiting(), 0);
    // Never sent: everything comes back.
    drop(held);
    let lane = &limits.snapshot()[0];
    assert_eq!(lane.in_flight, 0);
    assert!(lane.dimensions.iter().all(|dimension| dimension.full_in.is_zero()), "{:?}", lane.dimensions);
}

#[tokio::test(start_paused = true)]
async fn a_settled_ceiling_lets_the_next_go_at_once() {
    let limits = shield(per_minute(1000, 10_000));
    warm(&limits).await;
    let mut first = limits.reserve(&ask("app", 100, 6000), in_a_minute(), None).await.expect("fits");
    first.sent(Instant::now());
    let second = tokio::spawn({
        let limits = limits.clone();
        async move { limits.reserve(&ask("app", 100, 6000), in_a_minute(), None).await.map(|r| (r.waited(), r.bound_by().cloned())) }
    });
    sleep(Duration::from_secs(1)).await;
    first.settle(Spent::Tokens { prompt: 100, completion: 50, prompt_total: 100 }, Instant::now());
    let (waited, bound) = second.await.expect("it ran").expect("in time");
    assert_eq!(waited, Duration::from_secs(1));
    assert_eq!(bound, Some(Dimension::TPM));
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_told_so() {
    let limits = shield(per_minute(30, 8000));
    let refusal = limits.reserve(&ask("app", 881, 11_000), in_a_minute(), None).await.expect_err("never");
    assert_eq!(refusal, Refusal::Never { dimension: Dimension::TPM, limit: 8000, asked: 11_881, parts: Some((881, 11_000)) });
    // Exactly the limit: the estimate's own caution must not make it impossible.
    limits.reserve(&ask("app", 1000, 7000), in_a_minute(), None).await.expect("exactly the limit");
}

#[tokio::test(start_paused = true)]
async fn the_line_is_bounded_by_count_and_bytes() {
    let queue = config::Queue { max_waiting: 2, max_bytes: 250, ..config::Queue::default() };
    let limits = Limits::new(&limits_of_one(), &queue);
    warm(&limits).await;
    let _held = limits.reserve(&ask("app", 1, 1), in_a_minute(), None).await.expect("one");
    let waiter = |bytes| {
        let limits = limits.clone();
        tokio::spawn(async move {
            let ask = Ask { bytes, ..ask("app", 1, 1) };
            limits.reserve(&ask, Instant::now() + Duration::from_secs(600), None).await.map(drop)
        })
    };
    let first = waiter(200);
    sleep(Duration::from_millis(1)).await;
    let big = waiter(100).await.expect("it ran");
    assert!(matches!(big, Err(Refusal::Full { .. })), "{big:?}");
    let second = waiter(50);
    sleep(Duration::from_millis(1)).await;
    assert!(matches!(waiter(0).await.expect("it ran"), Err(Refusal::Full { .. })));
    assert_eq!(limits.waiting(), 2);
    first.abort();
    second.abort();
}

fn limits_of_one() -> config::Limits {
    limits(per_minute(1, 100))
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_sends_one_probe_and_learns_from_it() {
    let limits = shield(ModelLimits::default());
    let mut probe = limits.reserve(&ask("app", 10, 100), in_a_minute(), None).await.expect("the probe");
    probe.sent(Instant::now());
    let second = tokio::spawn({
        let limits = limits.clone();
        async move { limits.reserve(&ask("app", 10, 100), in_a_minute(), None).await.map(|r| r.waited()) }
    });
    sleep(Duration::from_millis(300)).await;
    assert!(!second.is_finished());
    let shown = Snapshot { limit: 8000, remaining: 100, reset: Some(Duration::from_millis(59_250)) };
    probe.observe(&RateState { tokens: Some(shown), ..RateState::default() }, Instant::now());
    probe.settle(Spent::Tokens { prompt: 10, completion: 10, prompt_total: 10 }, Instant::now());
    let waited = second.await.expect("it ran").expect("in time");
    assert!(waited > Duration::from_secs(2), "it waits for tokens now: {waited:?}");
    let lane = &limits.snapshot()[0];
    assert_eq!(lane.dimensions[0].limit, 8000);
    assert_eq!(lane.dimensions[0].source, Source::Headers);
}

/// A cold start under a burst: the free plan's table is a guess until the probe's head says otherwise.
#[tokio::test(start_paused = true)]
async fn nobody_is_refused_by_a_guess_and_everybody_by_what_is_known() {
    let limits = shield(ModelLimits { requests_per_minute: Some(30), ..ModelLimits::default() });
    let mut probe = limits.reserve(&ask("app", 10, 100), in_a_minute(), None).await.expect("the probe");
    probe.sent(Instant::now());
    let mut burst = tokio::task::JoinSet::new();
    for _ in 0..89 {
        let limits = limits.clone();
        burst.spawn(async move { (limits.reserve(&ask("app", 10, 100), in_a_minute(), None).await.is_ok(), Instant::now()) });
    }
    sleep(Duration::from_millis(300)).await;
    assert!(burst.try_join_next().is_none(), "all wait for the probe");
    let start = Instant::now();
    probe.observe(&RateState::default(), Instant::now());
    probe.settle(Spent::Tokens { prompt: 10, completion: 10, prompt_total: 10 }, Instant::now());
    let ended = burst.join_all().await;
    let refused: Vec<_> = ended.iter().filter(|(served, _)| !served).map(|(_, at)| at.duration_since(start)).collect();
    assert!((30..45).contains(&refused.len()), "{} refused", refused.len());
    assert!(refused.iter().all(|after| *after < Duration::from_secs(1)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_probe_makes_way() {
    let limits = shield(ModelLimits::default());
    let _lost = limits.reserve(&ask("app", 10, 100), in_a_minute(), None).await.expect("the probe");
    let second = limits.reserve(&ask("app", 10, 100), in_a_minute(), None).await.expect("after two seconds");
    assert_eq!(second.waited(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_teaches_a_hidden_limit() {
    let limits = shield(ModelLimits::default());
    warm(&limits).await;
    let mut sent = limits.reserve(&ask("app", 10, 100), in_a_minute(), None).await.expect("nothing is known");
    sent.sent(Instant::now());
    let text = RefusalText {
        dimension: Some(Dimension::RPM),
        code: Some("RPM".into()),
        unit: Some(Unit::Requests),
        limit: 30,
        used: Some(30),
        requested: 1,
        wait: Some(Duration::from_secs(2)),
    };
    let place = sent.refused(Some(&text), &RateState::default(), None, Instant::now());
    let again = limits.reserve(&ask("app", 10, 100), in_a_minute(), Some(place)).await.expect("in time");
    // The wait of the text, and the standing reserve of two requests, two seconds each.
    let waited = again.waited().as_secs_f64();
    assert!((5.9..=6.1).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_without_words_rests_the_lane() {
    let limits = shield(per_minute(1000, 100_000));
    warm(&limits).await;
    let mut sent = limits.reserve(&ask("app", 10, 100), in_a_minute(), None).await.expect("fits");
    sent.sent(Instant::now());
    let place = sent.refused(None, &RateState::default(), Some(Duration::from_secs(7)), Instant::now());
    let (mine, theirs) = (ask("app", 10, 100), ask("other", 10, 100));
    let again = limits.reserve(&mine, in_a_minute(), Some(place));
    let (again, other) = tokio::join!(again, limits.reserve(&theirs, in_a_minute(), None));
    assert_eq!(again.expect("in time").waited(), Duration::from_secs(7));
    assert_eq!(other.expect("in time").waited(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_clients_own_retry_keeps_its_place() {
    let limits = shield(per_minute(30, 1_000_000));
    warm(&limits).await;
    let mut held = Vec::new();
    for _ in 0..28 {
        held.push(limits.reserve(&ask("app", 10, 10), Instant::now(), None).await.expect("the burst"));
    }
    for one in &mut held {
        one.sent(Instant::now());
    }
    let mine = Ask { fingerprint: 7, ..ask("app", 10, 10) };
    let left = tokio::time::timeout(Duration::from_millis(500), limits.reserve(&mine, in_a_minute(), None)).await;
    assert!(left.is_err(), "the client's own patience was shorter");
    let others: Vec<_> = (0..5)
        .map(|_| {
            let limits = limits.clone();
            tokio::spawn(async move { limits.reserve(&ask("app", 10, 10), in_a_minute(), None).await.map(drop) })
        })
        .collect();
    sleep(Duration::from_millis(500)).await;
    let retry = Ask { client_retry: true, ..mine };
    let back = limits.reserve(&retry, in_a_minute(), None).await.expect("in time");
    assert!(back.waited() <= Duration::from_millis(1100), "it went first: {:?}", back.waited());
    assert!(others.iter().all(|other| !other.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn organisations_never_mix() {
    let limits = shield(per_minute(1, 100));
    warm(&limits).await;
    let _mine = limits.reserve(&ask("app", 1, 1), Instant::now(), None).await.expect("one");
    assert!(limits.reserve(&ask("app", 1, 1), Instant::now(), None).await.is_err());
    let theirs = Ask { organisation: "another".into(), ..ask("app", 1, 1) };
    limits.reserve(&theirs, Instant::now(), None).await.expect("their own lane");
}

#[tokio::test(start_paused = true)]
async fn levels_outlive_the_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let state_file = Some(dir.path().join("levels"));
    let config = config::Limits { state_file, ..limits(per_minute(30, 8000)) };
    let before = Limits::new(&config, &config::Queue::default());
    warm(&before).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut one = before.reserve(&ask("app", 1, 100), in_a_minute(), None).await.expect("fits");
        one.sent(Instant::now());
        held.push(one);
    }
    // Killed with everything in flight: all of it counts as charged.
    before.save_now().expect("saved");
    let after = Limits::new(&config, &config::Queue::default());
    let mut probe = after.reserve(&ask("app", 1, 100), in_a_minute(), None).await.expect("the probe");
    probe.sent(Instant::now());
    probe.observe(&RateState::default(), Instant::now());
    probe.settle(Spent::Nothing, Instant::now());
    let level = |limits: &Limits, n: usize| limits.snapshot()[0].dimensions[n].level;
    assert!((level(&after, 0) - level(&before, 0)).abs() < 1.1, "{} and {}", level(&after, 0), level(&before, 0));
    assert!((level(&after, 1) - level(&before, 1)).abs() < 200.0, "{} and {}", level(&after, 1), level(&before, 1));
}

#[tokio::test(start_paused = true)]
async fn a_torn_state_file_counts_as_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("levels");
    let config = config::Limits { state_file: Some(path.clone()), ..limits(per_minute(30, 8000)) };
    for torn in
        ["", "{\"format\":\"groq-shield levels 1\",\"clean\":tr", "[1,2,3]", "{\"format\":\"other\",\"clean\":true,\"lanes\":[]}"]
    {
        std::fs::write(&path, torn).expect("written");
        let limits = Limits::new(&config, &config::Queue::default());
        warm(&limits).await;
        limits.save_now().expect("and written anew");
    }
}

#[tokio::test(start_paused = true)]
async fn run_saves_what_has_changed_and_wakes_the_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("levels");
    let config = config::Limits { state_file: Some(path.clone()), ..limits(per_minute(1, 8000)) };
    let limits = Limits::new(&config, &config::Queue::default());
    let running = tokio::spawn({
        let limits = limits.clone();
        async move { limits.run().await }
    });
    sleep(Duration::from_secs(3)).await;
    assert!(!path.exists(), "nothing to save yet");
    warm(&limits).await;
    for n in 0..2 {
        let deadline = Instant::now() + Duration::from_secs(100);
        let mut one = limits.reserve(&ask("app", 1, 1), deadline, None).await.expect("in time");
        assert_eq!(one.waited().as_secs(), 60 * n);
        one.sent(Instant::now());
        one.settle(Spent::Charge, Instant::now());
    }
    sleep(Duration::from_secs(2)).await;
    assert!(path.exists());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn models_beyond_ten_thousand_do_not_stay() {
    let limits = Limits::new(&config::Limits::default(), &config::Queue::default());
    for n in 0..20_000 {
        let ask = Ask { model: format!("m{n}").into(), ..ask("app", 10, 10) };
        let mut one = limits.reserve(&ask, in_a_minute(), None).await.expect("nothing is known");
        one.sent(Instant::now());
        let shown = Snapshot { limit: 8000, remaining: 7980, reset: None };
        one.observe(&RateState { tokens: Some(shown), ..RateState::default() }, Instant::now());
        one.settle(Spent::Request, Instant::now());
    }
    assert!(limits.snapshot().len() <= 10_000);
}

#[tokio::test(start_paused = true)]
async fn headroom_is_left_to_others() {
    let config = config::Limits { headroom: 0.5, ..limits(per_minute(30, 1_000_000)) };
    let limits = Limits::new(&config, &config::Queue::default());
    warm(&limits).await;
    let mut sent = 0;
    let end = Instant::now() + Duration::from_secs(60);
    while let Ok(mut one) = limits.reserve(&ask("app", 1, 1), end, None).await {
        one.sent(Instant::now());
        one.settle(Spent::Charge, Instant::now());
        sent += 1;
    }
    // Half of the burst, and half of the minute's refill.
    assert!((26..=30).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn the_plan_follows_the_headers() {
    let limits = Limits::new(&config::Limits::default(), &config::Queue::default());
    let ask = Ask { model: "openai/gpt-oss-20b".into(), ..ask("app", 10, 10) };
    let answered = async |tokens: u64| {
        let mut one = limits.reserve(&ask, in_a_minute(), None).await.expect("fits");
        one.sent(Instant::now());
        let shown = Snapshot { limit: tokens, remaining: tokens - 20, reset: None };
        one.observe(&RateState { tokens: Some(shown), ..RateState::default() }, Instant::now());
        one.settle(Spent::Charge, Instant::now());
        limits.snapshot()[0].dimensions.iter().map(|d| (d.dimension.code.to_string(), d.limit)).collect::<Vec<_>>()
    };
    let row = |rows: &[(&str, u64)]| rows.iter().map(|&(code, limit)| (code.to_owned(), limit)).collect::<Vec<_>>();
    assert_eq!(answered(8000).await, row(&[("RPM", 30), ("RPD", 1000), ("TPM", 8000), ("TPD", 200_000)]));
    assert_eq!(answered(250_000).await, row(&[("RPM", 1000), ("TPM", 250_000)]));
    assert_eq!(answered(60_000).await, row(&[("TPM", 60_000)]), "hidden limits of no plan are forgotten");
}

#[tokio::test(start_paused = true)]
async fn lanes_are_shared_between_runtimes() {
    let limits = shield(per_minute(60, 1_000_000));
    warm(&limits).await;
    let mut held = Vec::new();
    for _ in 0..57 {
        held.push(limits.reserve(&ask("app", 1, 1), in_a_minute(), None).await.expect("the burst"));
    }
    let other = std::thread::spawn({
        let limits = limits.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(async move { limits.reserve(&ask("app", 1, 1), in_a_minute(), None).await.map(drop) })
        }
    });
    while limits.waiting() == 0 && !other.is_finished() {
        std::thread::yield_now();
    }
    drop(held);
    assert!(tokio::task::spawn_blocking(move || other.join().expect("it ran")).await.expect("joined").is_ok());
}
