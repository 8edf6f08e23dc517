//! The request to the upstream, which every attempt sends again.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::{Body, Frame, SizeHint};

/// A larger body accounts for most of its buffer, so that a copy would free little.
const MAX_COMPACTED_BODY: usize = 64 << 10;
/// Bytes per frame of a body. hyper copies what it cannot write at once into a buffer that never shrinks: as one frame, a body of
/// 20 MB would occupy as much for as long as its connection lives.
const MAX_FRAME: usize = 64 << 10;

/// What all requests to one upstream have in common.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    /// The authority as a header.
    pub(super) host: HeaderValue,
    /// Comes before every path.
    pub(super) prefix: String,
    /// An HTTP proxy that forwards requests in absolute form.
    pub(super) forward_proxy: Option<ForwardProxy>,
}

/// An HTTP proxy in front of a plain upstream.
#[derive(Debug)]
pub(super) struct ForwardProxy {
    pub(super) authorization: Option<HeaderValue>,
}

/// One request to the upstream.
pub struct UpstreamRequest {
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    body: Bytes,
}

/// Without headers, one of which is a key.
impl fmt::Debug for UpstreamRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamRequest").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

impl UpstreamRequest {
    /// A request whose headers have neither `host` nor `content-length`.
    pub fn new(method: Method, path: PathAndQuery, mut headers: HeaderMap, body: Bytes) -> Self {
        // HPACK must not keep keys in its table: apps share a connection.
        if let Some(key) = headers.get_mut(header::AUTHORIZATION) {
            key.set_sensitive(true);
        }
        Self { method, path, headers, body }
    }

    /// Whether the response has no body whatever its headers say.
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Replaces the body.
    pub fn replace_body(&mut self, change: impl FnOnce(&Bytes) -> Bytes) {
        self.body = change(&self.body);
    }

    /// Copies headers, path and a small body out of the connection's read buffer, of which they keep 8 KB or more alive: a
    /// request may wait in the queue for a minute.
    pub fn compact(&mut self) {
        let values: usize = self.headers.values().map(HeaderValue::len).sum();
        let body = if self.body.len() <= MAX_COMPACTED_BODY { self.body.len() } else { 0 };
        let mut block = BytesMut::with_capacity(values + self.path.as_str().len() + body);
        let mut copy = |bytes: &[u8]| {
            block.put_slice(bytes);
            block.split().freeze()
        };
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            let mut copied = HeaderValue::from_maybe_shared(copy(value.as_bytes())).expect("a header's value");
            copied.set_sensitive(value.is_sensitive());
            headers.append(name, copied);
        }
        self.headers = headers;
        self.path = PathAndQuery::from_maybe_shared(copy(self.path.as_str().as_bytes())).expect("a path");
        if body > 0 {
            self.body = copy(&self.body);
        }
    }

    /// The request of one attempt over HTTP/1.1.
    pub(super) fn http1_request(&mut self, origin: &Origin) -> Request<RequestBody> {
        let mut request = self.with_uri(match origin.forward_proxy {
            None => Uri::from(self.target(origin)),
            Some(_) => self.absolute(origin),
        });
        let headers = request.headers_mut();
        headers.insert(header::HOST, origin.host.clone());
        // hyper sets the length of a body, but not that of an empty one.
        if self.body.is_empty() && matches!(self.method, Method::POST | Method::PUT | Method::PATCH) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        if let Some(ForwardProxy { authorization: Some(authorization) }) = &origin.forward_proxy {
            headers.insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        request
    }

    /// The request of one attempt over HTTP/2, where the URI has the host.
    pub(super) fn http2_request(&mut self, origin: &Origin) -> Request<RequestBody> {
        let mut request = self.with_uri(self.absolute(origin));
        *request.version_mut() = Version::HTTP_2;
        request
    }

    /// The original headers go into the request, and a copy is kept for the next attempt: the copy has no room for more headers, and
    /// hyper reuses the map for those of the response (800 instructions to grow it twice).
    fn with_uri(&mut self, uri: Uri) -> Request<RequestBody> {
        let copy = self.headers.clone();
        let mut request = Request::new(RequestBody(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = std::mem::replace(&mut self.headers, copy);
        request
    }

    fn absolute(&self, origin: &Origin) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(origin.scheme.clone());
        parts.authority = Some(origin.authority.clone());
        parts.path_and_query = Some(self.target(origin));
        Uri::from_parts(parts).expect("scheme, authority and path make a URI")
    }

    /// The path at the upstream.
    fn target(&self, origin: &Origin) -> PathAndQuery {
        let path = self.path.as_str();
        match (origin.prefix.as_str(), path.as_bytes().first()) {
            ("", Some(b'/' | b'*')) => self.path.clone(),
            (prefix, Some(b'/')) => format!("{prefix}{path}").parse().expect("two paths make a path"),
            // The absolute form may have a query and no path.
            (prefix, _) => format!("{prefix}/{path}").parse().expect("two paths make a path"),
        }
    }
}

/// The body of one attempt.
#[derive(Debug)]
pub(super) struct RequestBody(Bytes);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.len().min(MAX_FRAME);
        Poll::Ready((next > 0).then(|| Ok(Frame::data(self.0.split_to(next)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn origin(prefix: &str, forward_proxy: Option<ForwardProxy>) -> Origin {
        Origin {
            scheme: Scheme::HTTP,
            authority: Authority::from_static("groq.example:81"),
            host: HeaderValue::from_static("groq.example:81"),
            prefix: prefix.to_owned(),
            forward_proxy,
        }
    }

    fn request(method: Method, path: &str, body: &'static [u8]) -> UpstreamRequest {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1"));
        headers.append(header::COOKIE, HeaderValue::from_static("b=2"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer gsk_test"));
        // As of a request in absolute form, which may have a query and no path.
        let path = path.parse::<Uri>().expect("a URI").path_and_query().cloned().expect("a path or a query");
        UpstreamRequest::new(method, path, headers, Bytes::from_static(body))
    }

    #[tokio::test]
    async fn every_attempt_sends_the_same_compacted_or_not() {
        let (mut plain, mut compacted) = (request(Method::POST, "/x?y", b"{}"), request(Method::POST, "/x?y", b"{}"));
        compacted.compact();
        for request in [&mut plain, &mut compacted] {
            for _ in 0..2 {
                let (head, body) = request.http1_request(&origin("", None)).into_parts();
                assert_eq!((head.method, head.uri.to_string().as_str()), (Method::POST, "/x?y"));
                let cookies: Vec<_> = head.headers.get_all(header::COOKIE).iter().collect();
                assert_eq!(cookies, ["a=1", "b=2"]);
                assert_eq!((&head.headers[header::HOST], head.headers.len()), (&HeaderValue::from_static("groq.example:81"), 4));
                assert!(head.headers[header::AUTHORIZATION].is_sensitive());
                assert_eq!(body.collect().await.expect("infallible").to_bytes(), "{}");
            }
        }
    }

    /// Headers, path and body together, so that none of it keeps the read buffer alive.
    #[test]
    fn a_compacted_request_has_one_block_of_just_its_size() {
        let mut request = request(Method::POST, "/x?y", b"{}");
        request.compact();
        let start = request.headers[header::COOKIE].as_bytes().as_ptr() as usize;
        let before_body = ["a=1", "b=2", "Bearer gsk_test", "/x?y"].iter().map(|part| part.len()).sum::<usize>();
        assert_eq!(request.body.as_ptr() as usize, start + before_body);
    }

    #[test]
    fn the_uri_has_the_form_for_the_next_hop() {
        let proxy = || Some(ForwardProxy { authorization: Some(HeaderValue::from_static("Basic eA==")) });
        for (path, prefix, origin_form, absolute_form) in [
            ("/x?y", "", "/x?y", "http://groq.example:81/x?y"),
            ("/x?y", "/pre", "/pre/x?y", "http://groq.example:81/pre/x?y"),
            ("http://h?y", "", "/?y", "http://groq.example:81/?y"),
            ("http://h?y", "/pre", "/pre/?y", "http://groq.example:81/pre/?y"),
        ] {
            let mut request = request(Method::GET, path, b"");
            assert_eq!(request.http1_request(&origin(prefix, None)).uri().to_string(), origin_form);
            assert_eq!(request.http2_request(&origin(prefix, None)).uri().to_string(), absolute_form);
            let forwarded = request.http1_request(&origin(prefix, proxy()));
            assert_eq!(forwarded.uri().to_string(), absolute_form);
            assert_eq!(forwarded.headers()[header::PROXY_AUTHORIZATION], "Basic eA==");
        }
        let mut options = request(Method::OPTIONS, "*", b"");
        assert_eq!(options.http1_request(&origin("", None)).uri().to_string(), "*");
    }

    #[tokio::test]
    async fn a_large_body_is_sent_in_frames_none_of_which_is_large() {
        let all: Bytes = (0..1_000_000).map(|at: u32| (at % 251) as u8).collect();
        let mut request = request(Method::POST, "/x", b"");
        request.replace_body(|_| all.clone());
        for _ in 0..2 {
            let mut body = request.http1_request(&origin("", None)).into_body();
            assert_eq!(body.size_hint().exact(), Some(1_000_000));
            let mut sent = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                let data = frame.into_data().expect("data");
                assert!(data.len() <= MAX_FRAME, "{}", data.len());
                sent.extend_from_slice(&data);
            }
            assert!(body.is_end_stream());
            assert_eq!(sent, all);
        }
    }
}
