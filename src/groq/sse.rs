//! Parses server-sent events as they pass: complete events, the end, usage, errors in the stream.
//!
//! Bytes are parsed in place; of an event that arrives in pieces, an excerpt of at most [`EXCERPT`] is kept.

use std::{borrow::Cow, sync::LazyLock};

use memchr::{
    memchr2,
    memmem::{self, Finder},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{truncation::TruncationWatch, usage::Usage};

/// Bytes kept of the beginning of an event (its name, its type).
const HEAD: usize = 1 << 10;
/// Bytes kept of the end of an event (its usage).
const TAIL: usize = 16 << 10;
/// Longer events are parsed by their beginning and end only.
const EXCERPT: usize = HEAD + TAIL;

/// An error that came in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// The event's data, normally JSON; at most `EXCERPT` bytes of it.
    pub data: Vec<u8>,
    /// Whether every client raises an error on it unchanged: a `data: {"error":…}` frame. Not all clients notice `event: error`
    /// with other data, or a chunk with `x_groq.error`.
    pub is_frame: bool,
}

/// Parses a stream as it passes. Feed it every byte in order, in any pieces.
#[derive(Debug, Default)]
pub struct SseTail {
    /// The excerpt of an event that began in an earlier piece.
    partial: Excerpt,
    /// Bytes of the current line in earlier pieces; at 0, a line end makes a blank line.
    line: usize,
    /// The last byte was a CR: a following LF belongs to it.
    after_cr: bool,
    /// Whether that CR ended an event, so that its LF goes with that event.
    after_blank: bool,
    done: bool,
    terminal: bool,
    failed: bool,
    usage: Option<Usage>,
    error: Option<StreamError>,
    events: u64,
    deltas: u64,
    truncation: TruncationWatch,
}

impl SseTail {
    /// Parses the next piece. Returns how many of its bytes complete events (together with all bytes held before) and may be
    /// passed on; what follows the last blank line waits for the rest of its event. 0: everything waits.
    pub fn feed(&mut self, piece: &[u8]) -> usize {
        let mut passed = 0;
        let mut event_start = 0;
        let mut line_start = 0;
        let mut at = 0;
        if self.after_cr && piece.first() == Some(&b'\n') {
            at = 1;
            line_start = 1;
            if self.after_blank {
                event_start = 1;
                passed = 1;
            }
        }
        if !piece.is_empty() {
            self.after_cr = false;
            self.after_blank = false;
        }
        while let Some(found) = memchr2(b'\n', b'\r', &piece[at..]) {
            let end = at + found;
            let blank = self.line + (end - line_start) == 0;
            at = end + 1;
            if piece[end] == b'\r' {
                match piece.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => (self.after_cr, self.after_blank) = (true, blank),
                }
            }
            self.line = 0;
            line_start = at;
            if blank {
                // Without the blank line, whose LF may still be missing, depending on how the stream was split.
                self.event(&piece[event_start..end]);
                event_start = at;
                passed = at;
            }
        }
        self.line += piece.len() - line_start;
        self.partial.push(&piece[event_start..]);
        passed
    }

    /// Whether the stream has ended regularly: `[DONE]`, a response's last event, or an error.
    pub fn ended(&self) -> bool {
        self.done || self.terminal || self.error.is_some()
    }

    /// Whether it has ended with a failed response, whose event holds an error.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether bytes of an unfinished event are held.
    pub fn is_within_event(&self) -> bool {
        self.partial.len > 0
    }

    /// The usage that the stream has stated so far.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// The first error in the stream.
    pub fn error(&self) -> Option<&StreamError> {
        self.error.as_ref()
    }

    /// Whole events with data so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Completion tokens so far, approximately: the events with a piece of the answer.
    pub fn completion_tokens(&self) -> u64 {
        self.deltas
    }

    /// Whether max completion tokens ended the stream before it had any content.
    pub fn is_truncated_without_content(&self) -> bool {
        self.truncation.is_truncated_without_content()
    }

    /// The last piece of an event, without its blank line.
    fn event(&mut self, last_piece: &[u8]) {
        if self.partial.len == 0 && last_piece.len() <= EXCERPT {
            self.judge(last_piece);
        } else {
            let mut partial = std::mem::take(&mut self.partial);
            partial.push(last_piece);
            self.judge(&partial.bytes());
            partial.clear();
            self.partial = partial;
        }
    }

    fn judge(&mut self, event: &[u8]) {
        let (name, data) = fields(event);
        if data.is_empty() {
            return;
        }
        self.events += 1;
        if data.as_ref() == b"[DONE]" {
            self.done = true;
            return;
        }
        self.truncation.event(name, &data);
        if DELTA.find(&data).is_some() {
            self.deltas += 1;
        }
        if USAGE.find(&data).is_some() {
            self.usage = Usage::scan(&data).or(self.usage);
        }
        if name == b"error" || ERROR.find(&data).is_some() {
            self.check_error(name, &data);
        }
        let is_typed = TYPE.find(&data).is_some();
        let last = LAST_EVENTS.iter().find(|last| {
            let in_data = is_typed && memmem::find(&data, last.as_bytes()).is_some();
            name == last.as_bytes() || (in_data && Top::of(&data).kind.as_deref() == Some(**last))
        });
        self.terminal |= last.is_some();
        self.failed |= last == Some(&FAILED);
    }

    fn check_error(&mut self, name: &[u8], data: &[u8]) {
        let top = Top::of(data);
        let is_frame = is_some(top.error) || data.starts_with(br#"{"error":{"#);
        let in_chunk = top.x_groq.is_some_and(|x_groq| is_some(x_groq.error));
        if is_frame || in_chunk || name == b"error" || top.kind.as_deref() == Some("error") {
            self.error.get_or_insert_with(|| StreamError { data: data.to_vec(), is_frame });
        }
    }
}

// Quotes are escaped inside a JSON string, so the bytes of each event can be searched for the members that matter.
static DELTA: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"delta\""));
static USAGE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(br#""usage""#));
static ERROR: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(br#""error""#));
static TYPE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(br#""type""#));

/// The typed events that end a stream without `[DONE]`.
const LAST_EVENTS: [&str; 4] = ["response.completed", "response.incomplete", FAILED, "transcript.text.done"];
/// The one of them that holds an error.
const FAILED: &str = "response.failed";

/// The members that identify an event.
#[derive(Default, Deserialize)]
struct Top<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    x_groq: Option<XGroq<'a>>,
}

#[derive(Deserialize)]
struct XGroq<'a> {
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl<'a> Top<'a> {
    /// Empty if the data is not JSON or only an excerpt of it.
    fn of(data: &'a [u8]) -> Self {
        serde_json::from_slice(data).unwrap_or_default()
    }
}

fn is_some(member: Option<&RawValue>) -> bool {
    member.is_some_and(|value| value.get() != "null")
}

/// An event's name and its data; several data lines are joined as the standard says.
fn fields(event: &[u8]) -> (&[u8], Cow<'_, [u8]>) {
    let mut name: &[u8] = b"";
    let mut data: Option<Cow<'_, [u8]>> = None;
    let mut rest = event;
    loop {
        let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        let value = |field: &[u8]| {
            let value = line.strip_prefix(field)?;
            Some(value.strip_prefix(b" ").unwrap_or(value))
        };
        if let Some(value) = value(b"data:") {
            match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(before) => {
                    let before = before.to_mut();
                    before.push(b'\n');
                    before.extend_from_slice(value);
                }
            }
        } else if let Some(value) = value(b"event:") {
            name = value;
        }
        match rest.get(end + 1..) {
            Some(next) => rest = next,
            None => break,
        }
    }
    (name, data.unwrap_or_default())
}

/// The first [`HEAD`] and the last [`TAIL`] bytes of what was pushed.
#[derive(Debug, Default)]
struct Excerpt {
    head: Vec<u8>,
    tail: Vec<u8>,
    len: usize,
}

impl Excerpt {
    fn push(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(TAIL)..];
        // Dropped in large steps, so that small pieces do not move the tail each time.
        if self.tail.len() + rest.len() > 2 * TAIL {
            self.tail.drain(..(self.tail.len() + rest.len() - TAIL).min(self.tail.len()));
        }
        self.tail.extend_from_slice(rest);
    }

    fn bytes(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.tail[self.tail.len().saturating_sub(TAIL)..]].concat()
    }

    fn clear(&mut self) {
        self.head.clear();
        self.tail.clear();
        self.len = 0;
    }
}

#[cfg(test)]
#[path = "sse_tests.rs"]
mod tests;
