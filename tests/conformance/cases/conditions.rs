//! Conditional requests: an intermediary passes them, and what comes of them, unchanged.

use crate::{
    case::{Case, case},
    rule::{NOT_CONDITIONAL, NOT_MODIFIED},
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n";

pub(crate) const CASES: &[Case] = &[
    case("cap-etag-304", "RFC 9110 §13.1.2", GET, NOT_MODIFIED)
        .then(b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-None-Match: \"v1\"\r\n\r\n"),
    case("cap-last-modified-304", "RFC 9110 §13.1.3", GET, NOT_MODIFIED)
        .then(b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"),
    case("cap-etag-in-304", "RFC 9110 §15.4.5", GET, NOT_MODIFIED)
        .then(b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-None-Match: \"v0\", \"v1\"\r\n\r\n"),
    case("cap-inm-precedence", "RFC 9110 §13.1.2", GET, NOT_MODIFIED).then(
        b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-None-Match: \"v1\"\r\nIf-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n",
    ),
    case("cap-inm-wildcard", "RFC 9110 §13.1.2", GET, NOT_MODIFIED)
        .then(b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-None-Match: *\r\n\r\n"),
    case("cap-ims-future", "RFC 9110 §13.1.3", GET, NOT_CONDITIONAL)
        .then(b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-Modified-Since: Thu, 01 Jan 2099 00:00:00 GMT\r\n\r\n"),
    case("cap-ims-invalid", "RFC 9110 §13.1.3", GET, NOT_CONDITIONAL)
        .then(b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-Modified-Since: not-a-date\r\n\r\n"),
    case("cap-inm-unquoted", "RFC 9110 §8.8.3", GET, NOT_CONDITIONAL)
        .then(b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-None-Match: v1\r\n\r\n"),
    case("cap-etag-weak", "RFC 9110 §13.1.2", GET, NOT_MODIFIED)
        .then(b"GET / HTTP/1.1\r\nHost: {host}\r\nIf-None-Match: W/\"v1\"\r\n\r\n"),
];
