//! The time until calls fail during an outage of the upstream. `cargo test --test wire outage -- --nocapture` prints the times.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::kit::{Answer, Client, Shield, Simulator};

/// The value of `breaker.open`, which is also the default of `breaker.max_wait`.
const OPEN: Duration = Duration::from_secs(5);
/// Additional time for the attempts, on a busy machine.
const SLACK: Duration = Duration::from_millis(1500);

async fn ask(client: Client) -> (Duration, Answer) {
    let body = json!({"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16});
    let start = Instant::now();
    let answer = client.post("/openai/v1/chat/completions", &body).await;
    (start.elapsed(), answer)
}

/// Opens the breaker, then sends one request, then twelve at once; prints the longest wait of each.
async fn measure(what: &str, upstream: SocketAddr) {
    let shield = Shield::before(upstream, "[limits]\nplan = \"none\"\n");
    let client = shield.process.client();
    let (opening, _) = ask(client).await;
    let (second, _) = ask(client).await;

    let (lone, answer) = ask(client).await;
    assert!(answer.status.is_server_error(), "{what}: {}", answer.text());
    assert_eq!(answer.header("x-should-retry"), "false", "{what}: {:?}", answer.headers);

    let mut asking = JoinSet::new();
    for _ in 0..12 {
        asking.spawn(ask(client));
    }
    let twelve = asking.join_all().await;
    let longest = twelve.iter().map(|(took, _)| *took).max().expect("twelve");
    for (_, answer) in &twelve {
        assert_eq!(answer.header("x-should-retry"), "false", "{what}: {:?}", answer.headers);
    }
    let refused: Vec<_> = twelve.iter().filter(|(_, answer)| answer.code() == "upstream_unavailable").collect();
    assert_eq!(refused.len(), 11, "{what}: one of them is the probe");
    for (_, answer) in refused {
        let after: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!((1..=9).contains(&after), "{what}: the next probe, and some jitter: {after}");
    }
    // Logged after each response has been sent, and read from a pipe: slightly after the client has the response.
    let named = || shield.process.log().lines().filter(|line| line.contains("bound=\"breaker\"")).count();
    let written = async {
        while named() < 12 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(SLACK, written).await.is_ok(), "{what}: the log names the cause:\n{}", shield.process.log());
    println!("{what}: opening {opening:.1?}, then {second:.1?}; lone {lone:.1?}; twelve at once {longest:.1?}");
    assert!(lone <= OPEN + SLACK && longest <= OPEN + SLACK, "{what}: {lone:?} alone, {longest:?} of twelve");
}

/// Nothing listens on the upstream's port.
#[tokio::test]
async fn refused_connections_fail_calls_within_one_breaker_period() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    measure("refused", free).await;
}

#[tokio::test]
async fn responses_with_503_fail_calls_within_one_breaker_period() {
    let simulator = Simulator::generous();
    let down = json!({"error": {"message": "Service unavailable.", "type": "internal_server_error"}});
    simulator.faults(json!([{"action": "status", "status": 503, "body": down}])).await;
    measure("503", simulator.process.address()).await;
}

/// For clients that retry by status: with an open breaker and no max wait, each of their attempts fails at once.
#[tokio::test]
async fn an_open_breaker_fails_calls_at_once_without_a_max_wait() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let config = "[limits]\nplan = \"none\"\n[retry]\nattempts = 1\n[breaker]\nfailures = 1\nmax_wait = \"0s\"\n";
    let shield = Shield::before(free, config);
    assert_eq!(ask(shield.process.client()).await.1.code(), "upstream_unreachable");
    let (took, answer) = ask(shield.process.client()).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "upstream_unavailable"));
    assert!(took < SLACK, "{took:?}");
}
