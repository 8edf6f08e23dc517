//! The requests that reach Groq: paths in every form, bodies byte by byte, and exactly the headers that should be forwarded.

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::kit::{Client, Shield, Simulator};

const MODEL: &str = "openai/gpt-oss-20b";
const CHAT: &str = "/openai/v1/chat/completions";

async fn pair() -> (Simulator, Shield) {
    let simulator = Simulator::generous();
    let shield = Shield::before(simulator.process.address(), "[limits]\nplan = \"none\"\n");
    (simulator, shield)
}

fn chat() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say three words."}], "max_tokens": 16})
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A multipart form with the given fields and file.
fn form(fields: &[(&str, &str)], file: &[u8]) -> (String, Bytes) {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend(format!("--bound\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
    }
    let head = "--bound\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\ncontent-type: application/octet-stream\r\n\r\n";
    body.extend(head.bytes());
    body.extend_from_slice(file);
    body.extend(b"\r\n--bound--\r\n");
    ("multipart/form-data; boundary=bound".to_owned(), body.into())
}

async fn upload(client: Client, path: &str, (kind, body): (String, Bytes)) -> crate::kit::Answer {
    let request = client.request(Method::POST, path).header("content-type", kind);
    client.send(request.body(Full::new(body)).expect("a valid request")).await
}

/// Random bytes, which do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

#[tokio::test]
async fn every_form_of_path_is_mapped_to_groqs() {
    let (simulator, shield) = pair().await;
    let client = shield.process.client();
    let spellings = [
        CHAT,
        "/openai/v1/openai/v1/chat/completions",
        "/v1/chat/completions",
        "/chat/completions",
        // Paths that result from common base URLs of async-openai, groq and genai.
        "/openai/v1//chat/completions",
        "//chat/completions",
        "/v1/openai/v1/chat/completions",
        "/openai/chat/completions",
    ];
    for path in spellings {
        let answer = client.post(path, &chat()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    for (path, reaches) in [
        ("/v1/models", "/openai/v1/models"),
        ("/models", "/openai/v1/models"),
        ("/models/openai/gpt-oss-20b", "/openai/v1/models/openai/gpt-oss-20b"),
        ("/openai/v1/models/openai%2Fgpt-oss-20b", "/openai/v1/models/openai%2Fgpt-oss-20b"),
        ("/openai/v1/models?limit=3&x=%20y", "/openai/v1/models?limit=3&x=%20y"),
        ("/v1/fine_tunings", "/v1/fine_tunings"),
        ("/v1/metrics/prometheus", "/v1/metrics/prometheus"),
        ("/openai/v1/batches?limit=1", "/openai/v1/batches?limit=1"),
        ("/files", "/openai/v1/files"),
        ("/nowhere/at/all", "/nowhere/at/all"),
    ] {
        client.get(path).await;
        let log = simulator.log().await;
        assert_eq!(log.last().map(|request| request["target"].clone()), Some(reaches.into()), "{path}");
    }
    let log = simulator.log().await;
    assert!(log[..spellings.len()].iter().all(|request| request["target"] == CHAT), "{log:?}");
    let access = shield.process.log();
    let counted = access.lines().filter(|line| line.contains("endpoint=\"chat\"")).count();
    assert_eq!(counted, spellings.len(), "each is a chat call with limits:\n{access}");
}

#[tokio::test]
async fn an_unknown_path_gets_groqs_404() {
    let (_simulator, shield) = pair().await;
    let answer = shield.process.client().get("/openai/v1/nothing").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "unknown_url"));
    assert_eq!(answer.header("x-should-retry"), "false");
}

#[tokio::test]
async fn headers_are_forwarded_except_the_shields_and_hop_by_hop_ones() {
    let (simulator, shield) = pair().await;
    let client = shield.process.client();
    let request = client
        .request(Method::POST, CHAT)
        .header("content-type", "application/json; charset=utf-8")
        .header("x-unknown", "passes")
        .header("x-twice", "one")
        .header("x-twice", "two")
        .header("x-stainless-read-timeout", "60")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("connection", "keep-alive, x-of-this-connection")
        .header("x-of-this-connection", "stays here")
        .header("keep-alive", "timeout=5")
        .header("proxy-authorization", "Basic stays")
        .header("te", "trailers")
        .header("x-shield-app", "billing")
        .header("x-shield-class", "batch")
        .header("x-shield-max-wait-ms", "5000");
    let answer = client.send(request.body(Full::from(chat().to_string())).expect("a valid request")).await;
    assert_eq!(answer.status, 200);
    let request = simulator.log().await.pop().expect("one request");
    let seen = |name: &str| -> Vec<String> {
        let headers = request["headers"].as_array().expect("a list");
        let named = headers.iter().filter(|pair| pair[0] == name);
        named.map(|pair| pair[1].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(seen("x-unknown"), ["passes"]);
    assert_eq!(seen("x-twice"), ["one", "two"]);
    assert_eq!(seen("x-stainless-read-timeout"), ["60"]);
    assert_eq!(seen("content-type"), ["application/json; charset=utf-8"]);
    assert_eq!(seen("authorization"), ["Bearer gsk_test"]);
    assert_eq!(seen("host"), [simulator.process.address().to_string()]);
    assert_eq!(seen("content-length"), [chat().to_string().len().to_string()]);
    for name in [
        "x-of-this-connection",
        "keep-alive",
        "proxy-authorization",
        "te",
        "x-shield-app",
        "x-shield-class",
        "x-shield-max-wait-ms",
    ] {
        assert_eq!(seen(name), Vec::<String>::new(), "{name}");
    }
    assert_eq!(answer.header("x-groq-region"), "sim");
}

#[tokio::test]
async fn json_passes_byte_for_byte() {
    let (simulator, shield) = pair().await;
    // Unusual spacing, escapes, a duplicate key, unknown members and a large number are kept: the body is not reserialized.
    let body = format!(
        "{{ \"model\" :\"{MODEL}\",\n\t\"x_unknown\": {{\"a\":1.10,\"a\":2}}, \"seed\":12345678901234567890, \
         \"messages\":[{{\"role\":\"user\",\"content\":\"\\u00e4\\ud83d\\ude00 \u{e4}\"}}],\"max_tokens\":16 }}  "
    );
    let client = shield.process.client();
    let request = client.request(Method::POST, CHAT).header("content-type", "application/json");
    let answer = client.send(request.body(Full::from(body.clone())).expect("a valid request")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(simulator.log().await[0]["body_sha256"], digest(body.as_bytes()));
}

#[tokio::test]
async fn an_upload_of_many_megabytes_and_its_download_are_unchanged() {
    let (simulator, shield) = pair().await;
    let client = shield.process.client();
    let content = noise(12 << 20);
    let (kind, body) = form(&[("purpose", "batch")], &content);
    let sent = digest(&body);
    let answer = upload(client, "/openai/v1/files", (kind, body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(simulator.log().await[0]["body_sha256"], sent);
    let path = format!("/openai/v1/files/{}/content", answer.json()["id"].as_str().expect("an id"));
    let whole = client.get(&path).await;
    assert_eq!((whole.status.as_u16(), whole.body.len()), (200, content.len()));
    assert_eq!(digest(&whole.body), digest(&content));
    let request = client.request(Method::GET, &path).header("range", "bytes=1000000-2999999");
    let part = client.send(request.body(Full::default()).expect("a valid request")).await;
    assert_eq!(part.status, 206);
    assert!(part.header("content-range").starts_with("bytes 1000000-2999999/"), "{:?}", part.headers);
    assert_eq!(digest(&part.body), digest(&content[1_000_000..3_000_000]));
}

#[tokio::test]
async fn binary_audio_passes_both_ways() {
    let (simulator, shield) = pair().await;
    let client = shield.process.client();
    let wav = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/second.wav")).expect("the recording");
    let (kind, body) = form(&[("model", "whisper-large-v3"), ("response_format", "text")], &wav);
    let sent = digest(&body);
    let answer = upload(client, "/openai/v1/audio/transcriptions", (kind, body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("content-type").starts_with("text/plain"), "{:?}", answer.headers);
    assert_eq!(simulator.log().await[0]["body_sha256"], sent);

    let order = json!({"model": "canopylabs/orpheus-v1-english", "input": "Say it aloud.", "voice": "x"});
    let through = client.post("/openai/v1/audio/speech", &order).await;
    let straight = {
        let client = simulator.process.client();
        let request = client.request(Method::POST, "/openai/v1/audio/speech").header("content-type", "application/json");
        client.open(request.body(Full::from(order.to_string())).expect("a valid request")).await.whole().await
    };
    assert_eq!((through.status.as_u16(), through.header("content-type")), (200, "audio/wav"));
    assert_eq!(digest(&through.body), digest(&straight.body));
}

#[tokio::test]
async fn a_preflight_needs_no_key() {
    let (_simulator, shield) = pair().await;
    let client = shield.process.client();
    let request = http::Request::builder().method(Method::OPTIONS).uri(CHAT).header("host", "localhost");
    let request = request.header("origin", "http://localhost:3000").header("access-control-request-method", "POST");
    let answer = client.send(request.body(Full::default()).expect("a valid request")).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), "*");
}

#[tokio::test]
async fn the_absolute_form_is_served_for_the_upstream_only() {
    let (simulator, shield) = pair().await;
    let client = shield.process.client();
    let absolute = format!("http://{}/openai/v1/models", simulator.process.address());
    assert_eq!(client.get(&absolute).await.status, 200);
    let answer = client.get("http://example.com/openai/v1/models").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "destination_not_allowed"));
}

/// Documented for clients with a fixed `https://api.groq.com` that use the shield as their proxy.
#[tokio::test]
async fn connect_requests_are_refused() {
    let (simulator, shield) = pair().await;
    let connect = b"CONNECT api.groq.com:443 HTTP/1.1\r\nhost: api.groq.com:443\r\n\r\n";
    let mut socket = TcpStream::connect(shield.process.address()).await.expect("it listens");
    socket.write_all(connect).await.expect("it is taken");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("it closes");
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("destination_not_allowed"), "{answer}");
    assert!(simulator.log().await.is_empty());
}
