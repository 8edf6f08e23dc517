//! An answer as it goes out: head and body in one write where they are there together, what is large without a copy.

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{Method, Response, StatusCode, Version};
use http_body::Body;
use hyper::ext::ReasonPhrase;
use tokio::io::AsyncWrite;

use super::request::{Shared, unsent};
use crate::{
    message::Headers,
    wire::{Unsent, block},
};

/// A piece of so many bytes is worth a write of its own, beside a copy.
const LARGE: usize = 32 << 10;
/// What has come is put together up to so many bytes.
const GATHERED: usize = 64 << 10;
/// Room for a head, beside its headers.
const ROOM: usize = 256;

/// How the client learns where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// It was told a length; so many bytes are left.
    Sized(u64),
    Chunked,
    UntilClosed,
}

/// Whom it answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct To {
    pub(super) is_head: bool,
    pub(super) version: Version,
    /// Whether this is the connection's last answer.
    pub(super) closes: bool,
}

impl To {
    /// What is told of a request of which nothing is known.
    pub(super) const ANYBODY: Self = Self { is_head: false, version: Version::HTTP_11, closes: true };

    pub(super) fn new(method: &Method, version: Version) -> Self {
        Self { is_head: method == Method::HEAD, version, closes: false }
    }
}

/// An answer under way.
pub(super) struct Answer<B> {
    unsent: Unsent,
    /// `None` once all of it is in `unsent`: then it is over for whoever counts it.
    body: Option<B>,
    framing: Framing,
    sent: u64,
    /// Whether the connection's end is the only one that the client can see.
    pub(super) closes: bool,
}

/// The body broke: its connection has to, so that the client sees it.
#[derive(Debug)]
pub(super) struct Cut;

impl<B> Answer<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Puts the head together.
    pub(super) fn new(response: Response<B>, to: To) -> Self {
        let (http::response::Parts { status, headers, extensions, .. }, body) = response.into_parts();
        let mut headers = Headers::from(headers);
        let reason = extensions.get::<ReasonPhrase>();
        let bodiless = to.is_head || status.is_informational() || matches!(status.as_u16(), 204 | 304);
        let size = body.size_hint().exact();
        let framing = match size {
            _ if bodiless => Framing::Sized(0),
            Some(size) => Framing::Sized(size),
            None if to.version == Version::HTTP_10 => Framing::UntilClosed,
            None => Framing::Chunked,
        };
        let closes = to.closes || framing == Framing::UntilClosed;
        let small = size.filter(|size| !bodiless && *size < LARGE as u64).unwrap_or(0) as usize;
        let mut out = block(ROOM + headers.size() + small);
        let version = if to.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
        put_status(&mut out, version, status, reason.map(ReasonPhrase::as_bytes));
        let (mut is_dated, mut tells_length) = (false, false);
        headers.retain(|name, _| {
            let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
            match name.len() {
                4 if is("date") => is_dated = true,
                10 if is("connection") => return false,
                17 if is("transfer-encoding") => return false,
                14 if is("content-length") => {
                    tells_length = true;
                    // Of an answer without a body its length, if one is told, is the upstream's to say.
                    return bodiless;
                }
                _ => {}
            }
            true
        });
        headers.put(&mut out);
        match framing {
            _ if bodiless => {
                if let Some(size) = size.filter(|size| to.is_head && *size > 0 && !tells_length) {
                    put_length(&mut out, size);
                }
            }
            Framing::Sized(size) => put_length(&mut out, size),
            Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
            Framing::UntilClosed => {}
        }
        if closes {
            out.put_slice(b"connection: close\r\n");
        } else if to.version == Version::HTTP_10 {
            out.put_slice(b"connection: keep-alive\r\n");
        }
        if !is_dated {
            put_date(&mut out);
        }
        out.put_slice(b"\r\n");
        Self { unsent: unsent(out), body: (!bodiless).then_some(body), framing, sent: 0, closes }
    }

    /// Sends what has come; ready when all of it is with the system.
    pub(super) fn poll<I>(&mut self, shared: &Shared<I>, cx: &mut Context<'_>) -> Poll<Result<(), Cut>>
    where
        I: AsyncWrite + Unpin,
    {
        loop {
            let waits = self.gather(cx)?;
            let before = self.unsent.remaining();
            let sent = shared.lock().line.poll_send(&mut self.unsent, cx);
            self.sent += (before - self.unsent.remaining()) as u64;
            match sent {
                Poll::Ready(Ok(())) if self.body.is_none() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if waits => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Cut)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Bytes that the system has taken, where it has not taken all that is there.
    pub(super) fn blocked_at(&self) -> Option<u64> {
        self.unsent.has_remaining().then_some(self.sent)
    }

    /// Takes what is there of the body; true when more has to come first.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<bool, Cut> {
        while let Some(body) = &mut self.body {
            if self.unsent.remaining() >= GATHERED || self.unsent.last_ref().has_remaining() {
                return Ok(false);
            }
            let frame = match Pin::new(body).poll_frame(cx) {
                Poll::Pending if self.framing != Framing::Sized(0) => return Ok(true),
                Poll::Ready(Some(Err(_))) => return Err(Cut),
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Pending | Poll::Ready(None) => {
                    self.end()?;
                    continue;
                }
            };
            // Trailers are not passed on: no client of Groq reads them.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                self.put(data)?;
            }
        }
        Ok(false)
    }

    fn put(&mut self, data: Bytes) -> Result<(), Cut> {
        if !self.unsent.has_remaining() {
            self.unsent.first_mut().clear();
        }
        let out = self.unsent.first_mut();
        match &mut self.framing {
            Framing::Chunked => {
                put_size(out, data.len());
                out.put_slice(&data);
                out.put_slice(b"\r\n");
                return Ok(());
            }
            Framing::Sized(left) => *left = left.checked_sub(data.len() as u64).ok_or(Cut)?,
            Framing::UntilClosed => {}
        }
        if data.len() < LARGE {
            out.put_slice(&data)
        } else {
            *self.unsent.last_mut() = data
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Cut> {
        self.body = None;
        match self.framing {
            Framing::Sized(0) | Framing::UntilClosed => Ok(()),
            Framing::Sized(_) => Err(Cut),
            Framing::Chunked => {
                self.unsent.first_mut().put_slice(b"0\r\n\r\n");
                Ok(())
            }
        }
    }
}

fn put_status(out: &mut BytesMut, version: &str, status: StatusCode, reason: Option<&[u8]>) {
    let reason = reason.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().as_bytes());
    for part in [version.as_bytes(), b" ", status.as_str().as_bytes(), b" ", reason, b"\r\n"] {
        out.put_slice(part);
    }
}

fn put_length(out: &mut BytesMut, length: u64) {
    out.put_slice(b"content-length: ");
    out.put_slice(itoa::Buffer::new().format(length).as_bytes());
    out.put_slice(b"\r\n");
}

/// The line before a chunk.
fn put_size(out: &mut BytesMut, size: usize) {
    let digits = 1.max((usize::BITS - size.leading_zeros()).div_ceil(4));
    for digit in (0..digits).rev() {
        out.put_u8(b"0123456789ABCDEF"[size >> (4 * digit) & 15]);
    }
    out.put_slice(b"\r\n");
}

/// The time, as text made once a second.
fn put_date(out: &mut BytesMut) {
    thread_local!(static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) });
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(of, text)| {
        if *of != second || text.is_empty() {
            (*of, *text) = (second, format!("date: {}\r\n", httpdate::fmt_http_date(now)));
        }
        out.put_slice(text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::poll_fn};

    use http::{HeaderValue, header};
    use http_body::{Frame, SizeHint};
    use http_body_util::{Channel, Full};
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    #[test]
    fn a_reason_of_the_upstreams_own_is_said() {
        for (status, reason, line) in [
            (200, None, "HTTP/1.1 200 OK\r\n"),
            (498, None, "HTTP/1.1 498 \r\n"),
            (498, Some("Flex Tier"), "HTTP/1.1 498 Flex Tier\r\n"),
            (200, Some("Fine"), "HTTP/1.1 200 Fine\r\n"),
        ] {
            let mut out = BytesMut::new();
            let status = StatusCode::from_u16(status).expect("a status");
            put_status(&mut out, "HTTP/1.1", status, reason.map(str::as_bytes));
            assert_eq!(out, line);
        }
    }

    fn answer<B: Body<Data = Bytes> + Unpin>(body: B, version: Version) -> Answer<B> {
        Answer::new(Response::new(body), To { is_head: false, version, closes: false })
    }

    /// What was sent of it, and the most that it ever put together in memory.
    async fn sent<B: Body<Data = Bytes> + Unpin>(mut answer: Answer<B>) -> (Vec<u8>, usize) {
        let (ours, mut theirs) = duplex(1 << 16);
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.map(|_| all)
        });
        let (shared, mut most) = (Shared::new(ours), 0);
        let sent = poll_fn(|cx| {
            let sent = answer.poll(&shared, cx);
            most = most.max(answer.unsent.first_ref().capacity());
            sent
        });
        sent.await.expect("it is whole");
        drop(shared);
        (read.await.expect("it ran").expect("it is open"), most)
    }

    /// Else a client could find two ends in it.
    #[tokio::test]
    async fn how_a_body_ends_is_told_once_and_by_the_connection() {
        let told = [(header::TRANSFER_ENCODING, "chunked"), (header::CONTENT_LENGTH, "9"), (header::CONNECTION, "upgrade")];
        let headers = told.map(|(name, value)| (name, HeaderValue::from_static(value)));
        let mut response = Response::new(Full::new(Bytes::from_static(b"ab")));
        response.headers_mut().extend(headers);
        let to = To { is_head: false, version: Version::HTTP_11, closes: false };
        let (all, _) = sent(Answer::new(response, to)).await;
        let all = String::from_utf8(all).expect("text");
        assert!(all.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ndate: ") && all.ends_with("\r\n\r\nab"), "{all}");
    }

    /// A connection that has carried something large once must not hold as much for as long as it lives.
    #[tokio::test]
    async fn what_is_large_goes_out_without_a_copy() {
        let large = Bytes::from(vec![b'x'; 1 << 20]);
        for version in [Version::HTTP_10, Version::HTTP_11] {
            let (all, most) = sent(answer(Full::new(large.clone()), version)).await;
            assert!(all.ends_with(&large) && most < 8 << 10, "{most}");
        }
        let (mut send, body) = Channel::<Bytes, Infallible>::new(64);
        for _ in 0..64 {
            send.try_send(Frame::data(large.slice(..16 << 10))).unwrap_or_else(|_| panic!("there is room"));
        }
        drop(send);
        let (all, most) = sent(answer(body, Version::HTTP_11)).await;
        assert!(all.ends_with(b"0\r\n\r\n") && all.len() > 1 << 20 && most <= 256 << 10, "{most}");
    }

    /// Else its client could take it for the whole answer.
    #[tokio::test]
    async fn a_body_of_another_length_than_was_told_is_cut() {
        struct Lying(Option<Bytes>);
        impl Body for Lying {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
            }
            fn size_hint(&self) -> SizeHint {
                SizeHint::with_exact(2)
            }
        }
        for body in ["x", "xxx"] {
            let mut answer = answer(Lying(Some(Bytes::from_static(body.as_bytes()))), Version::HTTP_11);
            let shared = Shared::new(duplex(1 << 16).0);
            let sent = poll_fn(|cx| Poll::Ready(answer.poll(&shared, cx))).await;
            assert!(matches!(sent, Poll::Ready(Err(Cut))));
        }
    }

    #[test]
    fn sizes_of_chunks_are_hexadecimal() {
        for size in [0, 1, 9, 10, 15, 16, 255, 256, 0xabcde, usize::MAX] {
            let mut out = BytesMut::new();
            put_size(&mut out, size);
            assert_eq!(out, format!("{size:X}\r\n"));
        }
    }
}
