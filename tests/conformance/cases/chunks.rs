//! Chunks, their extensions, and trailers.

use crate::{
    case::{Case, case},
    rule::{LENIENT, REJECT},
};

pub(crate) const CASES: &[Case] = &[
    case("smug-chunk-bare-semicolon", "RFC 9112 §7.1.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-ext-invalid-token", "RFC 9112 §7.1.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5;bad[=x\r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-underscore", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\nhello world!!!!!\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-hex-prefix", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-size-plus", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-size-trailing-ows", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-leading-sp", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-missing-trailing-crlf", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", REJECT),
    case("smug-chunk-ext-lf", "RFC 9112 §7.1.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n", LENIENT),
    case("smug-chunk-spill", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-lf-term", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", LENIENT),
    case("smug-chunk-ext-ctrl", "RFC 9112 §7.1.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5;\x00ext\r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-ext-cr", "RFC 9112 §7.1.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5;a\rX\r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunk-lf-trailer", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\n", LENIENT),
    case("smug-chunk-negative", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n", REJECT),
    case("smug-chunked-with-params", "RFC 9112 §7", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked;ext=val\r\nContent-Length: 5\r\n\r\nhello", LENIENT),
    case("smug-trailer-cl", "RFC 9110 §6.5.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n", LENIENT),
    case("smug-trailer-te", "RFC 9110 §6.5.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", LENIENT),
    case("smug-trailer-host", "RFC 9110 §6.5.2", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nHost: evil.example.com\r\n\r\n", LENIENT),
    case("smug-trailer-auth", "RFC 9110 §6.5.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nAuthorization: Bearer evil\r\n\r\n", LENIENT),
    case("smug-chunk-bare-cr-term", "RFC 9112 §2.2", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\rhello\r\n0\r\n\r\n", REJECT),
    case("smug-trailer-content-type", "RFC 9110 §6.5.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Type: text/evil\r\n\r\n", LENIENT),
];
