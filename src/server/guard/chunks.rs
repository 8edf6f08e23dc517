//! Finds the end of a chunked body, and refuses chunks that servers parse differently.
//!
//! hyper decodes the chunks. It skips chunk extensions unread and tolerates blanks after a size, where other servers may find
//! another end; here only RFC 9112's grammar is accepted.

use memchr::memchr;

/// The longest line of a size with its extensions, or of a trailer field, in bytes.
const MAX_LINE: usize = 8 << 10;
/// The largest trailer section, in bytes.
const MAX_TRAILERS: usize = 16 << 10;

/// What is expected next.
#[derive(Clone, Copy, Debug, Default)]
enum Next {
    /// The line of a chunk's size.
    #[default]
    Size,
    /// This many bytes of a chunk.
    Data(u64),
    /// The line end after a chunk.
    DataEnd,
    /// A trailer field, or the empty line that ends the body. Holds the bytes of trailers read before.
    Trailer(usize),
}

/// Reads a chunked body in pieces of any size. Only incomplete lines are copied.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    next: Next,
    incomplete: Vec<u8>,
}

impl Chunks {
    /// Reads more bytes of the body. Returns the index of its end if it ends in them.
    ///
    /// # Errors
    /// Why servers could find another end.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        let mut at = 0;
        loop {
            if let Next::Data(left) = self.next {
                let taken = left.min((bytes.len() - at) as u64);
                at += taken as usize;
                if taken < left {
                    self.next = Next::Data(left - taken);
                    return Ok(None);
                }
                self.next = Next::DataEnd;
            }
            let Some(end) = memchr(b'\n', &bytes[at..]) else {
                self.incomplete.extend_from_slice(&bytes[at..]);
                // A line end after a chunk is checked as soon as its first byte is there.
                return if self.incomplete.len() > MAX_LINE || self.overruns() { Err(TOO_LONG) } else { Ok(None) };
            };
            let mut line = std::mem::take(&mut self.incomplete);
            line.extend_from_slice(&bytes[at..at + end]);
            at += end + 1;
            if self.line(&line)? {
                return Ok(Some(at));
            }
        }
    }

    /// Whether a chunk is followed by something other than a line end.
    fn overruns(&self) -> bool {
        matches!(self.next, Next::DataEnd) && !matches!(self.incomplete.as_slice(), [] | [b'\r'])
    }

    /// Reads a line without its line feed. Returns true at the end of the body.
    fn line(&mut self, line: &[u8]) -> Result<bool, &'static str> {
        if line.len() > MAX_LINE {
            return Err(TOO_LONG);
        }
        let line = line.strip_suffix(b"\r").ok_or("a line between its chunks ends in a bare line feed")?;
        if line.contains(&b'\r') {
            return Err("there is a bare carriage return between its chunks");
        }
        self.next = match self.next {
            Next::Size => match size(line)? {
                0 => Next::Trailer(0),
                size => Next::Data(size),
            },
            Next::DataEnd if line.is_empty() => Next::Size,
            Next::DataEnd | Next::Data(_) => return Err("one of its chunks is longer than its size"),
            Next::Trailer(_) if line.is_empty() => return Ok(true),
            Next::Trailer(read) if read + line.len() > MAX_TRAILERS => return Err(TOO_LONG),
            Next::Trailer(read) => Next::Trailer(read + line.len()),
        };
        Ok(false)
    }
}

const TOO_LONG: &str = "a line between its chunks is too long";
const NOT_A_SIZE: &str = "the size of one of its chunks is not a number";

/// The size that a chunk's first line states.
fn size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extensions) = line.split_at(digits);
    if digits.is_empty() || digits.len() > 16 {
        return Err(NOT_A_SIZE);
    }
    if !valid_extensions(extensions) {
        return Err("the extension of one of its chunks is not valid");
    }
    let text = std::str::from_utf8(digits).map_err(|_| NOT_A_SIZE)?;
    u64::from_str_radix(text, 16).map_err(|_| NOT_A_SIZE)
}

/// Whether this is `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`.
fn valid_extensions(mut rest: &[u8]) -> bool {
    while !rest.is_empty() {
        let Some(after) = blanks(rest).strip_prefix(b";") else { return false };
        let Some(after) = token(blanks(after)) else { return false };
        rest = after;
        if let Some(value) = blanks(rest).strip_prefix(b"=") {
            let value = blanks(value);
            let Some(after) = token(value).or_else(|| quoted(value)) else { return false };
            rest = after;
        }
    }
    true
}

fn blanks(bytes: &[u8]) -> &[u8] {
    let count = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &bytes[count..]
}

/// What follows a token.
fn token(bytes: &[u8]) -> Option<&[u8]> {
    let tchar = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let count = bytes.iter().take_while(tchar).count();
    (count > 0).then(|| &bytes[count..])
}

/// What follows a quoted string.
fn quoted(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', after @ ..] => return Some(after),
            [b'\\', b'\t' | b' '..=b'~' | 0x80.., after @ ..] => after,
            [b'\t' | b' '..=b'[' | b']'..=b'~' | 0x80.., after @ ..] => after,
            _ => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result for these bytes, in one piece and byte by byte.
    fn read(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        let whole = Chunks::default().feed(bytes);
        let mut chunks = Chunks::default();
        let mut split = Ok(None);
        for (at, byte) in bytes.iter().enumerate() {
            match chunks.feed(&[*byte]) {
                Ok(None) => {}
                Ok(Some(end)) => {
                    split = Ok(Some(at + end));
                    break;
                }
                Err(why) => {
                    split = Err(why);
                    break;
                }
            }
        }
        assert_eq!(whole.is_err(), split.is_err(), "{}", bytes.escape_ascii());
        if whole.is_ok() {
            assert_eq!(whole, split, "{}", bytes.escape_ascii());
        }
        whole
    }

    #[test]
    fn chunks_end_where_they_say() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A\r\n0123456789\r\n00\r\n\r\n",
            "5;ext=value\r\nhello\r\n0\r\n\r\n",
            "5 ; a ; b = \"c\\\";\" \t;d\r\nhello\r\n0\r\n\r\n",
            "5\r\n\r\n\r\n0\r\n0\r\nX-Sum: 1\r\n\r\n",
        ] {
            let after = format!("{body}GET / HTTP/1.1\r\n\r\n");
            assert_eq!(read(after.as_bytes()), Ok(Some(body.len())), "{body:?}");
            assert_eq!(read(&body.as_bytes()[..body.len() - 1]), Ok(None), "{body:?}");
        }
    }

    #[test]
    fn ambiguous_chunks_are_refused() {
        for body in [
            &b"0x5\r\nhello\r\n0\r\n\r\n"[..],
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5;\r\nhello\r\n0\r\n\r\n",
            b"5;a \r\nhello\r\n0\r\n\r\n",
            b"5;\0a\r\nhello\r\n0\r\n\r\n",
            b"5;a[=b\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"5;\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"\r\n5\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\r\n0\r\n\n",
            b"fffffffffffffffff\r\n",
        ] {
            assert!(read(body).is_err(), "{}", body.escape_ascii());
        }
        let long = format!("5;a={}\r\n", "b".repeat(MAX_LINE));
        assert!(read(long.as_bytes()).is_err());
    }
}
