//! Minimal HTTP/1.1 for the load generator and the upstream, so that they take little CPU: no pipelining.

use std::io;

use memchr::memmem;
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// The end of a chunked body without trailers.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// A connection on which one message at a time is read.
pub(crate) struct Connection {
    /// The socket, for writing.
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
    /// The body's offset in the buffer and its length (`None` if chunked), once the head has been read.
    head: Option<(usize, Option<usize>)>,
}

impl Connection {
    /// Wraps an open socket.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new(), head: None })
    }

    /// Reads the next message; `None` if the peer has closed the connection.
    pub(crate) async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.buffer.clear();
        self.head = None;
        while !self.is_complete() {
            self.buffer.reserve(4096);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(&self.buffer))
    }

    fn is_complete(&mut self) -> bool {
        let head = match self.head {
            Some(head) => head,
            None => match memmem::find(&self.buffer, b"\r\n\r\n") {
                Some(end) => *self.head.insert((end + 4, length(&self.buffer[..end]))),
                None => return false,
            },
        };
        match head {
            (body, Some(length)) => self.buffer.len() >= body + length,
            (body, None) => self.buffer[body..].ends_with(LAST_CHUNK),
        }
    }
}

/// The length of the body according to `head`; `None` if chunked.
fn length(head: &[u8]) -> Option<usize> {
    let lines = head.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'));
    let mut length = Some(0);
    for (name, value) in lines {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return None;
        }
    }
    length
}
