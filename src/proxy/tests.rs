//! Single requests in virtual time, with a scripted upstream in memory and function calls as the client.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::{sleep, timeout},
};

use super::{relay::Body, *};
use crate::{
    config::Settings,
    headers::text,
    upstream::{Io, Upstream},
};

mod attempts;
mod budgets;
mod caps;
mod fallback;
mod observe;
mod rate_limit;
mod streams;
mod unread;

/// What the upstream does with one request.
#[derive(Clone)]
enum Step {
    Write(String),
    Pause(u64),
    /// Waits until the shield closes the connection, and logs that.
    UntilClosed,
}

/// A shield in front of an upstream that plays `scripts[n]` for its n-th request (the last one repeats) and then closes; and the
/// requests that the upstream received.
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

/// A stream in the given pieces, one chunk each; complete if `whole`.
fn stream(pieces: &[&str], whole: bool) -> Vec<Step> {
    let mut steps =
        vec![Step::Write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".into())];
    steps.extend(pieces.iter().map(|piece| Step::Write(format!("{:x}\r\n{piece}\r\n", piece.len()))));
    steps.extend(whole.then(|| Step::Write("0\r\n\r\n".into())));
    steps
}

const FIRST: &str = "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"x_groq\":{\"id\":\"r\"}}\n\n";

fn chat(stream: bool) -> Request<Full<Bytes>> {
    let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).to_string();
    asked(Method::POST, "/openai/v1/chat/completions", body)
}

fn asked(method: Method, uri: &'static str, body: String) -> Request<Full<Bytes>> {
    let headers = [("authorization", "Bearer gsk_test"), ("content-type", "application/json")];
    let mut request = Request::new(Full::from(body));
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_static(uri);
    request.headers_mut().extend(headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))));
    request
}

async fn ask(shield: &Arc<Shield>, stream: bool) -> (StatusCode, HeaderMap, String) {
    whole(handle(shield, chat(stream), None).await).await
}

async fn whole(response: Response<Body>) -> (StatusCode, HeaderMap, String) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).expect("text"))
}

/// The code of the documented error object, in a frame or a body.
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
    assert_eq!(text(&headers, "x-shield-attempts"), Some("1"));
    assert_eq!(text(&headers, "x-shield-wait-ms"), Some("0"));
    assert!(headers.contains_key("x-request-id"));
    let seen = seen.lock().expect("unpoisoned");
    assert!(seen[0].contains("authorization: Bearer gsk_test\r\n"), "{}", seen[0]);
}

/// A response head is buffered until it is complete, so its size is limited.
#[tokio::test(start_paused = true)]
async fn an_answer_with_an_oversized_head_is_invalid() {
    let head = |filling: usize| {
        let filling = "x".repeat(filling);
        vec![Step::Write(format!("HTTP/1.1 200 OK\r\nx-long: {filling}\r\ncontent-length: {}\r\n\r\n{GOOD}", GOOD.len()))]
    };
    let (within, _) = shield(Settings::default(), vec![head(60 << 10)]);
    assert_eq!(ask(&within, false).await.0, StatusCode::OK);
    let (beyond, _) = shield(Settings::default(), vec![head(130 << 10)]);
    let (status, _, body) = ask(&beyond, false).await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_GATEWAY, "upstream_invalid"));
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_cancels_the_upstream_request() {
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
async fn other_destinations_are_refused() {
    let (shield, seen) = shield(Settings::default(), vec![good()]);
    for uri in ["http://example.com/openai/v1/models", "http://api.groq.com:8080/openai/v1/models"] {
        let request = asked(Method::GET, uri, String::new());
        let (status, _, body) = whole(handle(&shield, request, None).await).await;
        assert_eq!((status.as_u16(), code(&body).as_str()), (403, "destination_not_allowed"));
    }
    let request = asked(Method::GET, "http://API.groq.com/openai/v1/models", String::new());
    assert_eq!(handle(&shield, request, None).await.status(), StatusCode::OK);
    assert!(seen.lock().expect("unpoisoned")[0].starts_with("GET /openai/v1/models HTTP/1.1"));
}
