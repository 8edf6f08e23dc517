//! The endpoints for embeddings, audio, models, files and batches.

use std::io::Read;

use bytes::Bytes;
use http_body_util::Full;
use serde_json::json;

use super::{answer, answer_json, chat, request};
use crate::{Options, Sim};

#[tokio::test(start_paused = true)]
async fn embeddings_in_floats_and_base64() {
    let sim = Sim::new(Options::default());
    let cost = |format: &str| {
        let body = json!({"model": "e", "input": ["one", "two"], "encoding_format": format});
        request("POST", "/openai/v1/embeddings", body.to_string())
    };
    assert_eq!(answer_json(&sim, cost("float")).await.1["data"][1]["embedding"][0], 0.125);
    let (_, body) = answer_json(&sim, cost("base64")).await;
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
async fn transcriptions_are_charged_by_seconds() {
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
async fn speech_is_charged_by_characters() {
    let sim = Sim::new(Options::default());
    let body = json!({"model": "canopylabs/orpheus-v1-english", "input": "hello", "voice": "autumn"});
    let (status, headers, body) = answer(&sim, request("POST", "/openai/v1/audio/speech", body.to_string())).await;
    assert_eq!((status, &headers["content-type"], &body[..4]), (200, &"audio/wav".parse().expect("ascii"), b"RIFF".as_slice()));
    assert_eq!(headers["x-ratelimit-remaining-tokens"], "49995");
}

#[tokio::test(start_paused = true)]
async fn models_are_found_by_plain_and_encoded_names() {
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
async fn files_are_returned_complete_and_by_range() {
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
async fn responses_are_compressed_on_request() {
    let sim = Sim::new(Options::default());
    for stream in [false, true] {
        let mut cost = chat("x", json!({"stream": stream}));
        cost.headers_mut().insert("accept-encoding", "gzip, deflate".parse().expect("ascii"));
        let (_, headers, body) = answer(&sim, cost).await;
        assert_eq!(headers["content-encoding"], "gzip");
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut plain).expect("gzip");
        assert!(plain.contains("gpt-oss-20b"));
    }
}
