//! Heads: headers out of bytes and into bytes, without a copy of what came.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::ext::ReasonPhrase;

/// Bytes of a head at most.
pub(crate) const LARGEST_HEAD: usize = 64 << 10;
/// Headers of a head at most.
pub(crate) const MOST_HEADERS: usize = 100;

/// Adds what `httparse` has found in `head`; `None` where a name or value is none.
pub(crate) fn read_headers(found: &[httparse::Header<'_>], head: &Bytes, headers: &mut HeaderMap) -> Option<()> {
    headers.reserve(found.len());
    for header in found {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(head.slice_ref(header.value)).ok()?);
    }
    Some(())
}

/// An answer's first line.
pub(crate) fn put_status(out: &mut BytesMut, version: &str, status: StatusCode, extensions: &Extensions) {
    let reason = match extensions.get::<ReasonPhrase>() {
        Some(reason) => reason.as_bytes(),
        None => status.canonical_reason().unwrap_or_default().as_bytes(),
    };
    for part in [version.as_bytes(), b" ", status.as_str().as_bytes(), b" ", reason, b"\r\n"] {
        out.put_slice(part);
    }
}

/// These headers, line by line, except those that `skip` names.
pub(crate) fn put_headers(out: &mut BytesMut, headers: &HeaderMap, skip: impl Fn(&HeaderName) -> bool) {
    let room = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    out.reserve(room);
    for (name, value) in headers.iter().filter(|(name, _)| !skip(name)) {
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
}
