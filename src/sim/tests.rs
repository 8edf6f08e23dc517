//! The simulator over its wire, in virtual time.

use std::{io::Read, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};

use super::*;

fn wire(sim: &Sim) -> DuplexStream {
    let (near, far) = duplex(64 << 10);
    let sim = sim.clone();
    tokio::spawn(async move { sim.serve_connection(far).await });
    near
}

async fn send(sim: &Sim, request: http::Request<Full<Bytes>>) -> hyper::Result<http::Response<hyper::body::Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(wire(sim))).await?;
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

/// Status, headers, body.
async fn answer(sim: &Sim, request: http::Request<Full<Bytes>>) -> (u16, http::HeaderMap, Bytes) {
    let (head, body) = send(sim, request).await.expect("an answer").into_parts();
    (head.status.as_u16(), head.headers, body.collect().await.expect("a whole body").to_bytes())
}

async fn answer_json(sim: &Sim, request: http::Request<Full<Bytes>>) -> (u16, Value) {
    let (status, _, body) = answer(sim, request).await;
    (status, serde_json::from_slice(&body).expect("JSON"))
}

fn events(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).expect("UTF-8");
    assert!(text.ends_with("\n\n"));
    let data = text.split("\n\n").filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_chat_reply_holds_its_usage_and_the_limits() {
    let sim = Sim::new(Options::default());
    let (status, headers, body) = answer(&sim, chat("[[sim completion=40 cached=10]]", json!({"max_tokens": 500}))).await;
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((status, &body["object"]), (200, &json!("chat.completion")));
    let prompt = body["usage"]["prompt_tokens"].as_u64().expect("tokens");
    assert_eq!(body["usage"]["completion_tokens"], 40);
    assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 10);
    assert_eq!(headers["x-ratelimit-remaining-tokens"], (250_000 - prompt - 500).to_string());
    assert!(!headers.contains_key("x-ratelimit-limit-requests"), "the developer plan has no day of requests");
    for name in ["x-request-id", "x-groq-region", "cf-ray", "set-cookie"] {
        assert!(headers.contains_key(name), "{name}");
    }
    assert_eq!(sim.stats().lanes[0].levels["TPM"].spent, i128::from(prompt - 10 + 40));
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_its_id_and_ends_with_usage_and_done() {
    let sim = Sim::new(Options::default());
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let (status, headers, body) = answer(&sim, chat("[[sim completion=450]]", more)).await;
    let events = events(&body);
    assert_eq!((status, &headers["content-type"]), (200, &"text/event-stream".parse().expect("ascii")));
    assert!(headers.contains_key("x-ratelimit-remaining-tokens"));
    assert!(events[0]["x_groq"]["id"].is_string());
    let last = events.len() - 1;
    assert_eq!(events[last], "[DONE]");
    assert_eq!((&events[last - 1]["choices"], &events[last - 1]["usage"]["completion_tokens"]), (&json!([]), &json!(450)));
    assert_eq!(events[last - 2]["x_groq"]["usage"]["completion_tokens"], 450);
    assert_eq!(events[last - 2]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test(start_paused = true)]
async fn generation_takes_its_time_and_the_ceiling_cuts_it() {
    let pace = Pace { head: Duration::from_millis(200), head_sigma: 0.0, tokens_per_second: 100.0, ..Pace::default() };
    let sim = Sim::new(Options { pace, ..Options::default() });
    let started = Instant::now();
    let (_, body) = answer_json(&sim, chat("[[sim completion=1000]]", json!({"max_completion_tokens": 300}))).await;
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(started.elapsed().as_millis() / 10, 320);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_comes_with_headers_and_is_logged() {
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
async fn every_key_is_an_organisation_unless_said_otherwise() {
    let limits = ModelLimits { requests_per_minute: Some(1), ..ModelLimits::default() };
    let organisations = BTreeMap::from(["gsk_a", "gsk_b"].map(|key| (key.to_owned(), "org_one".to_owned())));
    let sim = Sim::new(Options { plan: Plan::uniform(limits), organisations, pace: Pace::instant(), ..Options::default() });
    for (key, expected) in [("gsk_a", 200), ("gsk_b", 429), ("gsk_c", 200)] {
        let mut request = chat("x", json!({}));
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().expect("ascii"));
        assert_eq!(answer(&sim, request).await.0, expected, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_says_the_same() {
    let run = async |seed| {
        let sim = Sim::new(Options { seed, ..Options::default() });
        let started = Instant::now();
        let mut said = Vec::new();
        for _ in 0..5 {
            said.push(answer(&sim, chat("hello", json!({"stream": true}))).await.2);
        }
        (said, started.elapsed())
    };
    let first = run(7).await;
    assert_eq!(first, run(7).await);
    assert_ne!(first.0, run(8).await.0);
}

#[tokio::test(start_paused = true)]
async fn the_captured_errors() {
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
    assert_eq!(sim.stats().admitted, 1, "only what was generated is charged");
}

#[tokio::test(start_paused = true)]
async fn tools_and_schemas_are_answered_in_kind() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    let tools =
        json!({"tools": [{"type": "function", "function": {"name": "weather", "parameters": schema}}], "tool_choice": "auto"});
    let (_, body) = answer_json(&sim, chat("x", tools)).await;
    let call = &body["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(
        (call, &body["choices"][0]["finish_reason"]),
        (&json!({"name": "weather", "arguments": "{\"city\":\"simulated\",\"days\":1}"}), &json!("tool_calls"))
    );
    let (_, body) =
        answer_json(&sim, chat("x", json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})))
            .await;
    assert_eq!(body["choices"][0]["message"]["content"], "{\"city\":\"simulated\",\"days\":1}");
}

#[tokio::test(start_paused = true)]
async fn responses_are_typed_events() {
    let sim = Sim::new(Options::default());
    let ask = |stream: bool| {
        let body =
            json!({"model": "openai/gpt-oss-20b", "input": "[[sim completion=10]]", "stream": stream, "max_output_tokens": 100});
        request("POST", "/openai/v1/responses", body.to_string())
    };
    let (_, whole) = answer_json(&sim, ask(false)).await;
    assert_eq!((&whole["object"], &whole["usage"]["output_tokens"]), (&json!("response"), &json!(10)));
    let (_, _, body) = answer(&sim, ask(true)).await;
    let events = events(&body);
    assert_eq!(events[0]["type"], "response.created");
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["response"]["usage"]["output_tokens"]), (&json!("response.completed"), &json!(10)));
    assert!(body.starts_with(b"event: response.created\ndata: "));
}

#[tokio::test(start_paused = true)]
async fn embeddings_in_floats_and_base64() {
    let sim = Sim::new(Options::default());
    let ask = |format: &str| {
        let body = json!({"model": "e", "input": ["one", "two"], "encoding_format": format});
        request("POST", "/openai/v1/embeddings", body.to_string())
    };
    assert_eq!(answer_json(&sim, ask("float")).await.1["data"][1]["embedding"][0], 0.125);
    let (_, body) = answer_json(&sim, ask("base64")).await;
    assert_eq!(body["data"][0]["embedding"], "AAAAAAAAAD4AAIA+AADAPgAAAD8AACA/AABAPwAAYD8=");
}

fn form(path: &str, fields: &[(&str, &str)], file: &[u8]) -> http::Request<Full<Bytes>> {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend_from_slice(format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").as_bytes());
    }
    body.extend_from_slice(b"--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"f.bin\"\r\n\r\n");
    body.extend_from_slice(file);
    body.extend_from_slice(b"\r\n--b--\r\n");
    let mut request = request("POST", path, body);
    request.headers_mut().insert("content-type", "multipart/form-data; boundary=b".parse().expect("ascii"));
    request
}

#[tokio::test(start_paused = true)]
async fn transcriptions_spend_seconds_and_show_them() {
    let sim = Sim::new(Options::default());
    let path = "/openai/v1/audio/transcriptions";
    let file = vec![0; 16_000 * 30];
    let (status, headers, body) = answer(&sim, form(path, &[("model", "whisper-large-v3")], &file)).await;
    assert_eq!((status, &headers["x-ratelimit-remaining-audio-seconds"]), (200, &"199970".parse().expect("ascii")));
    assert!(!headers.contains_key("x-ratelimit-limit-tokens") && body.starts_with(b"{\"text\":"));
    let fields = [("model", "whisper-large-v3"), ("response_format", "text")];
    assert!(answer(&sim, form(path, &fields, &file)).await.2.starts_with(b" Tokens leave"));
    let fields = [("model", "whisper-large-v3"), ("response_format", "verbose_json")];
    assert_eq!(answer_json(&sim, form("/openai/v1/audio/translations", &fields, &file)).await.1["duration"], 30.0);
}

#[tokio::test(start_paused = true)]
async fn speech_is_bytes_charged_by_characters() {
    let sim = Sim::new(Options::default());
    let body = json!({"model": "canopylabs/orpheus-v1-english", "input": "hello", "voice": "autumn"});
    let (status, headers, body) = answer(&sim, request("POST", "/openai/v1/audio/speech", body.to_string())).await;
    assert_eq!((status, &headers["content-type"], &body[..4]), (200, &"audio/wav".parse().expect("ascii"), b"RIFF".as_slice()));
    assert_eq!(headers["x-ratelimit-remaining-tokens"], "49995");
}

#[tokio::test(start_paused = true)]
async fn models_by_name_raw_and_encoded() {
    let sim = Sim::new(Options::default());
    for path in ["/openai/v1/models/openai/gpt-oss-20b", "/openai/v1/models/openai%2Fgpt-oss-20b"] {
        assert_eq!(answer_json(&sim, request("GET", path, "")).await.1["id"], "openai/gpt-oss-20b");
        assert_eq!(answer_json(&sim, request("DELETE", path, "")).await.1["deleted"], true);
    }
    let (_, list) = answer_json(&sim, request("GET", "/openai/v1/models", "")).await;
    assert_eq!(list["data"].as_array().map(Vec::len), Some(10));
    assert_eq!(answer(&sim, request("GET", "/openai/v1/models/x", "")).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn files_come_back_whole_and_by_ranges() {
    let sim = Sim::new(Options::default());
    let (_, file) = answer_json(&sim, form("/openai/v1/files", &[("purpose", "batch")], b"0123456789")).await;
    let path = format!("/openai/v1/files/{}/content", file["id"].as_str().expect("an id"));
    assert_eq!(answer(&sim, request("GET", &path, "")).await.2, "0123456789");
    for (range, status, content, shown) in [
        ("bytes=2-5", 206, "2345", "bytes 2-5/10"),
        ("bytes=7-", 206, "789", "bytes 7-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=5-99", 206, "56789", "bytes 5-9/10"),
    ] {
        let mut request = request("GET", &path, "");
        request.headers_mut().insert("range", range.parse().expect("ascii"));
        let (got, headers, body) = answer(&sim, request).await;
        assert_eq!(
            (got, &headers["content-range"], &body[..]),
            (status, &shown.parse().expect("ascii"), content.as_bytes()),
            "{range}"
        );
    }
    let batch = json!({"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let (_, batch) = answer_json(&sim, request("POST", "/openai/v1/batches", batch.to_string())).await;
    let path = format!("/openai/v1/batches/{}/cancel", batch["id"].as_str().expect("an id"));
    assert_eq!(answer_json(&sim, request("POST", &path, "")).await.1["status"], "cancelling");
    assert_eq!(answer_json(&sim, request("GET", "/v1/fine_tunings", "")).await.1["object"], "list");
}

#[tokio::test(start_paused = true)]
async fn it_compresses_when_asked_to() {
    let sim = Sim::new(Options::default());
    for stream in [false, true] {
        let mut ask = chat("x", json!({"stream": stream}));
        ask.headers_mut().insert("accept-encoding", "gzip, deflate".parse().expect("ascii"));
        let (_, headers, body) = answer(&sim, ask).await;
        assert_eq!(headers["content-encoding"], "gzip");
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut plain).expect("gzip");
        assert!(plain.contains("gpt-oss-20b"));
    }
}

#[tokio::test(start_paused = true)]
async fn leaving_a_stream_ends_it_and_its_charge() {
    let pace = Pace { tokens_per_second: 10.0, ..Pace::default() };
    let sim = Sim::new(Options { pace, ..Options::default() });
    let response = send(&sim, chat("[[sim completion=1000 head_ms=0]]", json!({"stream": true, "max_tokens": 2000}))).await;
    let prompt = sim.stats().lanes[0].levels["TPM"].spent - 2000;
    let mut body = response.expect("a head").into_body();
    for _ in 0..3 {
        body.frame().await.expect("an event").expect("data");
    }
    drop(body);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = sim.stats().lanes[0].levels["TPM"].spent - prompt;
    assert!((1..=30).contains(&spent), "{spent}");
    assert_eq!((sim.log()[0].ended, sim.stats().dropped), (Some("dropped"), 1));
}

#[tokio::test(start_paused = true)]
async fn statuses_are_played_by_the_script() {
    let script = r#"[
        {"nth": 1, "action": "status", "status": 503},
        {"nth": 2, "action": "html", "status": 502},
        {"nth": 3, "action": "forbidden"},
        {"nth": 4, "action": "empty", "status": 500},
        {"nth": 5, "action": "untyped", "status": 403},
        {"nth": 6, "action": "refused", "message": "Slow down", "retry_after": "2.5"},
        {"nth": 7, "action": "status", "status": 498, "body": {"x": 1}, "headers": [["x-a", "b"]]},
        {"nth": [8], "path": "/chat", "model": "openai/gpt-oss-20b", "action": "not_json"}]"#;
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    assert_eq!(answer(&sim, request("POST", "/_sim/faults", script)).await.0, 200);
    let mut said = Vec::new();
    for _ in 0..9 {
        let (status, headers, body) = answer(&sim, chat("x", json!({}))).await;
        said.push((status, headers.get("retry-after").cloned(), String::from_utf8_lossy(&body).into_owned()));
    }
    let statuses: Vec<u16> = said.iter().map(|(status, ..)| *status).collect();
    assert_eq!(statuses, [503, 502, 403, 500, 403, 429, 498, 200, 200]);
    assert!(said[0].2.contains("openai/gpt-oss-20b is currently over capacity."));
    assert!(said[1].2.contains("api.groq.com | 502: Bad gateway"));
    assert_eq!((said[2].2.as_str(), said[3].2.as_str(), said[6].2.as_str()), ("error code: 1010", "", "{\"x\":1}"));
    assert!(!said[4].2.contains("type"));
    assert_eq!(said[5].1.as_ref().map(|v| v.as_bytes()), Some(b"2.5".as_slice()));
    assert!(said[7].2.starts_with("<html>") && said[8].2.contains("chat.completion"));
    assert_eq!((sim.stats().admitted, sim.stats().faults, sim.stats().dropped), (1, 8, 0));
    assert_eq!(answer(&sim, request("POST", "/_sim/faults", "{")).await.0, 400);
}

/// Everything that comes over the wire for one request, until it closes.
async fn raw(sim: &Sim, stream: bool) -> String {
    let mut wire = wire(sim);
    let body = json!({"model": "m", "messages": [{"content": "[[sim completion=20]]"}], "stream": stream}).to_string();
    let head = format!(
        "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    wire.write_all((head + &body).as_bytes()).await.expect("written");
    let mut all = Vec::new();
    wire.read_to_end(&mut all).await.expect("read to its end");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test(start_paused = true)]
async fn connections_break_where_the_script_says() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    let play = async |action: Action, stream: bool| {
        sim.set_faults(vec![Fault::always(action)]);
        raw(&sim, stream).await
    };
    let whole = play(Action::None, false).await;
    let (_, json) = whole.split_once("\r\n\r\n").expect("a head");
    assert!(serde_json::from_str::<Value>(json).is_ok());

    assert_eq!(play(Action::Close, false).await, "");
    assert_eq!(play(Action::Garbage { bytes: Some("SSH-2.0-x\r\n".to_owned()) }, false).await, "SSH-2.0-x\r\n");
    let head = play(Action::CloseInHead, false).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("\r\n\r\n"));
    let length = |all: &str| {
        let (head, body) = all.split_once("\r\n\r\n").expect("a head");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        (length.parse::<usize>().expect("a number"), body.len())
    };
    let (announced, came) = length(&play(Action::CloseInBody, false).await);
    assert_eq!(announced / 2, came);
    let (announced, came) = length(&play(Action::WrongLength { by: 7 }, false).await);
    assert_eq!(announced, came + 7);
    let (announced, came) = length(&play(Action::TruncatedJson, false).await);
    assert_eq!(announced, came);

    let started = Instant::now();
    let slow = play(Action::SlowHead { ms: 10 }, false).await;
    let (head, json) = slow.split_once("\r\n\r\n").expect("a head");
    assert!(serde_json::from_str::<Value>(json).is_ok());
    assert!(started.elapsed() >= Duration::from_millis(10) * head.len() as u32);

    let started = Instant::now();
    play(Action::Stall { ms: 5000 }, false).await;
    play(Action::StallStream { after: 2, ms: 5000 }, true).await;
    assert!(started.elapsed() >= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn streams_end_as_the_script_says() {
    let sim = Sim::new(Options { pace: Pace::instant(), ..Options::default() });
    let play = async |action: Action| {
        sim.set_faults(vec![Fault::always(action)]);
        raw(&sim, true).await
    };
    let data = |all: &str| all.matches("data: ").count();
    let whole = play(Action::None).await;
    assert!(whole.contains("data: [DONE]") && whole.ends_with("0\r\n\r\n"));

    let cut = play(Action::Cut { after: 3, half: false }).await;
    assert_eq!((data(&cut), cut.ends_with("0\r\n\r\n"), cut.ends_with("\n\n\r\n")), (3, false, true));
    let half = play(Action::Cut { after: 3, half: true }).await;
    assert_eq!((data(&half), half.ends_with("\n\n\r\n")), (4, false));
    let done = play(Action::NoDone).await;
    assert_eq!((data(&done) + 1, done.contains("[DONE]"), done.ends_with("0\r\n\r\n")), (data(&whole), false, true));
    for (action, mark) in [
        (Action::ErrorFrame { after: 2 }, "\"status_code\":400"),
        (Action::ErrorEvent { after: 2 }, "event: error\n"),
        (Action::XGroqError { after: 2 }, "\"x_groq\":{\"error\""),
    ] {
        let all = play(action).await;
        assert_eq!((data(&all), all.contains(mark), all.ends_with("0\r\n\r\n")), (3, true, true), "{all}");
    }
}

#[tokio::test(start_paused = true)]
async fn chances_follow_the_seed() {
    let run = async |seed| {
        let faults =
            vec![Fault { probability: Some(0.5), times: Some(20), action: Action::Empty { status: 500 }, ..Fault::default() }];
        let sim = Sim::new(Options { seed, faults, pace: Pace::instant(), ..Options::default() });
        let mut said = Vec::new();
        for _ in 0..60 {
            said.push(answer(&sim, chat("x", json!({}))).await.0);
        }
        said
    };
    let first = run(3).await;
    assert_eq!(first, run(3).await);
    assert_eq!(first.iter().filter(|status| **status == 500).count(), 20);
}

#[tokio::test(start_paused = true)]
async fn its_own_paths_tell_what_happened() {
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
async fn it_serves_sockets() {
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
        let response = sender.send_request(chat("x", json!({}))).await.expect("an answer");
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.expect("whole");
    }
    assert_eq!(sim.log().iter().map(|request| request.connection).collect::<Vec<_>>(), [1, 1, 1]);
    serving.abort();
    open.abort();
}
