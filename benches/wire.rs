//! How long does it take to read what goes over the wire? Calls, headers, refusals, error bodies, streams.

use std::{hint::black_box, time::SystemTime};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use groq_shield::{
    call::Facts,
    error::UpstreamError,
    groq::{Endpoint, RateState, RefusalText, SseTail},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

const REFUSAL: &str = "Rate limit reached for model `llama3-70b-8192` in organization `org_x` service tier `on_demand` on tokens per minute (TPM): Limit 15000, Used 11972, Requested 4351. Please try again in 5.289s. Visit https://console.groq.com/docs/rate-limits for more information.";

/// A chat call with so many bytes of text and of an image.
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
    c.bench_function("headers", |b| b.iter(|| RateState::of(black_box(&headers))));
    c.bench_function("refusal", |b| b.iter(|| RefusalText::parse(black_box(REFUSAL))));
    let body: Bytes = serde_json::json!({"error": {"message": REFUSAL, "type": "tokens"}}).to_string().into();
    c.bench_function("error object", |b| {
        b.iter(|| UpstreamError::new(StatusCode::TOO_MANY_REQUESTS, headers.clone(), black_box(&body), SystemTime::UNIX_EPOCH));
    });
}

fn streams(c: &mut Criterion) {
    let chunk = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"}}]}\n\n";
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    let mut tail = SseTail::default();
    group.bench_function("one event", |b| b.iter(|| tail.feed(black_box(chunk.as_bytes()))));
}

criterion_group!(benches, calls, answers, streams);
criterion_main!(benches);
