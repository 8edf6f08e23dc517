//! Sends a case to a server and reads what comes back.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    case::Case,
    rule::{Answer, Exchange, Reply},
};

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeLimits {
    /// For the first byte of an answer, and for each further one.
    pub(crate) answer: Duration,
    /// After a complete answer, for another one or the close.
    pub(crate) more: Duration,
}

/// Runs a case against the server at this address.
pub(crate) async fn probe(to: SocketAddr, case: &Case, time_limits: TimeLimits) -> io::Result<Exchange> {
    let (send, then) = case.bytes(to);
    let mut socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let first = talk(&mut socket, &send, case.is_head(), time_limits).await;
    let second = match then {
        Some(then) if !first.closed => Some(talk(&mut socket, &then, false, time_limits).await),
        _ => None,
    };
    Ok(Exchange { first, second, reached: None })
}

/// Sends these bytes, and reads until the server closes or is quiet.
async fn talk(socket: &mut TcpStream, send: &[u8], is_head: bool, time_limits: TimeLimits) -> Reply {
    let (mut from, mut to) = socket.split();
    let mut bytes = Vec::new();
    let mut closed = false;
    let reading = async {
        loop {
            let reply = parse(&bytes, is_head, closed);
            let whole = reply.answers.last().is_some_and(|answer| answer.whole) || !reply.stray.is_empty();
            let wait = if whole { time_limits.more } else { time_limits.answer };
            let mut some = [0; 16 << 10];
            match timeout(wait, from.read(&mut some)).await {
                // A reset ends the connection as well.
                Ok(Ok(0) | Err(_)) => {
                    closed = true;
                    return;
                }
                Ok(Ok(count)) => bytes.extend_from_slice(&some[..count]),
                Err(_) => return,
            }
        }
    };
    // A server that has answered may stop reading: the rest need not be sent.
    let sending = async {
        let _ = to.write_all(send).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = sending => {}
    }
    parse(&bytes, is_head, closed)
}

/// The responses in these bytes.
fn parse(mut bytes: &[u8], is_head: bool, closed: bool) -> Reply {
    let mut reply = Reply { closed, ..Reply::default() };
    while !bytes.is_empty() {
        let Some((answer, rest)) = take_head(bytes) else {
            reply.stray = bytes.to_vec();
            return reply;
        };
        bytes = rest;
        if (100..200).contains(&answer.status) {
            reply.interim.push(answer.status);
            continue;
        }
        let no_body = is_head && reply.answers.is_empty() || matches!(answer.status, 204 | 304);
        let (answer, rest) = if no_body { (Answer { whole: true, ..answer }, bytes) } else { take_body(answer, bytes, closed) };
        let whole = answer.whole;
        reply.answers.push(answer);
        bytes = rest;
        if !whole {
            break;
        }
    }
    reply
}

fn take_head(bytes: &[u8]) -> Option<(Answer, &[u8])> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Response::new(&mut headers);
    head.parse(&bytes[..end]).ok()?;
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers = head.headers.iter().map(|header| (header.name.to_ascii_lowercase(), text(header.value))).collect();
    let answer = Answer { status: head.code?, headers, head: bytes[..end].to_vec(), ..Answer::default() };
    Some((answer, &bytes[end..]))
}

fn take_body(mut answer: Answer, bytes: &[u8], closed: bool) -> (Answer, &[u8]) {
    if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        let mut rest = bytes;
        loop {
            let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(rest) else { return (answer, &[]) };
            let Some(chunk) = rest.get(line..line + size as usize) else { return (answer, &[]) };
            answer.body.extend_from_slice(chunk);
            rest = &rest[line + chunk.len()..];
            if size == 0 {
                let end =
                    if rest.starts_with(b"\r\n") { Some(0) } else { memchr::memmem::find(rest, b"\r\n\r\n").map(|at| at + 2) };
                answer.whole = end.is_some();
                return (answer, end.map_or(&[], |end| &rest[end + 2..]));
            }
            rest = rest.get(2..).unwrap_or_default();
        }
    }
    let length = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
    let taken = length.unwrap_or(usize::MAX).min(bytes.len());
    answer.body = bytes[..taken].to_vec();
    answer.whole = length.map_or(closed, |length| length == taken);
    (answer, &bytes[taken..])
}
