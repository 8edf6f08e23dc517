//! One request's story in virtual time: a scripted upstream over memory, the client is a function call.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    config,
    upstream::{Io, Upstream},
};

/// What the upstream does with one request.
#[derive(Clone)]
enum Step {
    Write(String),
    Pause(u64),
    /// Waits until the shield has gone, and says so in the log.
    UntilClosed,
}

/// A shield before an upstream that answers its n-th request by `scripts[n]` (the last one again and again) and then
/// closes; the requests that it got.
fn shield(settings: Settings, scripts: Vec<Vec<Step>>) -> (Arc<Shield>, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (log, count) = (seen.clone(), AtomicUsize::new(0));
    let upstream = Upstream::over(&settings.upstream, move || {
        let (ours, mut theirs) = duplex(1 << 20);
        let n = count.fetch_add(1, Ordering::Relaxed).min(scripts.len() - 1);
        let (script, log) = (scripts[n].clone(), log.clone());
        tokio::spawn(async move {
            let request = read_request(&mut theirs).await;
            log.lock().expect("unpoisoned").push(request);
            for step in script {
                match step {
                    Step::Write(text) => drop(theirs.write_all(text.as_bytes()).await),
                    Step::Pause(seconds) => sleep(Duration::from_secs(seconds)).await,
                    Step::UntilClosed => {
                        assert_eq!(read_request(&mut theirs).await, "");
                        log.lock().expect("unpoisoned").push("closed".into());
                    }
                }
            }
        });
        Ok(Io::Memory(ours))
    });
    (Shield::over(settings, upstream), seen)
}

async fn read_request(io: &mut DuplexStream) -> String {
    let mut buffer = vec![0; 1 << 16];
    let read = io.read(&mut buffer).await.expect("a request");
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

fn answer(status: &str, media: &str, body: &str) -> Vec<Step> {
    vec![Step::Write(format!("HTTP/1.1 {status}\r\ncontent-type: {media}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))]
}

const GOOD: &str = r#"{"id":"x","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}"#;

fn good() -> Vec<Step> {
    answer("200 OK", "application/json", GOOD)
}

/// A stream in the given pieces, each a chunk of its own; whole if it says so.
fn stream(pieces: &[&str], whole: bool) -> Vec<Step> {
    let mut steps =
        vec![Step::Write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".into())];
    steps.extend(pieces.iter().map(|piece| Step::Write(format!("{:x}\r\n{piece}\r\n", piece.len()))));
    steps.extend(whole.then(|| Step::Write("0\r\n\r\n".into())));
    steps
}

const FIRST: &str = "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"x_groq\":{\"id\":\"r\"}}\n\n";
const SECOND: &str = "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn chat(stream: bool) -> Request<Full<Bytes>> {
    let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).to_string();
    let request = Request::post("/openai/v1/chat/completions").header("authorization", "Bearer gsk_test");
    request.header("content-type", "application/json").body(Full::from(body)).expect("a request")
}

async fn ask(shield: &Arc<Shield>, stream: bool) -> (StatusCode, HeaderMap, String) {
    whole(handle(shield, chat(stream), None).await).await
}

async fn whole(response: Response<Body>) -> (StatusCode, HeaderMap, String) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).expect("text"))
}

/// The documented object, as a frame or as a body; its code.
fn code(text: &str) -> String {
    let json = text.trim_end().rsplit("data: ").next().expect("something");
    let error = serde_json::from_str::<Value>(json).expect("JSON")["error"].clone();
    assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
    error["code"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn an_answer_passes_byte_for_byte() {
    let (shield, seen) = shield(Settings::default(), vec![good()]);
    let (status, headers, body) = ask(&shield, false).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, GOOD));
    assert_eq!(headers["x-shield-attempts"], "1");
    assert_eq!(headers["x-shield-wait-ms"], "0");
    assert!(headers.contains_key("x-request-id"));
    let seen = seen.lock().expect("unpoisoned");
    assert!(seen[0].contains("authorization: Bearer gsk_test\r\n"), "{}", seen[0]);
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_retried() {
    let html = answer("502 Bad Gateway", "text/html", "<html>api.groq.com | 502: Bad gateway</html>");
    let cut = vec![Step::Write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"id\"".into())];
    let (shield, seen) = shield(Settings::default(), vec![html, vec![], cut, good()]);
    let (status, headers, body) = ask(&shield, false).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, GOOD));
    assert_eq!(headers["x-shield-attempts"], "4");
    assert_eq!(seen.lock().expect("unpoisoned").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_retries_do_not_cure_is_the_documented_object() {
    for (script, status, expected) in [
        (answer("502 Bad Gateway", "text/html", "<html>Bad gateway</html>"), 502, "upstream_error"),
        (answer("200 OK", "application/json", "{\"id\":"), 502, "upstream_invalid"),
        (answer("200 OK", "text/html", "<html></html>"), 502, "upstream_invalid"),
        (answer("200 OK", "application/json", ""), 502, "upstream_invalid"),
        (vec![], 502, "upstream_closed"),
        (vec![Step::Write("SSH-2.0-OpenSSH\r\n".into())], 502, "upstream_invalid"),
    ] {
        let settings = Settings { breaker: config::Breaker { failures: 100, ..Default::default() }, ..Default::default() };
        let (shield, _) = shield(settings, vec![script]);
        let (got, headers, body) = ask(&shield, false).await;
        assert_eq!((got.as_u16(), code(&body).as_str()), (status, expected));
        assert_eq!(headers["x-should-retry"], "false");
        assert_eq!(headers["x-shield-attempts"], "4");
        assert_eq!(headers["content-type"], "application/json");
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_stream_passes_untouched_however_it_is_cut_up() {
    let text = [FIRST, SECOND, DONE].concat();
    for size in [1, 7, 30, 1000] {
        let pieces: Vec<&str> = text.as_bytes().chunks(size).map(|c| std::str::from_utf8(c).expect("ASCII")).collect();
        let (shield, _) = shield(Settings::default(), vec![stream(&pieces, true)]);
        let (status, _, body) = ask(&shield, true).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, text.as_str()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_ends_in_an_error_frame() {
    for (pieces, whole, passed) in [
        (vec![FIRST, "data: {\"half"], false, FIRST.to_owned()),
        (vec![FIRST, SECOND], true, [FIRST, SECOND].concat()),
        (vec![FIRST, SECOND], false, [FIRST, SECOND].concat()),
    ] {
        let (shield, seen) = shield(Settings::default(), vec![stream(&pieces, whole)]);
        let (status, _, body) = ask(&shield, true).await;
        assert_eq!(status, StatusCode::OK);
        let frame = body.strip_prefix(&passed).expect("the whole events came first");
        assert_eq!(code(frame), "upstream_closed");
        assert!(frame.contains("\"status_code\":502"), "{frame}");
        assert_eq!(seen.lock().expect("unpoisoned").len(), 1, "never sent twice what was delivered");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_broken_before_its_first_event_is_retried_whole() {
    let broken = stream(&["data: {\"half"], false);
    let (shield, seen) = shield(Settings::default(), vec![broken, stream(&[FIRST, DONE], true)]);
    let (_, headers, body) = ask(&shield, true).await;
    assert_eq!(body, [FIRST, DONE].concat());
    assert_eq!(headers["x-shield-attempts"], "2");
    assert_eq!(seen.lock().expect("unpoisoned").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn every_error_in_a_stream_becomes_a_frame_that_clients_raise_on() {
    for event in [
        "data: {\"id\":\"c\",\"choices\":[],\"x_groq\":{\"id\":\"r\",\"error\":\"over capacity\"}}\n\n",
        "event: error\ndata: {\"message\":\"over capacity\"}\n\n",
        "data: {\"error\":{\"message\":\"over capacity\",\"status_code\":400}}\n\n",
    ] {
        let (shield, _) = shield(Settings::default(), vec![stream(&[FIRST, event], true)]);
        let (_, _, body) = ask(&shield, true).await;
        let frame = body.strip_prefix(FIRST).expect("the good event came first");
        code(frame);
        assert!(frame.starts_with("data: {\"error\":{") && frame.contains("over capacity"), "{frame}");
        assert!(frame.contains("\"status_code\":"), "{frame}");
    }
}

#[tokio::test(start_paused = true)]
async fn long_gaps_are_no_stall_and_silence_is() {
    let mut steps = stream(&[FIRST], false);
    steps.push(Step::Pause(119));
    steps.extend(stream(&[SECOND], false).split_off(1));
    steps.push(Step::Pause(119));
    steps.extend(stream(&[DONE], true).split_off(1));
    let (healthy, _) = shield(Settings::default(), vec![steps]);
    assert_eq!(ask(&healthy, true).await.2, [FIRST, SECOND, DONE].concat());

    let mut steps = stream(&[FIRST], false);
    steps.push(Step::Pause(3600));
    let (stalled, _) = shield(Settings::default(), vec![steps]);
    let body = ask(&stalled, true).await.2;
    assert_eq!(code(body.strip_prefix(FIRST).expect("the first event")), "upstream_timeout");
}

#[tokio::test(start_paused = true)]
async fn patience_ends_at_dispatch() {
    let settings =
        Settings { queue: config::Queue { max_wait: Duration::from_secs(5), ..Default::default() }, ..Default::default() };
    let (shield, _) = shield(settings, vec![[vec![Step::Pause(15)], good()].concat()]);
    assert_eq!(ask(&shield, false).await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_told_at_once_and_one_probe_closes_it() {
    let failing =
        answer("500 Internal Server Error", "application/json", r#"{"error":{"message":"m","type":"internal_server_error"}}"#);
    let mut scripts = vec![failing; 8];
    scripts.push(good());
    let (shield, seen) = shield(Settings::default(), scripts);
    let impatient = || {
        let mut request = chat(false);
        request.headers_mut().insert("x-shield-max-wait-ms", "1000".parse().expect("a header"));
        request
    };
    let mut codes = Vec::new();
    for _ in 0..20 {
        let (status, _, body) = whole(handle(&shield, impatient(), None).await).await;
        codes.push((status.as_u16(), code(&body)));
    }
    assert!(codes.contains(&(503, "upstream_unavailable".into())), "{codes:?}");
    assert!(seen.lock().expect("unpoisoned").len() < 10, "a dead upstream is left alone");
    sleep(Duration::from_secs(30)).await;
    while seen.lock().expect("unpoisoned").len() < 9 {
        ask(&shield, false).await;
    }
    assert_eq!(ask(&shield, false).await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_takes_its_upstream_request_along() {
    let scripts = vec![[stream(&[FIRST], false), vec![Step::UntilClosed]].concat(), vec![Step::UntilClosed]];
    let (shield, seen) = shield(Settings::default(), scripts);
    let mut response = handle(&shield, chat(true), None).await;
    response.body_mut().frame().await.expect("an event").expect("good");
    drop(response);
    let waiting = timeout(Duration::from_secs(1), handle(&shield, chat(false), None)).await;
    assert!(waiting.is_err(), "the upstream says nothing");
    sleep(Duration::from_millis(1)).await;
    assert_eq!(seen.lock().expect("unpoisoned").iter().filter(|line| *line == "closed").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn when_the_time_to_drain_is_over_streams_end_properly() {
    let (shield, _) = shield(Settings::default(), vec![[stream(&[FIRST], false), vec![Step::Pause(3600)]].concat()]);
    let response = handle(&shield, chat(true), None).await;
    let start = Instant::now();
    shield.stop.draining.give();
    let ending = shield.stop.ending.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(25)).await;
        ending.give();
    });
    let body = whole(response).await.2;
    assert_eq!(start.elapsed(), Duration::from_secs(25));
    assert_eq!(code(body.strip_prefix(FIRST).expect("the first event")), "shutting_down");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_stream_is_kept_alive_if_asked_for() {
    let settings = Settings {
        queue: config::Queue { stream_keepalive: Some(Duration::from_secs(5)), ..Default::default() },
        ..Default::default()
    };
    let (shield, _) = shield(settings, vec![[vec![Step::Pause(12)], stream(&[FIRST, DONE], true)].concat()]);
    let (status, headers, body) = ask(&shield, true).await;
    assert_eq!((status, headers["content-type"].as_bytes()), (StatusCode::OK, &b"text/event-stream"[..]));
    assert_eq!(body, [": waiting\n\n", ": waiting\n\n", FIRST, DONE].concat());
}

#[tokio::test(start_paused = true)]
async fn other_destinations_are_refused() {
    let (shield, seen) = shield(Settings::default(), vec![good()]);
    for uri in ["http://example.com/openai/v1/models", "http://api.groq.com:8080/openai/v1/models"] {
        let request =
            Request::get(uri).header("authorization", "Bearer gsk_x").body(Full::<Bytes>::default()).expect("a request");
        let (status, _, body) = whole(handle(&shield, request, None).await).await;
        assert_eq!((status.as_u16(), code(&body).as_str()), (403, "destination_not_allowed"));
    }
    let request = Request::get("http://API.groq.com/openai/v1/models").header("authorization", "Bearer gsk_x");
    let response = handle(&shield, request.body(Full::<Bytes>::default()).expect("a request"), None).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(seen.lock().expect("unpoisoned")[0].starts_with("GET /openai/v1/models HTTP/1.1"));
}

/// These limits alone.
fn limited(limits: config::ModelLimits) -> Settings {
    let mut settings = Settings::default();
    settings.limits.plan = config::Plan::None;
    settings.limits.models.insert("m".into(), limits);
    settings
}

fn with(headers: &[(&str, &str)], status: &str, body: &str) -> Vec<Step> {
    let mut head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    vec![Step::Write(format!("{head}\r\n{body}"))]
}

#[tokio::test(start_paused = true)]
async fn a_stated_wait_is_a_floor_in_all_its_forms() {
    let busy = r#"{"error":{"message":"Busy.","type":"internal_server_error"}}"#;
    let stated = r#"{"error":{"message":"Busy. Please try again in 1m2.5s.","type":"internal_server_error"}}"#;
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(30));
    for (headers, body, floor) in [
        (vec![("retry-after", "7")], busy, 7.0),
        (vec![("retry-after", "1.5")], busy, 1.5),
        (vec![("retry-after-ms", "2500"), ("retry-after", "9")], busy, 2.5),
        // The date is read against the wall clock, which goes on while this test runs.
        (vec![("retry-after", date.as_str())], busy, 20.0),
        (vec![], stated, 62.5),
    ] {
        let mut settings = Settings::default();
        settings.queue.max_wait = Duration::from_secs(100);
        let (shield, seen) = shield(settings, vec![with(&headers, "503 Service Unavailable", body), good()]);
        let start = Instant::now();
        assert_eq!(ask(&shield, false).await.0, StatusCode::OK, "{headers:?}");
        let waited = start.elapsed().as_secs_f64();
        let most = if floor == 20.0 { 30.0 } else { floor };
        assert!((floor..=most + 0.251).contains(&waited), "{headers:?}: {waited} s");
        assert_eq!(seen.lock().expect("unpoisoned").len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_after_the_clients_patience() {
    let busy = with(&[("retry-after", "20")], "503 Service Unavailable", r#"{"error":{"message":"m","type":"t"}}"#);
    let (shield, seen) = shield(Settings::default(), vec![busy]);
    let start = Instant::now();
    let (status, headers, _) = ask(&shield, false).await;
    assert_eq!((status.as_u16(), seen.lock().expect("unpoisoned").len()), (503, 3), "at 0, 20 and 40 s of 50");
    assert!(start.elapsed() < Duration::from_secs(42));
    let after: u64 = headers["retry-after"].to_str().expect("text").parse().expect("an integer");
    assert!((20..=60).contains(&after) && headers["x-should-retry"] == "true", "{headers:?}");
}

/// Groq charges a request for each answer, failures too.
#[tokio::test(start_paused = true)]
async fn each_attempt_takes_its_own_place_under_the_limits() {
    let failing = with(&[], "500 Internal Server Error", r#"{"error":{"message":"m","type":"t"}}"#);
    let limits = config::ModelLimits { requests_per_minute: Some(60), ..Default::default() };
    let (shield, _) = shield(limited(limits), vec![failing.clone(), failing, good()]);
    let (status, headers, _) = ask(&shield, false).await;
    assert_eq!((status, headers["x-shield-attempts"].as_bytes()), (StatusCode::OK, &b"3"[..]));
    let lanes = shield.limits.snapshot();
    let dimension = lanes[0].dimensions.iter().find(|d| d.dimension.code == "RPM").expect("configured");
    // Back-off lets a little of it refill.
    assert!((57.0..59.0).contains(&dimension.level), "three of 60 were taken: {}", dimension.level);
}

fn refusal(wait: &str) -> Vec<Step> {
    let text = format!(
        "Rate limit reached for model `m` in organization `org_01abc` on requests per minute (RPM): Limit 30, Used 30, Requested 1. Please try again in {wait}."
    );
    let body = format!(r#"{{"error":{{"message":"{text}","type":"requests","code":"rate_limit_exceeded"}}}}"#);
    with(&[], "429 Too Many Requests", &body)
}

#[tokio::test(start_paused = true)]
async fn a_refusal_goes_to_the_front_of_its_line() {
    let limits = config::ModelLimits { requests_per_minute: Some(30), ..Default::default() };
    let (shield, seen) = shield(limited(limits), vec![good(), refusal("6s"), good()]);
    ask(&shield, false).await;
    let numbered = |n: usize| {
        let mut request = chat(false);
        request.headers_mut().insert("x-number", n.to_string().parse().expect("a header"));
        let shield = shield.clone();
        tokio::spawn(async move { whole(handle(&shield, request, None).await).await })
    };
    let refused = numbered(1);
    while seen.lock().expect("unpoisoned").len() < 2 {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(1)).await;
    let later: Vec<_> = (2..5).map(numbered).collect();
    let (status, headers, body) = refused.await.expect("it ran");
    assert_eq!((status, headers["x-shield-attempts"].as_bytes()), (StatusCode::OK, &b"2"[..]), "no refusal is seen: {body}");
    for request in later {
        assert_eq!(request.await.expect("it ran").0, StatusCode::OK);
    }
    let seen = seen.lock().expect("unpoisoned");
    let order: Vec<_> = seen[1..].iter().filter_map(|r| r.lines().find_map(|line| line.strip_prefix("x-number: "))).collect();
    assert_eq!(order[..2], ["1", "1"], "it came before those that came after it: {order:?}");
    assert_eq!(order.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_beyond_patience_reaches_the_app() {
    let (shield, seen) = shield(limited(config::ModelLimits::default()), vec![refusal("2m0s")]);
    let (status, headers, body) = ask(&shield, false).await;
    assert_eq!((status.as_u16(), code(&body).as_str()), (429, "rate_limit_exceeded"), "{body}");
    assert!(headers.contains_key("retry-after") && headers.contains_key("retry-after-ms"), "{headers:?}");
    assert!(!body.contains("org_01") && seen.lock().expect("unpoisoned").len() == 1, "{body}");
}

/// What fails after its stream was opened early ends in a frame.
#[tokio::test(start_paused = true)]
async fn a_waiting_stream_that_fails_ends_in_a_frame() {
    let mut settings = Settings::default();
    settings.queue.stream_keepalive = Some(Duration::from_secs(5));
    settings.retry.attempts = 1;
    let (shield, _) = shield(settings, vec![vec![Step::Pause(12)]]);
    let (status, _, body) = ask(&shield, true).await;
    let frame = body.strip_prefix(": waiting\n\n: waiting\n\n").unwrap_or_else(|| panic!("{body}"));
    assert_eq!((status, code(frame).as_str()), (StatusCode::OK, "upstream_closed"));
    assert!(frame.contains("\"status_code\":502"), "{frame}");
}
