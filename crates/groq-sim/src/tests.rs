//! The simulator over byte streams, in virtual time.

use std::collections::BTreeMap;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{DuplexStream, duplex};

use super::*;

mod endpoints;
mod faults;
mod generation;
mod http2;

/// The client's end of a new connection.
fn connection(sim: &Sim) -> DuplexStream {
    let (client, server) = duplex(64 << 10);
    let sim = sim.clone();
    tokio::spawn(async move { sim.serve_connection(server).await });
    client
}

async fn send(sim: &Sim, request: http::Request<Full<Bytes>>) -> hyper::Result<http::Response<hyper::body::Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(connection(sim))).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> http::Request<Full<Bytes>> {
    http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "api.groq.com")
        .header("authorization", "Bearer gsk_test")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .expect("a valid request")
}

fn chat(text: &str, more: Value) -> http::Request<Full<Bytes>> {
    let mut body = json!({"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
    request("POST", "/openai/v1/chat/completions", body.to_string())
}

/// Status, headers and body of the response.
async fn answer(sim: &Sim, request: http::Request<Full<Bytes>>) -> (u16, http::HeaderMap, Bytes) {
    let (head, body) = send(sim, request).await.expect("a response").into_parts();
    (head.status.as_u16(), head.headers, body.collect().await.expect("a whole body").to_bytes())
}

async fn answer_json(sim: &Sim, request: http::Request<Full<Bytes>>) -> (u16, Value) {
    let (status, _, body) = answer(sim, request).await;
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test(start_paused = true)]
async fn a_refusal_has_headers_and_is_logged() {
    let limits = ModelLimits {
        requests_per_minute: Some(1),
        requests_per_day: Some(1000),
        tokens_per_minute: Some(8000),
        ..ModelLimits::default()
    };
    let sim = Sim::new(Options { plan: Plan::uniform(limits), pace: Pace::instant(), ..Options::default() });
    assert_eq!(answer(&sim, chat("hello", json!({}))).await.0, 200);
    let (status, headers, body) = answer(&sim, chat("hello", json!({}))).await;
    assert_eq!((status, &headers["retry-after"]), (429, &"60".parse().expect("ascii")));
    assert!(headers.contains_key("x-ratelimit-remaining-requests") && !headers.contains_key("x-ratelimit-remaining-tokens"));
    assert!(String::from_utf8_lossy(&body).contains("on requests per minute (RPM): Limit 1, Used 1, Requested 1."));
    let log = sim.log();
    assert_eq!((log[1].status, log[1].refused, log[1].ended), (Some(429), Some("RPM"), Some("complete")));
    assert_eq!((sim.stats().admitted, sim.stats().refusals()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_free_plan_limits_the_output_of_qwen() {
    let sim = Sim::new(Options { plan: Plan::free(), pace: Pace::instant(), ..Options::default() });
    let cost = |completion: u64| {
        let text = format!("[[sim completion={completion}]]");
        chat(&text, json!({"model": "qwen/qwen3.8-27b", "max_completion_tokens": 1800}))
    };
    let (status, headers, _) = answer(&sim, cost(1300)).await;
    assert_eq!((status, &headers["x-ratelimit-limit-tokens"]), (200, &"8000".parse().expect("ascii")));
    let (status, headers, body) = answer(&sim, cost(60)).await;
    assert_eq!((status, headers.get("retry-after")), (429, None));
    assert!(headers.contains_key("x-ratelimit-remaining-tokens"));
    assert!(String::from_utf8_lossy(&body).contains("(OTPM): Limit 1000, Requested 1300. The request's expected output"));
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert_eq!(answer(&sim, cost(60)).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_organization_by_default() {
    let limits = ModelLimits { requests_per_minute: Some(1), ..ModelLimits::default() };
    let organizations = BTreeMap::from(["gsk_a", "gsk_b"].map(|key| (key.to_owned(), "org_one".to_owned())));
    let sim = Sim::new(Options { plan: Plan::uniform(limits), organizations, pace: Pace::instant(), ..Options::default() });
    for (key, expected) in [("gsk_a", 200), ("gsk_b", 429), ("gsk_c", 200)] {
        let mut request = chat("x", json!({}));
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().expect("ascii"));
        assert_eq!(answer(&sim, request).await.0, expected, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_have_the_captured_bodies() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    let (status, body) = answer_json(&sim, request("GET", "/v1/x", "")).await;
    assert_eq!(status, 404);
    assert_eq!(
        body,
        json!({"error": {"message": "Unknown request URL: GET /v1/x. Please check the URL for typos, or see the docs at https://console.groq.com/docs/",
                         "type": "invalid_request_error", "code": "unknown_url"}})
    );
    for key in ["", "Bearer ", "Bearer bad_key"] {
        let mut request = chat("x", json!({}));
        request.headers_mut().insert("authorization", key.parse().expect("ascii"));
        let expected =
            json!({"error": {"message": "Invalid API Key", "type": "invalid_request_error", "code": "invalid_api_key"}});
        assert_eq!(answer_json(&sim, request).await, (401, expected), "{key}");
    }
    for (body, status, code) in [
        (json!({"model": "m"}), 400, Value::Null),
        (json!({"messages": []}), 400, Value::Null),
        (json!({"model": "nope", "messages": []}), 404, json!("model_not_found")),
        (json!({"model": "decommissioned-1", "messages": []}), 400, json!("model_decommissioned")),
        (json!({"model": "m", "messages": [{"content": "[[sim error=tool_use_failed]]"}]}), 400, json!("tool_use_failed")),
        (json!({"model": "m", "messages": [{"content": "x".repeat(600_000)}]}), 400, json!("context_length_exceeded")),
    ] {
        let (got, answer) = answer_json(&sim, request("POST", "/openai/v1/chat/completions", body.to_string())).await;
        assert_eq!(
            (got, &answer["error"]["code"], &answer["error"]["type"]),
            (status, &code, &json!("invalid_request_error")),
            "{answer}"
        );
    }
    assert_eq!(answer(&sim, request("POST", "/openai/v1/chat/completions", "{\"mod")).await.0, 400);
    assert_eq!(sim.stats().admitted, 1, "only generated responses are charged");
}

#[tokio::test(start_paused = true)]
async fn the_control_paths_report_and_reset() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    answer(&sim, chat("hello", json!({}))).await;
    let (_, log) = answer_json(&sim, request("GET", "/_sim/log", "")).await;
    assert_eq!(
        (&log[0]["method"], &log[0]["target"], &log[0]["status"]),
        (&json!("POST"), &json!("/openai/v1/chat/completions"), &json!(200))
    );
    assert_eq!(answer_json(&sim, request("GET", "/_sim/stats", "")).await.1["admitted"], 1);
    assert_eq!(answer(&sim, request("POST", "/_sim/reset", "")).await.0, 200);
    assert_eq!(answer_json(&sim, request("GET", "/_sim/log", "")).await.1, json!([]));
}

#[tokio::test]
async fn sockets_are_served() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn({
        let sim = sim.clone();
        async move { sim.serve(listener).await }
    });
    let socket = tokio::net::TcpStream::connect(address).await.expect("connects");
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.expect("handshake");
    let open = tokio::spawn(connection);
    for _ in 0..3 {
        sender.ready().await.expect("kept alive");
        let response = sender.send_request(chat("x", json!({}))).await.expect("a response");
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.expect("whole");
    }
    assert_eq!(sim.log().iter().map(|request| request.connection).collect::<Vec<_>>(), [1, 1, 1]);
    serving.abort();
    open.abort();
}
