//! An outage of the upstream: how soon each call hears of it, measured. `cargo test --test wire outage -- --nocapture` prints it.

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

/// `breaker.open`, and the default of `breaker.max_wait`.
const OPEN: Duration = Duration::from_secs(5);
/// For the attempts themselves, on a busy machine.
const SLACK: Duration = Duration::from_millis(1500);

async fn ask(client: Client) -> (Duration, Answer) {
    let body = json!({"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16});
    let start = Instant::now();
    let answer = client.post("/openai/v1/chat/completions", &body).await;
    (start.elapsed(), answer)
}

/// Opens the breaker, then asks once, then twelve times at once; the longest wait of each.
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
    // Written when each response has been sent, and read from a pipe: a moment after the client has it.
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

/// Nobody listens there.
#[tokio::test]
async fn an_upstream_that_refuses_connections_is_told_within_one_period_of_the_breaker() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    measure("refused", free).await;
}

#[tokio::test]
async fn an_upstream_that_answers_503_is_told_within_one_period_of_the_breaker() {
    let simulator = Simulator::generous();
    let down = json!({"error": {"message": "Service unavailable.", "type": "internal_server_error"}});
    simulator.faults(json!([{"action": "status", "status": 503, "body": down}])).await;
    measure("503", simulator.process.address()).await;
}

/// Each attempt of the official clients, and of those that retry by status, hears of the outage at once where nothing is to be waited for.
#[tokio::test]
async fn without_a_wait_an_open_breaker_is_told_at_once() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let config = "[limits]\nplan = \"none\"\n[retry]\nattempts = 1\n[breaker]\nfailures = 1\nmax_wait = \"0s\"\n";
    let shield = Shield::before(free, config);
    assert_eq!(ask(shield.process.client()).await.1.code(), "upstream_unreachable");
    let (took, answer) = ask(shield.process.client()).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "upstream_unavailable"));
    assert!(took < SLACK, "{took:?}");
}
