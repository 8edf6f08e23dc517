//! What is sent? One request, as often as it takes.

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, uri::PathAndQuery};

use crate::wire::{Unsent, put_headers};

/// A body over so many bytes is most of the buffer that it came in.
const SMALL: usize = 8 << 10;
/// Bytes of a body that a copy beside its head is cheaper for than a second piece.
const JOINED: usize = 4 << 10;
/// Bytes of a TLS record: head and body share as many, or the head would go in one of its own.
const RECORD: usize = 16 << 10;
/// About the bytes of a header's line.
const LINE: usize = 64;

/// Bytes in one piece of a known body. To clients hyper joins what it sends in one buffer, which stays as large as it has been for
/// as long as its connection: one body of 20 MB would cost as much until then.
const PIECE: usize = 64 << 10;

/// The next piece of a body that is all there.
pub fn next_piece(rest: &mut Bytes) -> Option<Bytes> {
    (!rest.is_empty()).then(|| rest.split_to(rest.len().min(PIECE)))
}

/// What stands around the path of every request to one upstream.
pub(super) struct Address {
    before_path: String,
    after_path: Vec<u8>,
    is_tls: bool,
}

impl Address {
    /// `through_proxy`: the HTTP proxy that it goes to in absolute form knows us by this, or by nothing.
    pub(super) fn new(host: &str, prefix: &str, is_tls: bool, through_proxy: Option<Option<&HeaderValue>>) -> Self {
        let origin = if through_proxy.is_some() { format!("http://{host}") } else { String::new() };
        let mut after_path = format!(" HTTP/1.1\r\nhost: {host}\r\n").into_bytes();
        if let Some(Some(auth)) = through_proxy {
            after_path.extend([b"proxy-authorization: ", auth.as_bytes(), b"\r\n"].concat());
        }
        Self { before_path: origin + prefix, after_path, is_tls }
    }
}

/// Whether a header is written by us, whatever the client's was.
fn is_ours(name: &HeaderName) -> bool {
    matches!(*name, header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING)
}

/// One request to the upstream.
pub struct Outgoing {
    method: Method,
    path: PathAndQuery,
    body: Bytes,
    /// The map that they came in. Once they are `lines` it takes the answer's, and then the client's next request: one map goes
    /// round, and none is made.
    pub(super) headers: HeaderMap,
    /// They as they are sent, `host` and length aside.
    lines: Option<Bytes>,
}

/// Without its headers, one of which is a key.
impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Outgoing {
    /// A request.
    pub fn new(method: Method, path: PathAndQuery, headers: HeaderMap, body: Bytes) -> Self {
        Self { method, path, body, headers, lines: None }
    }

    /// Whether no more than its answer's head is wanted.
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Another body.
    pub fn replace_body(&mut self, change: impl FnOnce(&Bytes) -> Bytes) {
        self.body = change(&self.body);
    }

    /// Leaves the buffer that it came in for memory of its own, of just its size, and the map, which has room for an answer's
    /// headers: who may wait long holds 10 KB less.
    pub fn settle_down(&mut self) {
        if self.lines.is_some() {
            return;
        }
        let headers = std::mem::take(&mut self.headers);
        let sent = headers.iter().filter(|(name, _)| !is_ours(name));
        let lines: usize = sent.map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let body = if self.body.len() <= SMALL { self.body.len() } else { 0 };
        let mut block = BytesMut::with_capacity(lines + self.path.as_str().len() + body);
        put_headers(&mut block, &headers, is_ours);
        self.lines = Some(block.split().freeze());
        block.put_slice(self.path.as_str().as_bytes());
        self.path = PathAndQuery::from_maybe_shared(block.split().freeze()).expect("it was one");
        if body > 0 {
            block.put_slice(&self.body);
            self.body = block.freeze();
        }
    }

    /// The bytes of an attempt.
    pub(super) fn encode(&mut self, to: &Address) -> Unsent {
        let before_body = to.before_path.len() + to.after_path.len() + self.path.as_str().len() + 2 * LINE;
        let lines = self.lines.as_ref().map_or(self.headers.len() * LINE, Bytes::len);
        let mut out = BytesMut::with_capacity((before_body + lines + self.body.len()).min(RECORD));
        let path = self.path.as_str();
        // An absolute form may have had a query and no path.
        let root = if path.starts_with(['/', '*']) { "" } else { "/" };
        for part in [self.method.as_str(), " ", &to.before_path, root, path] {
            out.put_slice(part.as_bytes());
        }
        out.put_slice(&to.after_path);
        if let Some(lines) = &self.lines {
            out.put_slice(lines);
        } else {
            let start = out.len();
            put_headers(&mut out, &self.headers, is_ours);
            self.lines = Some(Bytes::copy_from_slice(&out[start..]));
        }
        if !self.body.is_empty() || matches!(self.method, Method::POST | Method::PUT | Method::PATCH) {
            out.put_slice(b"content-length: ");
            out.put_slice(itoa::Buffer::new().format(self.body.len()).as_bytes());
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"\r\n");
        let joined = match self.body.len() {
            length if to.is_tls => length.min(RECORD.saturating_sub(out.len())),
            length if length <= JOINED => length,
            _ => 0,
        };
        out.put_slice(&self.body[..joined]);
        out.chain(self.body.slice(joined..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing() -> Outgoing {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:8787"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("2"));
        headers.append(header::COOKIE, HeaderValue::from_static("a=1"));
        headers.append(header::COOKIE, HeaderValue::from_static("b=2"));
        let mut key = HeaderValue::from_static("Bearer gsk_test");
        key.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, key);
        Outgoing::new(Method::POST, PathAndQuery::from_static("/openai/v1/x?y=z"), headers, Bytes::from_static(b"{}"))
    }

    fn address() -> Address {
        Address::new("api.groq.com", "", false, None)
    }

    fn text(mut unsent: Unsent) -> String {
        String::from_utf8(unsent.copy_to_bytes(unsent.remaining()).to_vec()).expect("text")
    }

    const WANTED: &str = "POST /openai/v1/x?y=z HTTP/1.1\r\nhost: api.groq.com\r\ncookie: a=1\r\ncookie: b=2\r\n\
         authorization: Bearer gsk_test\r\ncontent-length: 2\r\n\r\n{}";

    #[test]
    fn every_attempt_has_the_same_bytes_settled_or_not() {
        let (mut plain, mut settled) = (outgoing(), outgoing());
        settled.settle_down();
        for request in [&mut plain, &mut settled] {
            for _ in 0..3 {
                assert_eq!(text(request.encode(&address())), WANTED);
                // As an answer does.
                request.headers.clear();
                request.settle_down();
            }
        }
    }

    #[test]
    fn who_settles_down_holds_one_block_of_just_its_size() {
        let mut request = outgoing();
        request.settle_down();
        let start = request.lines.as_ref().expect("settled").as_ptr() as usize;
        let length = "cookie: a=1\r\ncookie: b=2\r\nauthorization: Bearer gsk_test\r\n".len() + "/openai/v1/x?y=z".len();
        assert_eq!(request.body.as_ptr() as usize, start + length);
        assert_eq!(request.headers.capacity(), 0);
    }

    #[test]
    fn another_body_has_its_own_length_in_every_attempt() {
        for (settle, send) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut request = outgoing();
            if settle {
                request.settle_down();
            }
            if send {
                request.encode(&address());
            }
            request.replace_body(|old| [old, &b" "[..]].concat().into());
            for _ in 0..2 {
                assert_eq!(text(request.encode(&address())), WANTED.replace("length: 2", "length: 3") + " ");
            }
        }
    }

    #[test]
    fn a_length_is_told_where_a_body_is_or_could_be() {
        for (method, length) in [("GET", ""), ("DELETE", ""), ("POST", "content-length: 0\r\n"), ("PUT", "content-length: 0\r\n")]
        {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let path = PathAndQuery::from_static("/x");
            let mut request = Outgoing::new(method.clone(), path, HeaderMap::new(), Bytes::new());
            assert_eq!(text(request.encode(&address())), format!("{method} /x HTTP/1.1\r\nhost: api.groq.com\r\n{length}\r\n"));
        }
        let mut odd = Outgoing::new(Method::GET, PathAndQuery::from_static("/x"), HeaderMap::new(), Bytes::from_static(b"{}"));
        assert!(text(odd.encode(&address())).ends_with("content-length: 2\r\n\r\n{}"));
    }

    #[test]
    fn the_path_has_before_it_what_the_upstream_wants() {
        let mut request = Outgoing::new(Method::GET, PathAndQuery::from_static("/x?y"), HeaderMap::new(), Bytes::new());
        let auth = HeaderValue::from_static("Basic eA==");
        for (address, wanted) in [
            (Address::new("h:1", "/pre", false, None), "GET /pre/x?y HTTP/1.1\r\nhost: h:1\r\n\r\n"),
            (Address::new("h:1", "/pre", false, Some(None)), "GET http://h:1/pre/x?y HTTP/1.1\r\nhost: h:1\r\n\r\n"),
            (
                Address::new("h:1", "", false, Some(Some(&auth))),
                "GET http://h:1/x?y HTTP/1.1\r\nhost: h:1\r\nproxy-authorization: Basic eA==\r\n\r\n",
            ),
        ] {
            assert_eq!(text(request.encode(&address)), wanted);
        }
        request.path = "http://h?y".parse::<http::Uri>().expect("a URI").path_and_query().expect("a query").clone();
        assert!(text(request.encode(&address())).starts_with("GET /?y HTTP/1.1\r\n"));
    }

    #[test]
    fn a_large_body_is_not_copied_but_for_the_rest_of_a_tls_record() {
        let body = Bytes::from(vec![b'x'; 1_000_000]);
        let mut request = Outgoing { body: body.clone(), ..outgoing() };
        let plain = request.encode(&address());
        assert!(plain.first_ref().ends_with(b"\r\n\r\n"));
        assert_eq!(plain.last_ref().as_ptr(), body.as_ptr());
        let records = request.encode(&Address::new("h", "", true, None));
        assert_eq!(records.first_ref().len(), RECORD);
        assert_eq!(text(records).len(), text(plain).len() - "api.groq.com".len() + "h".len());
        let mut usual = Outgoing { body: body.slice(..10_000), ..outgoing() };
        assert!(!usual.encode(&address()).last_ref().is_empty());
        assert!(usual.encode(&Address::new("h", "", true, None)).last_ref().is_empty());
    }

    #[test]
    fn a_known_body_goes_in_pieces_of_which_none_is_large() {
        let all: Vec<u8> = (0..1_000_000).map(|at: u32| (at % 251) as u8).collect();
        let (mut rest, mut gone) = (Bytes::from(all.clone()), Vec::new());
        while let Some(piece) = next_piece(&mut rest) {
            assert!(piece.len() <= PIECE, "{}", piece.len());
            gone.extend_from_slice(&piece);
        }
        assert_eq!(gone, all);
    }
}
