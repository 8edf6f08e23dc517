//! What does an answer's head say? Status and headers, where its body ends, whether its connection may be used again.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{Response, StatusCode, header, response::Parts};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;
use memchr::memchr_iter;

use super::ExchangeError;
use crate::{
    message::{Found, Headers},
    wire::{LARGEST_HEAD, Line, MOST_HEADERS, Rest},
};

/// Bytes of a head at most: twice what a client may send.
const LARGEST: usize = 2 * LARGEST_HEAD;
/// A head that has not ended is looked at for nonsense up to so many bytes: each look is at all of them.
const LOOKED_AT: usize = 4 << 10;

const NOT_HTTP: ExchangeError = ExchangeError::Invalid("it is not HTTP");

/// An answer's head.
pub(super) struct Head {
    pub(super) message: Parts,
    /// Its body.
    pub(super) rest: Rest,
    /// Whether another request may follow when the body is over.
    pub(super) stays: bool,
}

/// Takes the answer's head off the line; `None` until all of it is there. Those that only announce another are passed over.
///
/// `looked_at`: bytes on the line that this was called for before.
pub(super) fn take<I>(line: &mut Line<I>, looked_at: &mut usize, is_head: bool) -> Result<Option<Head>, ExchangeError> {
    loop {
        let came = line.came();
        let before = std::mem::replace(looked_at, came.len());
        // Most heads come whole. Of one that drips in, each look at all of it is at more than the last.
        if before > LOOKED_AT && !ends(came, before) {
            return if came.len() < LARGEST { Ok(None) } else { Err(NOT_HTTP) };
        }
        let Some(read) = read(came)? else {
            return if came.len() < LARGEST { Ok(None) } else { Err(NOT_HTTP) };
        };
        if read.end > LARGEST {
            return Err(NOT_HTTP);
        }
        *looked_at = 0;
        let bytes = line.take(read.end);
        match read.status {
            StatusCode::SWITCHING_PROTOCOLS => return Err(NOT_HTTP),
            status if status.is_informational() => {}
            _ => return read.head(bytes, is_head).map(Some),
        }
    }
}

/// Whether a head ends here, of which so much is known not to hold its end. As everywhere, lines may end without CR.
fn ends(came: &[u8], known: usize) -> bool {
    let start = known.saturating_sub(3);
    memchr_iter(b'\n', &came[start..]).any(|at| matches!(came[start + at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

/// A head that is whole, before it is taken off the line.
struct Read {
    end: usize,
    status: StatusCode,
    is_1_1: bool,
    reason: Option<Bytes>,
    found: Found,
}

/// `None` until it is whole.
fn read(came: &[u8]) -> Result<Option<Read>, ExchangeError> {
    let mut found = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut answer = httparse::Response::new(&mut []);
    let end = match ParserConfig::default().parse_response_with_uninit_headers(&mut answer, came, &mut found) {
        Ok(Status::Complete(end)) => end,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(NOT_HTTP),
    };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(NOT_HTTP)?;
    let reason = answer.reason.filter(|reason| !reason.is_empty() && Some(*reason) != status.canonical_reason());
    Ok(Some(Read {
        end,
        status,
        is_1_1: answer.version == Some(1),
        reason: reason.map(|reason| Bytes::copy_from_slice(reason.as_bytes())),
        found: Found::at(came, answer.headers),
    }))
}

impl Read {
    fn head(self, bytes: Bytes, is_head: bool) -> Result<Head, ExchangeError> {
        let headers = Headers::of(bytes, self.found);
        let (rest, may_stay) = body(self.status, self.is_1_1, &headers, is_head)?;
        let stays = may_stay && stays_open(self.is_1_1, &headers);
        let (mut message, ()) = Response::new(()).into_parts();
        message.status = self.status;
        message.headers = (&headers).into();
        if let Some(reason) = self.reason.and_then(|reason| ReasonPhrase::try_from(reason).ok()) {
            message.extensions.insert(reason);
        }
        Ok(Head { message, rest, stays })
    }
}

/// The body that this head announces, and whether what follows it can be another answer.
fn body(status: StatusCode, is_1_1: bool, headers: &Headers, is_head: bool) -> Result<(Rest, bool), ExchangeError> {
    if is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok((Rest::NOTHING, true));
    }
    if let Some(codings) = headers.get_all("transfer-encoding").last() {
        if !is_1_1 {
            return Err(NOT_HTTP);
        }
        let last = codings.rsplit(|byte| *byte == b',').next().unwrap_or_default();
        if !last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Ok((Rest::UntilClosed, false));
        }
        return Ok((Rest::CHUNKED, !headers.contains_key(header::CONTENT_LENGTH)));
    }
    let mut length = None;
    for told in headers.get_all("content-length").flat_map(|value| value.split(|byte| *byte == b',')) {
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
fn stays_open(is_1_1: bool, headers: &Headers) -> bool {
    let mut kept = is_1_1;
    for word in headers.get_all("connection").flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii) {
        if word.eq_ignore_ascii_case(b"close") {
            return false;
        }
        kept |= word.eq_ignore_ascii_case(b"keep-alive");
    }
    kept
}
