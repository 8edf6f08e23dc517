//! Reads the relevant members of a JSON body in one pass. Of all other members only the syntax is checked.

use std::{borrow::Cow, fmt, ops::Range};

use serde::{
    Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    estimate::{Part, Prompt},
    groq::Endpoint,
};

/// The members of a body that the shield reads.
#[derive(Default)]
pub(super) struct Members {
    pub(super) model: String,
    pub(super) tier: String,
    pub(super) stream: bool,
    /// The output limit that takes precedence.
    pub(super) output_limit: Option<OutputLimit>,
    /// An output limit whose value is not a number.
    pub(super) null_output_limit: Option<OutputLimit>,
    pub(super) prompt: Prompt,
}

/// A limit on completion tokens, and the position of its number in the body.
pub(super) struct OutputLimit {
    pub(super) value: u64,
    pub(super) at: Range<usize>,
}

/// Parses a body. Of duplicate members the last one counts, as in Groq's parser.
pub(super) fn read(endpoint: Endpoint, body: &[u8]) -> Result<Members, serde_json::Error> {
    // Validated at once, so strings need no check of their own.
    let text = simdutf8::basic::from_utf8(body).map_err(serde_json::Error::custom)?;
    if !text.trim_ascii_start().starts_with('{') {
        return serde_json::from_str::<IgnoredAny>(text).map(|_| Members::default());
    }
    let pass = |walk| {
        let mut json = serde_json::Deserializer::from_str(text);
        let members = json.deserialize_map(Reading { endpoint, body, walk })?;
        json.end().map(|()| members)
    };
    // Groq accepts lone surrogates and deeper nesting than our parser. In that case the prompt is estimated by its bytes. If this
    // fails, too, the body has a syntax error.
    let first = if !has_controls(body) { Walk::Plain } else { Walk::Strict };
    pass(first).or_else(|_| pass(Walk::Strict)).or_else(|_| pass(Walk::No))
}

/// How the prompt is parsed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// Each string is parsed; the body has no control characters.
    Plain,
    /// Each string is parsed and checked for control characters.
    Strict,
    /// The prompt is not parsed.
    No,
}

/// Whether the body contains a control character: allowed between values, an error in strings. Computes the minimum of all bytes,
/// a loop that the compiler vectorizes.
fn has_controls(body: &[u8]) -> bool {
    body.chunks(4096).any(|some| {
        let (rows, rest) = some.as_chunks::<64>();
        let mut least = [u8::MAX; 64];
        for row in rows {
            least.iter_mut().zip(row).for_each(|(least, byte)| *least = (*least).min(*byte));
        }
        least.iter().chain(rest).fold(u8::MAX, |least, byte| least.min(*byte)) < b' '
    })
}

struct Reading<'b> {
    endpoint: Endpoint,
    body: &'b [u8],
    walk: Walk,
}

impl Reading<'_> {
    /// The names of the endpoint's output limit, in order of precedence.
    fn output_limits(&self) -> [&'static str; 2] {
        match self.endpoint {
            Endpoint::Chat => ["max_completion_tokens", "max_tokens"],
            Endpoint::Responses => ["max_output_tokens", ""],
            _ => ["", ""],
        }
    }

    fn part(&self, name: &str) -> Option<Part> {
        match (self.endpoint, name) {
            (Endpoint::Chat, "messages") | (Endpoint::Responses, "input") => Some(Part::Messages),
            (Endpoint::Responses, "instructions") => Some(Part::Text),
            (Endpoint::Chat, "tools" | "functions" | "response_format" | "documents")
            | (Endpoint::Responses, "tools" | "text") => Some(Part::Schema),
            (Endpoint::Embeddings | Endpoint::Speech, "input") => Some(Part::Input),
            _ => None,
        }
    }

    fn output_limit(&self, raw: &RawValue) -> (Option<u64>, Range<usize>) {
        let start = raw.get().as_ptr().addr() - self.body.as_ptr().addr();
        let number = raw.get().parse::<f64>().ok().filter(|number| *number >= 0.0).map(|number| number as u64);
        (number, start..start + raw.get().len())
    }
}

impl<'de> Visitor<'de> for Reading<'de> {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = Members::default();
        let mut output_limits: [Option<&RawValue>; 2] = [None, None];
        while let Some(name) = map.next_key::<Name>()? {
            let name = name.0.as_ref();
            if let Some(part) = self.part(name) {
                match self.walk {
                    Walk::No => members.prompt.raw(part, map.next_value::<&RawValue>()?.get()),
                    walk => map.next_value_seed(members.prompt.reading(part, walk == Walk::Plain))?,
                }
            } else if let Some(at) = self.output_limits().iter().position(|output_limit| *output_limit == name) {
                output_limits[at] = Some(map.next_value()?);
            } else {
                match name {
                    "model" => members.model = text(map.next_value()?),
                    "service_tier" => members.tier = text(map.next_value()?),
                    "stream" => members.stream = map.next_value::<&RawValue>()?.get() == "true",
                    _ => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
        }
        for raw in output_limits.into_iter().flatten() {
            match self.output_limit(raw) {
                (Some(value), at) => {
                    members.output_limit.get_or_insert(OutputLimit { value, at });
                }
                (None, at) => {
                    members.null_output_limit.get_or_insert(OutputLimit { value: 0, at });
                }
            }
        }
        Ok(members)
    }
}

/// The value of a string; empty for any other value.
fn text(raw: &RawValue) -> String {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

/// The name of a member; long names with escapes are irrelevant and read as empty.
struct Name<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Short;
        impl<'de> Visitor<'de> for Short {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(if name.len() <= 32 { name.to_owned() } else { String::new() })))
            }
        }
        deserializer.deserialize_str(Short)
    }
}
