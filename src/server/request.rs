//! What does a request's head say, and how does its body come?

use std::{
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{Method, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use super::head::Framing;
use crate::{
    message::{Found, Headers, Request},
    wire::{Broken, Line, MOST_HEADERS, Rest, Unsent},
};

/// What is said to a client that asks before it sends its body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A head that is HTTP.
pub(super) struct Head {
    pub(super) request: Request<()>,
    pub(super) version: Version,
    /// What follows it.
    pub(super) rest: Rest,
    /// Whether the client wants to go on with this connection.
    pub(super) keep_alive: bool,
    /// Whether the client waits for a word before it sends the body.
    pub(super) expects: bool,
    /// Why servers could disagree about it: nothing that follows it can be trusted.
    pub(super) fault: Option<&'static str>,
}

impl Head {
    /// Whether these bytes can be the beginning of a head.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn begins(bytes: &[u8]) -> Result<(), &'static str> {
        let mut found = [const { MaybeUninit::uninit() }; MOST_HEADERS];
        parse(&mut httparse::Request::new(&mut []), bytes, &mut found).map(|_| ())
    }

    /// Reads a whole head.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(bytes: &Bytes, framing: Result<Framing, &'static str>) -> Result<Self, &'static str> {
        let mut found = [const { MaybeUninit::uninit() }; MOST_HEADERS];
        let mut parsed = httparse::Request::new(&mut []);
        if parse(&mut parsed, bytes, &mut found)?.is_partial() {
            return Err(UNREADABLE);
        }
        let (Some(method), Some(path), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(UNREADABLE);
        };
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| UNREADABLE)?;
        let uri = Uri::from_maybe_shared(bytes.slice_ref(path.as_bytes())).map_err(|_| UNREADABLE)?;
        let headers = Headers::of(bytes.clone(), Found::at(bytes, parsed.headers));
        let (rest, fault) = match framing {
            Ok(Framing::Chunked) if minor == 0 => return Err("HTTP/1.0 knows no chunks"),
            Ok(Framing::Chunked) => (Rest::CHUNKED, None),
            Ok(Framing::Sized(length)) => (Rest::Sized(length), None),
            Err(why) => (Rest::NOTHING, Some(why)),
        };
        let keep_alive = if minor == 0 { says(&headers, "keep-alive") } else { !says(&headers, "close") };
        let expects =
            minor == 1 && !rest.is_end() && headers.get(header::EXPECT).is_some_and(|e| e.eq_ignore_ascii_case(b"100-continue"));
        // What follows is meant for somebody else.
        let keep_alive = keep_alive && method != Method::CONNECT;
        let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
        Ok(Self { request: Request { method, uri, headers, body: () }, version, rest, keep_alive, expects, fault })
    }
}

/// `httparse`, with room for as many headers as there may be.
fn parse<'h, 'b>(
    request: &mut httparse::Request<'h, 'b>,
    bytes: &'b [u8],
    found: &'h mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<httparse::Status<usize>, &'static str> {
    request.parse_with_uninit_headers(bytes, found).map_err(|error| match error {
        httparse::Error::TooManyHeaders => TOO_LARGE,
        _ => UNREADABLE,
    })
}

/// A head that is none.
const UNREADABLE: &str = "its request line or a header cannot be read";
/// A head that is too much of one.
pub(super) const TOO_LARGE: &str = "its head is larger than 64 KiB or has more than 100 headers";

/// Whether `connection` says so.
fn says(headers: &Headers, word: &str) -> bool {
    let mut words = headers.get_all("connection").flat_map(|value| value.split(|b| *b == b','));
    words.any(|said| said.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// The client's bytes, and what is still to come of its request.
pub(super) struct Inbound<I> {
    pub(super) line: Line<I>,
    pub(super) rest: Rest,
    /// What the client has to be told before it sends its body. Seldom, so it takes no room here.
    pub(super) unsaid: Option<Box<Unsent>>,
}

/// One side is the connection, the other its request's body. Both are in one task: nobody ever waits for this lock.
pub(super) struct Shared<I>(Arc<Mutex<Inbound<I>>>);

impl<I> Clone for Shared<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I> Shared<I> {
    pub(super) fn new(io: I) -> Self {
        Self(Arc::new(Mutex::new(Inbound { line: Line::new(io), rest: Rest::NOTHING, unsaid: None })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inbound<I>> {
        self.0.lock().expect("no panic while it is held")
    }

    /// The body of the request whose head was read.
    pub(super) fn body(&self, rest: Rest, expects: bool) -> Incoming<I> {
        let mut inbound = self.lock();
        match rest {
            Rest::Sized(length) if length <= inbound.line.came().len() as u64 => {
                inbound.rest = Rest::NOTHING;
                Incoming::Here(if length == 0 { Bytes::new() } else { inbound.line.take(length as usize) })
            }
            rest => {
                inbound.rest = rest;
                inbound.unsaid = expects.then(|| Box::new(unsent(BytesMut::from(CONTINUE))));
                Incoming::Coming(self.clone())
            }
        }
    }
}

/// Nothing beside these bytes.
pub(super) fn unsent(bytes: BytesMut) -> Unsent {
    bytes::Buf::chain(bytes, Bytes::new())
}

/// A request's body.
pub(super) enum Incoming<I> {
    /// It came with the head.
    Here(Bytes),
    /// It comes.
    Coming(Shared<I>),
}

impl<I: AsyncRead + AsyncWrite + Unpin> Body for Incoming<I> {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Poll::Ready(match self.get_mut() {
            Self::Here(bytes) => (!bytes.is_empty()).then(|| Ok(Frame::data(std::mem::take(bytes)))),
            Self::Coming(shared) => {
                let mut inbound = shared.lock();
                let Inbound { line, rest, unsaid } = &mut *inbound;
                if let Some(words) = unsaid {
                    if ready!(line.poll_send(words, cx)).is_err() {
                        return Poll::Ready(Some(Err(Broken::Closed)));
                    }
                    *unsaid = None;
                }
                ready!(rest.poll_data(line, cx)).map(|data| data.map(Frame::data))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Here(bytes) => bytes.is_empty(),
            Self::Coming(shared) => shared.lock().rest.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = match self {
            Self::Here(bytes) => Some(bytes.len() as u64),
            Self::Coming(shared) => shared.lock().rest.exact_size(),
        };
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
