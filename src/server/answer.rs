//! An answer as it goes out: head and body in one write where they are there together, what is large without a copy.

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{Method, Response, Version, header};
use http_body::Body;
use tokio::io::AsyncWrite;

use super::request::{Shared, unsent};
use crate::wire::{Unsent, give_map, put_headers, put_status};

/// A piece of so many bytes is worth a write of its own, beside a copy.
const LARGE: usize = 32 << 10;
/// What has come is put together up to so many bytes.
const GATHERED: usize = 64 << 10;
/// Room for a head, beside its headers.
const ROOM: usize = 512;

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
        let (head, body) = response.into_parts();
        let bodiless = to.is_head || head.status.is_informational() || matches!(head.status.as_u16(), 204 | 304);
        let size = body.size_hint().exact();
        let framing = match size {
            _ if bodiless => Framing::Sized(0),
            Some(size) => Framing::Sized(size),
            None if to.version == Version::HTTP_10 => Framing::UntilClosed,
            None => Framing::Chunked,
        };
        let closes = to.closes || framing == Framing::UntilClosed;
        let small = size.filter(|size| !bodiless && *size < LARGE as u64).unwrap_or(0) as usize;
        let values: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let mut out = BytesMut::with_capacity(ROOM + values + small);
        let version = if to.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
        put_status(&mut out, version, head.status, &head.extensions);
        // Of an answer without a body its length, if one is told, is the upstream's to say.
        put_headers(&mut out, &head.headers, |name| !bodiless && *name == header::CONTENT_LENGTH || *name == header::CONNECTION);
        match framing {
            _ if bodiless => {
                if let Some(size) =
                    size.filter(|size| to.is_head && *size > 0 && !head.headers.contains_key(header::CONTENT_LENGTH))
                {
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
        if !head.headers.contains_key(header::DATE) {
            put_date(&mut out);
        }
        out.put_slice(b"\r\n");
        give_map(head.headers);
        Self { unsent: unsent(out), body: (!bodiless).then_some(body), framing, closes }
    }

    /// Sends what has come; ready when all of it is with the system.
    pub(super) fn poll<I>(&mut self, shared: &Shared<I>, cx: &mut Context<'_>) -> Poll<Result<(), Cut>>
    where
        I: AsyncWrite + Unpin,
    {
        loop {
            let waits = self.gather(cx)?;
            match shared.lock().line.poll_send(&mut self.unsent, cx) {
                Poll::Ready(Ok(())) if self.body.is_none() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if waits => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Cut)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Bytes that the client has not taken yet.
    pub(super) fn unsent(&self) -> usize {
        self.unsent.remaining()
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
