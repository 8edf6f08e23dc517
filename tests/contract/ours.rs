//! The failure table: what the shield refuses by itself.

use std::{sync::Arc, time::Duration};

use groq_shield::{
    config::{App, Digest, ModelLimits, Settings},
    proxy::Shield,
    server::{self, Listeners},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    client::{Answer, KEY, LONGEST_WAIT, PROTOCOLS, Protocol, ask, ask_in, chat, chat_with, request},
    kit::{Kind, Step, Upstream, good, json, start},
};

/// What is expected of an answer: status, type, code, and whether it has `retry-after`.
type Expected = (u16, &'static str, &'static str, bool);

const SERVER: &str = "internal_server_error";
const INVALID: &str = "invalid_request_error";

#[track_caller]
fn check(name: &str, answer: &Answer, (status, kind, code, waits): Expected) {
    let error = answer.error();
    let got = (answer.status, error["type"].as_str(), error["code"].as_str(), answer.header("x-shield-error"));
    assert_eq!(got, (status, Some(kind), Some(code), code), "{name}: {answer:?}");
    assert_eq!(!answer.header("retry-after").is_empty(), waits, "{name}: {answer:?}");
    assert_eq!(answer.faults(), [""; 0], "{name}: {answer:?}");
}

/// Sends `requests` to a shield with these settings over each protocol; the last answer is checked, the others must succeed.
async fn hold(name: &str, settings: impl Fn(&mut Settings), requests: &[String], expected: Expected) -> Answer {
    hold_in(Protocol::Http2, name, &settings, requests, expected).await;
    hold_in(Protocol::Http1, name, settings, requests, expected).await
}

/// The same over one protocol; skipped where the protocol has no such request.
async fn hold_in(
    protocol: Protocol,
    name: &str,
    settings: impl Fn(&mut Settings),
    requests: &[String],
    expected: Expected,
) -> Answer {
    let upstream = Upstream::start(&Kind::Plain(vec![good()])).await;
    let mut base = upstream.settings();
    settings(&mut base);
    let shield = start(base);
    let (last, first) = requests.split_last().expect("one at least");
    for request in first {
        let answer = ask_in(protocol, shield.app, request).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
    }
    let answer = ask_in(protocol, shield.app, last).await;
    check(name, &answer, expected);
    assert_eq!(upstream.seen(), first.len(), "{name}: it went to the upstream");
    shield.end();
    answer
}

#[tokio::test]
async fn every_failure_in_the_contract_requests() {
    let nothing = |_: &mut Settings| {};
    let path = "/openai/v1/chat/completions";
    hold("not JSON", nothing, &[request("POST", path, KEY, "{\"model\":")], (400, INVALID, "invalid_json", false)).await;
    hold("no key", nothing, &[request("POST", path, "", "{}")], (401, INVALID, "invalid_api_key", false)).await;
    let large = request("POST", path, KEY, &"x".repeat(2000));
    hold("too large", |settings| settings.server.max_body = 1000, &[large], (413, INVALID, "request_too_large", false)).await;
    let apps = |settings: &mut Settings| {
        settings.app = vec![App { name: "a".into(), token_sha256: Some(Digest([7; 32])), ..App::default() }];
    };
    hold("unknown token", apps, &[chat()], (401, INVALID, "invalid_api_key", false)).await;
    let refused = (403, INVALID, "destination_not_allowed", false);
    hold("CONNECT", nothing, &["CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: elsewhere.example:443\r\n\r\n".into()], refused)
        .await;
    // Not over HTTP/2: there `:authority` takes the place of Host.
    hold_in(
        Protocol::Http1,
        "another authority",
        nothing,
        &[request("GET", "http://elsewhere.example/openai/v1/models", KEY, "")],
        refused,
    )
    .await;
}

#[tokio::test]
async fn every_failure_in_the_contract_malformed() {
    let malformed = (400, INVALID, "malformed_request", false);
    let head = |more: &str| format!("POST /openai/v1/chat/completions HTTP/1.1\r\nhost: x\r\n{KEY}{more}\r\n");
    for (name, bytes) in [
        ("bytes that are not HTTP", "\x16\x03\x01\x02 hello\r\n\r\n".to_owned()),
        ("a bad request line", "GET\r\n\r\n".into()),
        ("a bad header", head("a b: c\r\n")),
        ("a bad length", head("content-length: -1\r\n")),
        ("CL with TE", head("content-length: 3\r\ntransfer-encoding: chunked\r\n") + "0\r\n\r\n"),
        ("a head too large", head(&format!("x: {}\r\n", "x".repeat(70_000)))),
        ("too many headers", head(&"x: y\r\n".repeat(200))),
    ] {
        let answer = hold_in(Protocol::Http1, name, |_| {}, &[bytes], malformed).await;
        assert_eq!(answer.header("connection"), "close", "{name}");
    }
    // The chunk arrives with the head, before hyper has read it.
    let chunk = head("transfer-encoding: chunked\r\n") + "Z\r\nabc";
    let answer = hold_in(Protocol::Http1, "a bad chunk", |_| {}, &[chunk], malformed).await;
    let message = answer.error()["message"].as_str().expect("checked").to_owned();
    assert!(message.contains("the size of one of its chunks is not a number"), "{message}");
    let quick = |settings: &mut Settings| {
        settings.server.header_timeout = Duration::from_millis(300);
        settings.server.body_timeout = Duration::from_millis(300);
    };
    let slow = (400, INVALID, "request_timeout", false);
    hold_in(Protocol::Http1, "a head too slow", quick, &["POST /openai/v1/chat/completions HTTP/1.1\r\nho".into()], slow).await;
    hold_in(Protocol::Http1, "a body too slow", quick, &[head("content-length: 100\r\n") + "{"], slow).await;
}

fn limited(settings: &mut Settings, limits: ModelLimits) {
    settings.limits.model.insert("m".into(), limits);
}

#[tokio::test]
async fn every_failure_in_the_contract_limits() {
    let tokens = |settings: &mut Settings| limited(settings, ModelLimits { tokens_per_minute: Some(1000), ..Default::default() });
    let never = chat_with("", r#","max_completion_tokens":5000"#);
    let answer = hold("never fits", tokens, &[never], (413, "tokens", "request_too_large_for_limit", false)).await;
    let message = answer.error()["message"].as_str().expect("checked").to_owned();
    assert!(message.contains("Limit 1000") && message.contains("5000 of max_completion_tokens"), "{message}");

    let spent = (429, "requests", "rate_limit_exceeded", true);
    let minute = |settings: &mut Settings| limited(settings, ModelLimits { requests_per_minute: Some(1), ..Default::default() });
    let impatient = chat_with("x-shield-max-wait-ms: 1000\r\n", "");
    let answer = hold("not within the longest wait", minute, &[chat(), impatient], spent).await;
    assert!(answer.error()["message"].as_str().is_some_and(|text| text.contains("later than its client waits")), "{answer:?}");
    let after: u64 = answer.header("retry-after").parse().expect("checked");
    assert!((30..=90).contains(&after), "{after} s: it takes a minute, less the longest wait, and jitter only adds");
    let day = |settings: &mut Settings| limited(settings, ModelLimits { requests_per_day: Some(1), ..Default::default() });
    let answer = hold("not today", day, &[chat(), chat()], spent).await;
    assert!(answer.error()["message"].as_str().is_some_and(|text| text.contains("later than queue.max_wait")), "{answer:?}");
    assert_eq!(answer.header("x-should-retry"), "false", "no client waits so long");
}

#[tokio::test]
async fn every_failure_in_the_contract_overload() {
    let full = (503, SERVER, "shield_overloaded", true);
    let count = |settings: &mut Settings| {
        settings.queue.max_waiting = 0;
        limited(settings, ModelLimits { requests_per_minute: Some(3), ..Default::default() });
    };
    hold("line full by count", count, &[chat(), chat(), chat()], full).await;
    let bytes = |settings: &mut Settings| settings.queue.max_bytes = 1000;
    let large = chat_with("", &format!(r#","user":"{}""#, "x".repeat(5000)));
    hold("line full by bytes", bytes, &[large], full).await;

    let failing = Kind::Plain(vec![json("500 X", r#"{"error":{"message":"m","type":"internal_server_error"}}"#)]);
    let upstream = Upstream::start(&failing).await;
    let mut settings = upstream.settings();
    settings.breaker.failures = 2;
    settings.breaker.open = Duration::from_secs(30);
    let shield = start(settings);
    let first = ask(shield.app, chat().as_bytes()).await;
    assert_eq!(first.status, 500, "{first:?}");
    let answer = ask(shield.app, chat_with("x-shield-max-wait-ms: 1000\r\n", "").as_bytes()).await;
    check("breaker open", &answer, (503, SERVER, "upstream_unavailable", true));
    assert_eq!(answer.header("x-should-retry"), "false", "it is an outage by now: {answer:?}");
    let after: u64 = answer.header("retry-after").parse().expect("checked");
    assert!((20..=40).contains(&after), "{after} s: the probe is due in 30, and jitter goes upward");
    assert_eq!(upstream.seen(), 2);
    shield.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_in_the_contract_draining() {
    let upstream = Upstream::start(&Kind::Plain(vec![vec![Step::Hold]])).await;
    let shield = start(upstream.settings());
    let mut running = TcpStream::connect(shield.app).await.expect("it listens");
    running.write_all(chat().as_bytes()).await.expect("it is taken");
    while upstream.seen() == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    let mut answer = Vec::new();
    let app = shield.app;
    let http2 = tokio::spawn(async move { ask_in(Protocol::Http2, app, &chat()).await });
    while upstream.seen() == 1 {
        sleep(Duration::from_millis(5)).await;
    }
    let (read, ()) = tokio::join!(timeout(LONGEST_WAIT, running.read_to_end(&mut answer)), shield.drained());
    check("shutting down", &http2.await.expect("no panic"), (503, SERVER, "shutting_down", true));
    read.expect("in time").expect("a clean close");
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    for part in [
        "content-type: application/json",
        "retry-after: ",
        "retry-after-ms: ",
        "x-should-retry: true",
        "x-shield-error: shutting_down",
        "\"type\":\"internal_server_error\"",
    ] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
}

#[tokio::test]
async fn every_failure_in_the_contract_panic() {
    let upstream = Upstream::start(&Kind::NoPort).await;
    let settings = upstream.settings();
    let broken = groq_shield::upstream::Upstream::over(&settings.upstream, || panic!("a fault of ours"));
    let shield: Arc<Shield> = Shield::over(settings.clone(), broken);
    let running = server::start(shield.clone(), Listeners::open(&settings).expect("free ports")).expect("it starts");
    for protocol in PROTOCOLS {
        let answer = ask_in(protocol, running.app, &chat()).await;
        check("panic", &answer, (500, SERVER, "shield_internal", false));
    }
    assert_eq!((shield.body_budget.held(), shield.limits.waiting()), (0, 0), "a panic returns what it held");
    assert!(shield.limits.snapshot().iter().all(|limiter| limiter.in_flight == 0), "a panic gives back its place");
    running.end();
}
