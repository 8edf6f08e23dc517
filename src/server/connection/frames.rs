//! Checks the frames of an HTTP/2 client, below hyper.
//!
//! hyper bounds what frames can make it buffer. It does not bound the time until a frame or a header block is complete, and it
//! answers any number of pings, settings and other control frames.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::server::deadline::Deadline;

/// What an HTTP/2 client sends first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Control frames that a client may send beyond its allowance.
const MAX_CONTROL_FRAMES: u64 = 1000;
/// Control frames allowed for each request and each piece of a response: resets, window updates, pings.
const ALLOWED: u64 = 10;
/// Bytes of a frame's header.
const HEADER: usize = 9;

/// Requests begun and pieces of responses sent on one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// An HTTP/2 client's connection. Reading fails when a frame arrives too slowly, or when there are too many control frames.
#[derive(Debug)]
pub(super) struct Frames<I> {
    io: I,
    /// Bytes that were read to detect the protocol.
    begun: BytesMut,
    scanner: Scanner,
    progress: Progress,
    /// The progress that has been counted towards the allowance.
    allowed_for: u64,
    control_frames: u64,
    frame_timeout: Duration,
    deadline: Deadline<u64>,
    linger: Duration,
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<I> Frames<I> {
    /// Wraps `io`; `begun` contains the bytes that have been read already. Frames must be complete within `frame_timeout`; after
    /// a shutdown, what the client still sends is read for `linger`.
    pub(super) fn new(io: I, begun: BytesMut, progress: Progress, frame_timeout: Duration, linger: Duration) -> Self {
        let deadline = Deadline::new(0, frame_timeout);
        Self {
            io,
            begun,
            scanner: Scanner::default(),
            progress,
            allowed_for: 0,
            control_frames: 0,
            frame_timeout,
            deadline,
            linger,
            lingering: None,
        }
    }

    /// Parses bytes that have been read.
    fn scan(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.control_frames += self.scanner.feed(bytes);
        if self.control_frames <= MAX_CONTROL_FRAMES {
            return Ok(());
        }
        let progress = self.progress.0.load(Relaxed);
        let allowed = (progress - self.allowed_for) * ALLOWED;
        self.allowed_for = progress;
        self.control_frames = self.control_frames.saturating_sub(allowed);
        if self.control_frames <= MAX_CONTROL_FRAMES { Ok(()) } else { Err(io::Error::other("too many HTTP/2 control frames")) }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Frames<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.begun.is_empty() {
            let mut begun = std::mem::take(&mut this.begun);
            let taken = begun.len().min(buf.remaining());
            this.scan(&begun[..taken])?;
            buf.put_slice(&begun[..taken]);
            begun.advance(taken);
            if !begun.is_empty() {
                this.begun = begun;
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => Poll::Ready(this.scan(&buf.filled()[before..])),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let limit = this.scanner.is_partial().then_some(this.frame_timeout);
                let late = this.deadline.poll(this.scanner.frames, limit, cx);
                late.map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "an HTTP/2 frame arrived too slowly")))
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Frames<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    /// Continues reading for a while, so that the last response is not lost in a reset.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(sleep(this.linger)));
        if lingering.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut sink = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut sink);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Tracks the boundaries of frames.
#[derive(Debug)]
struct Scanner {
    preface_left: usize,
    header: [u8; HEADER],
    header_read: usize,
    payload_left: usize,
    /// Whether a header block continues in the next frame.
    in_header_block: bool,
    /// Frames and header blocks that are complete.
    frames: u64,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            preface_left: PREFACE.len(),
            header: [0; HEADER],
            header_read: 0,
            payload_left: 0,
            in_header_block: false,
            frames: 0,
        }
    }
}

impl Scanner {
    /// Reads more bytes. Returns how many control frames have begun in them.
    fn feed(&mut self, mut bytes: &[u8]) -> u64 {
        let mut control_frames = 0;
        skip(&mut bytes, &mut self.preface_left);
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                skip(&mut bytes, &mut self.payload_left);
            } else {
                let taken = bytes.len().min(HEADER - self.header_read);
                self.header[self.header_read..][..taken].copy_from_slice(&bytes[..taken]);
                self.header_read += taken;
                bytes = &bytes[taken..];
                if self.header_read < HEADER {
                    break;
                }
                control_frames += u64::from(self.begin_frame());
            }
            if self.payload_left == 0 {
                self.header_read = 0;
                if !self.in_header_block {
                    self.frames += 1;
                }
            }
        }
        control_frames
    }

    /// Reads the header of a frame. Returns whether it is a control frame.
    fn begin_frame(&mut self) -> bool {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const CONTINUATION: u8 = 9;
        const END_HEADERS: u8 = 4;
        let [high, mid, low, kind, flags, ..] = self.header;
        self.payload_left = u32::from_be_bytes([0, high, mid, low]) as usize;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_header_block = flags & END_HEADERS == 0;
        }
        !matches!(kind, DATA | HEADERS | CONTINUATION)
    }

    /// Whether a frame or header block is incomplete.
    fn is_partial(&self) -> bool {
        self.preface_left > 0 || self.header_read > 0 || self.in_header_block
    }
}

/// Skips as many of `bytes` as are left.
fn skip(bytes: &mut &[u8], left: &mut usize) {
    let skipped = bytes.len().min(*left);
    *left -= skipped;
    *bytes = &bytes[skipped..];
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::Instant,
    };

    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(HEADER + length, 0);
        frame
    }

    proptest! {
        /// However frames are split, the same number is counted.
        #[test]
        fn frames_are_followed_in_any_pieces(
            kinds in prop::collection::vec((0..12_u8, 0..40_usize), 1..20),
            pieces in prop::collection::vec(1..30_usize, 1..80),
        ) {
            let mut bytes = PREFACE.to_vec();
            for (kind, length) in &kinds {
                bytes.extend(frame(*kind, 4, *length));
            }
            let (mut scanner, mut control, mut at) = (Scanner::default(), 0, 0);
            for piece in pieces.into_iter().chain(std::iter::repeat(7)).take_while({
                let length = bytes.len();
                let mut sent = 0;
                move |piece| { sent += piece; sent - piece < length }
            }) {
                prop_assert!(scanner.is_partial() || at >= PREFACE.len());
                let end = (at + piece).min(bytes.len());
                control += scanner.feed(&bytes[at..end]);
                at = end;
            }
            prop_assert_eq!(at, bytes.len());
            prop_assert!(!scanner.is_partial());
            prop_assert_eq!(scanner.frames, kinds.len() as u64);
            prop_assert_eq!(control, kinds.iter().filter(|(kind, _)| !matches!(kind, 0 | 1 | 9)).count() as u64);
        }
    }

    #[test]
    fn a_header_block_ends_with_its_last_continuation() {
        let mut scanner = Scanner { preface_left: 0, ..Scanner::default() };
        scanner.feed(&frame(1, 0, 10));
        assert!(scanner.is_partial());
        scanner.feed(&frame(9, 0, 0));
        assert!(scanner.is_partial());
        scanner.feed(&frame(9, 4, 3));
        assert!(!scanner.is_partial());
        assert_eq!(scanner.frames, 1);
    }

    fn frames(io: tokio::io::DuplexStream, progress: &Progress) -> Frames<tokio::io::DuplexStream> {
        Frames::new(io, BytesMut::from(PREFACE), progress.clone(), Duration::from_secs(30), Duration::from_secs(10))
    }

    #[tokio::test(start_paused = true)]
    async fn an_incomplete_frame_ends_the_connection() {
        let (mut client, server) = duplex(1 << 16);
        let mut frames = frames(server, &Progress::default());
        let mut buf = [0; 100];
        frames.read_exact(&mut buf[..PREFACE.len()]).await.expect("the preface");
        // Between frames there is no limit here.
        let whole = frame(0, 0, 20);
        let sending = async {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            client.write_all(&whole).await.expect("it is open");
            client.write_all(&whole[..12]).await.expect("it is open");
            std::future::pending::<()>().await;
        };
        let begun = Instant::now();
        let reading = async {
            loop {
                if let Err(error) = frames.read(&mut buf).await {
                    break error;
                }
            }
        };
        let error = tokio::select! { error = reading => error, () = sending => unreachable!() };
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, 1030));
    }

    #[tokio::test]
    async fn control_frames_are_allowed_in_proportion_to_requests_and_responses() {
        const PING: u8 = 6;
        let progress = Progress::default();
        let (client, server) = duplex(64);
        drop(client);
        let mut frames = frames(server, &progress);
        frames.scan(PREFACE).expect("the preface");
        for _ in 0..MAX_CONTROL_FRAMES {
            frames.scan(&frame(PING, 0, 8)).expect("so many are allowed");
        }
        // Frames of requests do not count, and each request allows more control frames.
        for _ in 0..100 {
            frames.scan(&frame(1, 4, 50)).expect("a request");
            progress.add();
            for _ in 0..ALLOWED {
                frames.scan(&frame(PING, 0, 8)).expect("allowed by the request");
            }
        }
        frames.scan(&frame(PING, 0, 8)).expect_err("one too many");
    }
}
