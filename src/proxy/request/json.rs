//! What a JSON body asks for, in one pass over the bytes; of members that do not matter only the syntax is checked.

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

/// The members that matter.
#[derive(Default)]
pub(super) struct Members {
    pub(super) model: String,
    pub(super) tier: String,
    pub(super) stream: bool,
    /// The ceiling in force.
    pub(super) ceiling: Option<Ceiling>,
    /// Where a ceiling is named, and is no number.
    pub(super) null_ceiling: Option<Ceiling>,
    pub(super) prompt: Prompt,
}

/// A ceiling on completion tokens, and where its number stands in the body.
pub(super) struct Ceiling {
    pub(super) value: u64,
    pub(super) at: Range<usize>,
}

/// Reads a body. A member given twice counts as it came last, as Groq's parser has it.
pub(super) fn read(endpoint: Endpoint, body: &[u8]) -> Result<Members, serde_json::Error> {
    // Of text that is UTF-8 throughout, no string need be looked at again.
    let text = simdutf8::basic::from_utf8(body).map_err(serde_json::Error::custom)?;
    if !text.trim_ascii_start().starts_with('{') {
        return serde_json::from_str::<IgnoredAny>(text).map(|_| Members::default());
    }
    let pass = |walk| {
        let mut json = serde_json::Deserializer::from_str(text);
        let members = json.deserialize_map(Reading { endpoint, body, walk })?;
        json.end().map(|()| members)
    };
    // Text with half a surrogate pair, or nested deeper than our parser follows, is still JSON to Groq: then the prompt is
    // measured by its bytes. The last error is that of the syntax.
    let first = if !has_controls(body) { Walk::Plain } else { Walk::Strict };
    pass(first).or_else(|_| pass(Walk::Strict)).or_else(|_| pass(Walk::No))
}

/// How the prompt is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// Text by text; no byte is a control character.
    Plain,
    /// Text by text, whatever they are.
    Strict,
    /// Not at all.
    No,
}

/// Whether a byte is a control character: between values no harm, within a string an error. The least of all
/// bytes tells, found sixty-four at a time: a loop that becomes vectors.
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
    /// The names of the endpoint's ceiling, the one that wins first.
    fn ceilings(&self) -> [&'static str; 2] {
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

    fn ceiling(&self, raw: &RawValue) -> (Option<u64>, Range<usize>) {
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
        let mut ceilings: [Option<&RawValue>; 2] = [None, None];
        while let Some(name) = map.next_key::<Name>()? {
            let name = name.0.as_ref();
            if let Some(part) = self.part(name) {
                match self.walk {
                    Walk::No => members.prompt.raw(part, map.next_value::<&RawValue>()?.get()),
                    walk => map.next_value_seed(members.prompt.reading(part, walk == Walk::Plain))?,
                }
            } else if let Some(at) = self.ceilings().iter().position(|ceiling| *ceiling == name) {
                ceilings[at] = Some(map.next_value()?);
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
        for raw in ceilings.into_iter().flatten() {
            match self.ceiling(raw) {
                (Some(value), at) => {
                    members.ceiling.get_or_insert(Ceiling { value, at });
                }
                (None, at) => {
                    members.null_ceiling.get_or_insert(Ceiling { value: 0, at });
                }
            }
        }
        Ok(members)
    }
}

/// A string, or nothing.
fn text(raw: &RawValue) -> String {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

/// A member's name; one with escapes is kept only where it is as short as those that matter.
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
