//! The whole shield, hyper included, between simulated clients, the simulated Groq and a simulated network, in virtual time. A
//! seed decides everything: what clients do, latencies, partitions, connections that are refused, reset or half open, closes that
//! overtake bytes, outages of the store, faults of the upstream, steps of the wall clock, reloads.
//!
//! A failure prints its seed: `SYSTEM_SEED=7 cargo test --test system`. More seeds: `SYSTEM_SEEDS=2000 cargo test --test system`.
#![cfg(all(feature = "demo", feature = "redis"))]

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime},
};

use fastrand::Rng;
use groq_sim::Sim;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

mod client;
mod network;
mod store;
mod world;

use client::{Client, Ends};
use network::{Faults, Network};
use store::{Carried, Redis};
use world::{Wall, balance, settings, shield};

const CLIENTS: usize = 12;
const REQUESTS: usize = 5;
/// About how long the clients are busy.
const SPAN: Duration = Duration::from_secs(40);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    /// Nothing; only latency.
    Calm,
    /// The upstream, both networks, the clients, the clock and the store fail.
    Storm,
}

/// The result of a seed.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    ends: Ends,
    refusals: u64,
    /// Transactions of the store that were answered, and that were lost.
    store: [u64; 2],
    trace: u64,
}

#[test]
fn nothing_is_lost_on_a_healthy_network() {
    let mut good = 0;
    let several = each_seed(Weather::Calm, |life| {
        let Ends { failed, left, broken, .. } = life.ends;
        assert_eq!((failed, left, broken, life.refusals, life.store[1]), (0, 0, 0, 0, 0), "{life:?}");
        assert!(life.store[0] > 0, "{life:?}");
        good += life.ends.good;
    });
    assert!(!several || good > CLIENTS * REQUESTS / 2, "{good} good answers");
}

#[test]
fn nothing_is_lost_when_everything_fails() {
    let (mut all, mut answered, mut lost) = (Ends::default(), 0, 0);
    let several = each_seed(Weather::Storm, |life| {
        assert_eq!(life.refusals, 0, "nobody else spends: {life:?}");
        all.add(&life.ends);
        answered += life.store[0];
        lost += life.store[1];
    });
    println!("{all:?}; the store answered {answered} times and was lost {lost} times");
    // Each of these happens in some seeds.
    if several {
        assert!(answered > 0 && lost > 0, "{answered} and {lost}");
        assert!(all.good > all.sum() / 4 && all.failed > 0 && all.broken > 0 && all.left > 0, "{all:?}");
    }
}

#[test]
fn a_seed_is_reproducible() {
    let redis = Redis::start();
    for seed in 1..=3 {
        for weather in [Weather::Calm, Weather::Storm] {
            assert_eq!(run(weather, seed, &redis), run(weather, seed, &redis), "seed {seed}, {weather:?}");
        }
    }
}

/// 25 seeds, as many as `SYSTEM_SEEDS` says, or the one of `SYSTEM_SEED`; `false`: only one.
fn each_seed(weather: Weather, mut check: impl FnMut(&Run)) -> bool {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("SYSTEM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("SYSTEM_SEEDS").unwrap_or(25),
    };
    let redis = Redis::start();
    for seed in seeds {
        let seed_on_panic = SeedOnPanic(seed);
        check(&run(weather, seed, &redis));
        drop(seed_on_panic);
    }
    number("SYSTEM_SEED").is_none()
}

/// Prints the seed if a check panics.
struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again with SYSTEM_SEED={} cargo test --test system", self.0);
        }
    }
}

fn run(weather: Weather, seed: u64, redis: &Redis) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(run_async(weather, seed, redis.emptied()))
}

fn faults() -> Vec<groq_sim::Fault> {
    let faults = json!([
        {"probability": 0.02, "action": "status", "status": 503},
        {"probability": 0.02, "action": "status", "status": 500},
        {"probability": 0.02, "action": "close"},
        {"probability": 0.02, "action": "close_in_body"},
        {"probability": 0.02, "action": "cut", "after": 2},
        {"probability": 0.02, "action": "html", "status": 502},
        {"probability": 0.02, "action": "go_away"},
        {"probability": 0.02, "action": "refuse_stream"},
        {"probability": 0.02, "action": "stall", "ms": 40_000},
    ]);
    serde_json::from_value(faults).expect("as documented")
}

async fn run_async(weather: Weather, seed: u64, redis: redis::Connection) -> Run {
    fastrand::seed(seed);
    let mut random = Rng::with_seed(seed);
    let storm = weather == Weather::Storm;
    let sim = Sim::new(groq_sim::Options {
        plan: groq_sim::Plan::uniform(groq_sim::ModelLimits {
            requests_per_minute: Some(world::RPM),
            tokens_per_minute: Some(world::TPM),
            ..Default::default()
        }),
        faults: if storm { faults() } else { Vec::new() },
        seed,
        ..Default::default()
    });
    let faults = Faults { refused: 0.03, reset: 0.05, half_open: 0.05, overtaken: 0.1, partitions: 3 };
    let faults = if storm { faults } else { Faults::default() };
    let [to_upstream, to_clients] = [0, 1].map(|_| Network::new(random.fork(), faults, SPAN));
    let wall = Wall::new();
    let (shield, end) = shield(&sim, &to_upstream, &wall, random.bool());
    let outages = if storm { store::outages(&mut random, SPAN) } else { Vec::new() };
    let carried = Carried::default();
    let store = tokio::spawn(store::serve(end, redis, random.fork(), outages, carried.clone()));
    let background = tokio::spawn({
        let shield = shield.clone();
        async move { tokio::join!(shield.limits.run(), shield.caps.run(), shield.upstream.reap_idle()) }
    });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let random = random.fork();
        let client = Client { number, shield: shield.clone(), network: to_clients.clone(), random, leaves: storm };
        clients.spawn(client.run(REQUESTS));
    }
    let began = Instant::now();
    while storm && began.elapsed() < SPAN {
        sleep(Duration::from_secs_f64(SPAN.as_secs_f64() * random.f64() / 3.0)).await;
        wall.step(random.i64(-200_000..200_000));
        let mut settings = settings();
        settings.queue.max_waiting -= random.usize(..10);
        shield.reload(settings);
    }
    let mut ends = Ends::default();
    while let Some(client) = clients.join_next().await {
        ends.add(&client.expect("no client panics"));
        if clients.len() == CLIENTS / 2 {
            shield.shutdown.draining.cancel();
        }
    }
    assert_eq!(ends.sum(), CLIENTS * REQUESTS, "each request has one end: {ends:?}");
    // Until every limit has been refilled, and every timeout of connections has passed.
    sleep(Duration::from_secs(1000)).await;
    balance(&shield, &sim, &wall, (weather == Weather::Calm).then_some(&ends));
    assert_eq!((to_clients.open(), to_upstream.open()), (0, 0), "connections are left");
    background.abort();
    store.abort();
    let mut trace = DefaultHasher::new();
    (to_clients.trace(), to_upstream.trace(), &ends).hash(&mut trace);
    for request in sim.log() {
        (request.at_ms.to_bits(), request.status, request.ended).hash(&mut trace);
    }
    let store = [carried.answered, carried.lost].map(|count| count.load(Relaxed));
    Run { refusals: sim.stats().refusals(), ends, store, trace: trace.finish() }
}

/// The wall clock at the start of every run.
fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}
