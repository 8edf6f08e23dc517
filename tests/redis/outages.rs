//! Without Redis: neither open nor closed, and back when it is back.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::{
    kit::{PATIENT, Redis, Upstream, ask, replica, tokens, until},
    load::flood,
};

const LIMIT: u64 = 600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_and_back_empty() {
    let mut redis = Redis::start(&[]).await;
    let replicas = [(); 2].map(|()| replica(&redis.url(), tokens(LIMIT), PATIENT));
    until(false, &replicas).await;
    let upstream = Upstream::new(LIMIT);
    upstream.take(LIMIT * 9 / 10).expect("it is full");
    let start = Instant::now();
    let (from, end) = (start + Duration::from_secs(3), start + Duration::from_secs(14));
    let outage = async {
        sleep(Duration::from_secs(4)).await;
        redis.kill();
        until(true, &replicas).await;
        sleep(Duration::from_secs(4)).await;
        redis.restart().await;
        until(false, &replicas).await;
    };
    let (tally, ()) = tokio::join!(flood(&replicas, &upstream, 20, from, end), outage);
    let used = tally.used.load(Relaxed) as f64 / (11 * LIMIT / 60) as f64;
    println!("killed and back: {:.1} % used, {tally:?}", 100.0 * used);
    assert!(tally.per_thousand() <= 2.0, "{tally:?}");
    assert!(used > 0.85, "{used}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_there_is_no_reason_to_stand_still() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let alone = replica(&format!("redis://{nowhere}"), tokens(LIMIT), PATIENT);
    let granted = alone.reserve(&ask("a", 10, 10), Instant::now() + Duration::from_secs(5), None).await.expect("granted");
    assert!(granted.waited() < Duration::from_secs(1), "{:?}", granted.waited());
    assert!(alone.store().expect("a store").degraded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_under_load() {
    let redis = Redis::start(&[]).await;
    let replicas = [(); 2].map(|()| replica(&redis.url(), tokens(LIMIT), Duration::from_millis(500)));
    until(false, &replicas).await;
    let upstream = Upstream::new(LIMIT);
    upstream.take(LIMIT * 9 / 10).expect("it is full");
    let start = Instant::now();
    let (from, end) = (start + Duration::from_secs(3), start + Duration::from_secs(12));
    let outage = async {
        sleep(Duration::from_secs(4)).await;
        redis.signal(Signal::SIGSTOP);
        until(true, &replicas).await;
        sleep(Duration::from_secs(3)).await;
        redis.signal(Signal::SIGCONT);
        until(false, &replicas).await;
    };
    let (tally, ()) = tokio::join!(flood(&replicas, &upstream, 20, from, end), outage);
    let used = tally.used.load(Relaxed) as f64 / (9 * LIMIT / 60) as f64;
    println!("paused: {:.1} % used, {tally:?}", 100.0 * used);
    assert!(tally.per_thousand() <= 2.0, "{tally:?}");
    assert!(used > 0.85, "{used}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_no_writes_is_no_store() {
    let (first, second) = (Redis::start(&[]).await, Redis::start(&[]).await);
    let replica = replica(&second.url(), tokens(LIMIT), PATIENT);
    until(false, std::slice::from_ref(&replica)).await;
    second.say(&["REPLICAOF", "127.0.0.1", &first.port().to_string()]);
    until(true, std::slice::from_ref(&replica)).await;
    let granted = replica.reserve(&ask("a", 10, 10), Instant::now() + Duration::from_secs(5), None).await;
    assert!(granted.is_ok(), "{granted:?}");
    second.say(&["REPLICAOF", "NO", "ONE"]);
    until(false, std::slice::from_ref(&replica)).await;
}
