//! Shields that forward to each other.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::kit::{Process, Shield, Simulator};

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

fn start(listen: SocketAddr, upstream: SocketAddr) -> Process {
    let (listen, upstream) = (listen.to_string(), format!("http://{upstream}"));
    Process::start(&["--listen", &listen, "--admin", "127.0.0.1:0", "--upstream", &upstream], &[])
}

/// Regression: one GET opened thousands of connections, until there were no descriptors left.
#[tokio::test]
async fn a_loop_of_two_shields_is_refused() {
    let (first, second) = (free(), free());
    let shields = [start(first, second), start(second, first)];
    let answer = shields[0].client().get("/openai/v1/models").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "request_loop"), "{}", answer.text());
    assert_eq!(answer.header("x-should-retry"), "false");
    // Two requests to the first shield, one to the second. The outermost request is logged after its response.
    let requests = |shield: &Process| shield.log().lines().filter(|line| line.contains("endpoint=\"models\"")).count();
    let deadline = Instant::now() + Duration::from_secs(10);
    while requests(&shields[0]) < 2 && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((requests(&shields[0]), requests(&shields[1])), (2, 1), "{}\n{}", shields[0].log(), shields[1].log());
}

#[tokio::test]
async fn a_shield_behind_a_shield_is_no_loop() {
    let simulator = Simulator::generous();
    let behind = Shield::before(simulator.process.address(), "");
    let front = Shield::before(behind.process.address(), "");
    assert_eq!(front.process.client().get("/openai/v1/models").await.status, 200);
    let log = simulator.log().await;
    let via = log[0]["headers"].as_array().expect("a list").iter().filter(|pair| pair[0] == "via").count();
    assert_eq!(via, 2, "{log:?}");
}
