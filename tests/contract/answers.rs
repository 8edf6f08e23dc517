//! Random upstream answers: statuses, types, bodies, framings and cuts, where the failure table has one of each.

use proptest::{prelude::*, sample::select};
use serde_json::Value;

use crate::checks::seen;

const STATUSES: [u16; 26] = [
    200, 201, 202, 204, 206, 301, 304, 400, 401, 403, 404, 405, 408, 413, 418, 422, 429, 451, 498, 500, 501, 502, 503, 504, 522,
    530,
];
const JSON: &str = "application/json";
const TYPES: [&str; 5] = [JSON, "application/json; charset=utf-8", "text/html", "text/event-stream", ""];
const BODIES: [&str; 14] = [
    "",
    r#"{"id":"x","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}"#,
    r#"{"error":{"message":"No.","type":"invalid_request_error"}}"#,
    r#"{"error":{"message":"No.","type":"tokens","code":"rate_limit_exceeded"}}"#,
    r#"{"error":{"message":5,"type":null,"code":{}}}"#,
    r#"{"error":"No."}"#,
    r#"{"error":[]}"#,
    r#"{"message":"No."}"#,
    "[]",
    "null",
    "{",
    "<!DOCTYPE html>\n<html><head><title>Bad gateway</title></head></html>",
    "data: {\"choices\":[]}\n\ndata: [DONE]\n\n",
    "error code: 1015",
];

/// How the upstream delimits a body.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    Chunks,
    Close,
}

fn whole(status: u16, kind: &str, body: &str, framing: Framing) -> String {
    let kind = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
    let length = body.len();
    let rest = match framing {
        Framing::Length => format!("content-length: {length}\r\n\r\n{body}"),
        Framing::Chunks if length == 0 => "transfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        Framing::Chunks => format!("transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
        Framing::Close => format!("connection: close\r\n\r\n{body}"),
    };
    format!("HTTP/1.1 {status} X\r\n{kind}{rest}")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// A valid answer passes unchanged; any other, cut anywhere, becomes a failure that the app's SDK can parse.
    #[test]
    fn any_upstream_answer_passes_whole_or_becomes_the_error_object(
        status in select(&STATUSES[..]),
        kind in select(&TYPES[..]),
        body in prop_oneof![3 => select(&BODIES[..]).prop_map(str::to_owned), 1 => "\\PC{0,200}"],
        framing in select(&[Framing::Length, Framing::Chunks, Framing::Close][..]),
        cut in prop::option::weighted(0.3, 0.0..1.0),
    ) {
        let whole = whole(status, kind, &body, framing);
        let end = cut.map_or(whole.len(), |share: f64| (whole.len() as f64 * share) as usize);
        // `seen` has checked that 400 and above carries the error object, and that splitting the bytes makes no difference.
        let (told, shown) = seen(&whole.as_bytes()[..end]);
        let is_call = serde_json::from_str::<Value>(&body).is_ok_and(|body| body["choices"].is_array());
        if end == whole.len() && kind.starts_with(JSON) && matches!(status, 200..=202) && is_call {
            prop_assert_eq!((told, shown), (status, body.into_bytes()));
        } else if end == whole.len() && kind == JSON && status >= 400 {
            prop_assert!(told >= 400, "{} for {}", told, status);
        } else if end <= whole.find("\r\n\r\n").expect("a head") {
            prop_assert_eq!(told, 502, "half a head");
        }
    }
}
