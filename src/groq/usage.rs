//! The usage in a response: `usage` and `x_groq.usage`, of complete responses and of the last events of a stream.

use memchr::memmem;
use serde::{
    Deserialize,
    de::{Error as _, IgnoredAny},
};
use serde_json::Value;

/// The usage that a response states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub prompt: u64,
    /// Completion tokens including reasoning; `None` if neither they nor the total are stated.
    pub completion: Option<u64>,
    /// Prompt tokens that came from the cache and do not count against limits.
    pub cached: u64,
}

/// What a complete JSON response says besides its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its usage, if it states one.
    pub usage: Option<Usage>,
    /// Whether it may have an `error`, as a failed response of the Responses API has.
    pub has_error: bool,
}

/// The members that say it: of chat, embeddings and responses.
#[derive(Deserialize)]
struct Members {
    #[serde(default)]
    usage: Option<Counts>,
    #[serde(default)]
    x_groq: Option<Groq>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Groq {
    #[serde(default)]
    usage: Option<Counts>,
}

/// `usage` in its common form.
#[derive(Deserialize)]
struct Counts {
    #[serde(default, alias = "input_tokens")]
    prompt_tokens: Option<u64>,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
    #[serde(default, alias = "input_tokens_details")]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// Maximum number of `"usage"` members of one event that are parsed, which bounds the cost.
const MAX_MATCHES: usize = 8;

impl Usage {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let completion = match (self.completion, other.completion) {
            (Some(one), Some(two)) => Some(one.saturating_add(two)),
            (one, two) => one.or(two),
        };
        Self { prompt: self.prompt.saturating_add(other.prompt), completion, cached: self.cached.saturating_add(other.cached) }
    }

    /// What a complete JSON response says.
    ///
    /// # Errors
    /// If `body` is not one JSON value.
    pub fn of_answer(body: &[u8]) -> Result<Answer, serde_json::Error> {
        // Validated at once, so strings need no check of their own.
        let text = simdutf8::basic::from_utf8(body).map_err(serde_json::Error::custom)?;
        match serde_json::from_str::<Members>(text) {
            Ok(Members { usage, x_groq, error }) => {
                let usage = usage.and_then(Self::of_counts).or_else(|| Self::of_counts(x_groq?.usage?));
                Ok(Answer { usage, has_error: error.is_some() })
            }
            // JSON, but not an object, or its usage has another form.
            Err(error) if error.is_data() => {
                serde_json::from_str::<IgnoredAny>(text).map(|_| Answer { usage: Self::scan(body), has_error: true })
            }
            Err(error) => Err(error),
        }
    }

    /// The last usage in a part of an event, which may lack its beginning.
    ///
    /// `"usage"` cannot occur inside a JSON string, where its quotes are escaped, so the bytes can be searched.
    pub(super) fn scan(event: &[u8]) -> Option<Self> {
        const NAME: &[u8] = br#""usage""#;
        memmem::rfind_iter(event, NAME).take(MAX_MATCHES).find_map(|at| {
            let after = event[at + NAME.len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
            after.first().filter(|first| **first == b'{')?;
            let value = serde_json::Deserializer::from_slice(after).into_iter::<Value>().next()?.ok()?;
            Self::of_value(&value)
        })
    }

    /// Chat has prompt and completion tokens, responses have input and output tokens.
    fn of_value(usage: &Value) -> Option<Self> {
        let count = |names: &[&str]| names.iter().find_map(|name| usage.get(name)?.as_u64());
        let cached = |name| usage.get(name)?.get("cached_tokens")?.as_u64();
        let cached = cached("prompt_tokens_details").or_else(|| cached("input_tokens_details"));
        let (prompt, completion) = (count(&["prompt_tokens", "input_tokens"]), count(&["completion_tokens", "output_tokens"]));
        Self::of(prompt, completion, count(&["total_tokens"]), cached)
    }

    fn of_counts(counts: Counts) -> Option<Self> {
        let cached = counts.prompt_tokens_details.and_then(|details| details.cached_tokens);
        Self::of(counts.prompt_tokens, counts.completion_tokens, counts.total_tokens, cached)
    }

    fn of(prompt: Option<u64>, completion: Option<u64>, total: Option<u64>, cached: Option<u64>) -> Option<Self> {
        (prompt.is_some() || completion.is_some()).then(|| {
            let completion = completion.or_else(|| total?.checked_sub(prompt?));
            let prompt = prompt.unwrap_or(0);
            Self { prompt, completion, cached: cached.unwrap_or(0).min(prompt) }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_whole_answers() {
        let used = |prompt, completion, cached| Some(Usage { prompt, completion: Some(completion), cached });
        let no_completion = |prompt, cached| Some(Usage { prompt, completion: None, cached });
        let table = [
            (
                r#"{"id":"x","choices":[],"usage":{"queue_time":0.1,"prompt_tokens":78,"completion_tokens":9,"total_tokens":87}}"#,
                used(78, 9, 0),
            ),
            (
                r#"{"usage":{"prompt_tokens":78,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":64}}}"#,
                used(78, 9, 64),
            ),
            (r#"{"usage":{"prompt_tokens":8,"prompt_tokens_details":{"cached_tokens":64}}}"#, no_completion(8, 8)),
            (r#"{"usage":{"prompt_tokens":8,"completion_tokens":null}}"#, no_completion(8, 0)),
            (r#"{"usage":{"prompt_tokens":8,"total_tokens":30}}"#, used(8, 22, 0)),
            (r#"{"usage":{"prompt_tokens":8,"total_tokens":3}}"#, no_completion(8, 0)),
            (r#"{"usage":{"input_tokens":5,"output_tokens":6,"input_tokens_details":{"cached_tokens":1}}}"#, used(5, 6, 1)),
            (r#"{"usage":{"prompt_tokens":12,"total_tokens":12},"object":"list"}"#, used(12, 0, 0)),
            (r#"{"x_groq":{"id":"r","usage":{"prompt_tokens":1,"completion_tokens":2}},"usage":null}"#, used(1, 2, 0)),
            (r#"{"usage":{"prompt_tokens":-1,"completion_tokens":"x"}}"#, None),
            (r#"{"text":"a transcript"}"#, None),
            (r#"{"usage":7,"x_groq":[]}"#, None),
            ("[1,2]", None),
            (r#"{"usage":{},"usage":{}}"#, None),
        ];
        for (body, usage) in table {
            assert_eq!(Usage::of_answer(body.as_bytes()).expect("JSON").usage, usage, "{body}");
        }
    }

    #[test]
    fn invalid_json_is_reported() {
        for body in ["", "{", r#"{"usage":{"prompt_tokens":1}"#, "<html>", "[1", "{} x", r#"{"usage":{},"usage":"#] {
            assert!(Usage::of_answer(body.as_bytes()).is_err(), "{body}");
        }
        assert!(Usage::of_answer(b"{\"id\":\"\xff\"}").is_err());
    }

    #[test]
    fn scanned_from_a_tail() {
        let tail = br#"ge":{"prompt_tokens":9}} "text":"\"usage\":{\"prompt_tokens\":1}","usage" : {"input_tokens":3,"output_tokens":4},"user":null}"#;
        assert_eq!(Usage::scan(tail), Some(Usage { prompt: 3, completion: Some(4), cached: 0 }));
        let schema = br#"{"usage":{"prompt_tokens":3},"tools":[{"properties":{"usage":{"type":"object"}}}]}"#;
        assert_eq!(Usage::scan(schema), Some(Usage { prompt: 3, completion: None, cached: 0 }));
        assert_eq!(Usage::scan(br#"{"usage":{"prompt_tokens":3"#), None);
        assert_eq!(Usage::scan(br#"{"usage":null}"#), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Usage::of_answer(&bytes);
            let _ = Usage::scan(&[br#""usage":"#, bytes.as_slice()].concat());
        }
    }
}
