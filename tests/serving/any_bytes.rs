//! Any bytes on a connection get documented responses and then a clean close. Also used by the fuzz target `connection`.

use std::{io, sync::Arc};

use groq_shield::{config::Settings, proxy::Shield, server::serve_connection, upstream::Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// The client preface of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Sends bytes to a shield with an unreachable upstream, and checks that every response is the documented error object.
pub(crate) fn check(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        for leaves in [true, false] {
            let answers = answers(bytes, leaves).await;
            let parse = if bytes.starts_with(PREFACE) { frames } else { parse };
            parse(&answers).unwrap_or_else(|why| panic!("{why}: {:?}", String::from_utf8_lossy(&answers)));
        }
    });
}

/// The same with HTTP/2: the client's preface and settings, then frames with kind, flags, stream, length and payload from `bytes`.
/// All frames are complete, so that the parsers of their contents are reached.
pub(crate) fn check_frames(mut bytes: &[u8]) {
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut connection = [PREFACE, &EMPTY_SETTINGS].concat();
    while let [kind, flags, stream, length, rest @ ..] = bytes {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        let header = [0, 0, payload.len() as u8, *kind, *flags, 0, 0, 0, *stream];
        connection.extend(header.iter().chain(payload));
        bytes = rest;
    }
    check(&connection);
}

/// All bytes that a client receives, which closes its side after its bytes if `leaves` is set.
async fn answers(bytes: &[u8], leaves: bool) -> Vec<u8> {
    let mut settings = Settings::default();
    settings.retry.attempts = 1;
    let upstream = Upstream::over(&settings.upstream, || Err(io::Error::other("out of reach")));
    let shield: Arc<Shield> = Shield::over(settings, upstream);
    let (client, server) = duplex(1 << 12);
    let serving = tokio::spawn(serve_connection(server, shield, ()));
    let (mut from, mut to) = tokio::io::split(client);
    let sending = async {
        // Fails if the server has closed the connection.
        let _ = to.write_all(bytes).await;
        if leaves {
            let _ = to.shutdown().await;
        }
    };
    let mut answers = Vec::new();
    let (read, ()) = tokio::join!(from.read_to_end(&mut answers), sending);
    read.expect("a clean close");
    serving.await.expect("no panic");
    answers
}

/// Checks that the bytes are complete HTTP/2 frames, of which the first is SETTINGS.
fn frames(mut bytes: &[u8]) -> Result<(), String> {
    const SETTINGS: u8 = 4;
    let mut kinds = Vec::new();
    while let [high, mid, low, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *high, *mid, *low]) as usize;
        kinds.push(*kind);
        bytes = rest.get(length..).ok_or("a frame cut short")?;
    }
    if !bytes.is_empty() {
        return Err("a frame's header cut short".into());
    }
    if kinds.first() == Some(&SETTINGS) { Ok(()) } else { Err(format!("no settings first: {kinds:?}")) }
}

/// Checks that the bytes are complete responses and nothing else.
fn parse(mut bytes: &[u8]) -> Result<(), String> {
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or("a head without an end")?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|error| error.to_string())?;
        bytes = &bytes[end + 4..];
        let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "));
        let status: u16 = status.and_then(|rest| rest.get(..3)?.parse().ok()).ok_or(format!("no status: {head}"))?;
        if status == 100 {
            continue;
        }
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        if !(400..600).contains(&status) || header("content-type") != Some("application/json") {
            return Err(format!("not a documented failure: {head}"));
        }
        let length: usize = header("content-length").and_then(|length| length.parse().ok()).ok_or("no length")?;
        // A response to HEAD has a length but no body.
        if bytes.is_empty() || bytes.starts_with(b"HTTP/1.") {
            continue;
        }
        let (body, rest) = bytes.split_at_checked(length).ok_or("a body cut short")?;
        let body: serde_json::Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let error = &body["error"];
        if !(error["message"].is_string() && error["type"].is_string()) {
            return Err(format!("not the error object: {body}"));
        }
        bytes = rest;
    }
    Ok(())
}
