//! A message's headers: the lines as they came, what was added, and which of both are left.
//!
//! Not a map: of some thirty lines that pass through, few are ever asked for, and nearly all go out as they are, copied at once.
//! To hash each name, and to make each value a value of its own, took an eighth of all the instructions of a request.

use std::fmt;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The headers of one message. Names are compared without regard to case.
#[derive(Clone, Default)]
pub struct Headers {
    /// The head that they came in.
    head: Bytes,
    /// Lines that were added, as they go out; their places are counted on from the end of `head`.
    added: Vec<u8>,
    lines: Vec<Line>,
    lengths: Lengths,
}

/// Which lengths names have had, a bit each: most that are asked for are not there, and one look tells.
#[derive(Clone, Copy, Default)]
struct Lengths(u64);

impl Lengths {
    fn add(&mut self, name: usize) {
        self.0 |= 1 << (name % 64);
    }

    fn may_have(self, name: &str) -> bool {
        self.0 >> (name.len() % 64) & 1 == 1
    }
}

/// Where `httparse` found lines.
pub(crate) struct Found {
    lines: Vec<Line>,
    lengths: Lengths,
}

impl Found {
    /// In these bytes, the first of which is the head's.
    pub(crate) fn at(head: &[u8], found: &[httparse::Header<'_>]) -> Self {
        let span = |part: &[u8]| {
            let start = (part.as_ptr().addr() - head.as_ptr().addr()) as u32;
            Span { start, end: start + part.len() as u32 }
        };
        let mut lengths = Lengths::default();
        let line = |header: &httparse::Header<'_>| {
            lengths.add(header.name.len());
            let name = span(header.name.as_bytes());
            // A value that is empty is nowhere: it stands behind its colon.
            let nothing = Span { start: name.end + 1, end: name.end + 1 };
            Line { name, value: if header.value.is_empty() { nothing } else { span(header.value) } }
        };
        let mut lines = Vec::with_capacity(found.len() + ADDED);
        lines.extend(found.iter().map(line));
        Self { lines, lengths }
    }
}

#[derive(Clone, Copy)]
struct Line {
    name: Span,
    value: Span,
}

#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

/// Lines that are usually added to a message, and their bytes.
const ADDED: usize = 5;
const ROOM: usize = 128;

impl Span {
    fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    fn of<'a>(self, head: &'a [u8], added: &'a [u8]) -> &'a [u8] {
        let (start, end) = (self.start as usize, self.end as usize);
        if start < head.len() { &head[start..end] } else { &added[start - head.len()..end - head.len()] }
    }
}

/// A value where it is plain text, as `HeaderValue::to_str` has it.
fn plain(value: &[u8]) -> Option<&str> {
    let is_plain = value.iter().all(|byte| (b' '..0x7f).contains(byte) || *byte == b'\t');
    std::str::from_utf8(value).ok().filter(|_| is_plain)
}

impl Headers {
    /// None.
    pub const fn new() -> Self {
        Self { head: Bytes::new(), added: Vec::new(), lines: Vec::new(), lengths: Lengths(0) }
    }

    /// Those that were found in this head.
    pub(crate) fn of(head: Bytes, found: Found) -> Self {
        Self { head, added: Vec::new(), lines: found.lines, lengths: found.lengths }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The first value under this name.
    pub fn get(&self, name: impl AsRef<str>) -> Option<&[u8]> {
        let name = name.as_ref();
        let line = self.lengths.may_have(name).then(|| self.lines.iter().find(|line| self.is(line, name)))??;
        Some(self.part(line.value))
    }

    /// The same, where it is plain text.
    pub fn text(&self, name: impl AsRef<str>) -> Option<&str> {
        self.get(name).and_then(plain)
    }

    /// Every value under this name.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let lines = if self.lengths.may_have(name) { &self.lines[..] } else { &[] };
        lines.iter().filter(|line| self.is(line, name)).map(|line| self.part(line.value))
    }

    /// Whether there is one.
    pub fn contains_key(&self, name: impl AsRef<str>) -> bool {
        self.get(name).is_some()
    }

    /// All of them, names as they came.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.lines.iter().map(|line| (self.part(line.name), self.part(line.value)))
    }

    /// Adds a line.
    pub fn append(&mut self, name: HeaderName, value: impl Into<HeaderValue>) {
        let value = value.into();
        let name = name.as_str().as_bytes();
        if self.added.capacity() == 0 {
            // What is usually added: a vector that grows from nothing is made anew four times for it.
            self.added.reserve((name.len() + value.len() + 4).max(ROOM));
        }
        let start = (self.head.len() + self.added.len()) as u32;
        for part in [name, b": ", value.as_bytes(), b"\r\n"] {
            self.added.extend_from_slice(part);
        }
        let name = Span { start, end: start + name.len() as u32 };
        let value = Span { start: name.end + 2, end: name.end + 2 + value.len() as u32 };
        self.lengths.add(name.len());
        self.lines.push(Line { name, value });
    }

    /// Adds a line, in the place of all under the same name.
    pub fn insert(&mut self, name: HeaderName, value: impl Into<HeaderValue>) {
        self.remove(&name);
        self.append(name, value);
    }

    /// Removes all under this name.
    pub fn remove(&mut self, name: impl AsRef<str>) {
        let name = name.as_ref();
        if self.contains_key(name) {
            self.retain(|other, _| !other.eq_ignore_ascii_case(name.as_bytes()));
        }
    }

    /// Removes all that `keep` does not want, told by name and value.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let Self { head, added, lines, .. } = self;
        lines.retain(|line| keep(line.name.of(head, added), line.value.of(head, added)));
    }

    /// Bytes that they take as lines, those of blanks around a value aside.
    pub fn size(&self) -> usize {
        self.lines.iter().map(|line| line.name.len() + line.value.len() + 4).sum()
    }

    /// Puts them out, line by line; those that followed each other at once.
    pub fn put(&self, out: &mut BytesMut) {
        let mut run: Option<Span> = None;
        for line in &self.lines {
            match &mut run {
                Some(run) if self.follows(*run, *line) => run.end = line.value.end,
                _ => {
                    self.put_run(run, out);
                    run = Some(Span { start: line.name.start, end: line.value.end });
                }
            }
        }
        self.put_run(run, out);
    }

    /// Leaves the head that they came in for this block, whose end they take.
    pub fn settle(&mut self, block: &mut BytesMut) {
        let mut settled = Self { lines: Vec::with_capacity(self.lines.len()), lengths: self.lengths, ..Self::new() };
        block.reserve(self.size());
        for line in &self.lines {
            let mut own = |part: &[u8], end: &[u8]| {
                let start = block.len() as u32;
                block.put_slice(part);
                block.put_slice(end);
                Span { start, end: start + part.len() as u32 }
            };
            settled.lines.push(Line { name: own(self.part(line.name), b": "), value: own(self.part(line.value), b"\r\n") });
        }
        settled.head = block.split().freeze();
        *self = settled;
    }

    /// Whether no more than a line's end is between both.
    fn follows(&self, run: Span, line: Line) -> bool {
        let came = self.head.len() as u32;
        line.name.start == run.end + 2
            && (line.name.start < came) == (run.start < came)
            && self.part(Span { start: run.end, end: line.name.start }) == b"\r\n"
    }

    fn put_run(&self, run: Option<Span>, out: &mut BytesMut) {
        if let Some(run) = run {
            out.put_slice(self.part(run));
            out.put_slice(b"\r\n");
        }
    }

    fn is(&self, line: &Line, name: &str) -> bool {
        line.name.len() == name.len() && self.part(line.name).eq_ignore_ascii_case(name.as_bytes())
    }

    fn part(&self, span: Span) -> &[u8] {
        span.of(&self.head, &self.added)
    }
}

/// Names only: one of the values is a key.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

impl From<HeaderMap> for Headers {
    fn from(map: HeaderMap) -> Self {
        map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

impl From<&Headers> for HeaderMap {
    /// `httparse` accepts the same names and values as `http`.
    fn from(headers: &Headers) -> Self {
        headers
            .iter()
            .filter_map(|(name, value)| Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?)))
            .collect()
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Headers {
    fn from_iter<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(pairs: T) -> Self {
        let mut headers = Self::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;

    fn read(head: &[u8]) -> Headers {
        let mut found = [httparse::EMPTY_HEADER; 100];
        let mut answer = httparse::Response::new(&mut found);
        assert!(answer.parse(head).expect("a head").is_complete());
        Headers::of(Bytes::copy_from_slice(head), Found::at(head, answer.headers))
    }

    fn put(headers: &Headers) -> String {
        let mut out = BytesMut::new();
        headers.put(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    const HEAD: &[u8] =
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX-Own:  two  words \r\nset-cookie: b=2\r\nempty:\r\nlast:1\r\n\r\n";

    #[test]
    fn lines_go_out_as_they_came() {
        let mut headers = read(HEAD);
        assert_eq!(headers.len(), 5);
        assert_eq!(put(&headers), "Set-Cookie: a=1\r\nX-Own:  two  words\r\nset-cookie: b=2\r\nempty:\r\nlast:1\r\n");
        headers.insert(header::AGE, 7);
        headers.remove("SET-cookie");
        headers.append(header::VARY, HeaderValue::from_static("x"));
        assert_eq!(put(&headers), "X-Own:  two  words\r\nempty:\r\nlast:1\r\nage: 7\r\nvary: x\r\n");
        assert_eq!(put(&Headers::new()), "");
    }

    #[test]
    fn names_are_found_in_any_case() {
        let mut headers = read(HEAD);
        assert_eq!(headers.get_all("SET-COOKIE").collect::<Vec<_>>(), [b"a=1", b"b=2"]);
        assert_eq!((headers.get("Empty"), headers.text("x-own"), headers.get("x")), (Some(&b""[..]), Some("two  words"), None));
        headers.insert(header::SET_COOKIE, HeaderValue::from_static("c=3"));
        assert_eq!(headers.get_all("set-cookie").collect::<Vec<_>>(), [b"c=3"]);
        assert_eq!(headers.text("last"), Some("1"));
    }

    #[test]
    fn what_is_no_text_is_still_a_value() {
        let headers = read(b"HTTP/1.1 200 OK\r\nx: \xe9t\xe9\r\n\r\n");
        assert_eq!((headers.get("x"), headers.text("x")), (Some(&b"\xe9t\xe9"[..]), None));
    }

    /// A line that ends without CR is read, and never passed on as it came: to another reader it may be a part of the next.
    #[test]
    fn every_line_goes_out_with_both_ends() {
        let headers = read(b"HTTP/1.1 200 OK\na: 1\nb: 2 \nc: 3\r\nd: 4\n\n");
        assert_eq!(put(&headers), "a: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n");
    }

    #[test]
    fn who_settles_keeps_what_was_left() {
        let mut headers = read(HEAD);
        headers.append(header::AGE, 7);
        headers.remove("set-cookie");
        let mut block = BytesMut::with_capacity(1000);
        headers.settle(&mut block);
        let settled = "X-Own: two  words\r\nempty: \r\nlast: 1\r\nage: 7\r\n";
        assert_eq!((put(&headers).as_str(), headers.added.capacity()), (settled, 0));
        assert_eq!(headers.text("age"), Some("7"));
        headers.append(header::VARY, HeaderValue::from_static("x"));
        assert_eq!(put(&headers), settled.to_owned() + "vary: x\r\n");
    }

    #[test]
    fn values_are_not_told_to_logs() {
        let key = [(header::AUTHORIZATION, HeaderValue::from_static("Bearer gsk_test"))];
        assert_eq!(format!("{:?}", Headers::from_iter(key)), "[\"authorization\"]");
    }

    proptest! {
        /// Whatever is removed and added, what goes out reads as what is left.
        #[test]
        fn what_goes_out_is_what_is_left(
            lines in proptest::collection::vec(("[a-c]{1,2}", "( {0,2}[!-~]{0,3} {0,2})"), 0..8),
            ends in proptest::collection::vec(any::<bool>(), 8),
            gone in "[a-c]{1,2}",
            added in proptest::collection::vec("[a-c]{1,2}", 0..3),
        ) {
            let mut head = b"HTTP/1.1 200 OK\r\n".to_vec();
            for ((name, value), bare) in lines.iter().zip(ends) {
                head.extend_from_slice(format!("{name}:{value}{}", if bare { "\n" } else { "\r\n" }).as_bytes());
            }
            let mut headers = read(&[&head[..], b"\r\n"].concat());
            headers.remove(&gone);
            for name in &added {
                headers.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::from_static("v"));
            }
            let again = read(format!("HTTP/1.1 200 OK\r\n{}\r\n", put(&headers)).as_bytes());
            prop_assert!(headers.iter().eq(again.iter()));
            let left = lines.iter().filter(|(name, _)| *name != gone).map(|(name, value)| (name.as_str(), value.trim_matches(' ')));
            let wanted: Vec<_> = left.chain(added.iter().map(|name| (name.as_str(), "v"))).collect();
            let text = |bytes| std::str::from_utf8(bytes).expect("text");
            prop_assert_eq!(headers.iter().map(|(name, value)| (text(name), text(value))).collect::<Vec<_>>(), wanted);
        }
    }
}
