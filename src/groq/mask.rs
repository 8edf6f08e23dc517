//! Masks organization ids and API keys in texts from Groq.

use std::{borrow::Cow, ops::Range};

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Replaces organization ids (`org_…`) by `org_***` and keys (`gsk_…`) by `gsk_***`.
pub fn mask(text: &str) -> Cow<'_, str> {
    let ids = secrets(text);
    if ids.is_empty() {
        return Cow::Borrowed(text);
    }
    let (mut masked, mut copied) = (String::new(), 0);
    for id in ids {
        masked += &text[copied..id.start];
        masked += "***";
        copied = id.end;
    }
    Cow::Owned(masked + &text[copied..])
}

/// Masks the same in the error of a failed response, with as many stars as letters: the body keeps its length.
pub fn mask_error(body: Bytes) -> Bytes {
    let found = error_secrets(&body);
    starred(body, found)
}

/// Masks the same in the error of each complete event.
pub fn mask_errors_of_events(events: Bytes) -> Bytes {
    let mut found = Vec::new();
    let mut start = 0;
    for line in events.split_inclusive(|b| *b == b'\n') {
        if let Some(data) = line.strip_prefix(b"data:") {
            let at = start + line.len() - data.len();
            found.extend(error_secrets(data).into_iter().map(|id| at + id.start..at + id.end));
        }
        start += line.len();
    }
    starred(events, found)
}

fn starred(bytes: Bytes, secrets: Vec<Range<usize>>) -> Bytes {
    if secrets.is_empty() {
        return bytes;
    }
    let mut masked = BytesMut::from(bytes);
    secrets.into_iter().for_each(|id| masked[id].fill(b'*'));
    masked.freeze()
}

/// The members that hold an error: of a response, and of an event with one.
#[derive(Default, Deserialize)]
struct Failed<'a> {
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<Box<Self>>,
}

/// Positions of ids and keys, without their prefixes, in the error of this JSON object.
fn error_secrets(json: &[u8]) -> Vec<Range<usize>> {
    let Ok(Failed { error, response }) = serde_json::from_slice::<Failed<'_>>(json) else { return Vec::new() };
    let Some(error) = error.or_else(|| response?.error) else { return Vec::new() };
    let error = error.get();
    let start = error.as_ptr().addr() - json.as_ptr().addr();
    secrets(error).into_iter().map(|id| start + id.start..start + id.end).collect()
}

/// Where ids and keys without their prefixes stand, in order.
fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for prefix in ["org_", "gsk_"] {
        let mut covered = 0;
        for (start, _) in text.match_indices(prefix) {
            let id = start + prefix.len();
            let end = id + text[id..].find(|c| !is_id(c)).unwrap_or(text.len() - id);
            let before = &text[..start];
            // The `org_` of `my_org_chart` is part of a word, not the start of an id. The `n` of an escaped `\\n` is not part of one.
            let within_word = before.ends_with(is_id) && !before.ends_with("\\n") && !before.ends_with("\\t");
            if start >= covered && end > id && !within_word {
                found.push(id..end);
                covered = end;
            }
        }
    }
    found.sort_unstable_by_key(|id| id.start);
    found
}

fn is_id(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_error_of_a_failed_response_is_masked() {
        let failed = r#"{"status":"failed","output":["org_01abc"],"error":{"message":"of `org_01abc` by gsk_9x"}}"#;
        let masked = r#"{"status":"failed","output":["org_01abc"],"error":{"message":"of `org_*****` by gsk_**"}}"#;
        assert_eq!(mask_error(Bytes::from_static(failed.as_bytes())), masked.as_bytes());
        for whole in [r#"{"error":null,"output":"org_01abc"}"#, r#"{"id":"org_01abc"}"#, "[1]", ""] {
            assert_eq!(mask_error(Bytes::from_static(whole.as_bytes())), whole.as_bytes());
        }
        let event =
            |json: &str| Bytes::from(format!("data: {{\"delta\":\"org_01abc\"}}\n\nevent: response.failed\ndata: {json}\n\n"));
        let nested = |json: &str| format!(r#"{{"type":"response.failed","response":{json}}}"#);
        assert_eq!(mask_errors_of_events(event(&nested(failed))), event(&nested(masked)));
        assert_eq!(mask_errors_of_events(event(failed)), event(masked));
    }
}
