//! Where does a body end? After so many bytes, at the last chunk, or with the connection.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use httparse::Status;
use memchr::memchr;
use tokio::io::AsyncRead;

use super::{LARGEST_HEAD, Line};

/// Bytes of a line with a chunk's size, extensions included.
const LONGEST_SIZE: usize = 16 << 10;

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// So many bytes.
    Sized(u64),
    /// Chunks.
    Chunked(Chunk),
    /// All until the peer closes.
    UntilClosed,
}

/// What comes next of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// The line with a chunk's size.
    Size,
    /// So many bytes of a chunk.
    Data(u64),
    /// The line end behind a chunk.
    End,
    /// Trailers, of which so many bytes have come.
    Trailers(usize),
    /// Nothing.
    Over,
}

/// Why a body does not come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection ended in it.
    Closed,
    /// A chunk that is none.
    BadChunk,
}

impl Rest {
    /// A chunked body from its start.
    pub(crate) const CHUNKED: Self = Self::Chunked(Chunk::Size);
    /// No body.
    pub(crate) const NOTHING: Self = Self::Sized(0);

    /// Whether all has come.
    pub(crate) fn is_end(self) -> bool {
        matches!(self, Self::Sized(0) | Self::Chunked(Chunk::Over))
    }

    /// Bytes still to come, where the peer said so.
    pub(crate) fn exact_size(self) -> Option<u64> {
        match self {
            Self::Sized(left) => Some(left),
            Self::Chunked(Chunk::Over) => Some(0),
            Self::Chunked(_) | Self::UntilClosed => None,
        }
    }

    /// The next bytes; `None` at the end of a body that came whole. Trailers are passed over.
    pub(crate) fn poll_data<I: AsyncRead + Unpin>(
        &mut self,
        line: &mut Line<I>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            if self.is_end() {
                return Poll::Ready(None);
            }
            match self.data(line) {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(None) if self.is_end() => return Poll::Ready(None),
                Ok(None) => {}
                Err(broken) => return Poll::Ready(Some(Err(broken))),
            }
            match ready!(line.poll_more(cx)) {
                Ok(0) if *self == Self::UntilClosed => {
                    *self = Self::NOTHING;
                    return Poll::Ready(None);
                }
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(Broken::Closed))),
                Ok(_) => {}
            }
        }
    }

    /// What is there of it.
    fn data<I>(&mut self, line: &mut Line<I>) -> Result<Option<Bytes>, Broken> {
        let left = match self {
            Self::Sized(left) => left,
            Self::Chunked(chunk) => {
                chunk.read(line)?;
                match chunk {
                    Chunk::Data(left) => left,
                    Chunk::Size | Chunk::End | Chunk::Trailers(_) | Chunk::Over => return Ok(None),
                }
            }
            Self::UntilClosed => return Ok((!line.came().is_empty()).then(|| line.take(line.came().len()))),
        };
        if line.came().is_empty() {
            return Ok(None);
        }
        let now = (*left).min(line.came().len() as u64);
        *left -= now;
        let data = line.take(now as usize);
        if let Self::Chunked(chunk) = self {
            // So that a body whose end is there knows it. What is wrong with it comes after this data.
            let _ = chunk.read(line);
        }
        Ok(Some(data))
    }
}

impl Chunk {
    /// Reads on to the next chunk's first byte, as far as it has come.
    fn read<I>(&mut self, line: &mut Line<I>) -> Result<(), Broken> {
        loop {
            let came = line.came();
            match *self {
                Self::Data(0) => *self = Self::End,
                Self::Data(_) | Self::Over => return Ok(()),
                Self::Size => {
                    let Some((end, size)) = size(came)? else { return Ok(()) };
                    line.skip(end);
                    *self = if size == 0 { Self::Trailers(0) } else { Self::Data(size) };
                }
                Self::End => match came {
                    [b'\r', b'\n', ..] => {
                        line.skip(2);
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => return Ok(()),
                    _ => return Err(Broken::BadChunk),
                },
                Self::Trailers(before) => {
                    let end = memchr(b'\n', came);
                    if before + end.unwrap_or(came.len()) > LARGEST_HEAD {
                        return Err(Broken::BadChunk);
                    }
                    let Some(end) = end else { return Ok(()) };
                    let last = match &came[..=end] {
                        b"\r\n" => true,
                        [.., b'\r', b'\n'] => false,
                        _ => return Err(Broken::BadChunk),
                    };
                    line.skip(end + 1);
                    *self = if last { Self::Over } else { Self::Trailers(before + end + 1) };
                }
            }
        }
    }
}

/// The bytes of a line with a chunk's size, and that size. `httparse` alone takes an empty line for a last chunk and goes on over a
/// bare LF in an extension, where others see another body.
fn size(came: &[u8]) -> Result<Option<(usize, u64)>, Broken> {
    let Some(first) = came.first() else { return Ok(None) };
    let end = memchr(b'\n', came).map(|at| at + 1);
    let line = &came[..end.unwrap_or(came.len())];
    match httparse::parse_chunk_size(line) {
        _ if !first.is_ascii_hexdigit() || line.len() > LONGEST_SIZE => Err(Broken::BadChunk),
        Ok(Status::Complete(found)) => Ok(Some(found)),
        Ok(Status::Partial) if end.is_none() => Ok(None),
        Ok(Status::Partial) | Err(_) => Err(Broken::BadChunk),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use proptest::prelude::*;
    use tokio::io::ReadBuf;

    use super::*;

    /// A peer whose bytes come in these pieces, and who then closes.
    struct Peer(Vec<Vec<u8>>);

    impl AsyncRead for Peer {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
            if !self.0.is_empty() {
                buf.put_slice(&self.0.remove(0));
            }
            Poll::Ready(Ok(()))
        }
    }

    fn line(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Line<Peer> {
        Line::new(Peer(pieces.into_iter().map(|piece| piece.as_ref().to_vec()).filter(|piece| !piece.is_empty()).collect()))
    }

    /// The whole body, and what was read behind it.
    fn read(mut rest: Rest, mut line: Line<Peer>) -> Result<(Vec<u8>, Vec<u8>), Broken> {
        let mut all = Vec::new();
        // Nothing in it ever waits.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        loop {
            match rest.poll_data(&mut line, &mut cx) {
                Poll::Ready(Some(data)) => all.extend_from_slice(&data?),
                Poll::Ready(None) => break,
                Poll::Pending => unreachable!("the peer has no pauses"),
            }
        }
        assert!(rest.is_end());
        assert_eq!(rest.exact_size(), Some(0));
        Ok((all, line.came().to_vec()))
    }

    fn whole(body: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Broken> {
        let result = read(Rest::CHUNKED, line([body]));
        let dripped = read(Rest::CHUNKED, line(body.chunks(1)));
        assert_eq!(result.as_ref().map(|(body, _)| body), dripped.as_ref().map(|(body, _)| body));
        result
    }

    #[test]
    fn chunks_are_joined_and_what_follows_stays() {
        let body = b"5\r\nhello\r\n00A;name=value\r\n, world...\r\n0\r\n\r\nHTTP/1.1 200";
        assert_eq!(whole(body), Ok((b"hello, world...".to_vec(), b"HTTP/1.1 200".to_vec())));
        assert_eq!(whole(b"0\r\n\r\n"), Ok((Vec::new(), Vec::new())));
        assert_eq!(read(Rest::CHUNKED, line(body.chunks(1))).expect("whole").1, b"");
    }

    /// So that who has the last bytes of a body needs no other look to know it.
    #[test]
    fn a_body_knows_its_end_with_its_last_bytes() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for (mut rest, body) in [(Rest::CHUNKED, &b"2\r\nab\r\n0\r\n\r\n"[..]), (Rest::Sized(2), b"ab")] {
            let mut line = line([body]);
            assert_eq!(rest.poll_data(&mut line, &mut cx), Poll::Ready(Some(Ok(Bytes::from_static(b"ab")))));
            assert!(rest.is_end());
        }
    }

    #[test]
    fn what_is_no_chunk_is_told() {
        for bad in [
            &b"x\r\n"[..],
            b"-1\r\n",
            b"+1\r\na\r\n",
            b"\r\n",
            b";x\r\n\r\n",
            b" \r\n\r\n",
            b" 1\r\na\r\n0\r\n\r\n",
            b"1;\na\r\n0\r\n\r\n",
            b"11111111111111111\r\n",
            b"1\na\r\n0\r\n\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\n0\r\n\r\n",
            b"0\r\n\n",
            b"0\r\nname: value\n\r\n",
        ] {
            assert_eq!(whole(bad), Err(Broken::BadChunk), "{}", bad.escape_ascii());
        }
        // What came before it is not lost.
        let (mut rest, mut line) = (Rest::CHUNKED, line([b"2\r\nabx"]));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(rest.poll_data(&mut line, &mut cx), Poll::Ready(Some(Ok(Bytes::from_static(b"ab")))));
        assert_eq!(rest.poll_data(&mut line, &mut cx), Poll::Ready(Some(Err(Broken::BadChunk))));
        assert_eq!(rest.poll_data(&mut line, &mut cx), Poll::Ready(Some(Err(Broken::BadChunk))));
    }

    #[test]
    fn sizes_and_trailers_are_bounded_and_trailers_passed_over() {
        let extended = |length: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(length)).into_bytes();
        assert_eq!(whole(&extended(1000)), Ok((b"a".to_vec(), Vec::new())));
        for pieces in [1000, 1 << 20] {
            assert_eq!(read(Rest::CHUNKED, line(extended(LONGEST_SIZE).chunks(pieces))), Err(Broken::BadChunk));
        }
        let trailed = |length: usize| format!("0\r\na: b\r\nlong: {}\r\n\r\nnext", "x".repeat(length)).into_bytes();
        assert_eq!(whole(&trailed(10)), Ok((Vec::new(), b"next".to_vec())));
        let long = trailed(LARGEST_HEAD);
        assert_eq!(read(Rest::CHUNKED, line(long.chunks(1000))), Err(Broken::BadChunk));
        let many = ["0\r\n", &"a: b\r\n".repeat(LARGEST_HEAD / 6 + 1), "\r\n"].concat();
        assert_eq!(read(Rest::CHUNKED, line(many.as_bytes().chunks(1000))), Err(Broken::BadChunk));
    }

    #[test]
    fn a_body_that_is_cut_short_is_not_whole() {
        let chunked = b"5\r\nhello\r\n0\r\n\r\n";
        for length in 0..chunked.len() {
            assert_eq!(whole(&chunked[..length]), Err(Broken::Closed), "{length}");
        }
        assert_eq!(read(Rest::Sized(3), line([b"ab"])), Err(Broken::Closed));
        assert_eq!(read(Rest::Sized(3), line([&b"a"[..], b"bcd"])), Ok((b"abc".to_vec(), b"d".to_vec())));
        assert_eq!(read(Rest::NOTHING, line([b"x"])), Ok((Vec::new(), Vec::new())));
        assert_eq!(read(Rest::UntilClosed, line([&b"a"[..], b"bcd"])), Ok((b"abcd".to_vec(), Vec::new())));
    }

    #[test]
    fn only_what_the_peer_said_is_known_of_the_size() {
        for (rest, size, is_end) in [
            (Rest::Sized(3), Some(3), false),
            (Rest::NOTHING, Some(0), true),
            (Rest::CHUNKED, None, false),
            (Rest::Chunked(Chunk::Over), Some(0), true),
            (Rest::UntilClosed, None, false),
        ] {
            assert_eq!((rest.exact_size(), rest.is_end()), (size, is_end), "{rest:?}");
        }
    }

    proptest! {
        /// However the chunks are made and the bytes come.
        #[test]
        fn any_split_of_any_chunks_is_the_same_body(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\nx: y\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let line = line(cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]));
            prop_assert_eq!(read(Rest::CHUNKED, line), Ok((chunks.concat(), Vec::new())));
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = whole(&bytes);
        }
    }
}
