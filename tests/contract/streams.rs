//! Streams: how a broken one ends, and that a healthy one is never cut.

use std::time::Duration;

use groq_shield::config::ModelLimits;
use serde_json::Value;

use crate::{
    client::{PROTOCOLS, Protocol, ask, ask_in, chat_stream, request},
    kit::{Kind, Step, Upstream, start},
};

const FIRST: &str = "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"x_groq\":{\"id\":\"r\"}}\n\n";
const SECOND: &str = "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const PAUSE: Step = Step::Pause(Duration::from_millis(250));

/// Each case over each protocol.
fn over_both<T: Clone>(cases: &[T]) -> impl Iterator<Item = (T, Protocol)> {
    cases.iter().cloned().flat_map(|case| PROTOCOLS.map(|protocol| (case.clone(), protocol)))
}

fn head() -> Step {
    Step::Write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".into())
}

fn chunk(text: &str) -> Step {
    Step::Write(format!("{:x}\r\n{text}\r\n", text.len()))
}

fn end() -> Step {
    Step::Write("0\r\n\r\n".into())
}

/// The error frame after `passed`: the documented object, with an integer status.
#[track_caller]
fn frame(name: &str, body: &str, passed: &str) -> Value {
    let frame = body.strip_prefix(passed).unwrap_or_else(|| panic!("{name}: what came whole passes: {body}"));
    let json =
        frame.strip_prefix("data: ").and_then(|f| f.strip_suffix("\n\n")).unwrap_or_else(|| panic!("{name}: one frame: {body}"));
    let error = serde_json::from_str::<Value>(json).expect("JSON")["error"].take();
    assert!(error["message"].is_string() && error["type"].is_string() && error["status_code"].is_u64(), "{name}: {error}");
    assert!(!body.contains("org_0") && !body.contains("<html"), "{name}: {body}");
    error
}

#[tokio::test]
async fn a_broken_stream_ends_in_an_error_frame() {
    let both = [FIRST, SECOND].concat();
    let table = [
        ("cut", vec![head(), chunk(FIRST)], FIRST, "upstream_closed"),
        ("reset", vec![head(), chunk(FIRST), PAUSE, Step::Reset], FIRST, "upstream_closed"),
        ("cut within an event", vec![head(), chunk(FIRST), chunk(&SECOND[..20]), PAUSE], FIRST, "upstream_closed"),
        ("ended without [DONE]", vec![head(), chunk(FIRST), chunk(SECOND), end()], &both, "upstream_closed"),
        (
            "cut, its length announced",
            vec![Step::Write(format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{FIRST}",
                FIRST.len() + 7
            ))],
            FIRST,
            "upstream_closed",
        ),
        ("stalled", vec![head(), chunk(FIRST), Step::Hold], FIRST, "upstream_timeout"),
    ];
    for ((name, script, passed, code), protocol) in over_both(&table) {
        let upstream = Upstream::start(&Kind::Plain(vec![script])).await;
        let mut settings = upstream.settings();
        settings.upstream.idle_timeout = Duration::from_secs(1);
        let shield = start(settings);
        let answer = ask_in(protocol, shield.app, &chat_stream()).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"), "{name}: {answer:?}");
        let error = frame(name, &answer.body, passed);
        assert_eq!((error["code"].as_str(), error["status_code"].as_u64()), (Some(code), Some(502)), "{name}: {error}");
        assert_eq!(upstream.seen(), 1, "{name}: never sent twice what was delivered");
        shield.end();
    }
}

#[tokio::test]
async fn an_error_in_a_stream_is_one_that_every_client_raises_on() {
    let table = [
        (
            "x_groq.error",
            "data: {\"id\":\"c\",\"choices\":[],\"x_groq\":{\"id\":\"r\",\"error\":\"over capacity in org_01abcdefgh\"}}\n\n",
            500,
        ),
        (
            "error event",
            "event: error\ndata: {\"error\":{\"message\":\"over capacity\",\"type\":\"internal_server_error\"}}\n\n",
            500,
        ),
        ("error frame", "data: {\"error\":{\"message\":\"over capacity\",\"status_code\":400}}\n\n", 400),
    ];
    for ((name, event, status), protocol) in over_both(&table) {
        let upstream = Upstream::start(&Kind::Plain(vec![vec![head(), chunk(FIRST), chunk(event), end()]])).await;
        let shield = start(upstream.settings());
        let answer = ask_in(protocol, shield.app, &chat_stream()).await;
        let error = frame(name, &answer.body, FIRST);
        assert!(error["message"].as_str().is_some_and(|m| m.contains("over capacity")), "{name}: {error}");
        assert_eq!(error["status_code"].as_u64(), Some(status), "{name}: {error}");
        shield.end();
    }
}

#[tokio::test]
async fn a_stream_broken_before_its_first_frame_is_retried() {
    let whole = vec![head(), chunk(FIRST), chunk(DONE), end()];
    for (broken, protocol) in over_both(&[vec![head()], vec![head(), chunk(&FIRST[..10])], vec![head(), end()]]) {
        let upstream = Upstream::start(&Kind::Plain(vec![broken.clone(), whole.clone()])).await;
        let shield = start(upstream.settings());
        let answer = ask_in(protocol, shield.app, &chat_stream()).await;
        assert_eq!(answer.body, [FIRST, DONE].concat(), "{broken:?}: {answer:?}");
        assert_eq!((answer.header("x-shield-attempts"), upstream.seen()), ("2", 2), "{broken:?}");
        shield.end();
    }
}

#[tokio::test]
async fn a_healthy_stream_with_long_gaps_is_never_cut() {
    let gap = Step::Pause(Duration::from_millis(700));
    let script = vec![
        head(),
        chunk(FIRST),
        gap.clone(),
        chunk(&SECOND[..9]),
        gap.clone(),
        chunk(&SECOND[9..]),
        gap.clone(),
        gap.clone(),
        chunk(SECOND),
        gap,
        chunk(DONE),
        end(),
    ];
    let over = async |protocol| {
        let upstream = Upstream::start(&Kind::Plain(vec![script.clone()])).await;
        let mut settings = upstream.settings();
        // Every time limit but `idle_timeout` is shorter than the stream.
        settings.upstream.idle_timeout = Duration::from_secs(20);
        settings.upstream.response_timeout = Duration::from_secs(3);
        settings.queue.max_wait = Duration::from_secs(3);
        settings.server.body_timeout = Duration::from_secs(3);
        settings.server.header_timeout = Duration::from_secs(3);
        let shield = start(settings);
        let answer = ask_in(protocol, shield.app, &chat_stream()).await;
        assert_eq!(answer.body, [FIRST, SECOND, SECOND, DONE].concat(), "{protocol:?}");
        shield.end();
    };
    tokio::join!(over(Protocol::Http1), over(Protocol::Http2));
}

/// Thirty requests a minute: after the burst, each waits up to two seconds in the queue.
#[tokio::test]
async fn a_queued_stream_is_kept_alive_by_comments() {
    tokio::join!(kept_alive(Protocol::Http1), kept_alive(Protocol::Http2));
}

async fn kept_alive(protocol: Protocol) {
    let upstream = Upstream::start(&Kind::Plain(vec![vec![head(), chunk(FIRST), chunk(DONE), end()]])).await;
    let mut settings = upstream.settings();
    settings.queue.stream_keepalive = Some(Duration::from_millis(500));
    settings.limits.model.insert("m".into(), ModelLimits { requests_per_minute: Some(30), ..Default::default() });
    let shield = start(settings);
    for sent in 1..=100 {
        let answer = ask_in(protocol, shield.app, &chat_stream()).await;
        let comments = answer.body.matches(": waiting\n\n").count();
        assert_eq!(answer.body, [&": waiting\n\n".repeat(comments), FIRST, DONE].concat(), "the {sent}th");
        assert_eq!(upstream.seen(), sent);
        // Comments show that the request is waiting; without them the machine was too slow for this test.
        if comments > 0 && sent > 28 {
            let header = |name| answer.header(name).to_owned();
            assert!(header("x-request-id").starts_with("req_shield_"), "{answer:?}");
            let waited: u64 = header("x-shield-wait-ms").parse().expect("a number");
            assert!((400..=2500).contains(&waited), "the half second in the queue before it was opened: {answer:?}");
            assert_eq!(header("x-shield-attempts"), "0", "{answer:?}");
            let requests = ask(shield.admin, request("GET", "/requests", "", "").replace("shield", "localhost").as_bytes()).await;
            assert!(requests.body.contains(&header("x-request-id")), "the operator finds it by the same id: {requests:?}");
            shield.end();
            return;
        }
    }
    panic!("a hundred at once, of thirty a minute");
}
