//! Budgets and caps of apps: in one process, after a restart, and with replicas that share a Redis.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Method;
use http_body_util::Full;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use groq_limiter::Limiters;
use groq_shield::accounts::{Amounts, Budget, Period, SharedLedger, Unit};

use crate::{
    client::{Answer, Client},
    kit::{self, LONG_TIMEOUT, Redis},
    outages::{Outage, Scene, TIMEOUT},
    process::{Process, Shield, Simulator},
};

const MODEL: &str = "openai/gpt-oss-20b";
const BUDGET: u64 = 10_000;
const CLIENTS: usize = 50;
/// Time by which the end of a request has been reported to the store.
const REPORTED: Duration = Duration::from_millis(200);

/// A successful request.
struct Served {
    start: Instant,
    end: Instant,
    tokens: u64,
}

async fn ask(client: Client, app: &str, wish: &str) -> Answer {
    let body = json!({
        "model": MODEL, "max_completion_tokens": 1000,
        "messages": [{"role": "user", "content": format!("Tell me a story, please. [[sim {wish}]]")}],
    });
    let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
    client.send(request.header("x-shield-app", app).body(Full::from(body.to_string())).expect("a valid request")).await
}

/// Runs closed-loop clients until the budget is spent. Returns the successful requests.
async fn spend(processes: &[&Process], clients: usize) -> Vec<Served> {
    let mut tasks = JoinSet::new();
    for n in 0..clients {
        let client = processes[n % processes.len()].client();
        tasks.spawn(async move {
            let mut served = Vec::new();
            loop {
                let start = Instant::now();
                let answer = ask(client, "a", "completion=10 head_ms=300").await;
                if answer.status != 200 {
                    assert_eq!(
                        (answer.status.as_u16(), answer.code().as_str()),
                        (429, "app_budget_exceeded"),
                        "{}",
                        answer.text()
                    );
                    return served;
                }
                let tokens = answer.json()["usage"]["total_tokens"].as_u64().expect("a number");
                served.push(Served { start, end: Instant::now(), tokens });
            }
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// Checks that the budget is spent, and exceeded at most by the requests in flight when the last one was admitted.
fn check(what: &str, served: &[Served]) {
    let used: u64 = served.iter().map(|one| one.tokens).sum();
    let last = served.iter().map(|one| one.start).max().expect("some are served");
    let in_flight: u64 = served.iter().filter(|one| one.end + REPORTED >= last).map(|one| one.tokens).sum();
    println!("{what}: {used} of {BUDGET} tokens by {} requests, {in_flight} were in flight at the last one", served.len());
    assert!(used >= BUDGET && in_flight < used, "{what}: {used} used, {in_flight} in flight");
    assert!(used <= BUDGET + in_flight, "{what}: {used} used, {in_flight} in flight");
}

/// The used tokens of the budget, according to the metrics of a process.
async fn used(process: &Process) -> u64 {
    let metrics = Client::new(process.admin()).plain("/metrics", None).await.text();
    let line =
        metrics.lines().find_map(|line| line.strip_prefix(r#"groq_shield_app_budget_used{app="a",budget="tokens_per_day"} "#));
    line.map_or(0, |number| number.parse::<f64>().expect("a number") as u64)
}

async fn until_used(process: &Process, tokens: u64) {
    let start = Instant::now();
    while used(process).await != tokens {
        assert!(start.elapsed() < Duration::from_secs(20), "{} of {tokens} are used", used(process).await);
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the ledger is saved, which is begun once a second and takes several seconds on a busy disk.
async fn until_saved(file: &Path) {
    let (start, mut idle) = (Instant::now(), 0);
    while idle < 30 {
        assert!(start.elapsed() < Duration::from_secs(30), "the ledger is not saved");
        sleep(Duration::from_millis(100)).await;
        idle = if file.with_extension("apps.new").exists() { 0 } else { idle + 1 };
    }
}

/// Waits until after midnight if it is near, because budgets are reset when a day ends.
async fn avoid_midnight() {
    const DAY: u64 = 86_400;
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    if now % DAY > DAY - 100 {
        sleep(Duration::from_secs(DAY - now % DAY + 1)).await;
    }
}

const APP: &str = "[limits]\nplan = \"none\"\n[[app]]\nname = \"a\"\ntokens_per_day = 10000\n";

fn shared(redis: &Redis) -> String {
    let timeout = LONG_TIMEOUT.as_millis();
    format!("{APP}[store]\nkind = \"redis\"\nurl = \"{}\"\ntimeout = \"{timeout}ms\"\nreplicas = 2\n", redis.url())
}

/// Waits until the store of every shield is degraded or available.
async fn until(degraded: bool, shields: &[&Shield]) {
    let start = Instant::now();
    for shield in shields {
        let status = || async { Client::new(shield.process.admin()).plain("/status", None).await.json() };
        while status().await["store"]["degraded"] != degraded
            || !degraded && status().await["store"]["replicas"].as_u64() < Some(shields.len() as u64)
        {
            assert!(start.elapsed() < Duration::from_secs(30), "degraded is still {}:\n{}", !degraded, shield.process.log());
            sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_survives_a_restart() {
    avoid_midnight().await;
    let simulator = Simulator::generous();
    let directory = tempfile::tempdir().expect("a folder");
    let state = format!("state_file = {:?}\n", directory.path().join("limits"));
    let config = APP.replace("plan = \"none\"\n", &format!("plan = \"none\"\n{state}"));
    let mut first = Shield::before(simulator.process.address(), &config);
    let served = spend(&[&first.process], CLIENTS).await;
    check("one process", &served);
    let total: u64 = served.iter().map(|one| one.tokens).sum();
    // The ledger is saved once a second.
    sleep(Duration::from_secs(3)).await;
    first.process.signal(Signal::SIGKILL);
    first.process.ended(Duration::from_secs(5)).await;
    let second = Shield::before(simulator.process.address(), &config);
    assert!(spend(&[&second.process], CLIENTS).await.is_empty(), "the budget is spent");
    assert_eq!(used(&second.process).await, total, "the exact usage has been restored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_budget_survives_a_restart() {
    avoid_midnight().await;
    let (redis, simulator) = (Redis::start(&[]).await, Simulator::generous());
    let shield = || Shield::before(simulator.process.address(), &shared(&redis));
    let (mut first, second) = (shield(), shield());
    until(false, &[&first, &second]).await;
    let served = spend(&[&first.process, &second.process], CLIENTS).await;
    check("two replicas", &served);
    let total: u64 = served.iter().map(|one| one.tokens).sum();
    // Both replicas know each other's usage.
    until_used(&first.process, total).await;
    until_used(&second.process, total).await;
    first.process.signal(Signal::SIGKILL);
    first.process.ended(Duration::from_secs(5)).await;
    let third = shield();
    until(false, &[&second, &third]).await;
    assert!(spend(&[&second.process, &third.process], 4).await.is_empty(), "the budget is spent");
    until_used(&third.process, total).await;
    // App names are not readable in Redis.
    let keys: Vec<String> = redis::from_redis_value(redis.command(&["KEYS", "groq-shield:budgets:*"])).expect("a list");
    assert!(!keys.is_empty() && keys.iter().all(|key| key.len() > 60 && !key.contains("{a}")), "{keys:?}");
    for key in keys {
        let left: i64 = redis::from_redis_value(redis.command(&["TTL", &key])).expect("a number");
        assert!(left > 0, "{key} has no expiry");
    }
}

/// Without Redis each replica may use its share of the remaining budget. When Redis is back, this usage counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_budget_survives_a_redis_that_comes_back_empty() {
    avoid_midnight().await;
    let (mut redis, simulator) = (Redis::start(&[]).await, Simulator::generous());
    let shield = || Shield::before(simulator.process.address(), &shared(&redis));
    let (first, second) = (shield(), shield());
    until(false, &[&first, &second]).await;
    let mut total = 0;
    for process in [&first.process, &second.process] {
        let answer = ask(process.client(), "a", "completion=900 head_ms=1").await;
        total += answer.json()["usage"]["total_tokens"].as_u64().expect("a number");
    }
    until_used(&first.process, total).await;
    until_used(&second.process, total).await;
    redis.kill();
    until(true, &[&first, &second]).await;
    // One client each, so that only one request per replica is in flight.
    let served = spend(&[&first.process], 1).await;
    let alone: u64 = served.iter().map(|one| one.tokens).sum();
    let (share, one) = ((BUDGET - total) / 2, served[0].tokens);
    assert!((share..share + one).contains(&alone), "{alone} of a share of {share}");
    let served = spend(&[&second.process], 1).await;
    total += alone + served.iter().map(|one| one.tokens).sum::<u64>();
    println!("without Redis: {total} of {BUDGET}");
    assert!((BUDGET..BUDGET + 2 * one).contains(&total), "{total}");
    redis.restart().await;
    until(false, &[&first, &second]).await;
    until_used(&first.process, total).await;
    until_used(&second.process, total).await;
    assert!(spend(&[&first.process, &second.process], 2).await.is_empty(), "the budget is spent");
}

/// The usage of a replica without Redis is in its state file. After a restart it is reported when Redis is back, whether Redis has
/// kept its data or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_budget_survives_a_restart_without_redis() {
    avoid_midnight().await;
    for (signal, is_empty) in
        [(Signal::SIGTERM, false), (Signal::SIGKILL, false), (Signal::SIGTERM, true), (Signal::SIGKILL, true)]
    {
        let (mut redis, simulator) = (Redis::start(&[]).await, Simulator::generous());
        let directory = tempfile::tempdir().expect("a folder");
        let state = format!("plan = \"none\"\nstate_file = {:?}\n", directory.path().join("limits"));
        let kept = shared(&redis).replace("plan = \"none\"\n", &state);
        let mut first = Shield::before(simulator.process.address(), &kept);
        let second = Shield::before(simulator.process.address(), &shared(&redis));
        until(false, &[&first, &second]).await;
        let mut total = 0;
        for process in [&first.process, &second.process] {
            let answer = ask(process.client(), "a", "completion=900 head_ms=1").await;
            total += answer.json()["usage"]["total_tokens"].as_u64().expect("a number");
        }
        until_used(&first.process, total).await;
        until_used(&second.process, total).await;
        if is_empty {
            redis.kill();
        } else {
            redis.signal(Signal::SIGSTOP);
        }
        until(true, &[&first, &second]).await;
        let before = total;
        for _ in 0..2 {
            let answer = ask(first.process.client(), "a", "completion=500 head_ms=1").await;
            total += answer.json()["usage"]["total_tokens"].as_u64().expect("a number");
            until_saved(&directory.path().join("limits.apps")).await;
            first.process.signal(signal);
            first.process.ended(Duration::from_secs(15)).await;
            first = Shield::before(simulator.process.address(), &kept);
            assert_eq!(used(&first.process).await, total, "{signal}: from the state file");
        }
        assert!(total > before);
        if is_empty {
            redis.restart().await;
        } else {
            redis.signal(Signal::SIGCONT);
        }
        until(false, &[&first, &second]).await;
        until_used(&second.process, total).await;
        until_used(&first.process, total).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budget_reservations_of_a_killed_replica_are_released() {
    avoid_midnight().await;
    let (redis, simulator) = (Redis::start(&[]).await, Simulator::generous());
    // A budget of requests, because their reservation is exact.
    let config = shared(&redis).replace("tokens_per_day = 10000", "requests_per_day = 5");
    let shield = || Shield::before(simulator.process.address(), &config);
    let (first, second) = (shield(), shield());
    until(false, &[&first, &second]).await;
    let holding: JoinSet<()> = (0..5)
        .map(|_| {
            let client = first.process.client();
            async move { drop(ask(client, "a", "completion=10 head_ms=60000").await) }
        })
        .collect();
    let start = Instant::now();
    while simulator.log().await.len() < 5 {
        assert!(start.elapsed() < Duration::from_secs(20), "the requests have not been sent");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ask(second.process.client(), "a", "completion=10").await.status, 429, "the whole budget is reserved");
    first.process.signal(Signal::SIGKILL);
    drop(holding);
    let killed = Instant::now();
    while ask(second.process.client(), "a", "completion=10").await.status != 200 {
        assert!(killed.elapsed() < Duration::from_secs(40), "still reserved");
        sleep(Duration::from_millis(250)).await;
    }
    println!("back {:?} after the kill", killed.elapsed());
    assert!(killed.elapsed() > Duration::from_secs(5), "reservations are kept for slow replicas");
}

/// A cap of 10 requests per minute applies to all replicas together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_is_shared_by_replicas() {
    let (redis, simulator) = (Redis::start(&[]).await, Simulator::generous());
    let config = shared(&redis).replace("tokens_per_day = 10000", "requests_per_minute = 10") + "[queue]\nmax_wait = \"1s\"\n";
    let shield = || Shield::before(simulator.process.address(), &config);
    let shields = [shield(), shield()];
    until(false, &[&shields[0], &shields[1]]).await;
    // The limiter of a cap is connected to the store after its first request.
    let requests: JoinSet<u16> = (0..40)
        .map(|n| {
            let client = shields[n % 2].process.client();
            async move { ask(client, "a", "completion=1 head_ms=1").await.status.as_u16() }
        })
        .collect();
    let statuses = requests.join_all().await;
    let served = statuses.iter().filter(|&&status| status == 200).count();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    println!("{served} of 10 a minute");
    assert!((8..=12).contains(&served), "{served} served");
}

/// Number of clients of each replica, and the tokens that each request reserves and uses.
const EACH: usize = 10;
const TOKENS: u64 = 100;
const LARGE: Budget = Budget { unit: Unit::Tokens, period: Period::Day, limit: 200_000 };

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

/// Runs two replicas under load during an outage of their Redis. Returns the tokens that they used together, and the usage that each
/// replica knows.
async fn under_load(outage: Outage) -> (Outage, u64, Vec<u64>) {
    let mut scene = Scene::of(outage).await;
    let limits: Vec<Limiters> = (0..2).map(|_| kit::replica(&scene.url(), kit::tokens(1), TIMEOUT)).collect();
    let replicas: Vec<_> = limits.iter().map(|limits| Arc::new(SharedLedger::new(limits.store(), "test"))).collect();
    let syncing: JoinSet<()> = replicas.iter().map(|replica| replica.clone().synchronize()).collect();
    kit::until(false, &limits).await;
    let (used, end) = (Arc::new(AtomicU64::new(0)), Instant::now() + Duration::from_secs(12));
    let mut clients = JoinSet::new();
    for n in 0..2 * EACH {
        let (replica, used) = (replicas[n % 2].clone(), used.clone());
        clients.spawn(async move {
            let amounts = Amounts { requests: 1, tokens: TOKENS, nano_usd: 0 };
            // 40,000 tokens per second in total, so the budget lasts for five seconds, or longer if requests wait for Redis.
            loop {
                sleep(Duration::from_millis(50)).await;
                match replica.reserve(&"a".into(), &[LARGE], amounts, now()).await {
                    Ok(mut permit) => {
                        used.fetch_add(TOKENS, Relaxed);
                        permit.used(amounts);
                    }
                    // Ends when the whole budget is spent, not only this replica's share.
                    Err(_) if Instant::now() > end => break,
                    Err(_) => {}
                }
            }
        });
    }
    sleep(Duration::from_secs(2)).await;
    scene.strike(outage).await;
    if outage.degrades() {
        kit::until(true, &limits).await;
    }
    sleep(Duration::from_secs(1)).await;
    scene.heal(outage).await;
    kit::until(false, &limits).await;
    clients.join_all().await;
    let used = used.load(Relaxed);
    let known = || replicas.iter().map(|replica| replica.ledger().usage("a", now()).day.tokens).collect::<Vec<_>>();
    let start = Instant::now();
    while known() != [used; 2] && start.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(50)).await;
    }
    drop(syncing);
    (outage, used, known())
}

/// All kinds of outages at the same time: the budget is spent but not exceeded, and nothing is counted twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_budget_is_kept_in_every_outage() {
    avoid_midnight().await;
    let scenes: JoinSet<_> = Outage::EVERY.into_iter().map(under_load).collect();
    for (outage, used, known) in scenes.join_all().await {
        println!("{outage:?}: {used} of {}, known {known:?}", LARGE.limit);
        // Requests in flight, and usage that one replica had not yet learned from a store that has lost its data.
        let in_flight = 2 * EACH as u64 * TOKENS;
        assert!((LARGE.limit..=LARGE.limit + 2 * in_flight).contains(&used), "{outage:?}: {used} used");
        assert_eq!(known, [used; 2], "{outage:?}");
    }
}
