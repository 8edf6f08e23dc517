//! A Redis Cluster of three nodes: every lane is one hash slot's, wherever that is.

use std::time::Duration;

use groq_shield::limits::{Ask, Refusal};
use tokio::time::{Instant, sleep};

use crate::kit::{PATIENT, Redis, ask, replica, tokens, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_are_one_store() {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let bus = std::net::TcpListener::bind("127.0.0.1:0").and_then(|bus| bus.local_addr()).expect("a port").port();
        let node = Redis::start(&["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()]).await;
        nodes.push((node, bus));
    }
    let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
    for ((node, _), (first, last)) in nodes.iter().zip(slots) {
        node.say(&["CLUSTER", "ADDSLOTSRANGE", first, last]);
    }
    for (node, bus) in &nodes[1..] {
        nodes[0].0.say(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus.to_string()]);
    }
    let agreed = |node: &Redis| {
        let redis::Value::BulkString(told) = node.say(&["CLUSTER", "INFO"]) else { return false };
        let told = String::from_utf8_lossy(&told).into_owned();
        told.contains("cluster_state:ok") && told.contains("cluster_known_nodes:3")
    };
    let start = Instant::now();
    while !nodes.iter().all(|(node, _)| agreed(node)) {
        assert!(start.elapsed() < Duration::from_secs(30), "the nodes do not find each other");
        sleep(Duration::from_millis(100)).await;
    }
    let replicas = [(); 2].map(|()| replica(&nodes[0].0.url(), tokens(1000), PATIENT));
    until(false, &replicas).await;
    // As many lanes as it takes to meet every node.
    for model in 0..12 {
        let ask = Ask { model: format!("model{model}").into(), ..ask("a", 1, 890) };
        let soon = Instant::now() + Duration::from_secs(5);
        let mut held = replicas[model % 2].reserve(&ask, soon, None).await.expect("a full level");
        held.sent(Instant::now());
        let other = replicas[1 - model % 2].reserve(&ask, soon, None).await;
        assert!(matches!(other, Err(Refusal::NotInTime { .. })), "{other:?}");
    }
    assert!(replicas.iter().all(|replica| !replica.store().expect("a store").degraded));
    for (node, _) in &nodes {
        let redis::Value::Int(keys) = node.say(&["DBSIZE"]) else { panic!("a number") };
        assert!(keys > 0, "a node without a lane");
    }
}
