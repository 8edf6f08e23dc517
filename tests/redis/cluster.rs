//! A Redis Cluster of three nodes. Each limiter is in one hash slot, so the loss of a node affects only the limiters on it.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use groq_limiter::{AdmissionError, AdmissionRequest, Limiters};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::{
    kit::{LONG_TIMEOUT, Redis, Upstream, admission, replica, tokens, until},
    load::{flood, with_both},
};

const LIMIT: u64 = 600_000;
const TIMEOUT: Duration = Duration::from_millis(500);

async fn cluster() -> Vec<Redis> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let options = |bus: u16| {
            let bus = bus.to_string();
            let options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", "--cluster-port", &bus];
            options.map(str::to_owned).to_vec()
        };
        nodes.push(Redis::with_second(options).await);
    }
    let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
    for (node, (first, last)) in nodes.iter().zip(slots) {
        node.command(&["CLUSTER", "ADDSLOTSRANGE", first, last]);
    }
    for node in &nodes[1..] {
        nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &node.second_port().to_string()]);
    }
    let agreed = |node: &Redis| {
        let told = node.command_text(&["CLUSTER", "INFO"]);
        told.contains("cluster_state:ok") && told.contains("cluster_known_nodes:3")
    };
    let start = Instant::now();
    while !nodes.iter().all(agreed) {
        assert!(start.elapsed() < Duration::from_secs(30), "the nodes do not find each other");
        sleep(Duration::from_millis(100)).await;
    }
    nodes
}

fn of(model: &str, output_limit: u64) -> AdmissionRequest {
    AdmissionRequest { model: model.into(), ..admission("a", 1, output_limit) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_are_one_store() {
    let nodes = cluster().await;
    let replicas = [(); 2].map(|()| replica(&nodes[0].url(), tokens(1000), LONG_TIMEOUT));
    until(false, &replicas).await;
    // Enough limiters that every node has some.
    for model in 0..12 {
        let ask = of(&format!("model{model}"), 890);
        let soon = Instant::now() + Duration::from_secs(5);
        let mut held = replicas[model % 2].reserve(&ask, soon, None).await.expect("room under the limit");
        held.sent(Instant::now());
        let other = replicas[1 - model % 2].reserve(&ask, soon, None).await;
        assert!(matches!(other, Err(AdmissionError::NotInTime { .. })), "{other:?}");
    }
    assert!(replicas.iter().all(|replica| !replica.store().expect("a store").is_degraded()));
    for node in &nodes {
        assert!(keys(node) > 0, "every node has a limiter");
    }
}

fn keys(node: &Redis) -> i64 {
    redis::from_redis_value(node.command(&["DBSIZE"])).expect("a number")
}

/// A model for each node, whose limiter is on that node.
async fn models(nodes: &[Redis], replica: &Limiters) -> [&'static str; 3] {
    const NAMES: [&str; 24] = [
        "m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9", "m10", "m11", "m12", "m13", "m14", "m15", "m16", "m17",
        "m18", "m19", "m20", "m21", "m22", "m23",
    ];
    let mut found = [None; 3];
    for name in NAMES {
        let before: Vec<i64> = nodes.iter().map(keys).collect();
        let soon = Instant::now() + Duration::from_secs(5);
        drop(replica.reserve(&of(name, 1), soon, None).await.expect("room under the limit"));
        let grown = nodes.iter().zip(before).position(|(node, before)| keys(node) > before).expect("a key somewhere");
        found[grown] = found[grown].or(Some(name));
    }
    found.map(|name| name.expect("a model for every node"))
}

/// Runs load of two replicas on three limiters, one on each node, while the second node fails and recovers.
async fn a_node_is_lost(lose: impl Fn(&mut Redis), bring_back: impl AsyncFn(&mut Redis)) {
    let mut nodes = cluster().await;
    let replicas = [(); 2].map(|()| replica(&nodes[0].url(), tokens(LIMIT), TIMEOUT));
    until(false, &replicas).await;
    let models = models(&nodes, &replicas[0]).await;
    let upstreams = [(); 3].map(|()| Upstream::new(LIMIT));
    for upstream in &upstreams {
        upstream.reserve(LIMIT * 9 / 10).expect("an unused limit");
    }
    let start = Instant::now();
    let (from, end) = (start + Duration::from_secs(3), start + Duration::from_secs(15));
    let load = |limiter: usize| flood(with_both(&replicas), models[limiter], &upstreams[limiter], 10, from, end);
    let events = async {
        sleep(Duration::from_secs(5)).await;
        lose(&mut nodes[1]);
        until(true, &replicas).await;
        sleep(Duration::from_secs(4)).await;
        // The other nodes' limiters are still shared: what one replica reserves, the other cannot. Tested with additional limiters.
        bring_back(&mut nodes[1]).await;
        let back = Instant::now();
        until(false, &replicas).await;
        back.elapsed()
    };
    let (first, lost, third, back) = tokio::join!(load(0), load(1), load(2), events);
    for (tally, its) in [(&first, false), (&lost, true), (&third, false)] {
        let used = tally.used.load(Relaxed) as f64 / (12 * LIMIT / 60) as f64;
        println!("{}: {:.1} % used, {tally:?}, back after {back:?}", if its { "lost" } else { "there" }, 100.0 * used);
        assert!(tally.refused.load(Relaxed) <= u64::from(its), "{tally:?}");
        assert!(used > 0.9, "{used} used");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_affects_only_its_own_limiters() {
    a_node_is_lost(Redis::kill, async |node| node.restart().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_node_affects_only_its_own_limiters() {
    a_node_is_lost(|node| node.signal(Signal::SIGSTOP), async |node| node.signal(Signal::SIGCONT)).await;
}
