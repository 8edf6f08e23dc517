//! What is sent? One request, as often as it takes.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};

/// A map made for a second attempt has room for the answer's headers too, which hyper reads into it: Groq sends about twenty.
const ROOM: usize = 24;
/// A body over so many bytes is most of the buffer that it came in.
const SMALL: usize = 8 << 10;

/// Bytes in one piece of a known body. To TLS, and to clients, hyper joins what it sends in one buffer, which stays as large as it
/// has been for as long as its connection: one body of 20 MB would cost as much until then.
const PIECE: usize = 64 << 10;

/// The next piece of a body that is all there.
pub fn next_piece(rest: &mut Bytes) -> Option<Bytes> {
    (!rest.is_empty()).then(|| rest.split_to(rest.len().min(PIECE)))
}

/// The body of an attempt.
#[derive(Debug)]
pub(super) struct Pieces(Bytes);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(next_piece(&mut self.0).map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// One request to the upstream.
#[derive(Debug)]
pub struct Outgoing {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    body: Bytes,
    /// The map that they came in. It goes with the first attempt, comes back with the answer and then takes the client's next
    /// request: one map goes round, and none is made.
    headers: Option<HeaderMap>,
    /// They once more, for a second attempt.
    kept: Vec<(HeaderName, HeaderValue)>,
}

impl Outgoing {
    /// A request.
    pub fn new(method: Method, path: PathAndQuery, headers: HeaderMap, body: Bytes) -> Self {
        Self { method, path, body, headers: Some(headers), kept: Vec::new() }
    }

    /// Whether no more than its answer's head is wanted.
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Another body, whose length nobody has told.
    pub fn replace_body(&mut self, change: impl FnOnce(&Bytes) -> Bytes) {
        self.body = change(&self.body);
        if let Some(headers) = &mut self.headers {
            headers.remove(header::CONTENT_LENGTH);
        }
        self.kept.retain(|(name, _)| *name != header::CONTENT_LENGTH);
    }

    /// Leaves the buffer that it came in for memory of its own, of just its size, and the map, which has room for an answer's
    /// headers: who may wait long holds 10 KB less.
    pub fn settle_down(&mut self) {
        let Some(headers) = self.headers.take() else { return };
        let body = if self.body.len() <= SMALL { self.body.len() } else { 0 };
        let values: usize = headers.values().map(HeaderValue::len).sum();
        let mut block = BytesMut::with_capacity(body + values + self.path.as_str().len());
        let mut own = |bytes: &[u8]| {
            block.extend_from_slice(bytes);
            block.split().freeze()
        };
        if body > 0 {
            self.body = own(&self.body);
        }
        let settled = headers.iter().map(|(name, value)| {
            let mut kept = HeaderValue::from_maybe_shared(own(value.as_bytes())).expect("it was one");
            kept.set_sensitive(value.is_sensitive());
            (name.clone(), kept)
        });
        self.kept = settled.collect();
        self.path = PathAndQuery::from_maybe_shared(own(self.path.as_str().as_bytes())).expect("it was one");
    }

    /// The body of the next attempt.
    pub(super) fn body(&self) -> Pieces {
        Pieces(self.body.clone())
    }

    /// The headers of the next attempt.
    pub(super) fn headers(&mut self) -> HeaderMap {
        if let Some(headers) = self.headers.take() {
            self.kept = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            return headers;
        }
        let mut headers = HeaderMap::with_capacity(ROOM.max(self.kept.len()));
        for (name, value) in &self.kept {
            headers.append(name, value.clone());
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn outgoing() -> Outgoing {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("2"));
        headers.append(header::COOKIE, HeaderValue::from_static("a=1"));
        headers.append(header::COOKIE, HeaderValue::from_static("b=2"));
        let mut key = HeaderValue::from_static("Bearer gsk_test");
        key.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, key);
        Outgoing::new(Method::POST, PathAndQuery::from_static("/openai/v1/x?y=z"), headers, Bytes::from_static(b"{}"))
    }

    #[test]
    fn every_attempt_has_the_same_headers_settled_or_not() {
        let first = outgoing().headers();
        assert_eq!(first.len(), 4);
        let (mut plain, mut settled) = (outgoing(), outgoing());
        settled.settle_down();
        assert_eq!((settled.path.as_str(), &settled.body[..]), ("/openai/v1/x?y=z", &b"{}"[..]));
        for request in [&mut plain, &mut settled] {
            for _ in 0..3 {
                let headers = request.headers();
                assert_eq!(headers, first);
                assert!(headers[header::AUTHORIZATION].is_sensitive());
            }
        }
    }

    #[tokio::test]
    async fn a_large_body_goes_in_pieces_of_which_none_is_large() {
        let all: Vec<u8> = (0..1_000_000).map(|at: u32| (at % 251) as u8).collect();
        let request = Outgoing { body: all.clone().into(), ..outgoing() };
        // Every attempt has all of it.
        for _ in 0..2 {
            let mut body = request.body();
            assert_eq!(body.size_hint().exact(), Some(1_000_000));
            let mut gone = Vec::new();
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame;
                let piece = frame.into_data().expect("data");
                assert!(piece.len() <= PIECE, "{}", piece.len());
                gone.extend_from_slice(&piece);
            }
            assert!(body.is_end_stream());
            assert_eq!(gone, all);
        }
    }

    #[test]
    fn another_body_has_no_length_told_in_any_attempt() {
        for settle in [false, true] {
            let mut request = outgoing();
            if settle {
                request.settle_down();
            }
            request.replace_body(|old| [old, &b" "[..]].concat().into());
            assert_eq!(&request.body[..], b"{} ");
            for _ in 0..2 {
                assert!(!request.headers().contains_key(header::CONTENT_LENGTH));
            }
        }
    }
}
