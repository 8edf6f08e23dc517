//! Captured error bodies, and what an app sees of them.

use http::HeaderValue;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{headers, proxy::error::Rejection};

fn read(status: u16, body: &str) -> UpstreamError {
    let status = StatusCode::from_u16(status).expect("a status");
    UpstreamError::new(status, HeaderMap::new(), body.as_bytes(), SystemTime::UNIX_EPOCH)
}

/// Status, body and headers that the app gets.
fn shown(error: UpstreamError) -> (u16, Value, HeaderMap) {
    let response = Rejection::Upstream(Box::new(error)).into_response();
    let body: Value = serde_json::from_slice(response.body()).expect("JSON");
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    assert!(body["error"]["type"].is_string(), "{body}");
    assert_eq!(headers::text(response.headers(), "content-type"), Some("application/json"));
    (response.status().as_u16(), body["error"].clone(), response.headers().clone())
}

#[test]
fn documented_objects_pass_byte_for_byte() {
    let table = [
        (401, r#"{"error":{"message":"Invalid API Key","type":"invalid_request_error","code":"invalid_api_key"}}"#),
        (
            404,
            r#"{ "error" : {"type":"invalid_request_error","message":"Unknown request URL: GET /v1/x.","code":"unknown_url"}, "x":1 }"#,
        ),
        (
            400,
            r#"{"error":{"message":"Please reduce the length.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
        ),
        (
            400,
            r#"{"error":{"message":"Tool call validation failed","type":"invalid_request_error","code":"tool_use_failed","failed_generation":"{\"name\": \"org_chart\"}"}}"#,
        ),
        (503, r#"{"error":{"message":"qwen/qwen3-32b is currently over capacity.","type":"internal_server_error"}}"#),
        (500, r#"{"error":{"message":"Internal Server Error","type":"internal_server_error","code":null}}"#),
        (405, r#"{"error":{"message":"Method not allowed","type":"invalid_request_error"}}"#),
    ];
    for (status, body) in table {
        let error = read(status, body);
        assert_eq!((error.status.as_u16(), error.rebuilt), (status, false), "{body}");
        assert_eq!(error.after_generation(), body.contains("tool_use_failed"));
        assert_eq!(error.body.as_deref(), Some(body.as_bytes()));
        let (shown_status, _, headers) = shown(error);
        assert_eq!(shown_status, status);
        assert!(!headers.contains_key("x-shield-error"));
    }
}

#[test]
fn organization_ids_and_keys_are_masked() {
    let table = [
        ("in organization `org_01jabc` service", "in organization `org_***` service"),
        ("org_x", "org_***"),
        ("(org_x, gsk_abcDEF123)", "(org_***, gsk_***)"),
        ("a line\\norg_x", "a line\\norg_***"),
        ("my_org_chart, borg_x", "my_org_chart, borg_x"),
        ("org_ and gsk_…", "org_ and gsk_…"),
        ("org_***", "org_***"),
        ("org_org_x", "org_***"),
        ("é`org_é`", "é`org_é`"),
    ];
    for (text, masked) in table {
        assert_eq!(mask(text), masked);
        assert_eq!(mask(masked), masked);
    }
    let error = read(
        413,
        r#"{"error":{"message":"Request too large for model `m` in organization `org_abc` on tokens per minute (TPM): Limit 8000, Requested 11881, please","type":"tokens","code":"rate_limit_exceeded","org":"org_abc"}}"#,
    );
    let (status, object, headers) = shown(error);
    assert_eq!(status, 413);
    assert_eq!(object["org"], "org_***");
    assert!(!object.to_string().contains("org_abc"));
    assert_eq!(headers::text(&headers, "x-should-retry"), Some("false"));
}

#[test]
fn objects_that_lack_something_are_mended() {
    let table = [
        (
            403,
            r#"{"error":{"message":"Access denied. Please check your network settings."}}"#,
            json!({"type":"invalid_request_error"}),
        ),
        (404, r#"{"error":{"message":"Not Found"}}"#, json!({"message":"Not Found","type":"invalid_request_error"})),
        (500, r#"{"error":{"message":"m","type":7}}"#, json!({"type":"internal_server_error"})),
        (422, r#"{"error":{"message":"m","type":null,"param":"x"}}"#, json!({"type":"invalid_request_error","param":"x"})),
        (400, r#"{"error":{"message":"m","type":"t","code":400}}"#, json!({"type":"t","code":"400"})),
        (
            429,
            r#"{"error":{"message":"Rate limit reached on tokens per day (TPD): Limit 9, Used 9, Requested 2."}}"#,
            json!({"type":"tokens"}),
        ),
        (429, r#"{"error":{"message":"Slow down"}}"#, json!({"type":"requests"})),
    ];
    for (status, body, members) in table {
        let error = read(status, body);
        assert!(!error.rebuilt);
        let (shown_status, object, _) = shown(error);
        assert_eq!(shown_status, status, "{body}");
        for (name, value) in members.as_object().expect("members") {
            assert_eq!(&object[name], value, "{body}");
        }
    }
}

#[test]
fn pages_text_and_nothing_are_told_in_words() {
    let html = "<html><h1>api.groq.com | 502: Bad gateway</h1> cf-secret</html>";
    let table = [
        (502, html, 502, "internal_server_error"),
        (504, html, 502, "internal_server_error"),
        (520, html, 502, "internal_server_error"),
        (524, "", 502, "internal_server_error"),
        (530, "error code: 1016", 502, "internal_server_error"),
        (503, "", 503, "internal_server_error"),
        (501, html, 501, "internal_server_error"),
        (403, "error code: 1010", 403, "invalid_request_error"),
        (403, html, 403, "invalid_request_error"),
        (405, html, 405, "invalid_request_error"),
        (418, "cf-secret", 418, "invalid_request_error"),
        (429, html, 429, "requests"),
        (498, "", 498, "invalid_request_error"),
        (301, html, 502, "internal_server_error"),
        (500, "null", 500, "internal_server_error"),
        (500, "\u{0}\u{1}", 500, "internal_server_error"),
        (500, r#"{"error":{"message":["cf-secret"]}}"#, 500, "internal_server_error"),
        (500, r#"{"error":"<html>cf-secret"}"#, 500, "internal_server_error"),
    ];
    for (status, body, shown_status, kind) in table {
        let error = read(status, body);
        assert!(error.rebuilt, "{status} {body}");
        let (status_seen, object, headers) = shown(error);
        assert_eq!((status_seen, object["type"].as_str()), (shown_status, Some(kind)), "{status} {body}");
        assert_eq!(object["code"], "upstream_error");
        assert_eq!(headers::text(&headers, "x-shield-error"), Some("upstream_error"));
        let text = object.to_string().to_lowercase();
        for word in ["html", "cf-secret", "rate limit", "billing"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
    assert!(read(403, "error code: 1010").message.contains("1010"));
    assert_eq!(read(400, r#"{"detail":"Bad thing of org_x"}"#).message, "Bad thing of org_***");
    let object = r#"{"error":{"message":"The origin timed out","type":"timeout"}}"#;
    let (status, error, _) = shown(read(504, object));
    assert_eq!((status, &error["type"], &error["code"]), (502, &json!("internal_server_error"), &json!("upstream_error")));
}

#[test]
fn waits_come_from_the_text_then_the_header() {
    let wait = |status, header: Option<&str>, message: &str| {
        let header = header.map(|after| (header::RETRY_AFTER, HeaderValue::from_str(after).expect("a value")));
        let body = json!({"error": {"message": message, "type": "t"}}).to_string();
        let status = StatusCode::from_u16(status).expect("a status");
        UpstreamError::new(status, header.into_iter().collect(), body.as_bytes(), SystemTime::UNIX_EPOCH).retry_after
    };
    assert_eq!(wait(503, Some("7"), "over capacity"), Some(Duration::from_secs(7)));
    assert_eq!(wait(503, Some("7"), "Please try again in 1m0.5s."), Some(Duration::from_millis(60_500)));
    assert_eq!(wait(503, None, "over capacity"), None);
    assert_eq!(wait(413, Some("7"), "too large at the moment"), Some(Duration::from_secs(7)));
    assert_eq!(wait(400, Some("7"), "never"), None);
    let hopeless =
        "Rate limit reached on tokens per minute (TPM): Limit 7000, Used 0, Requested ~12903. Please try again in 50.6s.";
    assert_eq!(wait(429, Some("51"), hopeless), None);
}

#[test]
fn a_429_that_can_never_fit_is_a_413() {
    let body = r#"{"error":{"message":"Rate limit reached for model `m` on tokens per minute (TPM): Limit 7000, Used 0, Requested ~12903. Please try again in 50s.","type":"tokens","code":"rate_limit_exceeded"}}"#;
    let (status, object, headers) = shown(read(429, body));
    assert_eq!((status, &object["code"]), (413, &json!("rate_limit_exceeded")));
    assert!(!headers.contains_key("retry-after"));
}

#[test]
fn headers_of_the_old_body_go() {
    let headers = HeaderMap::from_iter([
        (header::CONTENT_ENCODING, HeaderValue::from_static("gzip")),
        (header::CONTENT_LENGTH, HeaderValue::from_static("99999")),
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html")),
        (header::SET_COOKIE, HeaderValue::from_static("__cf_bm=1")),
        (header::HeaderName::from_static("x-request-id"), HeaderValue::from_static("req_1")),
    ]);
    let error = UpstreamError::new(StatusCode::BAD_GATEWAY, headers, b"<html>", SystemTime::UNIX_EPOCH);
    let (_, _, headers) = shown(error);
    assert_eq!(headers::text(&headers, "x-request-id"), Some("req_1"));
    assert!(!headers.contains_key("content-encoding") && !headers.contains_key("set-cookie"));
}

#[test]
fn messages_are_bounded() {
    let long = json!({"error": {"message": "ü".repeat(100_000), "type": "t", "param": "p"}}).to_string();
    let (_, object, _) = shown(read(400, &long));
    assert_eq!(object["message"].as_str().map(|message| message.chars().count()), Some(MAX_MESSAGE));
    assert_eq!(object["param"], "p");
}

proptest! {
    #[test]
    fn any_answer_becomes_the_object(status in 300u16..600, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let status = StatusCode::from_u16(status).expect("a status");
        shown(UpstreamError::new(status, HeaderMap::new(), &body, SystemTime::UNIX_EPOCH));
    }

    #[test]
    fn any_members(status in 400u16..600, message in "\\PC*", kind in "[a-z\"\\\\]{0,9}", extra in "\\PC{0,9}") {
        let body = json!({"error": {"message": message.clone() + "x", "type": kind, extra: 1, "failed_generation": "org_x"}}).to_string();
        shown(read(status, &body));
    }

    #[test]
    fn masking_never_panics(text in "(org_|gsk_|\\PC|[a-z_`]){0,30}") {
        let once = mask(&text).into_owned();
        prop_assert_eq!(mask(&once), once.as_str());
    }
}
