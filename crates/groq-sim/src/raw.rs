//! Raw bytes that a fault sends on a connection instead of a response, bypassing hyper.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::sleep,
};

/// Bytes that are sent before the connection is closed.
#[derive(Debug)]
pub(crate) struct RawBytes {
    pub(crate) bytes: Bytes,
    /// The number of bytes at the beginning that are sent one by one, and the pause after each.
    pub(crate) slow: Option<(usize, Duration)>,
}

impl RawBytes {
    pub(crate) async fn write<I: AsyncWrite + Unpin>(&self, io: &mut I) -> io::Result<()> {
        let mut rest = self.bytes.as_ref();
        if let Some((count, pause)) = self.slow {
            let (slow, after) = rest.split_at(count);
            for byte in slow {
                io.write_all(std::slice::from_ref(byte)).await?;
                io.flush().await?;
                sleep(pause).await;
            }
            rest = after;
        }
        io.write_all(rest).await?;
        io.flush().await
    }
}

/// A byte stream with several handles, because hyper's connection does not return the stream that it was given.
#[derive(Debug)]
pub(crate) struct SharedIo<I>(Arc<Mutex<I>>);

impl<I> SharedIo<I> {
    pub(crate) fn new(io: I) -> Self {
        Self(Arc::new(Mutex::new(io)))
    }

    fn lock(&self) -> MutexGuard<'_, I> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I> Clone for SharedIo<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for SharedIo<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for SharedIo<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }
}
