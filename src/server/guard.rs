//! The I/O below hyper on an HTTP/1.1 connection: it hands hyper one request at a time.
//!
//! hyper gets the bytes of the next request only after the previous response has been flushed. Whatever it writes before the
//! service was called is therefore its own empty 4xx, which is discarded: the connection sends the error object instead. And
//! since the start of each request is known here, its framing can be checked before hyper normalizes it (see [`head`]).
//!
//! Bytes pass without a copy, except those that a client pipelines.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

mod chunks;
mod head;

use chunks::Chunks;
pub(super) use head::MAX_HEAD;
use head::{Framing, Scanner};

/// Pipelined bytes that are buffered; more stay in the socket.
const MAX_AHEAD: usize = 64 << 10;
/// Bytes that are read at once while a request runs: usually there are none.
const LOOK_AHEAD: usize = 512;

/// The progress of the current exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// No byte of the next request has been read.
    Idle,
    /// A part of a head has been read.
    Head,
    /// The service has the request.
    Handling,
    /// hyper has the last byte of the response.
    Answered,
}

/// The state of the current exchange, shared by the guard, the service and the connection. All three run in one task: the
/// atomics only make it `Sync`.
#[derive(Debug)]
pub(super) struct Exchange {
    phase: AtomicU8,
    requests: AtomicU64,
    ambiguity: OnceLock<&'static str>,
    /// Whether a part of the request has not been read from the client.
    unread: AtomicBool,
    last: AtomicBool,
    close_sent: AtomicBool,
}

impl Exchange {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Idle as u8),
            requests: AtomicU64::new(0),
            ambiguity: OnceLock::new(),
            unread: AtomicBool::new(false),
            last: AtomicBool::new(false),
            close_sent: AtomicBool::new(false),
        })
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Handling,
            _ => Phase::Answered,
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// Requests that the service has been called with.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// The service is called.
    pub(super) fn begin(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.enter(Phase::Handling);
    }

    /// hyper has taken the whole response.
    pub(super) fn end(&self) {
        self.enter(Phase::Answered);
    }

    /// Why other servers could read the current request differently.
    pub(super) fn ambiguity(&self) -> Option<&'static str> {
        self.ambiguity.get().copied()
    }

    /// Makes the current request, or the next one if there is none, the last on this connection.
    pub(super) fn make_last(&self) {
        self.last.store(true, Relaxed);
    }

    /// Whether the response that begins now has to carry `connection: close`. If so, no further request is read.
    pub(super) fn close(&self) -> bool {
        let close = self.last.load(Relaxed) || self.unread.load(Relaxed);
        self.close_sent.store(close, Relaxed);
        close
    }
}

/// What comes next from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Head,
    /// This many bytes of a body.
    Body(u64),
    /// A chunked body.
    Chunks,
    /// A request that has to wait until the current one is answered.
    Waiting,
}

/// A client's connection that passes hyper one request at a time.
#[derive(Debug)]
pub(super) struct Guard<I> {
    io: I,
    exchange: Arc<Exchange>,
    next: Next,
    scanner: Scanner,
    chunks: Chunks,
    /// Bytes of later requests that have been read already.
    ahead: BytesMut,
    unflushed: bool,
}

impl<I> Guard<I> {
    /// Guards `io`; `begun` contains the bytes that have been read already.
    pub(super) fn new(io: I, begun: BytesMut, exchange: Arc<Exchange>) -> Self {
        Self {
            io,
            exchange,
            next: Next::Head,
            scanner: Scanner::default(),
            chunks: Chunks::default(),
            ahead: begun,
            unflushed: false,
        }
    }

    /// The client, and whether it may have sent more than was read: closing at once would reset the connection, and the response
    /// could be lost.
    pub(super) fn into_inner(self) -> (I, bool) {
        let unread = !self.ahead.is_empty()
            || self.exchange.phase() == Phase::Head
            || self.exchange.ambiguity().is_some()
            || matches!(self.next, Next::Body(_) | Next::Chunks);
        (self.io, unread)
    }

    /// The number of these bytes that belong to the current request. An error ends its body, which hyper has begun to read.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match self.next {
            Next::Waiting => Ok(0),
            Next::Chunks => match self.chunks.feed(bytes) {
                Ok(None) => Ok(bytes.len()),
                Ok(Some(end)) => {
                    self.expect_body(0);
                    Ok(end)
                }
                Err(why) => {
                    // hyper may not have seen the head yet, which came in the same read.
                    self.exchange.ambiguity.get_or_init(|| why);
                    self.exchange.make_last();
                    Err(io::Error::new(io::ErrorKind::InvalidData, why))
                }
            },
            Next::Body(left) => {
                let taken = left.min(bytes.len() as u64);
                self.expect_body(left - taken);
                Ok(taken as usize)
            }
            Next::Head => {
                self.exchange.enter(Phase::Head);
                let Some(end) = self.scanner.feed(bytes) else { return Ok(bytes.len()) };
                match self.scanner.finish() {
                    Ok(Framing::Sized(length)) => self.expect_body(length),
                    Ok(Framing::Chunked) => {
                        self.exchange.unread.store(true, Relaxed);
                        self.chunks = Chunks::default();
                        self.next = Next::Chunks;
                    }
                    Err(why) => {
                        // The connection closes after the first ambiguous request, so there is never a second one.
                        self.exchange.ambiguity.get_or_init(|| why);
                        self.exchange.make_last();
                        self.next = Next::Waiting;
                    }
                }
                Ok(end + self.take(&bytes[end..])?)
            }
        }
    }

    fn expect_body(&mut self, left: u64) {
        self.exchange.unread.store(left > 0, Relaxed);
        self.next = if left > 0 { Next::Body(left) } else { Next::Waiting };
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guard<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() && this.next != Next::Waiting {
            let mut ahead = std::mem::take(&mut this.ahead);
            let taken = this.take(&ahead[..ahead.len().min(buf.remaining())])?;
            buf.put_slice(&ahead[..taken]);
            ahead.advance(taken);
            // An empty buffer is freed: most connections never need it.
            if !ahead.is_empty() {
                this.ahead = ahead;
            }
            return Poll::Ready(Ok(()));
        }
        // Reading continues after the response too, so that a disconnect is noticed.
        while this.ahead.len() < MAX_AHEAD {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let fresh = &buf.filled()[before..];
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let taken = this.take(fresh)?;
            this.ahead.extend_from_slice(&fresh[taken..]);
            buf.set_filled(before + taken);
            if taken > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        // The flush of the response wakes the task.
        Poll::Pending
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Guard<I> {
    /// Reads ahead while a request runs. An error means that the client has disconnected.
    ///
    /// hyper would do this itself if it were not told that clients may close their half (`half_close`), but with a read buffer of
    /// its own size for it, a second one beside that of the request.
    fn look_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); LOOK_AHEAD];
        while self.ahead.len() < MAX_AHEAD {
            let mut read = ReadBuf::uninit(&mut buffer);
            match Pin::new(&mut self.io).poll_read(cx, &mut read)? {
                Poll::Ready(()) if read.filled().is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(()) => self.ahead.extend_from_slice(read.filled()),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_write_by(
        &mut self,
        length: usize,
        write: impl FnOnce(Pin<&mut I>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if matches!(self.exchange.phase(), Phase::Idle | Phase::Head) {
            // hyper's own response to a head that it cannot parse.
            return Poll::Ready(Ok(length));
        }
        self.unflushed = true;
        write(Pin::new(&mut self.io))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_by(buf.len(), |io| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        self.get_mut().poll_write_by(length, |io| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unflushed {
            ready!(Pin::new(&mut this.io).poll_flush(cx))?;
            this.unflushed = false;
        }
        // hyper flushes whenever it is polled.
        if this.exchange.phase() == Phase::Handling && this.next == Next::Waiting {
            this.look_ahead(cx)?;
        }
        // hyper flushes after it has dropped the body of a response, so this is where its exchange ends.
        let over = this.exchange.phase() == Phase::Answered && this.next == Next::Waiting;
        if over && !this.exchange.close_sent.load(Relaxed) {
            this.next = Next::Head;
            this.exchange.enter(Phase::Idle);
            if !this.ahead.is_empty() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The connection closes the socket itself, after the error object if there is one.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
