//! Write errors that must not hide a response.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;

use super::connector::Io;

/// A connection that discards further writes after a write has failed.
///
/// A server that does not want the rest of a large request responds and closes the connection. hyper gives up at the failed write
/// even if a response has arrived. With this it continues reading, and finds the response or the end of the connection.
pub(super) struct IgnoreWriteErrors {
    io: TokioIo<Io>,
    failed: bool,
}

impl IgnoreWriteErrors {
    pub(super) fn new(io: Io) -> Self {
        Self { io: TokioIo::new(io), failed: false }
    }

    fn written(&mut self, result: io::Result<usize>, length: usize) -> usize {
        result.unwrap_or_else(|error| {
            tracing::debug!(%error, "a request could not be sent completely");
            self.failed = true;
            length
        })
    }
}

impl Read for IgnoreWriteErrors {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for IgnoreWriteErrors {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.failed {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        Poll::Ready(Ok(self.written(result, buf.len())))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if self.failed {
            return Poll::Ready(Ok(length));
        }
        let result = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        Poll::Ready(Ok(self.written(result, length)))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.failed {
            let result = ready!(Pin::new(&mut self.io).poll_flush(cx));
            self.written(result.map(|()| 0), 0);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
