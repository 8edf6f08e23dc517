//! Time to parse calls, headers, refusals, error bodies and streams.

use std::{
    hint::black_box,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use groq_shield::{
    config,
    groq::{self, Endpoint, SseTail},
    proxy::error::{Rejection, UpstreamError},
    proxy::relay::{self, Body, Expected, ValidatedBody},
    proxy::request::facts::Facts,
    upstream::{Io, Upstream, UpstreamRequest},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, uri::PathAndQuery};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

const REFUSAL: &str = "Rate limit reached for model `llama3-70b-8192` in organization `org_x` service tier `on_demand` on tokens per minute (TPM): Limit 15000, Used 11972, Requested 4351. Please try again in 5.289s. Visit https://console.groq.com/docs/rate-limits for more information.";

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"}}]}\n\n";

/// A chat call with this many bytes of text and of an image.
fn chat(text: usize, image: usize) -> Bytes {
    let text = "Could you summarise the quarterly report in three bullet points? ".repeat(text / 65);
    let image = format!("data:image/png;base64,{}", "iVBORw0K".repeat(image / 8));
    let content = serde_json::json!([{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": image}}]);
    let message = serde_json::json!({"role": "user", "content": content});
    serde_json::json!({"model": "openai/gpt-oss-20b", "messages": [message], "max_completion_tokens": 512}).to_string().into()
}

fn calls(c: &mut Criterion) {
    let mut group = c.benchmark_group("call");
    for (name, body) in [("1 KB", chat(900, 0)), ("64 KB", chat(64 << 10, 0)), ("4 MB with an image", chat(64 << 10, 4 << 20))] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| b.iter(|| Facts::of(Endpoint::Chat, &HeaderMap::new(), black_box(&body))));
    }
}

fn answers(c: &mut Criterion) {
    let headers: HeaderMap = [
        ("x-ratelimit-limit-requests", "14400"),
        ("x-ratelimit-remaining-requests", "14399"),
        ("x-ratelimit-reset-requests", "6s"),
        ("x-ratelimit-limit-tokens", "8000"),
        ("x-ratelimit-remaining-tokens", "7922"),
        ("x-ratelimit-reset-tokens", "585ms"),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect();
    c.bench_function("headers", |b| b.iter(|| groq::rate_limits(black_box(&headers))));
    c.bench_function("refusal", |b| b.iter(|| groq::parse_refusal(black_box(REFUSAL))));
    let body: Bytes = serde_json::json!({"error": {"message": REFUSAL, "type": "tokens"}}).to_string().into();
    c.bench_function("error object, Groq's", |b| {
        b.iter(|| UpstreamError::new(StatusCode::TOO_MANY_REQUESTS, headers.clone(), black_box(&body), SystemTime::UNIX_EPOCH));
    });
    let overloaded = Rejection::Overloaded { retry_after: Duration::from_secs(3) };
    c.bench_function("error object, ours", |b| b.iter(|| black_box(&overloaded).clone().into_response()));
}

/// An upstream in memory that answers each request with a stream, one write for each of its 51 events.
fn upstream() -> Upstream {
    Upstream::over(&config::Upstream::default(), || {
        let (ours, mut theirs) = duplex(1 << 16);
        tokio::spawn(async move {
            let mut request = vec![0; 1 << 12];
            while theirs.read(&mut request).await.is_ok_and(|read| read > 0) {
                theirs.write_all(STREAM.as_bytes()).await.expect("room");
                for event in std::iter::repeat_n(EVENT, 50).chain(["data: [DONE]\n\n"]) {
                    theirs.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.expect("room");
                    tokio::task::yield_now().await;
                }
                theirs.write_all(b"0\r\n\r\n").await.expect("room");
            }
        });
        Ok(Io::Memory(ours))
    })
}

/// Relays one stream; returns its bytes.
async fn relayed(upstream: &Upstream) -> usize {
    let path = PathAndQuery::from_static("/openai/v1/chat/completions");
    let mut request = UpstreamRequest::new(Method::POST, path, HeaderMap::new(), Bytes::from_static(b"{}"));
    let answer = upstream.send(&mut request, tokio::time::Instant::now).await;
    let (head, body) = answer.expect("a response").into_parts();
    let opened = relay::validate(&head, body, Expected::Json, true).await.expect("a stream");
    let ValidatedBody::Stream(stream) = opened else { panic!("a stream") };
    Body::Stream(stream).collect().await.expect("its end").to_bytes().len()
}

fn relays(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let upstream = runtime.block_on(async { upstream() });
    c.bench_function("relay, a stream of 51 events from an upstream in memory", |b| {
        b.iter(|| runtime.block_on(relayed(black_box(&upstream))));
    });
}

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Bytes(EVENT.len() as u64));
    let mut tail = SseTail::default();
    group.bench_function("one event", |b| b.iter(|| tail.feed(black_box(EVENT.as_bytes()))));
}

criterion_group!(benches, calls, answers, streams, relays);
criterion_main!(benches);
