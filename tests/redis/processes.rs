//! Several processes of the real binary in front of one simulated Groq.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    kit::Redis,
    outages::{Outage, Scene, TIMEOUT},
    process::{Process, Shield, Simulator},
};

const MODEL: &str = "openai/gpt-oss-20b";
/// Tokens per minute.
const LIMIT: u64 = 450_000;
const LIMITS: &str = "[limits]\nplan = \"none\"\n[limits.model.\"openai/gpt-oss-20b\"]\nrequests_per_minute = 60000\n\
    tokens_per_minute = 450000\n[limits.model.\"llama-3.1-8b-instant\"]\ntokens_per_minute = 100000000\n";
/// Number of clients of all processes. Each request uses about 230 tokens and takes 0.3 s, which is four times the limit in total.
const CLIENTS: usize = 40;

fn body(model: &str, output_limit: u64, wish: &str) -> Value {
    json!({
        "model": model, "max_completion_tokens": output_limit,
        "messages": [{"role": "user", "content": format!("Tell me a story of some length, please. [[sim {wish}]]")}],
    })
}

/// Runs closed-loop clients of one replica until `end`. Returns every status other than 200.
fn flood(process: &Process, clients: usize, end: Instant) -> JoinSet<Vec<u16>> {
    let client = process.client();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        tasks.spawn(async move {
            let mut others = Vec::new();
            let body = body(MODEL, 600, "completion=200 head_ms=60");
            while Instant::now() < end {
                let status = client.post("/openai/v1/chat/completions", &body).await.status.as_u16();
                if status != 200 {
                    others.push(status);
                    sleep(Duration::from_millis(100)).await;
                }
            }
            others
        });
    }
    tasks
}

/// Sends requests that have room under the limits until `end`. Returns the longest wait in the shield.
async fn admitted_at_once(process: &Process, end: Instant) -> Duration {
    let (client, mut longest) = (process.client(), 0);
    while Instant::now() < end {
        let answer =
            client.post("/openai/v1/chat/completions", &body("llama-3.1-8b-instant", 10, "completion=1 head_ms=1")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let waited = answer.headers["x-shield-wait-ms"].to_str().expect("text").parse().expect("a number");
        longest = longest.max(waited);
        sleep(Duration::from_millis(100)).await;
    }
    Duration::from_millis(longest)
}

async fn status(process: &Process) -> Value {
    crate::client::Client::new(process.admin()).plain("/status", None).await.json()
}

/// The simulated Groq's counts: requests received, requests refused, tokens charged.
async fn counted(simulator: &Simulator) -> [f64; 3] {
    let stats = simulator.process.client().plain("/_sim/stats", None).await.json();
    let scopes = stats["scopes"].as_array().expect("scopes");
    let Some(scope) = scopes.iter().find(|scope| scope["model"] == MODEL) else { return [0.0; 3] };
    let refused: f64 = scope["refused"].as_object().expect("a map").values().filter_map(Value::as_f64).sum();
    let (admitted, spent) = (&scope["admitted"], &scope["limits"]["TPM"]["charged"]);
    [admitted.as_f64().expect("a number") + refused, refused, spent.as_f64().expect("a number")]
}

/// Uses most of the limit without the shields.
async fn drain(simulator: &Simulator, pieces: usize) {
    let content = "word ".repeat(80_000);
    for _ in 0..pieces {
        let body = json!({"model": MODEL, "max_completion_tokens": 1, "messages": [{"role": "user", "content": content}]});
        let answer = simulator.process.client().plain("/openai/v1/chat/completions", Some(&body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Waits until the store of every shield is degraded or available, according to status and metrics.
async fn until(degraded: bool, shields: &[Shield]) {
    let start = Instant::now();
    for shield in shields {
        let gauge = format!("\ngroq_shield_store_degraded {}\n", u8::from(degraded));
        loop {
            let metrics = crate::client::Client::new(shield.process.admin()).plain("/metrics", None).await;
            if status(&shield.process).await["store"]["degraded"] == degraded && metrics.text().contains(&gauge) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "degraded is still {}:\n{}", !degraded, shield.process.log());
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn config(url: &str) -> String {
    let (timeout, wait) = (TIMEOUT.as_millis(), "max_wait = \"5s\"");
    format!("{LIMITS}[store]\nkind = \"redis\"\nurl = \"{url}\"\ntimeout = \"{timeout}ms\"\n[queue]\n{wait}\n")
}

fn shields(count: usize, simulator: &Simulator, url: &str) -> Vec<Shield> {
    (0..count).map(|_| Shield::before(simulator.process.address(), &config(url))).collect()
}

/// Seconds of each phase: warm-up, before the outage, during it, after it.
struct Course {
    warm: u64,
    before: u64,
    during: u64,
    after: u64,
}

const SHORT: Course = Course { warm: 3, before: 3, during: 3, after: 4 };
const LONG: Course = Course { warm: 8, before: 12, during: 15, after: 15 };

/// The result of a run.
#[derive(Debug)]
struct Outcome {
    used: f64,
    sent: f64,
    refused: f64,
    back: Duration,
    longest: Duration,
    others: Vec<u16>,
}

/// Runs `count` processes under load during an outage of their Redis.
async fn under_load(count: usize, outage: Option<Outage>, course: &Course) -> Outcome {
    let mut scene = Scene::of(outage.unwrap_or(Outage::Killed)).await;
    let simulator = Simulator::start(LIMITS);
    let shields = shields(count, &simulator, &scene.url());
    until(false, &shields).await;
    drain(&simulator, 4).await;
    let total = course.warm + course.before + course.during + course.after;
    let (start, end) = (Instant::now(), Instant::now() + Duration::from_secs(total));
    let mut floods: Vec<_> = shields.iter().map(|shield| flood(&shield.process, CLIENTS / count, end)).collect();
    let events = async {
        sleep(Duration::from_secs(course.warm)).await;
        let (at, warm) = (Instant::now(), counted(&simulator).await);
        sleep(Duration::from_secs(course.before)).await;
        let mut back = Duration::ZERO;
        if let Some(outage) = outage {
            scene.strike(outage).await;
            let struck = Instant::now();
            if outage.degrades() {
                until(true, &shields).await;
            }
            tokio::time::sleep_until(struck + Duration::from_secs(course.during)).await;
            scene.heal(outage).await;
            let healed = Instant::now();
            until(false, &shields).await;
            back = healed.elapsed();
        }
        tokio::time::sleep_until(start + Duration::from_secs(total)).await;
        let (elapsed, all) = (at.elapsed(), counted(&simulator).await);
        (back, (all[2] - warm[2]) / (elapsed.as_secs_f64() * LIMIT as f64 / 60.0), all)
    };
    let ((back, used, [sent, refused, _]), longest) = tokio::join!(events, admitted_at_once(&shields[0].process, end));
    let mut others = Vec::new();
    for flood in &mut floods {
        while let Some(ended) = flood.join_next().await {
            others.extend(ended.expect("a client"));
        }
    }
    Outcome { used, sent, refused, back, longest, others }
}

fn check(what: &str, outcome: &Outcome, refused: f64, used: f64) {
    println!("{what}: {outcome:?}");
    assert!(outcome.refused <= refused * outcome.sent / 1000.0, "{what}: Groq refused {} of {}", outcome.refused, outcome.sent);
    assert!(outcome.used >= used, "{what}: {} of the limit was used", outcome.used);
    assert!(outcome.back < Duration::from_secs(10), "{what}: back after {:?}", outcome.back);
    assert!(outcome.longest < TIMEOUT + Duration::from_secs(2), "{what}: waited {:?} for Redis", outcome.longest);
    assert!(outcome.others.iter().all(|&status| status == 429), "{what}: {:?}", outcome.others);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes() {
    check("two", &under_load(2, None, &SHORT).await, 0.0, 0.9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_and_redis_is_killed() {
    check("eight", &under_load(8, Some(Outage::Killed), &SHORT).await, 5.0, 0.8);
}

/// Reservations that Groq has released are available to the other replica as soon as Groq's headers show it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_release_the_reservations_of_a_killed_replica() {
    let redis = Redis::start(&[]).await;
    let simulator = Simulator::start(LIMITS);
    let shields = shields(2, &simulator, &redis.url());
    until(false, &shields).await;
    let holding: JoinSet<()> =
        (0..10)
            .map(|_| {
                let client = shields[0].process.client();
                async move {
                    drop(client.post("/openai/v1/chat/completions", &body(MODEL, 9000, "completion=10 head_ms=60000")).await)
                }
            })
            .collect();
    let start = Instant::now();
    while counted(&simulator).await[0] < 10.0 {
        assert!(start.elapsed() < Duration::from_secs(20), "the requests have not been sent");
        sleep(Duration::from_millis(100)).await;
    }
    drain(&simulator, 3).await;
    let end = Instant::now() + Duration::from_secs(24);
    let mut flood = flood(&shields[1].process, CLIENTS, end);
    sleep(Duration::from_secs(6)).await;
    let held = quota(&simulator).await;
    shields[0].process.signal(Signal::SIGKILL);
    drop(holding);
    let killed = Instant::now();
    // Groq ends the ten requests of 9000 tokens, whose client has been killed.
    while simulator.process.client().plain("/_sim/stats", None).await.json()["dropped"] != 10 {
        assert!(killed.elapsed() < Duration::from_secs(20), "the simulated Groq has not ended the requests");
        sleep(Duration::from_millis(20)).await;
    }
    while quota(&simulator).await < held - 20_000.0 {
        assert!(killed.elapsed() < Duration::from_secs(20), "{} of {held} are used", quota(&simulator).await);
        sleep(Duration::from_millis(100)).await;
    }
    println!("{held} in use again after {:?}", killed.elapsed());
    flood.abort_all();
    while flood.join_next().await.is_some() {}
    let [sent, refused, _] = counted(&simulator).await;
    assert!(refused <= 1.0, "{refused} of {sent} were refused");
}

/// Reservations under a limit without headers are released when the other replicas detect that the replica is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reservations_of_a_killed_replica_are_released() {
    let redis = Redis::start(&[]).await;
    let simulator = Simulator::start(LIMITS);
    let daily = config(&redis.url()).replace("450000\n", "450000\ntokens_per_day = 350000\n");
    let shield = || Shield::before(simulator.process.address(), &daily);
    let shields = [(); 2].map(|()| shield());
    until(false, &shields).await;
    let ask = |shield: &Shield, wish: &str| {
        let (client, body) = (shield.process.client(), body(MODEL, 60_000, wish));
        async move { client.post("/openai/v1/chat/completions", &body).await.status.as_u16() }
    };
    let holding: JoinSet<u16> = (0..5).map(|_| ask(&shields[0], "completion=10 head_ms=60000")).collect();
    let start = Instant::now();
    while counted(&simulator).await[0] < 5.0 {
        assert!(start.elapsed() < Duration::from_secs(20), "the requests have not been sent");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ask(&shields[1], "completion=10").await, 429);
    shields[0].process.signal(Signal::SIGKILL);
    drop(holding);
    let killed = Instant::now();
    while ask(&shields[1], "completion=10").await != 200 {
        assert!(killed.elapsed() < Duration::from_secs(30), "still reserved");
        sleep(Duration::from_millis(100)).await;
    }
    println!("back {:?} after the kill", killed.elapsed());
}

/// Used tokens, according to the simulated Groq.
async fn quota(simulator: &Simulator) -> f64 {
    let stats = simulator.process.client().plain("/_sim/stats", None).await.json();
    let scopes = stats["scopes"].as_array().expect("scopes");
    let scope = scopes.iter().find(|scope| scope["model"] == MODEL).expect("it was used");
    scope["limits"]["TPM"]["used"].as_f64().expect("a number")
}

/// Two shields and a Redis, as in `deploy/compose.redis.yaml`. One shield is stopped while a response is in flight. The part of its
/// reservation that was not used is available to the other shield at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_replica_reports_all_its_settlements() {
    let redis = Redis::start(&[]).await;
    let simulator = Simulator::start(LIMITS);
    let deployed = include_str!("../../deploy/compose.redis.toml").replace("redis://redis:6379", &redis.url());
    let environment = [("GROQ_API_KEY", "gsk_groq"), ("APP_TOKEN", "gsk_test")];
    let shield = || Shield::with(simulator.process.address(), &format!("{deployed}\n{LIMITS}"), &environment);
    let mut shields = [(); 2].map(|()| shield());
    until(false, &shields).await;
    let first = shields[0].process.client();
    let answer = tokio::spawn(async move {
        let body = body(MODEL, 400_000, "completion=10 head_ms=1500");
        first.post("/openai/v1/chat/completions", &body).await
    });
    sleep(Duration::from_millis(500)).await;
    shields[0].process.signal(Signal::SIGTERM);
    assert_eq!(answer.await.expect("an answer").status, 200);
    assert!(shields[0].process.ended(Duration::from_secs(20)).await.success());
    let body = body(MODEL, 400_000, "completion=10 head_ms=1");
    let answer = shields[1].process.client().post("/openai/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let waited: u64 = answer.headers["x-shield-wait-ms"].to_str().expect("text").parse().expect("a number");
    assert!(waited < 5000, "{waited} ms");
}

/// `cargo test --test redis -- --ignored --nocapture every_outage_with_two`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes; the tests of every day do the same with replicas in one process"]
async fn every_outage_with_two_processes() {
    every_outage(2, 1.0).await;
}

/// `cargo test --test redis -- --ignored --nocapture every_outage_with_eight`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes; the tests of every day do the same with replicas in one process"]
async fn every_outage_with_eight_processes() {
    every_outage(8, 5.0).await;
}

/// `refused` is the maximum number of refusals per 1000 requests.
async fn every_outage(count: usize, refused: f64) {
    check(&format!("{count}"), &under_load(count, None, &LONG).await, 0.0, 0.97);
    for outage in Outage::EVERY {
        check(&format!("{count}, {outage:?}"), &under_load(count, Some(outage), &LONG).await, refused, 0.9);
    }
}
