//! One request in, one answer out: what stands between a client's bytes and hyper?
//!
//! hyper gets one request at a time, and the next one when the answer to the last is flushed. So whatever hyper writes
//! before a handler was called is its own empty 4xx: it is swallowed, and the connection sends the error object instead.
//! Bytes of requests and answers pass without a copy; only a client that sends ahead of its turn has them kept here.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::head::{Framing, Scanner};

/// Bytes ahead of their turn that are kept; more wait in the socket.
const MOST_AHEAD: usize = 64 << 10;

/// How far one exchange has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// No byte of a request has come.
    #[default]
    Idle,
    /// A part of a head has come.
    Head,
    /// The handler has the request.
    Answering,
    /// The answer's last byte is with hyper.
    Answered,
}

/// What the clock looks at: it starts anew whenever this changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// How far the exchange has come.
    pub(super) phase: Phase,
    /// Requests so far.
    pub(super) requests: u64,
    /// Bytes written when the client last took no more; 0 while it takes them.
    pub(super) blocked_at: u64,
}

/// What the bytes, the handler and the clock know of the running exchange. Everything happens in one task:
/// the atomics only make it `Sync`.
#[derive(Debug)]
pub(super) struct Exchange {
    phase: AtomicU8,
    requests: AtomicU64,
    fault: OnceLock<&'static str>,
    last: AtomicBool,
    told: AtomicBool,
    blocked_at: AtomicU64,
}

impl Exchange {
    /// A fresh connection.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Idle as u8),
            requests: AtomicU64::new(0),
            fault: OnceLock::new(),
            last: AtomicBool::new(false),
            told: AtomicBool::new(false),
            blocked_at: AtomicU64::new(0),
        })
    }

    /// What the clock looks at.
    pub(super) fn state(&self) -> State {
        State { phase: self.phase(), requests: self.requests.load(Relaxed), blocked_at: self.blocked_at.load(Relaxed) }
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Answering,
            _ => Phase::Answered,
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// The handler gets a request.
    pub(super) fn begin(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.enter(Phase::Answering);
    }

    /// Why servers could disagree about the request at hand.
    pub(super) fn fault(&self) -> Option<&'static str> {
        self.fault.get().copied()
    }

    /// No request after this one.
    pub(super) fn make_last(&self) {
        self.last.store(true, Relaxed);
    }

    /// Whether the answer that begins has to tell the client to go; once told, no byte of a next request is read.
    pub(super) fn closes(&self) -> bool {
        let last = self.last.load(Relaxed);
        self.told.store(last, Relaxed);
        last
    }

    /// Whether no handler has been called since the last answer: what is written now is hyper's own.
    fn unanswered(&self) -> bool {
        matches!(self.phase(), Phase::Idle | Phase::Head)
    }
}

/// An answer's body: when it is gone, hyper has the answer's last byte.
#[derive(Debug)]
pub(super) struct Answer<B> {
    body: B,
    exchange: Arc<Exchange>,
}

impl<B> Answer<B> {
    /// The answer of this exchange.
    pub(super) fn new(body: B, exchange: Arc<Exchange>) -> Self {
        Self { body, exchange }
    }
}

impl<B> Drop for Answer<B> {
    fn drop(&mut self) {
        self.exchange.enter(Phase::Answered);
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Which part of a request comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Head,
    /// So many bytes of body.
    Body(u64),
    /// Chunks: hyper finds their end, and no request may follow on this connection.
    Chunks,
    /// Nothing, until this one is answered.
    Nothing,
}

/// A client's bytes, dealt to hyper one request at a time.
#[derive(Debug)]
pub(super) struct Faithful<I> {
    io: I,
    exchange: Arc<Exchange>,
    next: Next,
    scanner: Scanner,
    ahead: BytesMut,
    unflushed: bool,
    written: u64,
}

impl<I> Faithful<I> {
    /// Stands before this client.
    pub(super) fn new(io: I, exchange: Arc<Exchange>) -> Self {
        Self { io, exchange, next: Next::Head, scanner: Scanner::default(), ahead: BytesMut::new(), unflushed: false, written: 0 }
    }

    /// The client, and whether some of what it sent was never read: closing at once would then take
    /// the answer away from it again.
    pub(super) fn into_inner(self) -> (I, bool) {
        let unread = !self.ahead.is_empty()
            || match self.next {
                Next::Head => self.exchange.phase() == Phase::Head,
                Next::Body(_) | Next::Chunks => true,
                Next::Nothing => self.exchange.fault().is_some(),
            };
        (self.io, unread)
    }

    /// How many of these bytes belong to the request at hand.
    fn take(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        match self.next {
            Next::Nothing => 0,
            Next::Chunks => bytes.len(),
            Next::Body(left) => {
                let now = left.min(bytes.len() as u64);
                self.next = if now == left { Next::Nothing } else { Next::Body(left - now) };
                now as usize
            }
            Next::Head => {
                self.exchange.enter(Phase::Head);
                let Some(end) = self.scanner.feed(bytes) else { return bytes.len() };
                self.next = match self.scanner.finish() {
                    Ok(Framing::Sized(0)) => Next::Nothing,
                    Ok(Framing::Sized(length)) => Next::Body(length),
                    Ok(Framing::Chunked) => {
                        self.exchange.make_last();
                        Next::Chunks
                    }
                    Err(why) => {
                        // There is one fault at most: the connection closes after it.
                        self.exchange.fault.get_or_init(|| why);
                        self.exchange.make_last();
                        Next::Nothing
                    }
                };
                end + self.take(&bytes[end..])
            }
        }
    }

    /// Once the last answer is flushed, the next request's turn has come.
    fn turn(&mut self) {
        let answered = self.exchange.phase() == Phase::Answered && !self.unflushed;
        if answered && self.next == Next::Nothing && !self.exchange.told.load(Relaxed) {
            self.next = Next::Head;
            self.exchange.enter(Phase::Idle);
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Faithful<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.turn();
        if !this.ahead.is_empty() && this.next != Next::Nothing {
            let mut ahead = std::mem::take(&mut this.ahead);
            let now = this.take(&ahead[..ahead.len().min(buf.remaining())]);
            buf.put_slice(&ahead[..now]);
            ahead.advance(now);
            this.ahead = ahead;
            return Poll::Ready(Ok(()));
        }
        // A client that is gone is noticed while its request runs: so this reads on, even if it keeps what it reads.
        while this.ahead.len() < MOST_AHEAD {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let fresh = &buf.filled()[before..];
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let now = this.take(fresh);
            this.ahead.extend_from_slice(&fresh[now..]);
            buf.set_filled(before + now);
            if now > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        // Woken by the flush of the answer.
        Poll::Pending
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Faithful<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.exchange.unanswered() {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        this.unflushed = true;
        let written = match bufs {
            [buf] => Pin::new(&mut this.io).poll_write(cx, buf),
            bufs => Pin::new(&mut this.io).poll_write_vectored(cx, bufs),
        };
        if let Poll::Ready(Ok(bytes)) = &written {
            this.written += *bytes as u64;
        }
        this.exchange.blocked_at.store(if written.is_pending() { this.written.max(1) } else { 0 }, Relaxed);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        this.unflushed = false;
        this.turn();
        if this.next == Next::Head && !this.ahead.is_empty() {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// The connection closes, when it has said what hyper could not.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
