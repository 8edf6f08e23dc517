//! HTTP/2: the frames that a row sends, and the rule that judges what comes back.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::rule::Verdict::{self, Fail, Pass, Warn};

mod cases;
pub(crate) mod frames;
mod step;

pub(crate) use cases::cases;
use frames::{ACK, DATA, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame};
use step::Step;

/// One probe on a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// h2spec's number.
    pub(crate) name: &'static str,
    pub(crate) clause: &'static str,
    /// Whether the connection is set up before the first step.
    handshake: bool,
    steps: Vec<Step>,
    pub(crate) allowed: Allowed,
}

impl Case {
    /// What is sent, on one line.
    pub(crate) fn sent(&self) -> String {
        self.steps.iter().map(Step::text).collect::<Vec<_>>().join("; ")
    }
}

/// The limits that a server has announced, or their defaults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    header_table: u32,
    streams: Option<u32>,
    frame: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_table: 4096, streams: None, frame: 16_384 }
    }
}

impl Limits {
    fn read(&mut self, settings: &Frame) {
        for setting in settings.payload.chunks_exact(6) {
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match setting[1] {
                1 => self.header_table = value,
                3 => self.streams = Some(value),
                5 => self.frame = value,
                _ => {}
            }
        }
    }
}

/// What is allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Allowed {
    /// A response on stream 1.
    Response,
    /// A part of a response's body.
    Body,
    /// A part of a response's body of one byte.
    OneByte,
    /// The server's SETTINGS before anything else.
    Settings,
    SettingsAck,
    Pong([u8; 8]),
    PongOrClose([u8; 8]),
    /// The end of the connection, by GOAWAY with one of these codes.
    ConnectionError(&'static [u32]),
    /// The end of a stream, by `RST_STREAM` with one of these codes, or that of its connection.
    StreamError(&'static [u32]),
    /// A request that must not be served.
    Malformed,
    GoAway(u32),
    Reset(u32),
    Close,
}

impl Allowed {
    pub(crate) fn text(self) -> String {
        let names = |codes: &[u32]| codes.iter().map(|code| step::code_name(*code)).collect::<Vec<_>>().join(" or ");
        match self {
            Self::Response => "a response".into(),
            Self::Body => "DATA".into(),
            Self::OneByte => "DATA of one byte".into(),
            Self::Settings => "SETTINGS first".into(),
            Self::SettingsAck => "SETTINGS with ACK".into(),
            Self::Pong(_) => "PING with ACK and the same bytes".into(),
            Self::PongOrClose(_) => "PING with ACK and the same bytes, or close".into(),
            Self::ConnectionError(codes) => format!("GOAWAY {}; close with another code or none is tolerated", names(codes)),
            Self::StreamError(codes) => {
                format!("RST_STREAM or GOAWAY {}; close with another code or none is tolerated", names(codes))
            }
            Self::Malformed => {
                "RST_STREAM or GOAWAY PROTOCOL_ERROR; 400, or close with another code or none, is tolerated".into()
            }
            Self::GoAway(code) => format!("GOAWAY {}", step::code_name(code)),
            Self::Reset(code) => format!("RST_STREAM {}", step::code_name(code)),
            Self::Close => "close".into(),
        }
    }

    /// Judges one frame; `None` if the next one decides.
    fn judge(self, frame: &Frame) -> Option<Verdict> {
        const STATUS_400: u8 = 0x8c;
        let ack = frame.flags & ACK != 0;
        let pass = |holds: bool| holds.then_some(Pass);
        let ends = |codes: &[u32], at| frame.code(at).is_some_and(|code| codes.contains(&code));
        let stream_error = |codes: &[u32]| match frame.kind {
            RST_STREAM => ends(codes, 0),
            GOAWAY => ends(codes, 4),
            _ => false,
        };
        match self {
            Self::Response => pass(frame.kind == HEADERS && frame.stream == 1),
            Self::Body => pass(frame.kind == DATA),
            Self::OneByte if frame.kind == DATA => Some(if frame.payload.len() == 1 { Pass } else { Fail }),
            Self::OneByte => None,
            Self::Settings => Some(if frame.kind == SETTINGS && !ack { Pass } else { Fail }),
            Self::SettingsAck => pass(frame.kind == SETTINGS && ack),
            Self::Pong(bytes) | Self::PongOrClose(bytes) if frame.kind == PING && ack => {
                Some(if frame.payload == bytes { Pass } else { Fail })
            }
            Self::Pong(_) | Self::PongOrClose(_) | Self::Close => None,
            Self::ConnectionError(codes) => pass(frame.kind == GOAWAY && ends(codes, 4)),
            Self::StreamError(codes) => pass(stream_error(codes)),
            Self::Malformed if frame.kind == HEADERS && frame.payload.first() == Some(&STATUS_400) => Some(Warn),
            Self::Malformed => pass(stream_error(&[frames::PROTOCOL_ERROR])),
            Self::GoAway(code) => pass(frame.kind == GOAWAY && ends(&[code], 4)),
            Self::Reset(code) => pass(frame.kind == RST_STREAM && ends(&[code], 0)),
        }
    }

    /// The verdict on a connection that closes before a frame has decided.
    fn judge_close(self) -> Verdict {
        match self {
            Self::PongOrClose(_) | Self::Close => Pass,
            Self::ConnectionError(_) | Self::StreamError(_) | Self::Malformed => Warn,
            _ => Fail,
        }
    }
}

/// A connection to the server under test.
struct Connection {
    socket: TcpStream,
    read: Vec<u8>,
    time_limit: Duration,
}

/// The next event.
enum Next {
    Frame(Frame),
    Closed,
    Nothing,
}

impl Connection {
    async fn send(&mut self, bytes: &[u8]) {
        // Fails once the server has closed, which the rule judges.
        let _ = timeout(self.time_limit, self.socket.write_all(bytes)).await;
    }

    async fn next(&mut self) -> Next {
        loop {
            if let Some(frame) = Frame::take(&mut self.read) {
                return Next::Frame(frame);
            }
            match timeout(self.time_limit, self.socket.read_buf(&mut self.read)).await {
                // A reset ends the connection as well.
                Ok(Ok(0) | Err(_)) => return Next::Closed,
                Ok(Ok(_)) => {}
                Err(_) => return Next::Nothing,
            }
        }
    }

    /// Reads until a frame satisfies `holds`.
    async fn until(&mut self, holds: impl Fn(&Frame) -> bool) -> io::Result<Frame> {
        loop {
            match self.next().await {
                Next::Frame(frame) if holds(&frame) => return Ok(frame),
                Next::Frame(_) => {}
                Next::Closed => return Err(io::Error::other("closed too early")),
                Next::Nothing => return Err(io::Error::other("nothing came")),
            }
        }
    }

    async fn handshake(&mut self, limits: &mut Limits) -> io::Result<()> {
        let window = [0, 4, 0, 0, 0xff, 0xff];
        self.send(&[PREFACE, &frame(SETTINGS, 0, 0, &window)].concat()).await;
        limits.read(&self.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).await?);
        self.send(&frame(SETTINGS, ACK, 0, &[])).await;
        self.until(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0).await?;
        Ok(())
    }
}

/// Runs a case; returns the verdict, and what led to it.
pub(crate) async fn probe(to: SocketAddr, case: &Case, time_limit: Duration) -> io::Result<(Verdict, String)> {
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let mut connection = Connection { socket, read: Vec::new(), time_limit };
    let mut limits = Limits::default();
    if case.handshake {
        connection.handshake(&mut limits).await?;
    }
    for step in &case.steps {
        let done = match step {
            Step::Send { bytes, .. } => {
                connection.send(bytes).await;
                Ok(())
            }
            Step::Limit { bytes, .. } => {
                connection.send(&bytes(&limits)).await;
                Ok(())
            }
            Step::Await { holds, .. } => connection.until(holds).await.map(drop),
        };
        if let Err(error) = done {
            return Ok((Fail, format!("{error} while waiting for {}", step.text())));
        }
    }
    let mut last = String::new();
    loop {
        match connection.next().await {
            Next::Frame(frame) => {
                last = step::to_text(&frame);
                if let Some(verdict) = case.allowed.judge(&frame) {
                    return Ok((verdict, last));
                }
            }
            Next::Closed if last.is_empty() => return Ok((case.allowed.judge_close(), "close".into())),
            Next::Closed => return Ok((case.allowed.judge_close(), format!("{last}, close"))),
            Next::Nothing if last.is_empty() => return Ok((Fail, "nothing".into())),
            Next::Nothing => return Ok((Fail, format!("{last}, then nothing"))),
        }
    }
}
