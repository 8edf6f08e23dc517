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

#[cfg(test)]
mod tests {
    use bytes::Buf as _;
    use http::header;

    use super::*;

    fn read(head: &'static str) -> Option<HeaderMap> {
        let head = Bytes::from_static(head.as_bytes());
        let mut found = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut answer = httparse::Response::new(&mut found);
        assert!(answer.parse(&head).expect("a head").is_complete());
        let mut headers = HeaderMap::new();
        read_headers(answer.headers, &head, &mut headers).map(|()| headers)
    }

    fn put(headers: &HeaderMap, skip: impl Fn(&HeaderName) -> bool) -> String {
        let mut out = BytesMut::new();
        put_headers(&mut out, headers, skip);
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn headers_go_out_as_they_came_but_for_the_names_case() {
        let headers =
            read("HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX-Own:  two  words \r\nset-cookie: b=2\r\nempty:\r\n\r\n").expect("good");
        assert_eq!(headers.len(), 4);
        assert_eq!(put(&headers, |_| false), "set-cookie: a=1\r\nset-cookie: b=2\r\nx-own: two  words\r\nempty: \r\n");
        assert_eq!(put(&headers, |name| *name == header::SET_COOKIE), "x-own: two  words\r\nempty: \r\n");
        assert_eq!(put(&HeaderMap::new(), |_| false), "");
    }

    /// Values are slices of the head; bytes beyond ASCII are some, too.
    #[test]
    fn values_are_not_copied() {
        let head = Bytes::from_static(b"HTTP/1.1 200 OK\r\nx: \xe9t\xe9\r\n\r\n");
        let mut found = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut answer = httparse::Response::new(&mut found);
        assert!(answer.parse(&head).expect("a head").is_complete());
        let mut headers = HeaderMap::new();
        read_headers(answer.headers, &head, &mut headers).expect("good");
        assert_eq!(headers["x"].as_bytes(), b"\xe9t\xe9");
        assert!(head.as_ptr_range().contains(&headers["x"].as_bytes().as_ptr()));
    }

    #[test]
    fn a_reason_of_the_peers_own_is_said() {
        for (status, reason, line) in [
            (200, None, "HTTP/1.1 200 OK\r\n"),
            (498, None, "HTTP/1.1 498 \r\n"),
            (498, Some("Flex Tier"), "HTTP/1.1 498 Flex Tier\r\n"),
            (200, Some("Fine"), "HTTP/1.1 200 Fine\r\n"),
        ] {
            let (mut out, mut extensions) = (BytesMut::new(), Extensions::new());
            if let Some(reason) = reason {
                extensions.insert(ReasonPhrase::from_static(reason.as_bytes()));
            }
            put_status(&mut out, "HTTP/1.1", StatusCode::from_u16(status).expect("a status"), &extensions);
            assert_eq!(out.copy_to_bytes(out.len()), line);
        }
    }
}
