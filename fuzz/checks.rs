//! Properties of every parser for arbitrary bytes. The fuzz targets run these, and `tests/contract/corpus.rs` runs them on
//! `fuzz/corpus`.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use groq_limiter::{
    AdmissionRequest, CostEstimate,
    limiter::Limiter,
    settings::{LimitSettings, ModelLimits, Plan},
    store::protocol::{Answer, State},
    types::Priority,
};
use groq_shield::{
    config::{Settings, Source},
    estimate::audio,
    groq::{self, Endpoint, SseTail, retry_after, stated_wait},
    proxy::error::{Rejection, UpstreamError, stream_error},
    proxy::request::facts::Facts,
    proxy::{Shield, handle},
    upstream::{Io, Upstream},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

/// One check.
pub(crate) type Check = fn(&[u8]);

/// The names of the targets, which are those of their corpus directories.
pub(crate) const ALL: [(&str, Check); 8] = [
    ("answer", answer),
    ("refusal", refusal),
    ("sse", sse),
    ("multipart", multipart),
    ("configuration", configuration),
    ("audio", sound),
    ("redis", redis_reply),
    ("prices", prices),
];

/// The documented error object: its members are strings.
fn assert_object(body: &[u8]) {
    let body: Value = serde_json::from_slice(body).expect("JSON");
    let error = &body["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
    assert!(error.get("code").is_none_or(|code| code.is_string() || code.is_null()), "{body}");
}

/// Whatever an upstream answers, in whatever pieces: the app gets the same complete answer, and the error object on failure.
pub(crate) fn answer(bytes: &[u8]) {
    seen(bytes);
}

/// The status and body that the app gets, the same for every size of pieces.
pub(crate) fn seen(bytes: &[u8]) -> (u16, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    let [whole, ones, sevens] = [bytes.len().max(1), 1, 7].map(|size| runtime.block_on(answered(bytes, size)));
    let same = |pieces: &(u16, Vec<u8>)| whole == *pieces || broken_head(&whole) && broken_head(pieces);
    assert!(same(&ones) && same(&sevens), "not the same in pieces: {whole:?} {ones:?} {sevens:?}");
    whole
}

/// Whether this is the failure of a head that is malformed or cut. One that is both is malformed where its bytes come at once, and
/// cut where they do not: hyper parses the rest of a head when its end is there.
fn broken_head((status, body): &(u16, Vec<u8>)) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    *status == 502 && (body["error"]["code"] == "upstream_invalid" || body["error"]["code"] == "upstream_closed")
}

/// The status and body that the app gets when the upstream sends these bytes in pieces of `size` and closes.
async fn answered(bytes: &[u8], size: usize) -> (u16, Vec<u8>) {
    let mut settings = Settings::default();
    settings.retry.attempts = 1;
    let pieces: Vec<Vec<u8>> = bytes.chunks(size).map(<[u8]>::to_vec).collect();
    let upstream = Upstream::over(&settings.upstream, move || {
        let (ours, mut theirs) = duplex(1 << 20);
        let pieces = pieces.clone();
        tokio::spawn(async move {
            let mut request = [0; 4096];
            let _ = theirs.read(&mut request).await;
            for piece in pieces {
                // Fails once the shield has refused.
                let _ = theirs.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
        });
        Ok(Io::Memory(ours))
    });
    let shield = Shield::over(settings, upstream);
    let headers = [("authorization", "Bearer gsk_test"), ("content-type", "application/json")];
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let mut request = Request::post("/openai/v1/chat/completions")
        .body(Full::new(Bytes::from_static(br#"{"model":"m","messages":[]}"#)))
        .expect("a valid request");
    request.headers_mut().extend(headers);
    let (head, body) = handle(&shield, request, None).await.into_parts();
    // A truncated body ends its connection.
    let body = body.collect().await.map_or_else(|_| b"cut".to_vec(), |body| body.to_bytes().to_vec());
    if head.status.as_u16() >= 400 {
        assert_object(&body);
    }
    (head.status.as_u16(), body)
}

/// A refusal's text, a duration, a wait header, an error body: each is parsed or passed; the app gets the error object.
pub(crate) fn refusal(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(refusal) = groq::parse_refusal(&text) {
        let _ = (refusal.hopeless(), refusal.dimension_or_derived());
    }
    let _ = stated_wait(&text);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let names = [
            "retry-after",
            "retry-after-ms",
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ];
        for name in names {
            headers.insert(HeaderName::from_static(name), value.clone());
        }
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let _ = (retry_after(&headers, now), groq::rate_limits(&headers));
    let quoted = serde_json::json!({"error": {"message": text, "type": "tokens", "code": 429}}).to_string();
    for body in [bytes, quoted.as_bytes()] {
        for status in [400, 403, 413, 429, 498, 502, 522] {
            let status = StatusCode::from_u16(status).expect("a status");
            let error = UpstreamError::new(status, headers.clone(), body, now);
            let answer = Rejection::Upstream(Box::new(error)).into_response();
            assert_object(answer.body());
            let wait = |name: &str| {
                answer.headers().get(name).map(|value| value.to_str().expect("text").parse::<u64>().expect("an integer"))
            };
            let (seconds, ms) = (wait("retry-after"), wait("retry-after-ms"));
            assert_eq!(seconds, ms.map(|ms| ms.div_ceil(1000)));
        }
    }
}

/// A stream is read the same however it is split, and an error in it becomes the documented object.
pub(crate) fn sse(bytes: &[u8]) {
    let told = |size: usize| {
        let mut tail = SseTail::default();
        for piece in bytes.chunks(size) {
            assert!(tail.feed(piece) <= piece.len());
        }
        if let Some(error) = tail.error() {
            let frame = stream_error(&error.data);
            assert_object(frame.strip_prefix(b"data: ").expect("one frame"));
        }
        (tail.ended(), tail.events(), tail.completion_tokens(), format!("{:?} {:?}", tail.usage(), tail.error()))
    };
    let whole = told(bytes.len().max(1));
    for size in [1, 7, 64] {
        assert_eq!(told(size), whole, "in pieces of {size}");
    }
}

/// A form with the boundary `b`: parsed or passed, and the model is no longer than a name.
pub(crate) fn multipart(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=b"));
    let body = Bytes::copy_from_slice(bytes);
    for endpoint in [Endpoint::Transcription, Endpoint::Translation, Endpoint::Files] {
        if let Ok(facts) = Facts::of(endpoint, &headers, &body) {
            assert!(facts.model.len() <= 200, "{}", facts.model);
        }
    }
    // The same bytes as JSON: parsed, or refused with a message.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for endpoint in [Endpoint::Chat, Endpoint::Responses, Endpoint::Embeddings, Endpoint::Speech] {
        if let Err(rejection) = Facts::of(endpoint, &headers, &body) {
            assert_object(&rejection.into_response().into_body());
        }
    }
}

/// A configuration is accepted or refused with its faults; an accepted one reads back the same.
pub(crate) fn configuration(bytes: &[u8]) {
    let file = scratch();
    let load = |content: &[u8]| {
        std::fs::write(&file, content).expect("a scratch file can be written");
        Source { config: Some(file.clone()), ..Source::default() }.load()
    };
    let loaded = load(bytes);
    let effective = loaded.effective.clone();
    match loaded.settings() {
        Err(faults) => assert!(!faults.to_string().is_empty()),
        // Secrets are shown by their first characters.
        Ok(_) if effective.contains('…') => {}
        Ok(settings) => {
            let again = load(effective.as_bytes()).settings().unwrap_or_else(|faults| panic!("{faults}\n{effective}"));
            assert_eq!(format!("{:?}", again.queue), format!("{:?}", settings.queue), "{effective}");
        }
    }
    let _ = std::fs::remove_file(file);
}

/// A file for this thread.
fn scratch() -> PathBuf {
    std::env::temp_dir().join(format!("groq-shield-fuzz-{}-{:?}.toml", std::process::id(), std::thread::current().id()))
}

/// Audio has some length, whatever its headers say.
pub(crate) fn sound(bytes: &[u8]) {
    let _ = audio::seconds(bytes);
}

/// A reply of Redis: the clock on the first line, then the reply's words line by line. A limiter that accepts it keeps working.
pub(crate) fn redis_reply(bytes: &[u8]) {
    const START: u64 = 8_640_000_000_000_000;
    const SECOND: u64 = 1_000_000_000;
    // Whether it is granted, when there is room, and the record.
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, ' ');
    let (granted, wait) = (parts.next() == Some("1"), parts.next().and_then(|wait| wait.parse().ok()));
    let Some((wait, state)) = wait.zip(parts.next().and_then(|record| serde_json::from_str::<State>(record).ok())) else {
        return;
    };
    let answer = Answer { granted, wait, state: state.seen_by("replica") };
    let model = ModelLimits { requests_per_minute: Some(60), tokens_per_minute: Some(6000), ..ModelLimits::default() };
    let tables = LimitSettings { plan: Plan::None, default: model, ..LimitSettings::default() };
    let mut limiter = Limiter::new("m".into(), Arc::new(tables), START);
    limiter.share(None, START);
    let request = AdmissionRequest {
        organization: "o".into(),
        key: 0,
        model: "m".into(),
        tier: "t".into(),
        app: "a".into(),
        weight: 1.0,
        class: Priority::Interactive,
        cost: CostEstimate::Tokens { prompt: 10, max_completion_tokens: Some(100) },
        bytes: 0,
    };
    // When the store is lost after these replies, a waiting request is sent, or refused at its deadline at the latest.
    let _ = limiter.submit(&request, START, START + 30 * SECOND, None, || true);
    let mut events = Vec::new();
    for step in 1..4 {
        let now = START + step * SECOND;
        if let Some(transaction) = limiter.sharing(now).and_then(|sharing| sharing.transaction()) {
            let _ = serde_json::to_string(&transaction);
            limiter.sharing(now).expect("it is shared").answered(transaction.serial, &answer);
        }
        limiter.sharing(now).expect("it is shared").updated(&answer.state);
        limiter.dispatch(now, &mut events);
    }
    limiter.share(Some(2), START + 4 * SECOND);
    limiter.dispatch(START + 40 * SECOND, &mut events);
    assert_eq!(limiter.waiting(), 0, "it waits beyond its deadline");
}

/// A model's prices as text: refused, or costs that grow with usage.
pub(crate) fn prices(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let mut number = || lines.next().and_then(|line| line.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
    let [prompt, cached, completion] = [number(), number(), number()];
    let table: String = lines.map(|line| format!("{line}\n")).collect();
    let file = scratch();
    std::fs::write(&file, format!("[price.\"m\"]\n{table}")).expect("a scratch file can be written");
    let loaded = Source { config: Some(file.clone()), ..Source::default() }.load().settings();
    std::fs::remove_file(file).expect("it was written");
    let Some(price) = loaded.ok().and_then(|settings| settings.price_of("m")) else { return };
    let tokens = price.tokens.iter().flat_map(|tokens| [tokens.input, tokens.cached_input, tokens.output]);
    assert!(tokens.chain(price.audio_hour).all(|part| part.is_finite() && part >= 0.0), "{price:?}");
    assert_eq!((price.of_tokens(0, 0, 0), price.of_audio(0)), (0, 0), "{price:?}");
    let cost = price.of_tokens(prompt, cached, completion);
    assert!(cost <= price.of_tokens(prompt, cached, completion.saturating_add(1)), "{price:?}");
    assert!(price.of_audio(completion) <= price.of_audio(completion.saturating_add(1)), "{price:?}");
}
