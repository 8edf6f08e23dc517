//! A soak test: minutes or hours of mixed faults under three times the load that the limits allow, then a check for leaks.
//!
//! `cargo run --release --example soak -- --minutes 60` needs redis-server. The shield runs in a process of its own in
//! front of the simulated Groq, with its quotas in Redis. Redis is killed twice. The shield's configuration is reloaded every 20
//! seconds, every third time with an invalid one. The exit code is 1 if a request hung, if a response violated the contract, or if
//! anything leaked.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Parser;
use groq_sim::{ExternalTraffic, Pace, Sim};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep},
};

#[path = "../../tests/contract/client.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod client;
mod load;
mod process;
mod redis;
mod shield;
mod tally;

use load::Kind;
use process::ShieldProcess;
use redis::Redis;
use tally::Tally;

// The shield's allocator, so that resident memory is comparable with that of the release binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The limit in requests per minute. Three times as many are sent.
const LIMIT: u64 = 600;
/// Usage of the limits outside of the shield, which causes refusals that the shield cannot prevent.
const EXTERNAL: ExternalTraffic = ExternalTraffic { share: 0.1, tokens: 50 };
/// Number of concurrent clients, a third of each kind.
const CLIENTS: u64 = 99;
/// Interval between reloads of the configuration.
const RELOAD: Duration = Duration::from_secs(20);
/// Duration of an outage of Redis; a twentieth of the run if that is shorter.
const REDIS_OUTAGE: Duration = Duration::from_secs(30);
/// Minutes after which the shield's resident memory is read.
const READINGS: [f64; 3] = [5.0, 30.0, 60.0];

#[derive(Parser)]
struct Arguments {
    /// Duration of the load in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Run as the soak's shield, with this configuration file
    #[arg(long, hide = true)]
    shield: Option<PathBuf>,
}

fn main() -> Result<ExitCode, BoxError> {
    let arguments = Arguments::parse();
    if let Some(config) = arguments.shield {
        return shield::run(config).map(|()| ExitCode::SUCCESS);
    }
    tokio::runtime::Runtime::new()?.block_on(soak(Duration::from_secs_f64(60.0 * arguments.minutes)))
}

/// Every known fault of Groq and the network, each with a probability of 1.5 % per request.
fn faults() -> Vec<groq_sim::Fault> {
    let faults = [
        json!({"action": "status", "status": 500}),
        json!({"action": "status", "status": 503, "retry_after": "1"}),
        json!({"action": "status", "status": 498}),
        json!({"action": "html", "status": 502}),
        json!({"action": "html", "status": 524}),
        json!({"action": "forbidden"}),
        json!({"action": "empty", "status": 503}),
        json!({"action": "untyped", "status": 403}),
        json!({"action": "close"}),
        json!({"action": "close_in_head"}),
        json!({"action": "close_in_body"}),
        json!({"action": "garbage"}),
        json!({"action": "slow_head", "ms": 5}),
        json!({"action": "wrong_length", "by": 7}),
        json!({"action": "not_json"}),
        json!({"action": "truncated_json"}),
        json!({"action": "stall", "ms": 4000}),
        json!({"action": "cut", "after": 2, "half": true}),
        json!({"action": "cut", "after": 0}),
        json!({"action": "stall_stream", "after": 2, "ms": 4000}),
        json!({"action": "no_done"}),
        json!({"action": "error_frame", "after": 2}),
        json!({"action": "error_event", "after": 2}),
        json!({"action": "x_groq_error", "after": 2}),
    ];
    let read = |mut fault: Value| {
        fault["probability"] = json!(0.015);
        serde_json::from_value(fault).expect("as documented")
    };
    faults.into_iter().map(read).collect()
}

/// The shield's configuration file for the reload number `round`, which changes two reloadable settings.
fn configuration(upstream: SocketAddr, redis: &Redis, round: u64) -> String {
    let (max_waiting, attempts) = (60 + round % 2, 4 - round % 2);
    // The key is misspelt on purpose: every third configuration has to be rejected.
    let invalid = if round % 3 == 2 { "max_wiating = 1" } else { "" };
    format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        threads = 2
        drain_timeout = "10s"
        [admin]
        listen = "127.0.0.1:0"
        [upstream]
        base_url = "http://{upstream}"
        response_timeout = "3s"
        idle_timeout = "3s"
        [queue]
        max_wait = "5s"
        max_waiting = {max_waiting}
        max_bytes = "1MiB"
        {invalid}
        [retry]
        attempts = {attempts}
        [breaker]
        open = "500ms"
        [limits]
        plan = "none"
        [limits.model."m"]
        requests_per_minute = {LIMIT}
        [store]
        kind = "redis"
        url = "{}"
        "#,
        redis.url()
    )
}

/// Runs the load for `time` and prints the results.
async fn soak(time: Duration) -> Result<ExitCode, BoxError> {
    let limits = groq_sim::ModelLimits { requests_per_minute: Some(LIMIT), ..Default::default() };
    let pace = Pace { head: Duration::from_millis(100), completion: 40.0, ..Pace::default() };
    let groq = Sim::new(groq_sim::Options {
        plan: groq_sim::Plan::uniform(limits),
        pace,
        faults: faults(),
        external: Some(EXTERNAL),
        ..Default::default()
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let upstream = listener.local_addr()?;
    let serving = tokio::spawn({
        let groq = groq.clone();
        async move { groq.serve(listener).await }
    });
    let mut redis = Redis::start()?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("groq-shield.toml");
    std::fs::write(&config, configuration(upstream, &redis, 0))?;
    let mut shield = ShieldProcess::start(&config)?;

    let (tally, over) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let kind = [Kind::Http1PerRequest, Kind::Http1, Kind::Http2][number as usize % 3];
        clients.spawn(load::client(kind, shield.app, tally.clone(), over.clone()));
    }
    let start = Instant::now();
    let (mut reloads, mut kills, mut readings) = (0, 0, Vec::new());
    let outage = REDIS_OUTAGE.min(time / 20);
    while start.elapsed() < time {
        sleep(Duration::from_secs(1).min(time)).await;
        let (passed, second) = (start.elapsed(), start.elapsed().as_secs());
        if passed.as_secs() / RELOAD.as_secs() > reloads {
            reloads += 1;
            std::fs::write(&config, configuration(upstream, &redis, reloads))?;
            shield.reload()?;
        }
        if kills < 2 && passed > time * (kills + 1) / 3 {
            kills += 1;
            redis.kill()?;
        } else if !redis.runs() && passed > time * kills / 3 + outage {
            redis.restart()?;
        }
        if let Some(&minute) = READINGS.get(readings.len()).filter(|&&minute| passed.as_secs_f64() >= 60.0 * minute - 1.0) {
            readings.push(format!("minute {minute}: {} KiB", shield.resident()?));
        }
        if second % 30 == 0 {
            eprintln!("{second:>5} s  {} sent, {} KiB resident", tally.sent.load(Relaxed), shield.resident()?);
        }
    }
    over.store(true, Relaxed);
    let finished = clients.join_all().await.len();
    readings.push(format!("end: {} KiB", shield.resident()?));

    let left = shield.left()?;
    let stopped = shield.drained()?;
    serving.abort();
    let stats = groq.stats();
    println!(
        "{finished} clients, {:.0} s, {reloads} reloads, Redis killed {kills} times; the upstream saw {} requests, played {} faults, \
         refused {}",
        start.elapsed().as_secs_f64(),
        stats.requests,
        stats.faults,
        stats.refusals()
    );
    // Requests that get a fault before admission use nothing of the limit.
    let used = stats.admitted as f64 / (LIMIT as f64 * start.elapsed().as_secs_f64() / 60.0);
    println!("used of the limit         {:.1} %, and externally up to {:.0} %", 100.0 * used, 100.0 * EXTERNAL.share);
    let is_clean = tally.print();
    println!("store degraded at the end {}", left.degraded);
    println!("leaked tasks              {}", stopped.tasks);
    println!("leaked queue places       {}", left.places);
    println!("leaked connections        {}", left.connections);
    println!("leaked bytes              {}", left.bytes);
    println!("leaked descriptors        {}", stopped.descriptors);
    println!("resident memory           {}", readings.join(", "));
    let leaked = stopped.tasks + left.places + left.connections + left.bytes + stopped.descriptors;
    Ok(if is_clean && leaked == 0 && !left.degraded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
