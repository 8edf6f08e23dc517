//! Where does a body end? After so many bytes, at the last chunk, or with the connection.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use memchr::memchr;
use tokio::io::AsyncRead;

use super::{LARGEST_HEAD, Line};

/// Bytes of a line with a chunk's size, extensions included.
const LONGEST_SIZE: usize = 16 << 10;

/// Of a size; more would be over what can be counted.
const MOST_DIGITS: usize = 15;

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
                    let end = memchr(b'\n', came);
                    if end.unwrap_or(came.len()) > LONGEST_SIZE {
                        return Err(Broken::BadChunk);
                    }
                    let Some(end) = end else { return Ok(()) };
                    let size = size(&came[..end]).ok_or(Broken::BadChunk)?;
                    line.skip(end + 1);
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

/// The size that a chunk's first line tells, read strictly: whoever counts chunks differently sees another request.
fn size(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r")?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = line[digits..].trim_ascii_start();
    if digits == 0 || digits > MOST_DIGITS || !(extension.is_empty() || extension.starts_with(b";")) || extension.contains(&b'\r')
    {
        return None;
    }
    Some(line[..digits].iter().fold(0, |size, digit| size << 4 | u64::from(char::from(*digit).to_digit(16).unwrap_or_default())))
}
