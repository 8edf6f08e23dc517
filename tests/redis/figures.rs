//! Measures the figures of several replicas in docs/figures.md:
//! `cargo test --test redis -- --ignored --nocapture figures`

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use groq_limiter::{
    ActualUsage, Limiters,
    settings::{LimitSettings, Plan, Settings},
    types::Observation,
};
use tokio::time::{Instant, sleep};

use crate::{
    kit::{LONG_TIMEOUT, Redis, Upstream, admission, replica, tokens, until},
    load::{flood, with_both},
};

const LIMIT: u64 = 3_000_000;
/// Seconds of warm-up.
const WARM: u64 = 12;
/// Seconds that are measured.
const MEASURED: u64 = 42;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Store {
    There,
    Released,
    KilledHalfWay,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes seven minutes; the other tests check the same targets with shorter runs"]
async fn figures() {
    println!("| replicas | Redis | used | refused per 1000 | sent | calls per request |\n|---|---|---|---|---|---|");
    for count in [2, 8] {
        for store in [Store::There, Store::Released, Store::KilledHalfWay] {
            loaded(count, store).await;
        }
    }
    latency().await;
}

async fn loaded(count: usize, store: Store) {
    let mut redis = Redis::start(&[]).await;
    let replicas: Vec<_> = (0..count).map(|_| replica(&redis.url(), tokens(LIMIT), LONG_TIMEOUT)).collect();
    until(false, &replicas).await;
    // Every replica knows of all others.
    while replicas.iter().any(|replica| replica.store().is_none_or(|store| store.replicas() as usize != count)) {
        sleep(Duration::from_millis(50)).await;
    }
    if store == Store::Released {
        redis.kill();
        until(true, &replicas).await;
    }
    let upstream = Upstream::new(LIMIT);
    upstream.reserve(LIMIT * 9 / 10).expect("an unused limit");
    let start = Instant::now();
    let (from, end) = (start + Duration::from_secs(WARM), start + Duration::from_secs(WARM + MEASURED));
    let outage = async {
        sleep(Duration::from_secs(WARM + MEASURED / 2)).await;
        if store == Store::KilledHalfWay {
            redis.kill();
        }
    };
    let (tally, ()) = tokio::join!(flood(with_both(&replicas), "m", &upstream, 40 / count, from, end), outage);
    let used = 100.0 * tally.used.load(Relaxed) as f64 / (MEASURED * LIMIT / 60) as f64;
    let calls: u64 = replicas.iter().filter_map(Limiters::store).map(|store| store.calls()).sum();
    let sent = tally.sent.load(Relaxed);
    let per_thousand = tally.per_thousand();
    println!("| {count} | {store:?} | {used:.1} % | {per_thousand:.2} | {sent} | {:.2} |", calls as f64 / sent as f64);
}

/// Prints the time from a request to its grant if the limit has room.
async fn latency() {
    let redis = Redis::start(&[]).await;
    let shared = replica(&redis.url(), tokens(1 << 30), LONG_TIMEOUT);
    until(false, std::slice::from_ref(&shared)).await;
    let limits = LimitSettings { plan: Plan::None, default: tokens(1 << 30), ..LimitSettings::default() };
    let local = Limiters::new(Settings { limits: limits.into(), ..Settings::default() });
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let (mut with, mut without, mut trip) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3000 {
        let at = Instant::now();
        redis::cmd("PING").exec_async(&mut connection).await.expect("a reply");
        trip.push(at.elapsed());
        without.push(once(&local).await);
        with.push(once(&shared).await);
        sleep(Duration::from_millis(2)).await;
    }
    println!("\n| | p50 | p99 |\n|---|---|---|");
    for (what, times) in [("round trip (PING)", &mut trip), ("local", &mut without), ("with Redis", &mut with)] {
        times.sort_unstable();
        let ms = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1000.0;
        println!("| {what} | {:.3} ms | {:.3} ms |", ms(0.5), ms(0.99));
    }
}

async fn once(limits: &Limiters) -> Duration {
    let at = Instant::now();
    let mut granted = limits.reserve(&admission("a", 10, 10), at + Duration::from_secs(5), None).await.expect("room");
    let took = at.elapsed();
    granted.sent(Instant::now());
    granted.observe(&Observation::default(), Instant::now());
    granted.settle(ActualUsage::Tokens { prompt: 10, completion: Some(5), prompt_total: 10 }, Instant::now());
    took
}
