//! Finds the end of a request's head, and refuses heads that servers parse differently.
//!
//! hyper parses HTTP. This refuses what hyper accepts or normalizes and other servers may not: both Content-Length and
//! Transfer-Encoding, a repeated length, folded lines, bare line feeds, an invalid target or Host.

use memchr::memchr;

/// Maximum bytes of a head. hyper's own bound applies to its buffer, which may grow to twice as much first.
pub(in crate::server) const MAX_HEAD: usize = 64 << 10;

/// How the end of a request's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// A body of this many bytes.
    Sized(u64),
    /// A chunked body.
    Chunked,
}

/// Reads heads line by line, in pieces of any size. Only incomplete lines are copied.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    incomplete: Vec<u8>,
    head: Head,
}

#[derive(Debug, Default)]
struct Head {
    /// Bytes so far, without line feeds.
    bytes: usize,
    started: bool,
    /// Whether the request line names HTTP/1.0, in which Host is optional.
    is_http10: bool,
    host: bool,
    length: Option<u64>,
    chunked: bool,
    fault: Option<&'static str>,
}

impl Scanner {
    /// Reads more bytes of a head. Returns the index of its end if it ends in them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(end) = memchr(b'\n', &bytes[at..]) {
            let line = &bytes[at..at + end];
            at += end + 1;
            let over = if self.incomplete.is_empty() {
                self.head.line(line)
            } else {
                self.incomplete.extend_from_slice(line);
                let over = self.head.line(&self.incomplete);
                self.incomplete.clear();
                over
            };
            if over {
                return Some(at);
            }
        }
        self.incomplete.extend_from_slice(&bytes[at..]);
        None
    }

    /// The framing of the head that has just ended, or why servers could disagree about it. Starts over for the next head.
    pub(super) fn finish(&mut self) -> Result<Framing, &'static str> {
        let head = std::mem::take(&mut self.head);
        match head {
            Head { fault: Some(why), .. } => Err(why),
            Head { host: false, is_http10: false, .. } => Err("it has no Host header"),
            Head { chunked: true, length: Some(_), .. } => Err("it has both Content-Length and Transfer-Encoding"),
            Head { chunked: true, .. } => Ok(Framing::Chunked),
            Head { length, .. } => Ok(Framing::Sized(length.unwrap_or(0))),
        }
    }
}

impl Head {
    /// Reads a line without its line feed. Returns true at the empty line that ends the head.
    fn line(&mut self, line: &[u8]) -> bool {
        self.bytes += line.len();
        if self.bytes > MAX_HEAD {
            self.fault("its head is larger than 64 KiB");
        }
        let line = line.strip_suffix(b"\r").unwrap_or_else(|| {
            self.fault("a line of its head ends in a bare line feed");
            line
        });
        let Some(first) = line.first() else {
            // Empty lines before a request line are skipped, as hyper does.
            return self.started;
        };
        if !self.started {
            self.started = true;
            self.request_line(line);
            return false;
        }
        match first {
            b' ' | b'\t' => self.fault("a line of its head is folded"),
            b'c' | b'C' => self.content_length(line),
            b't' | b'T' => self.transfer_encoding(line),
            b'h' | b'H' => self.host(line),
            _ => {}
        }
        false
    }

    /// Checks the target. Whether the request line is valid at all is left to hyper.
    fn request_line(&mut self, line: &[u8]) {
        let mut words = line.split(|byte| *byte == b' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        self.is_http10 = line.ends_with(b" HTTP/1.0");
        if !target.is_ascii() {
            self.fault("its target holds a byte that is not ASCII");
        } else if target.contains(&b'#') {
            // hyper would cut it off.
            self.fault("its target holds a fragment");
        } else if target == b"*" && method != b"OPTIONS" {
            self.fault("its target is `*`, which is for OPTIONS alone");
        }
    }

    fn content_length(&mut self, line: &[u8]) {
        let Some(value) = self.value(line, b"content-length") else { return };
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        match length {
            Some(length) if digits && self.length.is_none() => self.length = Some(length),
            Some(_) if digits => self.fault("it has two Content-Length headers"),
            _ => self.fault("its Content-Length is not a number"),
        }
    }

    fn transfer_encoding(&mut self, line: &[u8]) {
        let Some(value) = self.value(line, b"transfer-encoding") else { return };
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            self.fault("its Transfer-Encoding is not `chunked` alone");
        }
        self.chunked = true;
    }

    fn host(&mut self, line: &[u8]) {
        let Some(value) = self.value(line, b"host") else { return };
        if std::mem::replace(&mut self.host, true) {
            self.fault("it has two Host headers");
        } else if !is_authority(value) {
            self.fault("its Host is not a host with an optional port");
        }
    }

    /// The trimmed value if the line is a header of this name.
    fn value<'a>(&mut self, line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        let (start, rest) = line.split_at_checked(name.len())?;
        if !start.eq_ignore_ascii_case(name) {
            return None;
        }
        match rest {
            [b':', value @ ..] => Some(value.trim_ascii()),
            [b' ' | b'\t', ..] => {
                self.fault("there is a space before a colon in its head");
                None
            }
            _ => None,
        }
    }

    /// Keeps the first fault.
    fn fault(&mut self, why: &'static str) {
        self.fault.get_or_insert(why);
    }
}

/// Whether this is `uri-host [ ":" port ]`, with a host that is not empty, as the `http` and `https` schemes require.
fn is_authority(value: &[u8]) -> bool {
    let port_at = match value {
        [b'[', rest @ ..] => match memchr(b']', rest) {
            Some(end) if rest[..end].iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')) => end + 2,
            _ => return false,
        },
        // The bytes of a registered name: unreserved, sub-delims without the comma, percent-encoded.
        _ => value.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(byte)).count(),
    };
    let (host, port) = value.split_at(port_at);
    !host.is_empty() && (port.is_empty() || matches!(port, [b':', port @ ..] if port.iter().all(u8::is_ascii_digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(head: &str) -> Result<Framing, &'static str> {
        let mut scanner = Scanner::default();
        assert_eq!(scanner.feed(head.as_bytes()), Some(head.len()), "{head:?}");
        let whole = scanner.finish();
        // Byte by byte, with the same result.
        for (at, byte) in head.bytes().enumerate() {
            assert_eq!(scanner.feed(&[byte]).is_some(), at + 1 == head.len(), "{head:?} at {at}");
        }
        assert_eq!(scanner.finish(), whole);
        whole
    }

    #[test]
    fn plain_heads_are_understood() {
        assert_eq!(scan("GET / HTTP/1.1\r\nhost: x\r\n\r\n"), Ok(Framing::Sized(0)));
        assert_eq!(scan("OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n"), Ok(Framing::Sized(0)));
        assert_eq!(scan("\r\nPOST / HTTP/1.1\r\nHost: a:80\r\nContent-Length:  12 \r\n\r\n"), Ok(Framing::Sized(12)));
        assert_eq!(scan("POST / HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: Chunked\r\n\r\n"), Ok(Framing::Chunked));
        assert_eq!(scan("POST / HTTP/1.0\r\nContent-Length-X: a\r\nContent-Type: b\r\n\r\n"), Ok(Framing::Sized(0)));
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        for head in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "GET /caf\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\n",
        ] {
            assert!(scan(head).is_err(), "{head:?}");
        }
    }

    #[test]
    fn bytes_after_the_head_are_not_looked_at() {
        let mut scanner = Scanner::default();
        let bytes = b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 40\r\n\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(scanner.feed(bytes), Some(48));
        assert_eq!(scanner.finish(), Ok(Framing::Sized(40)));
    }
}
