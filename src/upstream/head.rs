//! What does an answer's head say? Status and headers, where its body ends, whether its connection may be used again.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, Version, header, response::Parts};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;
use memchr::memchr_iter;

use super::Why;
use crate::wire::{LARGEST_HEAD, Line, MOST_HEADERS, Rest, read_headers};

/// Bytes of a head at most: twice what a client may send.
const LARGEST: usize = 2 * LARGEST_HEAD;
/// A head that has not ended is looked at for nonsense up to so many bytes: each look is at all of them.
const LOOKED_AT: usize = 4 << 10;

const NOT_HTTP: Why = Why::Invalid("it is not HTTP");

/// An answer's head.
pub(super) struct Head {
    pub(super) parts: Parts,
    /// Its body.
    pub(super) rest: Rest,
    /// Whether another request may follow when the body is over.
    pub(super) stays: bool,
}

/// Takes the answer's head off the line; `None` until all of it is there. Those that only announce another are passed over.
///
/// `looked_at`: bytes on the line that this was called for before. `headers`: the map that takes the answer's.
pub(super) fn take<I>(
    line: &mut Line<I>,
    looked_at: &mut usize,
    is_head: bool,
    headers: &mut HeaderMap,
) -> Result<Option<Head>, Why> {
    loop {
        let came = line.came();
        let Some(end) = end(came, *looked_at) else {
            let before = std::mem::replace(looked_at, came.len());
            if came.len() >= LARGEST || before < LOOKED_AT && is_nonsense(came) {
                return Err(NOT_HTTP);
            }
            return Ok(None);
        };
        *looked_at = 0;
        let bytes = line.take(end);
        if end > LARGEST {
            return Err(NOT_HTTP);
        }
        if let Some(head) = read(&bytes, is_head, headers)? {
            return Ok(Some(head));
        }
    }
}

/// Where a head ends, of which so much is known not to hold its end. As everywhere, lines may end without CR.
fn end(came: &[u8], known: usize) -> Option<usize> {
    let start = known.saturating_sub(2);
    let mut ends = memchr_iter(b'\n', &came[start..]).filter_map(|at| match came[start + at + 1..] {
        [b'\n', ..] => Some(start + at + 2),
        [b'\r', b'\n', ..] => Some(start + at + 3),
        _ => None,
    });
    ends.next()
}

fn is_nonsense(came: &[u8]) -> bool {
    let mut found = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut answer = httparse::Response::new(&mut []);
    ParserConfig::default().parse_response_with_uninit_headers(&mut answer, came, &mut found).is_err()
}

/// A whole head; `None` where another comes.
fn read(bytes: &Bytes, is_head: bool, headers: &mut HeaderMap) -> Result<Option<Head>, Why> {
    let mut found = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut answer = httparse::Response::new(&mut []);
    match ParserConfig::default().parse_response_with_uninit_headers(&mut answer, bytes, &mut found) {
        Ok(Status::Complete(_)) => {}
        // Empty lines before it.
        Ok(Status::Partial) if bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n')) => return Ok(None),
        Ok(Status::Partial) | Err(_) => return Err(NOT_HTTP),
    }
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(NOT_HTTP)?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(NOT_HTTP);
    }
    if status.is_informational() {
        return Ok(None);
    }
    headers.clear();
    read_headers(answer.headers, bytes, headers).ok_or(NOT_HTTP)?;
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.version = if answer.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.headers = std::mem::take(headers);
    if let Some(reason) = answer.reason.filter(|reason| !reason.is_empty() && Some(*reason) != status.canonical_reason()) {
        parts.extensions.insert(ReasonPhrase::try_from(bytes.slice_ref(reason.as_bytes())).map_err(|_| NOT_HTTP)?);
    }
    let (rest, may_stay) = body(&parts, is_head)?;
    let stays = may_stay && stays_open(&parts);
    Ok(Some(Head { parts, rest, stays }))
}

/// The body that this head announces, and whether what follows it can be another answer.
fn body(head: &Parts, is_head: bool) -> Result<(Rest, bool), Why> {
    if is_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok((Rest::NOTHING, true));
    }
    if let Some(codings) = head.headers.get_all(header::TRANSFER_ENCODING).iter().next_back() {
        if head.version == Version::HTTP_10 {
            return Err(NOT_HTTP);
        }
        let last = codings.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
        if !last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Ok((Rest::UntilClosed, false));
        }
        return Ok((Rest::CHUNKED, !head.headers.contains_key(header::CONTENT_LENGTH)));
    }
    let mut length = None;
    for told in head.headers.get_all(header::CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    {
        let told = number(told.trim_ascii()).ok_or(NOT_HTTP)?;
        if length.replace(told).is_some_and(|before| before != told) {
            return Err(NOT_HTTP);
        }
    }
    Ok(length.map_or((Rest::UntilClosed, false), |length| (Rest::Sized(length), true)))
}

/// Digits only: Rust's own reading takes a sign.
fn number(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// Whether the upstream means to keep the connection open.
fn stays_open(head: &Parts) -> bool {
    let values = head.headers.get_all(header::CONNECTION).iter();
    let mut kept = head.version == Version::HTTP_11;
    for word in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii) {
        if word.eq_ignore_ascii_case(b"close") {
            return false;
        }
        kept |= word.eq_ignore_ascii_case(b"keep-alive");
    }
    kept
}
