//! What is sent? One request, as often as it takes.

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, uri::PathAndQuery};

use crate::{
    message::Headers,
    wire::{Unsent, block},
};

/// A body over so many bytes is most of the memory that it came in.
const SMALL: usize = 64 << 10;
/// Bytes of a body that a copy beside its head is cheaper for than a second piece.
const JOINED: usize = 4 << 10;
/// Bytes of a TLS record: head and body share as many, or the head would go in one of its own.
const RECORD: usize = 16 << 10;
/// About the bytes of a line.
const LINE: usize = 64;

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

/// One request to the upstream.
pub struct UpstreamRequest {
    method: Method,
    path: PathAndQuery,
    body: Bytes,
    headers: Headers,
}

/// Without its headers, one of which is a key.
impl fmt::Debug for UpstreamRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamRequest").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

impl UpstreamRequest {
    /// A request; neither `host` nor a length is among its headers.
    pub fn new(method: Method, path: PathAndQuery, headers: HeaderMap, body: Bytes) -> Self {
        Self { method, path, body, headers: headers.into() }
    }

    /// Whether no more than its answer's head is wanted.
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Another body.
    pub fn replace_body(&mut self, change: impl FnOnce(&Bytes) -> Bytes) {
        self.body = change(&self.body);
    }

    /// Leaves the buffer that it came in for memory of its own, of just its size: who may wait long holds less.
    pub fn compact(&mut self) {
        let lines = self.headers.size();
        let body = if self.body.len() <= SMALL { self.body.len() } else { 0 };
        let mut block = BytesMut::with_capacity(lines + self.path.as_str().len() + body);
        self.headers.settle(&mut block);
        block.put_slice(self.path.as_str().as_bytes());
        self.path = PathAndQuery::from_maybe_shared(block.split().freeze()).expect("it was one");
        if body > 0 {
            block.put_slice(&self.body);
            self.body = block.freeze();
        }
    }

    /// The bytes of an attempt.
    pub(super) fn encode(&self, to: &Address) -> Unsent {
        let head = to.before_path.len() + to.after_path.len() + self.path.as_str().len() + self.headers.size() + 2 * LINE;
        let joined = match self.body.len() {
            length if to.is_tls => length.min(RECORD.saturating_sub(head)),
            length if length <= JOINED => length,
            _ => 0,
        };
        let mut out = block(head + joined);
        let path = self.path.as_str();
        // An absolute form may have had a query and no path.
        let root = if path.starts_with(['/', '*']) { "" } else { "/" };
        for part in [self.method.as_str(), " ", &to.before_path, root, path] {
            out.put_slice(part.as_bytes());
        }
        out.put_slice(&to.after_path);
        self.headers.put(&mut out);
        if !self.body.is_empty() || matches!(self.method, Method::POST | Method::PUT | Method::PATCH) {
            out.put_slice(b"content-length: ");
            out.put_slice(itoa::Buffer::new().format(self.body.len()).as_bytes());
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"\r\n");
        out.put_slice(&self.body[..joined]);
        out.chain(self.body.slice(joined..))
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    fn outgoing() -> UpstreamRequest {
        let pairs = [(header::COOKIE, "a=1"), (header::COOKIE, "b=2"), (header::AUTHORIZATION, "Bearer gsk_test")];
        let headers = pairs.map(|(name, value)| (name, HeaderValue::from_static(value))).into_iter().collect();
        UpstreamRequest::new(Method::POST, PathAndQuery::from_static("/openai/v1/x?y=z"), headers, Bytes::from_static(b"{}"))
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
        settled.compact();
        for request in [&mut plain, &mut settled] {
            for _ in 0..3 {
                assert_eq!(text(request.encode(&address())), WANTED);
            }
        }
    }

    #[test]
    fn who_settles_down_holds_one_block_of_just_its_size() {
        let mut request = outgoing();
        request.compact();
        let start = request.headers.get("cookie").expect("settled").as_ptr() as usize - "cookie: ".len();
        let length = "cookie: a=1\r\ncookie: b=2\r\nauthorization: Bearer gsk_test\r\n".len() + "/openai/v1/x?y=z".len();
        assert_eq!(request.body.as_ptr() as usize, start + length);
    }

    #[test]
    fn another_body_has_its_own_length_in_every_attempt() {
        for (settle, send) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut request = outgoing();
            if settle {
                request.compact();
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
            let request = UpstreamRequest::new(method.clone(), path, HeaderMap::new(), Bytes::new());
            assert_eq!(text(request.encode(&address())), format!("{method} /x HTTP/1.1\r\nhost: api.groq.com\r\n{length}\r\n"));
        }
        let odd = UpstreamRequest::new(Method::GET, PathAndQuery::from_static("/x"), HeaderMap::new(), Bytes::from_static(b"{}"));
        assert!(text(odd.encode(&address())).ends_with("content-length: 2\r\n\r\n{}"));
    }

    #[test]
    fn the_path_has_before_it_what_the_upstream_wants() {
        let mut request = UpstreamRequest::new(Method::GET, PathAndQuery::from_static("/x?y"), HeaderMap::new(), Bytes::new());
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
        let request = UpstreamRequest { body: body.clone(), ..outgoing() };
        let plain = request.encode(&address());
        assert!(plain.first_ref().ends_with(b"\r\n\r\n"));
        assert_eq!(plain.last_ref().as_ptr(), body.as_ptr());
        let records = request.encode(&Address::new("h", "", true, None));
        assert!((RECORD - 2 * LINE..=RECORD).contains(&records.first_ref().len()));
        assert_eq!(text(records).len(), text(plain).len() - "api.groq.com".len() + "h".len());
        let usual = UpstreamRequest { body: body.slice(..10_000), ..outgoing() };
        assert!(!usual.encode(&address()).last_ref().is_empty());
        assert!(usual.encode(&Address::new("h", "", true, None)).last_ref().is_empty());
    }
}
