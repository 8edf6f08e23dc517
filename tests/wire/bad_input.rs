//! Invalid input gets a clear error and causes no panic, and the next request is served.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::kit::{Answer, Shield, Simulator};

const MODEL: &str = "openai/gpt-oss-20b";
const CHAT: &str = "/openai/v1/chat/completions";
const CONFIG: &str =
    "[limits]\nplan = \"none\"\n[retry]\nbase_delay = \"1ms\"\nmax_delay = \"5ms\"\n[breaker]\nfailures = 1000\n";

struct Pair {
    simulator: Simulator,
    shield: Shield,
}

impl Pair {
    fn start() -> Self {
        let simulator = Simulator::generous();
        let shield = Shield::before(simulator.process.address(), CONFIG);
        Self { simulator, shield }
    }

    async fn send(&self, kind: &str, body: impl Into<Bytes>) -> Answer {
        let client = self.shield.process.client();
        let request = client.request(Method::POST, CHAT).header("content-type", kind);
        client.send(request.body(Full::new(body.into())).expect("a valid request")).await
    }

    /// Checks that another request succeeds. The last check of every test.
    async fn still_serves(&self) {
        self.simulator.faults(json!([])).await;
        let answer = self.shield.process.client().post(CHAT, &chat(MODEL, "Still there?")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(!self.shield.process.log().contains("panicked"), "{}", self.shield.process.log());
    }
}

fn chat(model: &str, content: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 16})
}

#[tokio::test]
async fn json_that_does_not_parse() {
    let pair = Pair::start();
    let whole = chat(MODEL, "x").to_string();
    for body in [&whole[..whole.len() - 1], "", "{", "nonsense", "{\"model\": \"x\",}", "\u{feff}{}", "\0\0\0\0"] {
        let answer = pair.send("application/json", body.to_owned()).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "invalid_json"), "{body:?}: {}", answer.text());
        assert_eq!(answer.header("x-should-retry"), "false");
    }
    assert!(pair.simulator.log().await.is_empty(), "no request reached Groq");
    pair.still_serves().await;
}

#[tokio::test]
async fn valid_json_of_an_unexpected_shape_is_passed_to_groq() {
    let pair = Pair::start();
    for body in [
        "[]",
        "3",
        "null",
        "{}",
        "{\"model\": 7}",
        "{\"model\": \"x\", \"max_tokens\": -5}",
        "{\"model\": \"x\", \"stream\": \"yes\"}",
    ] {
        let answer = pair.send("application/json", body).await;
        assert!(
            (400..500).contains(&answer.status.as_u16()) || answer.status == 200,
            "{body}: {} {}",
            answer.status,
            answer.text()
        );
    }
    let deep = "[".repeat(100_000);
    let answer = pair.send("application/json", format!("{{\"model\": \"x\", \"messages\": {deep}")).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    pair.still_serves().await;
}

#[tokio::test]
async fn ten_megabytes_of_json() {
    let pair = Pair::start();
    let body = chat(MODEL, &"words ".repeat(10 << 20 >> 2)).to_string();
    assert!(body.len() > 10 << 20);
    let length = body.len();
    let answer = pair.send("application/json", body).await;
    // The request is sent to Groq, where it is too large for every model.
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "context_length_exceeded"), "{}", answer.text());
    assert_eq!(pair.simulator.log().await[0]["body_length"], length);
    pair.still_serves().await;
}

#[tokio::test]
async fn a_body_over_the_cap() {
    let pair = Pair::start();
    let answer = pair.send("application/json", vec![b' '; (100 << 20) + 1]).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "request_too_large"));
    assert!(pair.simulator.log().await.is_empty(), "no request reached Groq");
    pair.still_serves().await;
}

#[tokio::test]
async fn a_hundred_megabytes_of_audio() {
    let pair = Pair::start();
    let mut body = b"--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper-large-v3\r\n\
        --b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\n\r\n"
        .to_vec();
    body.resize((100 << 20) - 64, 0x55);
    body.extend(b"\r\n--b--\r\n");
    let client = pair.shield.process.client();
    let request =
        client.request(Method::POST, "/openai/v1/audio/transcriptions").header("content-type", "multipart/form-data; boundary=b");
    let answer = client.send(request.body(Full::from(body)).expect("a valid request")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    pair.still_serves().await;
}

#[tokio::test]
async fn malformed_forms() {
    let pair = Pair::start();
    let client = pair.shield.process.client();
    for (kind, body) in [
        ("multipart/form-data", "no boundary at all"),
        ("multipart/form-data; boundary=b", "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisp"),
        ("multipart/form-data; boundary=b", ""),
        ("text/plain", "hello"),
    ] {
        let request = client.request(Method::POST, "/openai/v1/audio/transcriptions").header("content-type", kind);
        let answer = client.send(request.body(Full::from(body)).expect("a valid request")).await;
        assert!((400..500).contains(&answer.status.as_u16()), "{kind} {body}: {} {}", answer.status, answer.text());
    }
    pair.still_serves().await;
}

#[tokio::test]
async fn an_unknown_model() {
    let pair = Pair::start();
    for model in ["nobody/has-this", "", "x\u{0}y", "💬", &"m".repeat(5000)] {
        let answer = pair.shield.process.client().post(CHAT, &chat(model, "hello")).await;
        assert!(matches!(answer.status.as_u16(), 200 | 400 | 404), "{model}: {} {}", answer.status, answer.text());
    }
    pair.still_serves().await;
}

#[tokio::test]
async fn durations_and_headers_that_do_not_parse() {
    let pair = Pair::start();
    let client = pair.shield.process.client();
    for (name, value) in [
        ("x-stainless-read-timeout", "soon"),
        ("x-stainless-read-timeout", "-1"),
        ("x-stainless-read-timeout", "NaN"),
        ("x-stainless-read-timeout", "1e308"),
        ("x-stainless-timeout", "99999999999999999999"),
        ("x-shield-max-wait-ms", "18446744073709551616"),
        ("x-shield-max-wait-ms", "1.5"),
        ("x-shield-class", "urgent"),
        ("x-shield-app", ""),
        ("x-stainless-retry-count", "many"),
        ("traceparent", "00-x"),
    ] {
        let request = client.request(Method::POST, CHAT).header("content-type", "application/json").header(name, value);
        let answer = client.send(request.body(Full::from(chat(MODEL, "hello").to_string())).expect("a valid request")).await;
        assert_eq!(answer.status, 200, "{name}: {value}: {}", answer.text());
    }
    for headers in [
        json!([
            ["x-ratelimit-limit-tokens", "plenty"],
            ["x-ratelimit-remaining-tokens", "-3"],
            ["x-ratelimit-reset-tokens", "soon"]
        ]),
        json!([
            ["x-ratelimit-limit-requests", "99999999999999999999"],
            ["x-ratelimit-remaining-requests", "1"],
            ["x-ratelimit-reset-requests", "1h1h1h"]
        ]),
        json!([
            ["x-ratelimit-limit-tokens", "10"],
            ["x-ratelimit-remaining-tokens", "20000"],
            ["x-ratelimit-reset-tokens", "-5s"]
        ]),
    ] {
        pair.simulator
            .faults(json!([{"times": 1, "action": "status", "status": 200, "body": {"choices": []}, "headers": headers}]))
            .await;
        let answer = client.post(CHAT, &chat("headers", "hello")).await;
        assert_eq!(answer.status, 200, "{headers}: {}", answer.text());
    }
    pair.still_serves().await;
}

#[tokio::test]
async fn refusals_with_texts_that_do_not_parse() {
    let pair = Pair::start();
    let client = pair.shield.process.client();
    for (message, retry_after) in [
        (
            "Rate limit reached for model `x` on tokens per fortnight (TPF): Limit 5, Used 5, Requested 1. Please try again in 10ms.",
            "0",
        ),
        ("Rate limit reached … Limit x, Used y, Requested z. Please try again in soon.", "0"),
        ("", "in a while"),
        ("no", "Wed, 21 Oct 2015 07:28:00 GMT"),
    ] {
        pair.simulator.faults(json!([{"times": 1, "action": "refused", "message": message, "retry_after": retry_after}])).await;
        let answer = tokio::time::timeout(Duration::from_secs(80), client.post(CHAT, &chat("refusals", "hello"))).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer: {message}"));
        assert!(matches!(answer.status.as_u16(), 200 | 429), "{message}: {} {}", answer.status, answer.text());
    }
    pair.still_serves().await;
}

#[tokio::test]
async fn bytes_that_are_not_http() {
    let pair = Pair::start();
    let client = pair.shield.process.client();
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice();
    for bytes in [
        hello,
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"GET\r\n\r\n",
        b"\0\0\0\0\0\0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    ] {
        let answer = String::from_utf8_lossy(&client.raw(bytes).await).into_owned();
        let told = || format!("{}: {answer}", bytes.escape_ascii());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {}", told()));
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{}", told());
        assert!(head.to_lowercase().contains("content-type: application/json"), "{}", told());
        let error: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {}", told()));
        assert_eq!(error["error"]["code"], "malformed_request", "{}", told());
    }
    assert!(pair.simulator.log().await.is_empty(), "no request reached Groq");
    pair.still_serves().await;
}
