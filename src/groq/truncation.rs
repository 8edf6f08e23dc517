//! Responses that reached max completion tokens before they had any content, usually because reasoning used them up. Their status
//! is still a success.

use std::{borrow::Cow, sync::LazyLock};

use memchr::memmem::{self, Finder};
use serde::Deserialize;

/// Whether a complete JSON response (chat completions or responses) reached max completion tokens and has no content.
pub fn is_truncated_without_content(answer: &[u8]) -> bool {
    // A cheap test first, so that almost no response is parsed.
    if !ends_by_length(answer) {
        return false;
    }
    serde_json::from_slice::<Answer<'_>>(answer).is_ok_and(|answer| {
        let is_empty = |content: Option<&Content<'_>>| content.is_none_or(Content::is_empty);
        // Reasoning items may have content of their own.
        let messages = || answer.output.iter().flatten().filter(|item| item.kind.as_deref() == Some("message"));
        answer.choices.iter().any(|choice| choice.is_truncated() && is_empty(choice.message.content.as_ref()))
            || answer.is_truncated_response() && messages().all(|message| is_empty(message.content.as_ref()))
    })
}

/// Detects the same in a stream of chat completions or responses.
#[derive(Debug, Default)]
pub(super) struct TruncationWatch {
    has_content: bool,
    ended_by_length: bool,
}

impl TruncationWatch {
    /// Takes the next event's data, and its name if it has one. Very long events are excerpts.
    pub(super) fn event(&mut self, name: &[u8], data: &[u8]) {
        // Most streams have content early, after which events need no parsing.
        if !self.has_content {
            self.has_content = name == b"response.output_text.delta"
                || memmem::find(data, br#""response.output_text.delta""#).is_some()
                || has_text(data, br#""content""#);
        }
        self.ended_by_length |= ends_by_length(data)
            && serde_json::from_slice::<Event<'_>>(data).is_ok_and(|event| {
                event.choices.iter().any(Choice::is_truncated)
                    || event.response.is_some_and(|response| response.is_truncated_response())
            });
    }

    pub(super) fn is_truncated_without_content(&self) -> bool {
        self.ended_by_length && !self.has_content
    }
}

/// Whether the bytes contain one of the values with which such a response ends.
fn ends_by_length(json: &[u8]) -> bool {
    static LENGTH: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(br#""length""#));
    static MAX_OUTPUT_TOKENS: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(br#""max_output_tokens""#));
    LENGTH.find(json).is_some() || MAX_OUTPUT_TOKENS.find(json).is_some()
}

/// Whether the member `name` (in its quotes) has a string that is not empty. Inside a JSON string quotes are escaped, so
/// the bytes can be searched.
fn has_text(json: &[u8], name: &[u8]) -> bool {
    memmem::find_iter(json, name).any(|at| {
        let value = json[at + name.len()..].trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start);
        value.is_some_and(|value| value.first() == Some(&b'"') && value.get(1).is_some_and(|next| *next != b'"'))
    })
}

/// A chat completion or a response object.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow, default)]
    incomplete_details: Option<Incomplete<'a>>,
    #[serde(borrow, default)]
    output: Option<Vec<Item<'a>>>,
}

impl Answer<'_> {
    fn is_truncated_response(&self) -> bool {
        let reason = self.incomplete_details.as_ref().and_then(|details| details.reason.as_deref());
        reason == Some("max_output_tokens")
    }
}

/// An event of a stream.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow, default)]
    response: Option<Answer<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message: Message<'a>,
}

impl Choice<'_> {
    fn is_truncated(&self) -> bool {
        self.finish_reason.as_deref() == Some("length")
    }
}

#[derive(Default, Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<Content<'a>>,
}

/// Text, or parts with texts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Parts(#[serde(borrow)] Vec<Part<'a>>),
}

impl Content<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Parts(parts) => parts.iter().all(|part| part.text.as_deref().unwrap_or_default().is_empty()),
        }
    }
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Incomplete<'a> {
    #[serde(borrow, default)]
    reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<Content<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_whole_answers() {
        let chat = |finish: &str, message: &str| {
            format!(r#"{{"choices":[{{"index":0,"message":{message},"finish_reason":"{finish}"}}]}}"#)
        };
        let response = |details: &str, output: &str| {
            format!(
                r#"{{"object":"response","status":"x","max_output_tokens":150,"incomplete_details":{details},"output":{output}}}"#
            )
        };
        let cut = r#"{"reason":"max_output_tokens"}"#;
        let reasoning = r#"[{"type":"reasoning","content":[{"type":"reasoning_text","text":"hm"}],"summary":[]}]"#;
        for (answer, truncated) in [
            (chat("length", r#"{"role":"assistant","content":""}"#), true),
            (chat("length", r#"{"role":"assistant","content":null,"reasoning":"hm"}"#), true),
            (chat("length", r#"{"role":"assistant","reasoning":"\"content\":\"x\""}"#), true),
            (chat("length", r#"{"role":"assistant","content":[]}"#), true),
            (chat("length", r#"{"role":"assistant","content":"Tokens"}"#), false),
            (chat("stop", r#"{"role":"assistant","content":""}"#), false),
            (chat("stop", r#"{"role":"assistant","content":"length"}"#), false),
            (chat("tool_calls", r#"{"role":"assistant","tool_calls":[{"function":{"name":"length"}}]}"#), false),
            (response(cut, "[]"), true),
            (response(cut, reasoning), true),
            (response(cut, r#"[{"type":"message","content":[{"type":"output_text","text":""}]}]"#), true),
            (response(cut, r#"[{"type":"message","content":[{"type":"output_text","text":"a"}]}]"#), false),
            (response(r#"{"reason":"content_filter"}"#, "[]"), false),
            (response("null", "[]"), false),
            (r#"{"length":"length"}"#.to_owned(), false),
            (r#"["length"]"#.to_owned(), false),
            ("length".to_owned(), false),
            (r#"{"choices":7,"x":"length"}"#.to_owned(), false),
        ] {
            assert_eq!(is_truncated_without_content(answer.as_bytes()), truncated, "{answer}");
        }
    }

    #[test]
    fn of_streams() {
        let first = r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
        let reasoning = r#"{"choices":[{"delta":{"reasoning":"\"content\":\"x\"","channel":"analysis"},"finish_reason":null}]}"#;
        let content = r#"{"choices":[{"delta":{"content" : "a"},"finish_reason":null}]}"#;
        let length = r#"{"choices":[{"delta":{},"finish_reason":"length"}],"x_groq":{"usage":{}}}"#;
        let stop = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
        let created = r#"{"type":"response.created","response":{"max_output_tokens":9,"incomplete_details":null,"output":[]}}"#;
        let delta = r#"{"type":"response.output_text.delta","delta":"a"}"#;
        let incomplete =
            r#"{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"},"output":[]}}"#;
        for (events, truncated) in [
            (vec![first, reasoning, length], true),
            (vec![first, length], true),
            (vec![first, reasoning, content, length], false),
            (vec![first, reasoning, stop], false),
            (vec![first, reasoning], false),
            (vec![created, incomplete], true),
            (vec![created, delta, incomplete], false),
            (vec![created], false),
            (vec!["length", "\"length\"", "{\"length\""], false),
        ] {
            let mut watch = TruncationWatch::default();
            events.iter().for_each(|event| watch.event(b"", event.as_bytes()));
            assert_eq!(watch.is_truncated_without_content(), truncated, "{events:?}");
        }
    }
}
