//! An HTTP/2 client that sends raw frames, and how its requests end.

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::{
    frames::{DATA, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame},
    kit::{LONGEST_WAIT, Log},
};

/// The fields of a valid request; `path` identifies it in the upstream's log.
pub(crate) fn fields(path: &str) -> Vec<(&str, &str)> {
    vec![(":method", "GET"), (":scheme", "http"), (":authority", "shield"), (":path", path), ("authorization", "Bearer gsk_test")]
}

/// The same with one field replaced, or removed by an empty value.
pub(crate) fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut fields = fields("/openai/v1/models/bad");
    fields.retain(|(other, _)| *other != name);
    if !value.is_empty() {
        let at = if name.starts_with(':') { 0 } else { fields.len() };
        fields.insert(at, (name, value));
    }
    fields
}

/// A client that sends raw frames.
pub(crate) struct Client {
    pub(crate) socket: BufReader<TcpStream>,
    /// What has arrived for each stream.
    streams: BTreeMap<u32, Stream>,
    pub(crate) goaway: Option<u32>,
    pongs: usize,
}

/// One stream as the client sees it.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    body: String,
    headers: bool,
    ended: bool,
    reset: Option<u32>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("the listener accepts");
        socket.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("the request is written");
        Self { socket: BufReader::new(socket), streams: BTreeMap::new(), goaway: None, pongs: 0 }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // Fails once the server has closed.
        let _ = self.socket.get_mut().write_all(bytes).await;
    }

    /// Reads one frame; false at the end of the connection.
    pub(crate) async fn read(&mut self) -> bool {
        let mut head = [0; 9];
        if !matches!(timeout(LONGEST_WAIT, self.socket.read_exact(&mut head)).await.expect("in time"), Ok(9)) {
            return false;
        }
        let [high, mid, low, kind, flags, stream @ ..] = head;
        let (length, stream) = (u32::from_be_bytes([0, high, mid, low]), u32::from_be_bytes(stream));
        let mut payload = vec![0; length as usize];
        self.socket.read_exact(&mut payload).await.expect("frames are whole");
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
        match kind {
            SETTINGS if flags & 1 == 0 => self.send(&frame(SETTINGS, 1, 0, &[])).await,
            PING if flags & 1 == 0 => self.send(&frame(PING, 1, 0, &payload)).await,
            PING => self.pongs += 1,
            GOAWAY => self.goaway = Some(code(4)),
            RST_STREAM => self.stream(stream).reset = Some(code(0)),
            HEADERS => self.stream(stream).headers = true,
            DATA => self.stream(stream).body.push_str(&String::from_utf8_lossy(&payload)),
            _ => {}
        }
        if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            self.stream(stream).ended = true;
        }
        true
    }

    fn stream(&mut self, id: u32) -> &mut Stream {
        self.streams.entry(id).or_default()
    }

    /// Reads until the stream or the connection ends.
    pub(crate) async fn outcome(&mut self, id: u32) -> Outcome {
        loop {
            let stream = self.stream(id);
            if let Some(code) = stream.reset {
                return Outcome::Reset(code);
            }
            if stream.ended {
                return Outcome::Answer(stream.body.clone());
            }
            if let Some(code) = self.goaway.filter(|code| *code > 0) {
                while self.read().await {}
                return Outcome::Closed(code);
            }
            if !self.read().await {
                return Outcome::Closed(self.goaway.unwrap_or(0));
            }
        }
    }
}

/// How a request ends.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Answer(String),
    /// The stream is reset with this code.
    Reset(u32),
    /// The connection is closed with this code.
    Closed(u32),
}

impl Outcome {
    /// Equality, except that an expected answer is a part of the body.
    pub(crate) fn is(&self, expected: &Self) -> bool {
        match (self, expected) {
            (Self::Answer(body), Self::Answer(part)) => body.contains(part),
            (this, expected) => this == expected,
        }
    }
}

pub(crate) fn seen(log: &Log) -> Vec<String> {
    log.lock().expect("no panic while locked").clone()
}
