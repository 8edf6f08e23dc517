//! Concurrent streams, clients that disconnect, and limits in real time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Method;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::kit::{Client, Process, Shield, Simulator};

const MODEL: &str = "openai/gpt-oss-20b";
const CHAT: &str = "/openai/v1/chat/completions";

fn chat(content: &str, stream: bool) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 100, "stream": stream})
}

fn post(client: Client, body: &Value) -> http::Request<Full<bytes::Bytes>> {
    let request = client.request(Method::POST, CHAT).header("content-type", "application/json");
    request.body(Full::from(body.to_string())).expect("a valid request")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_at_once_through_serve_simulate() {
    let shield = Process::start(&["serve", "--simulate", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], &[]);
    let client = shield.client();
    let mut streams = JoinSet::new();
    for n in 0..100 {
        streams.spawn(async move { client.send(post(client, &chat(&format!("Stream {n}."), true))).await });
    }
    let answers = streams.join_all().await;
    assert_eq!(answers.len(), 100);
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(!text.contains("\"error\""), "{text}");
    }
}

#[tokio::test]
async fn a_disconnected_client_ends_its_upstream_request_at_once() {
    let simulator = Simulator::generous();
    let shield = Shield::before(simulator.process.address(), "[limits]\nplan = \"none\"\n");
    let client = shield.process.client();
    // Disconnects in the middle of a stream of about twenty seconds, and before a head that takes as long.
    let long = json!({
        "model": MODEL, "stream": true, "max_tokens": 20_000, "messages": [{"role": "user", "content": "[[sim completion=20000 head_ms=1]]"}],
    });
    let slow = json!({"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "[[sim head_ms=20000]]"}]});
    let mut streaming = client.open(post(client, &long)).await;
    assert!(streaming.piece().await.is_some());
    drop(streaming);
    let waiting = tokio::spawn(async move { client.open(post(client, &slow)).await });
    until(Duration::from_secs(10), async || simulator.log().await.len() == 2).await;
    waiting.abort();
    until(Duration::from_secs(5), async || simulator.log().await.iter().all(|request| request["ended"] == "dropped")).await;
}

/// 90 requests within seconds with a limit of 30 per minute: 30 are sent at once, then one every two seconds. Waiting requests are
/// served in order. Those that cannot be served in time are refused at once, with a correct `retry-after`. On a busy machine the
/// first requests reach the simulator late, which must not lead to refusals of later ones.
#[tokio::test(flavor = "multi_thread")]
async fn thirty_a_minute_are_never_refused() {
    let limits =
        format!("[limits]\nplan = \"none\"\n[limits.model.\"{MODEL}\"]\nrequests_per_minute = 30\ntokens_per_minute = 8000\n");
    let simulator = Simulator::start(&limits);
    let shield = Shield::before(simulator.process.address(), &limits);
    let client = shield.process.client();
    let ask = async move |n: u32, max_wait: Duration| {
        let body = chat("Hello. [[sim completion=5 head_ms=5]]", false).to_string();
        let request = client.request(Method::POST, CHAT).header("content-type", "application/json").header("x-number", n);
        let request = request.header("x-shield-max-wait-ms", max_wait.as_millis() as u64);
        client.send(request.body(Full::from(body)).expect("a valid request")).await
    };
    let (admin, ended) = (Client::new(shield.process.admin()), Arc::new(AtomicUsize::new(0)));
    let mut requests = JoinSet::new();
    for n in 0..90 {
        let this_ended = ended.clone();
        requests.spawn(async move {
            let start = Instant::now();
            let answer = ask(n, Duration::from_secs(50)).await;
            this_ended.fetch_add(1, Ordering::SeqCst);
            (n, answer, start.elapsed())
        });
        // The next request is sent when this one is queued or done, so that their order is known on a busy machine.
        until(Duration::from_secs(10), async || {
            let ended = ended.load(Ordering::SeqCst);
            ended + waiting(admin).await > n as usize
        })
        .await;
    }
    let (mut served, mut refused) = (0, 0);
    let mut last = JoinSet::new();
    while let Some(ended) = requests.join_next().await {
        let (n, answer, took) = ended.expect("no request panics");
        if requests.len() == 15 {
            // All others are queued or done by now. Another request is refused, and repeated after its `retry-after`.
            last.spawn(async move {
                let refused = ask(90, Duration::from_secs(5)).await;
                assert_eq!(refused.status, 429, "{}", refused.text());
                let after = refused.header("retry-after-ms").parse().expect("milliseconds");
                tokio::time::sleep(Duration::from_millis(after)).await;
                ask(90, Duration::from_secs(5)).await.status
            });
        }
        if answer.status == 200 {
            served += 1;
            continue;
        }
        refused += 1;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "rate_limit_exceeded"), "{n}: {}", answer.text());
        assert_eq!(answer.json()["error"]["type"], "requests");
        assert!(took < Duration::from_secs(2), "{n} was told after {took:?}");
    }
    println!("{served} served, {refused} refused at once");
    assert_eq!(last.join_all().await, [200], "retry-after was correct");

    let log = simulator.log().await;
    assert!(log.iter().all(|request| request["status"] == 200), "the simulator refused: {log:#?}");
    assert_eq!(log.len(), served + 1);
    // 30 at once and one every two seconds within a max wait of 50 seconds, minus the safety margin.
    assert!((45..=60).contains(&served), "{served} served");
    let number = |request: &Value| -> u32 {
        let headers = request["headers"].as_array().expect("a list").iter();
        let header = headers.clone().find(|pair| pair[0] == "x-number").expect("unknown headers pass");
        header[1].as_str().and_then(|n| n.parse().ok()).expect("a number")
    };
    let waited: Vec<u32> = log.iter().map(number).skip(30).filter(|n| *n != 90).collect();
    assert!(waited.is_sorted(), "in order of arrival: {waited:?}");
}

#[tokio::test]
async fn a_signal_starts_draining_and_health_reports_it() {
    let simulator = Simulator::generous();
    let mut shield = Shield::before(simulator.process.address(), "[limits]\nplan = \"none\"\n");
    let (client, admin) = (shield.process.client(), Client::new(shield.process.admin()));
    assert_eq!(admin.plain("/readyz", None).await.status, 200);
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "[[sim completion=5 head_ms=2000]]"}]});
    let running = tokio::spawn(async move { client.send(post(client, &body)).await });
    until(Duration::from_secs(10), async || simulator.log().await.len() == 1).await;
    shield.process.signal(nix::sys::signal::Signal::SIGTERM);
    let answer = running.await.expect("the request does not panic");
    assert_eq!(answer.status, 200, "requests in flight are finished: {}", answer.text());
    let status = shield.process.ended(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}");
}

/// Number of requests in the queues of all models.
async fn waiting(admin: Client) -> usize {
    let status = admin.plain("/status", None).await.json();
    let queues = status["limiters"].as_array().expect("a list").iter().flat_map(|limiter| limiter["waiting"].as_array());
    queues.flatten().map(|queue| queue["count"].as_u64().expect("a number") as usize).sum()
}

/// Waits until `condition` holds, at most for `limit`.
async fn until(limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "the condition does not hold after {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
