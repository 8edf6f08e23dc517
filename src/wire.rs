//! How do bytes become messages, and messages bytes? HTTP/1.1 between us and one peer: `httparse` reads heads and chunk sizes,
//! here is what stands around it.
//!
//! Why not hyper, which serves operators and the simulator: it keeps to itself what this proxy is for. It answers what it cannot
//! read with an empty 400, it joins requests that a client sends ahead, and each message passes a dispatcher, a channel and a
//! buffer of 8 KB. docs/performance.md has what this bought.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut, buf::Chain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

mod body;

pub(crate) use body::{Broken, Rest};

/// Bytes of a head at most.
pub(crate) const LARGEST_HEAD: usize = 64 << 10;
/// Headers of a head at most.
pub(crate) const MOST_HEADERS: usize = 100;

/// Bytes read at once, and read into memory that all connections of a thread share: none keeps a buffer while nothing comes, and
/// however large its largest message was.
const READ_AT_ONCE: usize = 64 << 10;
/// What is as large is cut out of that memory; less is copied from there to memory of about its size, and holds no more than that.
const CUT_OUT: usize = 8 << 10;

thread_local!(static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new()));

/// Memory for so many bytes, for a short time. The allocator takes a longer way to sizes that are no power of two, 0.1 us each.
pub(crate) fn block(bytes: usize) -> BytesMut {
    BytesMut::with_capacity(bytes.next_power_of_two())
}

/// The bytes between us and one peer.
#[derive(Debug)]
pub(crate) struct Line<I> {
    io: I,
    /// What has come and was not taken yet.
    came: BytesMut,
}

impl<I> Line<I> {
    pub(crate) fn new(io: I) -> Self {
        Self { io, came: BytesMut::new() }
    }

    /// What has come and was not taken yet.
    pub(crate) fn came(&self) -> &[u8] {
        &self.came
    }

    /// Takes the first `count` of them. Memory that nothing is left in goes with what was in it.
    pub(crate) fn take(&mut self, count: usize) -> Bytes {
        if count == self.came.len() { std::mem::take(&mut self.came).freeze() } else { self.came.split_to(count).freeze() }
    }

    /// Forgets the first `count` of them.
    pub(crate) fn skip(&mut self, count: usize) {
        if count == self.came.len() {
            self.came = BytesMut::new();
        } else {
            self.came.advance(count);
        }
    }
}

impl<I: AsyncRead + Unpin> Line<I> {
    /// Reads on: how many bytes more have come, 0 at the end.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.capacity() < READ_AT_ONCE / 2 {
                *scratch = BytesMut::with_capacity(READ_AT_ONCE);
            }
            let count = ready!(poll_read_buf(Pin::new(&mut self.io), cx, scratch))?;
            if self.came.is_empty() && count >= CUT_OUT {
                self.came = scratch.split();
                return Poll::Ready(Ok(count));
            }
            if self.came.is_empty() {
                self.came = block(count);
            }
            self.came.extend_from_slice(scratch);
            scratch.clear();
            Poll::Ready(Ok(count))
        })
    }
}

/// What is to be sent: what was put together, and then what is passed on without a copy.
pub(crate) type Unsent = Chain<BytesMut, Bytes>;

impl<I: AsyncWrite + Unpin> Line<I> {
    /// Sends; ready when all of it is with the system.
    pub(crate) fn poll_send(&mut self, unsent: &mut Unsent, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = Pin::new(&mut self.io);
        while unsent.has_remaining() {
            let (first, last) = (unsent.first_ref().as_ref(), unsent.last_ref().as_ref());
            // A list of one costs the system more than the one.
            let sent = if first.is_empty() || last.is_empty() || !io.is_write_vectored() {
                io.as_mut().poll_write(cx, unsent.chunk())
            } else {
                io.as_mut().poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(last)])
            };
            match ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => unsent.advance(sent),
            }
        }
        io.poll_flush(cx)
    }
}
