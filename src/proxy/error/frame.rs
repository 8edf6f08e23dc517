//! The last frame of a failed stream: one `data:` frame on which every tested client raises an error.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value};

use super::kinds::{INVALID, SERVER};
use crate::groq::mask;

/// The frame for an error that the upstream put into a stream, in any of its three shapes: `{"error":{…}}`, a chunk with
/// `x_groq.error`, or the bare object of a typed event. Its members are kept; `message`, `type` and an integer `status_code` are
/// added if missing.
pub fn stream_error(data: &[u8]) -> Bytes {
    let data: Value = serde_json::from_slice(data).unwrap_or(Value::Null);
    let candidates = [&data["error"], &data["x_groq"]["error"], &data["response"]["error"], &data];
    let found = candidates.into_iter().find(|value| value.is_object() || value.is_string());
    let mut error = match found {
        Some(Value::Object(members)) => members.clone(),
        Some(Value::String(message)) => Map::from_iter([("message".to_owned(), message.as_str().into())]),
        _ => Map::new(),
    };
    let message = error.get("message").and_then(Value::as_str).unwrap_or("Groq ended the stream with an error.");
    let message = mask(message).into_owned();
    let status = match error.get("status_code") {
        Some(Value::Number(status)) => status.as_u64(),
        Some(Value::String(status)) => status.parse().ok(),
        _ => None,
    };
    let status = status.filter(|status| (400..600).contains(status)).unwrap_or(500);
    error.insert("message".into(), message.into());
    if !error.get("type").is_some_and(|kind| kind.is_string() && kind != "error") {
        let kind = if status < 500 { INVALID } else { SERVER };
        error.insert("type".into(), kind.into());
    }
    error.insert("status_code".into(), status.into());
    frame(error)
}

/// The frame for a response that turned out to be an error after its stream had been opened.
pub fn frame_of(status: StatusCode, body: &[u8]) -> Bytes {
    let mut body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let Value::Object(mut error) = body["error"].take() else { return stream_error(b"null") };
    error.insert("status_code".into(), status.as_u16().into());
    frame(error)
}

fn frame(error: Map<String, Value>) -> Bytes {
    format!("data: {}\n\n", serde_json::json!({ "error": error })).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(frame: &[u8]) -> Value {
        let json = frame.strip_prefix(b"data: ").and_then(|f| f.strip_suffix(b"\n\n")).expect("one frame");
        serde_json::from_slice::<Value>(json).expect("JSON")["error"].clone()
    }

    #[test]
    fn every_shape_becomes_the_documented_object() {
        for data in [
            r#"{"error":{"message":"m","status_code":400}}"#,
            r#"{"id":"x","choices":[],"x_groq":{"id":"r","error":"m"}}"#,
            r#"{"x_groq":{"error":{"message":"m","type":"t"}}}"#,
            r#"{"type":"error","message":"m","code":"c"}"#,
            r#"{"type":"response.failed","response":{"error":{"message":"m","code":"c"}}}"#,
            r#"{"error":"m"}"#,
        ] {
            let error = error_of(&stream_error(data.as_bytes()));
            assert_eq!(error["message"], "m", "{data}");
            assert!(error["type"].is_string() && error["type"] != "error", "{data}");
            assert!(error["status_code"].is_u64(), "{data}");
        }
        assert_eq!(error_of(&stream_error(b"no JSON"))["status_code"], 500);
    }
}
