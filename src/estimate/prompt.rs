//! Estimates the tokens of a prompt (texts, messages, schemas, images) while its JSON is parsed. Nothing is stored.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{family::Family, text};

/// The role of a member in the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Messages, or one text.
    Messages,
    /// Instructions.
    Text,
    /// Tools and formats: names and punctuation count.
    Schema,
    /// Input of embeddings and speech: texts, or tokens as numbers.
    Input,
}

/// Tokens of an image (measured on qwen), and assumed for any other file.
const TOKENS_OF_A_FILE: u64 = 2048;
/// Tokens that every message after the first adds to the template.
const TOKENS_OF_A_MESSAGE: u64 = 4;
/// Members that the model never reads.
const UNREAD: [&str; 8] = ["role", "type", "id", "tool_call_id", "call_id", "detail", "status", "encrypted_content"];
/// Members that hold a file or its URL.
const FILES: [&str; 6] = ["image_url", "input_audio", "file_data", "file_url", "file", "image"];

/// The count of one request's prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Thousandths of tokens.
    text: u64,
    characters: u64,
    messages: u64,
    files: u64,
}

impl Prompt {
    /// Counts a part while its JSON is parsed. `plain` means valid UTF-8 without control characters.
    pub fn reading(&mut self, part: Part, plain: bool) -> Reading<'_> {
        Reading { prompt: self, part, plain, top: true }
    }

    /// Counts a part by its bytes.
    pub fn raw(&mut self, part: Part, json: &str) {
        self.add(part, json.as_bytes());
        self.messages += u64::from(part == Part::Messages);
    }

    /// The prompt's tokens with a family's template.
    pub fn tokens(&self, family: Family) -> u64 {
        let template = match family.template() {
            0 => 0,
            first => first + self.messages.saturating_sub(1) * TOKENS_OF_A_MESSAGE,
        };
        self.text.div_ceil(1000) + self.files * TOKENS_OF_A_FILE + template
    }

    /// The characters of its texts.
    pub fn characters(&self) -> u64 {
        self.characters
    }

    fn add(&mut self, part: Part, text: &[u8]) {
        if is_data_url(text) {
            self.files += 1;
            return;
        }
        self.text += text::millitokens(text);
        // Only speech is billed by characters.
        if part == Part::Input {
            let goes_on = |byte: u8| byte & 0xc0 == 0x80;
            self.characters += text.iter().filter(|byte| !goes_on(**byte)).count() as u64;
        }
    }
}

/// `data:image/png;base64,…`
fn is_data_url(text: &[u8]) -> bool {
    let head = &text[..text.len().min(100)];
    head.starts_with(b"data:") && head.windows(8).any(|window| window == b";base64,")
}

/// Counts one JSON value.
pub struct Reading<'p> {
    prompt: &'p mut Prompt,
    part: Part,
    plain: bool,
    /// Whether this is the top-level value, outside of lists and objects.
    top: bool,
}

impl Reading<'_> {
    fn inner(&mut self) -> Reading<'_> {
        Reading { prompt: &mut *self.prompt, part: self.part, plain: self.plain, top: false }
    }

    fn number(self) {
        if matches!(self.part, Part::Schema | Part::Input) {
            self.prompt.text += 1000;
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if self.top && self.part == Part::Messages {
            self.prompt.messages += 1;
        }
        self.prompt.add(self.part, text.as_bytes());
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.number();
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.number();
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.number();
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.number();
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let messages = self.top && self.part == Part::Messages;
        while list.next_element_seed(self.inner())?.is_some() {
            self.prompt.messages += u64::from(messages);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        while let Some(member) = object.next_key_seed(Name { prompt: &mut *self.prompt, part: self.part })? {
            match member {
                Member::Text if self.plain => object.next_value_seed(Text(self.inner()))?,
                Member::Read | Member::Text => object.next_value_seed(self.inner())?,
                Member::Unread => drop(object.next_value::<IgnoredAny>()?),
                Member::File => {
                    object.next_value::<IgnoredAny>()?;
                    self.prompt.files += 1;
                }
            }
        }
        Ok(())
    }
}

/// A text, a list or null. Texts are read as raw bytes, which serde_json parses three times as fast as checked strings (1 µs for
/// a call of 16 KB).
struct Text<'p>(Reading<'p>);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list or null")
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_bytes(self)
    }

    fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<(), E> {
        self.0.prompt.add(self.0.part, text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        self.0.visit_seq(list)
    }
}

/// How a member is counted, by its name.
enum Member {
    Read,
    /// Counted, and probably a long text.
    Text,
    Unread,
    File,
}

struct Name<'p> {
    prompt: &'p mut Prompt,
    part: Part,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Member;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Member, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Member, E> {
        if self.part == Part::Schema {
            // The name, its quotes, colon and comma.
            self.prompt.text += text::millitokens(name.as_bytes()) + 1500;
            return Ok(Member::Read);
        }
        Ok(match name {
            _ if UNREAD.contains(&name) => Member::Unread,
            _ if FILES.contains(&name) => Member::File,
            "content" | "text" => Member::Text,
            _ => Member::Read,
        })
    }
}
