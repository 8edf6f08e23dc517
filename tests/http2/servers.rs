//! What apps see of HTTP/2 upstreams, working and failing.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::kit::{Upstream, chat, chats, counts, many_chats, send, start};

const CHAT: &str = "/openai/v1/chat/completions";

/// The last frame of a stream.
fn last_frame(body: &[u8]) -> Value {
    let text = std::str::from_utf8(body).expect("text");
    let frame = text.trim_end().rsplit("\n\n").next().and_then(|frame| frame.strip_prefix("data: "));
    serde_json::from_str(frame.expect("a frame")).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_share_one_connection() {
    let upstream = Upstream::node("plain").await;
    let shield = upstream.shield();
    for response in chats(shield.app, 50).await {
        assert_eq!((response.status, response.attempts()), (StatusCode::OK, "1"));
        assert_eq!(response.json()["usage"]["total_tokens"], 2);
    }
    let stream = send(shield.app, CHAT, &chat(true)).await;
    assert!(stream.body.ends_with(b"data: [DONE]\n\n"), "{stream:?}");
    let counts = counts(shield.app).await;
    assert_eq!((&counts["requests"], &counts["connections"]), (&json!(51), &json!(1)));
    assert!(counts["most"].as_u64().is_some_and(|most| most > 10), "not at once: {counts}");
    shield.drained().await;
}

/// Node allows any number of streams.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_at_once() {
    let upstream = Upstream::node("plain").await;
    let shield = upstream.shield();
    let statuses = many_chats(shield.app, 1000).await;
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::OK).count(), 1000);
    let counts = counts(shield.app).await;
    assert_eq!(counts["requests"], 1000);
    assert!(counts["connections"].as_u64().is_some_and(|connections| connections <= 10), "{counts}");
    shield.drained().await;
}

/// hypercorn allows a hundred streams on a connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_at_once_where_a_connection_allows_a_hundred() {
    let upstream = Upstream::hypercorn("h2").await;
    let shield = upstream.shield();
    let statuses = many_chats(shield.app, 1000).await;
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::OK).count(), 1000);
    assert_eq!(counts(shield.app).await, json!({"2": 1000}));
    let stream = send(shield.app, CHAT, &chat(true)).await;
    assert!(stream.body.ends_with(b"data: [DONE]\n\n"), "{stream:?}");
    shield.drained().await;
}

/// Streams up to its last id are served, those above go to another connection, and none of them counts as a retry.
#[tokio::test(flavor = "multi_thread")]
async fn a_goaway_in_mid_flight_costs_no_request() {
    let upstream = Upstream::node("goaway").await;
    let shield = upstream.shield();
    for response in chats(shield.app, 6).await {
        assert_eq!((response.status, response.attempts()), (StatusCode::OK, "1"), "{response:?}");
    }
    let counts = counts(shield.app).await;
    assert_eq!((&counts["requests"], &counts["connections"]), (&json!(6), &json!(2)));
    shield.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_stream_is_sent_again_and_does_not_count_as_a_retry() {
    let upstream = Upstream::node("refused").await;
    let shield = upstream.shield();
    for response in chats(shield.app, 4).await {
        assert_eq!((response.status, response.attempts()), (StatusCode::OK, "1"), "{response:?}");
    }
    let counts = counts(shield.app).await;
    assert_eq!((&counts["requests"], &counts["refused"]), (&json!(4), &json!(2)));
    shield.drained().await;
}

/// Also with `NO_ERROR`: a reset stream is not complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_within_a_stream_ends_it_in_an_error_frame() {
    for mode in ["reset", "early-end"] {
        let upstream = Upstream::node(mode).await;
        let shield = upstream.shield();
        let stream = send(shield.app, CHAT, &chat(true)).await;
        assert_eq!(stream.status, StatusCode::OK);
        assert!(stream.body.starts_with(b"data: {"), "{stream:?}");
        let error = &last_frame(&stream.body)["error"];
        assert_eq!((&error["code"], &error["status_code"]), (&json!("upstream_closed"), &json!(502)), "{mode}: {stream:?}");
        shield.drained().await;
    }
}

/// The upstream never opens the window. Requests without a body are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_flow_control_window_that_stays_closed_is_a_timeout() {
    let upstream = Upstream::node("shut").await;
    let mut settings = upstream.settings();
    settings.upstream.response_timeout = Duration::from_secs(1);
    settings.retry.attempts = 1;
    let shield = start(settings);
    let begun = Instant::now();
    let app = shield.app;
    let stuck = tokio::spawn(async move { chats(app, 10).await });
    assert!(counts(shield.app).await.is_object());
    for response in stuck.await.expect("no panic") {
        assert_eq!(response.status, StatusCode::BAD_GATEWAY);
        assert_eq!(response.json()["error"]["code"], "upstream_timeout");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let counts = counts(shield.app).await;
    assert_eq!(counts["cancelled"], 10);
    // One on which a request has timed out takes no more of them; until an answer has come, the limiter sends one after another.
    let connections = counts["connections"].as_u64().expect("a number");
    assert!((2..=4).contains(&connections), "{connections}");
    shield.drained().await;
}

/// Requests in flight may have been processed: the retry policy decides.
#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_on_a_broken_connection_are_retried() {
    let upstream = Upstream::node("crash").await;
    let shield = upstream.shield();
    assert_eq!(send(shield.app, CHAT, &chat(false)).await.attempts(), "1");
    let retried = send(shield.app, CHAT, &chat(false)).await;
    assert_eq!((retried.status, retried.attempts()), (StatusCode::OK, "2"));
    let later = send(shield.app, CHAT, &chat(false)).await;
    assert_eq!((later.status, later.attempts()), (StatusCode::OK, "1"));
    assert_eq!(counts(shield.app).await["connections"], 2);
    shield.drained().await;
}

/// The upstream must stop generating. The connection stays open for others.
#[tokio::test(flavor = "multi_thread")]
async fn a_disconnected_app_cancels_its_stream() {
    let upstream = Upstream::node("endless").await;
    let shield = upstream.shield();
    for _ in 0..3 {
        assert!(timeout(Duration::from_millis(500), send(shield.app, CHAT, &chat(true))).await.is_err());
    }
    let begun = Instant::now();
    while counts(shield.app).await["cancelled"] != 3 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", counts(shield.app).await);
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(counts(shield.app).await["connections"], 1);
    shield.drained().await;
}

/// The first burst must not be serialized until the protocol is known.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_http2_gets_http1() {
    let upstream = Upstream::node("http1").await;
    let shield = upstream.shield();
    let begun = Instant::now();
    for response in chats(shield.app, 64).await {
        assert_eq!((response.status, response.attempts()), (StatusCode::OK, "1"), "{response:?}");
        assert_eq!(response.json()["version"], "1.1");
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "64 × 0.2 s: {:?}", begun.elapsed());
    shield.drained().await;
    let hypercorn = Upstream::hypercorn("http1").await;
    let shield = hypercorn.shield();
    assert!(chats(shield.app, 8).await.iter().all(|response| response.status == StatusCode::OK));
    assert_eq!(counts(shield.app).await, json!({"1.1": 8}));
    shield.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_not_offered_when_disabled() {
    let upstream = Upstream::hypercorn("h2").await;
    let mut settings = upstream.settings();
    settings.upstream.http2 = false;
    let shield = start(settings);
    assert!(chats(shield.app, 8).await.iter().all(|response| response.status == StatusCode::OK));
    assert_eq!(counts(shield.app).await, json!({"1.1": 8}));
    shield.drained().await;
}
