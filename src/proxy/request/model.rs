//! Replaces the model in a body.

use std::{borrow::Cow, fmt, ops::Range};

use bytes::Bytes;
use http::{HeaderMap, header};
use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::form;
use crate::{groq::Endpoint, headers};

/// `body` with `to` as its model; no other byte changes. `None` if the body names no model.
///
/// Duplicate members `model` are all replaced, so it does not matter which one counts.
pub(super) fn replace(endpoint: Endpoint, headers: &HeaderMap, body: &Bytes, to: &str) -> Option<Bytes> {
    let (spans, value) = if endpoint.takes_audio() {
        let content_type = headers::text(headers, header::CONTENT_TYPE)?;
        let field = form::read(content_type, body)?.file("model")?;
        (vec![span(body, field)], to.to_owned())
    } else {
        (model_members(body)?, serde_json::Value::from(to).to_string())
    };
    if spans.is_empty() {
        return None;
    }
    let mut replaced = Vec::with_capacity(body.len() + spans.len() * value.len());
    let mut copied = 0;
    for Range { start, end } in spans {
        replaced.extend_from_slice(&body[copied..start]);
        replaced.extend_from_slice(value.as_bytes());
        copied = end;
    }
    replaced.extend_from_slice(&body[copied..]);
    Some(replaced.into())
}

/// Ranges of the values of the top-level members `model`, in order. `None` if the body is not a JSON object.
fn model_members(body: &[u8]) -> Option<Vec<Range<usize>>> {
    struct Spans<'b>(&'b [u8]);

    impl<'de> Visitor<'de> for Spans<'de> {
        type Value = Vec<Range<usize>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut spans = Vec::new();
            while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                if name == "model" {
                    spans.push(span(self.0, map.next_value::<&RawValue>()?.get().as_bytes()));
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(spans)
        }
    }

    serde_json::Deserializer::from_slice(body).deserialize_map(Spans(body)).ok()
}

/// The range of `part` in `whole`.
fn span(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn json(body: &str, to: &str) -> Option<String> {
        let replaced = replace(Endpoint::Chat, &HeaderMap::new(), &Bytes::copy_from_slice(body.as_bytes()), to)?;
        Some(String::from_utf8(replaced.to_vec()).expect("text"))
    }

    #[test]
    fn only_the_model_of_the_body_itself_is_replaced() {
        for (body, expected) in [
            (r#"{"model":"a","messages":[]}"#, r#"{"model":"b/c","messages":[]}"#),
            (
                r#" { "x": {"model": "a"}, "model" : "a" , "y": ["model", "a"] } "#,
                r#" { "x": {"model": "a"}, "model" : "b/c" , "y": ["model", "a"] } "#,
            ),
            (r#"{"model":"a","x":1,"model":"z"}"#, r#"{"model":"b/c","x":1,"model":"b/c"}"#),
            (r#"{"mod\u0065l":"a"}"#, r#"{"mod\u0065l":"b/c"}"#),
            (r#"{"model":null}"#, r#"{"model":"b/c"}"#),
        ] {
            assert_eq!(json(body, "b/c").as_deref(), Some(expected));
        }
        for body in [r#"{"models":"a"}"#, "[]", "", "{", r#""model""#] {
            assert_eq!(json(body, "b"), None, "{body}");
        }
        assert_eq!(json(r#"{"model":"a"}"#, "q\"uote").as_deref(), Some(r#"{"model":"q\"uote"}"#));
    }

    #[test]
    fn a_forms_model_is_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=X"));
        let form = |model: &str| {
            format!(
                "--X\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--X\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\nmodel\r\n--X--\r\n"
            )
        };
        let replaced =
            replace(Endpoint::Transcription, &headers, &Bytes::from(form("whisper-large-v3")), "whisper-large-v3-turbo");
        assert_eq!(replaced, Some(Bytes::from(form("whisper-large-v3-turbo"))));
        assert_eq!(replace(Endpoint::Transcription, &HeaderMap::new(), &Bytes::from(form("a")), "b"), None);
    }

    proptest! {
        #[test]
        fn any_bytes(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = replace(Endpoint::Chat, &HeaderMap::new(), &Bytes::from(body), "b");
        }

        /// Any object stays valid JSON with the new model and everything else unchanged.
        #[test]
        fn any_object(before in "[a-z]{0,8}", content in "\\PC{0,20}", model in "\\PC{0,12}") {
            let body = serde_json::json!({format!("x{before}"): content, "model": "a", "z": {"model": content}});
            let replaced = json(&body.to_string(), &model).expect("it has a model");
            let mut expected = body;
            expected["model"] = model.into();
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&replaced).expect("JSON"), expected);
        }
    }
}
