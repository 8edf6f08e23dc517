//! Requests without `max_completion_tokens` in front of upstreams that reserve nothing, 2048 tokens or a model's maximum for
//! them.

use std::time::Duration;

use http::Method;
use http_body_util::Full;
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use crate::kit::{Client, Shield, Simulator};

const MODEL: &str = "openai/gpt-oss-20b";

/// Starts a simulated Groq with limits that are not configured in the shield.
fn start(limits: &str) -> (Simulator, Shield) {
    let simulator = Simulator::start(&format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\n{limits}"));
    let shield = Shield::before(simulator.process.address(), "[limits]\nplan = \"none\"\n");
    (simulator, shield)
}

/// Sends `count` concurrent requests. Returns their statuses and the time until the last response.
async fn at_once(client: Client, count: usize, content: &str) -> (Vec<u16>, Duration) {
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}]}).to_string();
    let (start, mut requests) = (Instant::now(), JoinSet::new());
    for _ in 0..count {
        let request = client.request(Method::POST, "/openai/v1/chat/completions").header("content-type", "application/json");
        let request = request.body(Full::from(body.clone())).expect("a valid request");
        requests.spawn(async move { client.send(request).await.status.as_u16() });
    }
    (requests.join_all().await, start.elapsed())
}

async fn refusals(simulator: &Simulator) -> usize {
    simulator.log().await.iter().filter(|request| request["status"] != 200).count()
}

const TWO_SECONDS: &str = "hi [[sim completion=10 head_ms=2000]]";

/// Regression: the headers show that a request is charged 38 tokens, so ten concurrent requests fit into 8000.
#[tokio::test(flavor = "multi_thread")]
async fn ten_at_once_are_not_serialized_when_nothing_is_reserved() {
    let (simulator, shield) = start("tokens_per_minute = 8000\n");
    let client = shield.process.client();
    let (statuses, first) = at_once(client, 10, TWO_SECONDS).await;
    assert_eq!(statuses, [200; 10]);
    let (statuses, second) = at_once(client, 10, TWO_SECONDS).await;
    assert_eq!(statuses, [200; 10]);
    assert_eq!(refusals(&simulator).await, 0);
    // The first request is a probe, and the others wait for the head of its response.
    assert!(first < Duration::from_millis(5500), "{first:?}");
    assert!(second < Duration::from_millis(3500), "{second:?}");
}

/// Three requests and the safety margin fit into 8000. Sending all ten would cause refusals.
#[tokio::test(flavor = "multi_thread")]
async fn ten_at_once_are_rarely_refused_when_2048_are_reserved() {
    let (simulator, shield) = start("tokens_per_minute = 8000\nassumed_completion_tokens = 2048\n");
    let client = shield.process.client();
    for _ in 0..2 {
        let (statuses, took) = at_once(client, 10, "hi [[sim completion=10 head_ms=500]]").await;
        assert_eq!(statuses, [200; 10]);
        assert!(took < Duration::from_secs(8), "{took:?}");
    }
    assert!(refusals(&simulator).await <= 1, "{}", refusals(&simulator).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_are_rarely_refused_when_a_models_maximum_is_reserved() {
    let (simulator, shield) = start("tokens_per_minute = 250000\nassumed_completion_tokens = 65536\n");
    let client = shield.process.client();
    for _ in 0..2 {
        let (statuses, took) = at_once(client, 20, "hi [[sim completion=10 head_ms=500]]").await;
        assert_eq!(statuses, [200; 20]);
        assert!(took < Duration::from_secs(8), "{took:?}");
    }
    assert!(refusals(&simulator).await <= 3, "{}", refusals(&simulator).await);
}

/// Regression: 48,000 spaces are 12,000 tokens and are refused with 413. The refusal must only change the cost of that request.
#[tokio::test(flavor = "multi_thread")]
async fn a_413_changes_only_its_own_requests_cost() {
    let (_simulator, shield) = start("tokens_per_minute = 8000\n");
    let client = shield.process.client();
    let (small, large) = ("hi [[sim completion=10 head_ms=100]]", " ".repeat(48_000));
    assert_eq!(at_once(client, 1, small).await.0, [200]);
    assert_eq!(at_once(client, 1, &large).await.0, [413]);
    let (statuses, took) = at_once(client, 6, small).await;
    assert_eq!(statuses, [200; 6]);
    assert!(took < Duration::from_secs(1), "{took:?}");
}
