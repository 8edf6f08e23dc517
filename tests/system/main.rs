//! Deterministic simulation of the whole shield, including hyper, with simulated clients, the simulated Groq and a simulated network
//! in virtual time. A seed determines everything: requests, latencies, partitions, connections that are refused, reset or half open,
//! closes that overtake bytes, outages of the store, faults of the upstream, steps of the wall clock, reloads.
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
/// Time in which the clients are busy, approximately.
const SPAN: Duration = Duration::from_secs(40);

/// The injected faults.
#[derive(Clone, Copy, Debug, PartialEq)]
enum InjectedFaults {
    /// None, only latency.
    None,
    /// Faults of the upstream, both networks, the clients, the clock and the store.
    All,
}

/// The result of a seed.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    ends: Ends,
    refusals: u64,
    /// Transactions of the store that got a reply, and that were lost.
    store: [u64; 2],
    trace: u64,
}

#[test]
fn nothing_is_lost_on_a_healthy_network() {
    let mut good = 0;
    let several = each_seed(InjectedFaults::None, |run| {
        let Ends { failed, left, broken, .. } = run.ends;
        assert_eq!((failed, left, broken, run.refusals, run.store[1]), (0, 0, 0, 0, 0), "{run:?}");
        assert!(run.store[0] > 0, "{run:?}");
        good += run.ends.good;
    });
    assert!(!several || good > CLIENTS * REQUESTS / 2, "{good} good answers");
}

#[test]
fn nothing_is_lost_when_everything_fails() {
    let (mut all, mut answered, mut lost) = (Ends::default(), 0, 0);
    let several = each_seed(InjectedFaults::All, |run| {
        assert_eq!(run.refusals, 0, "there is no external usage: {run:?}");
        all.add(&run.ends);
        answered += run.store[0];
        lost += run.store[1];
    });
    println!("{all:?}; the store answered {answered} times and was lost {lost} times");
    // Each of these outcomes occurs with some seeds.
    if several {
        assert!(answered > 0 && lost > 0, "{answered} and {lost}");
        assert!(all.good > all.sum() / 4 && all.failed > 0 && all.broken > 0 && all.left > 0, "{all:?}");
    }
}

#[test]
fn a_seed_is_reproducible() {
    let redis = Redis::start();
    for seed in 1..=3 {
        for injected in [InjectedFaults::None, InjectedFaults::All] {
            assert_eq!(run(injected, seed, &redis), run(injected, seed, &redis), "seed {seed}, {injected:?}");
        }
    }
}

/// Runs the seed `SYSTEM_SEED`, or else as many seeds as `SYSTEM_SEEDS` says (25 by default). Returns whether there are several.
fn each_seed(injected: InjectedFaults, mut check: impl FnMut(&Run)) -> bool {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("SYSTEM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("SYSTEM_SEEDS").unwrap_or(25),
    };
    let redis = Redis::start();
    for seed in seeds {
        let seed_on_panic = SeedOnPanic(seed);
        check(&run(injected, seed, &redis));
        drop(seed_on_panic);
    }
    number("SYSTEM_SEED").is_none()
}

/// Prints the seed if a check panics.
struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to reproduce: SYSTEM_SEED={} cargo test --test system", self.0);
        }
    }
}

fn run(injected: InjectedFaults, seed: u64, redis: &Redis) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(run_async(injected, seed, redis.emptied()))
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

async fn run_async(injected: InjectedFaults, seed: u64, redis: redis::Connection) -> Run {
    fastrand::seed(seed);
    let mut random = Rng::with_seed(seed);
    let with_faults = injected == InjectedFaults::All;
    let sim = Sim::new(groq_sim::Options {
        plan: groq_sim::Plan::uniform(groq_sim::ModelLimits {
            requests_per_minute: Some(world::RPM),
            tokens_per_minute: Some(world::TPM),
            ..Default::default()
        }),
        faults: if with_faults { faults() } else { Vec::new() },
        seed,
        ..Default::default()
    });
    let faults = Faults { refused: 0.03, reset: 0.05, half_open: 0.05, overtaken: 0.1, partitions: 3 };
    let faults = if with_faults { faults } else { Faults::default() };
    let [to_upstream, to_clients] = [0, 1].map(|_| Network::new(random.fork(), faults, SPAN));
    let wall = Wall::new();
    let (shield, end) = shield(&sim, &to_upstream, &wall, random.bool());
    let outages = if with_faults { store::outages(&mut random, SPAN) } else { Vec::new() };
    let carried = Carried::default();
    let store = tokio::spawn(store::serve(end, redis, random.fork(), outages, carried.clone()));
    let background = tokio::spawn({
        let shield = shield.clone();
        async move { tokio::join!(shield.limits.run(), shield.caps.run(), shield.upstream.reap_idle()) }
    });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let random = random.fork();
        let client = Client { number, shield: shield.clone(), network: to_clients.clone(), random, leaves: with_faults };
        clients.spawn(client.run(REQUESTS));
    }
    let start = Instant::now();
    while with_faults && start.elapsed() < SPAN {
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
    // Long enough for every limit to refill and for every timeout of connections.
    sleep(Duration::from_secs(1000)).await;
    balance(&shield, &sim, &wall, (injected == InjectedFaults::None).then_some(&ends));
    assert_eq!((to_clients.open(), to_upstream.open()), (0, 0), "open connections at the end");
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
