//! Request smuggling: a second request hidden in the first.

use crate::{
    case::{Case, case},
    rule::{CLOSE_AFTER, IN_STEP, LENIENT, NO_SECOND, NOTHING_AFTER, TWO_ANSWERS},
};

pub(crate) const CASES: &[Case] = &[
    case("smug-clte-pipeline", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", LENIENT),
    case("smug-tecl-pipeline", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\n", LENIENT),
    case("smug-clte-conn-close", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", CLOSE_AFTER).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-tecl-conn-close", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", CLOSE_AFTER).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-clte-desync", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", CLOSE_AFTER).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-clte-smuggled-get", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 32\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-clte-smuggled-get-cl-plus", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: +32\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-clte-smuggled-get-cl-non-numeric", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 32x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-clte-smuggled-get-te-obs-fold", "RFC 9112 §5.2", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 32\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-clte-smuggled-head", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 33\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHEAD / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-clte-smuggled-get-te-trailing-space", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 32\r\nTransfer-Encoding: chunked \r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-clte-smuggled-get-te-leading-comma", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 32\r\nTransfer-Encoding: , chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-clte-smuggled-get-te-case-mismatch", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 32\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-te-duplicate-headers-smuggled-get", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 32\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-tecl-smuggled-get", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2e\r\nGET / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n\r\n0\r\n\r\n", NO_SECOND),
    case("smug-duplicate-cl-smuggled-get", "RFC 9110 §8.6", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nContent-Length: 31\r\n\r\nPINGGET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_SECOND),
    case("smug-get-cl-prefix-desync", "RFC 9110 §9.3.1", b"GET / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 25\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n", IN_STEP).then(b"\r\nGET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-tecl-desync", "RFC 9112 §6.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\nX", CLOSE_AFTER).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-cl0-body-poison", "RFC 9112 §6.2", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\nX", NOTHING_AFTER).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-get-cl-body-desync", "RFC 9110 §9.3.1", b"GET / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello", IN_STEP).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-options-cl-body-desync", "RFC 9110 §9.3.7", b"OPTIONS / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello", IN_STEP).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-expect-100-cl-desync", "RFC 9110 §10.1.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello", IN_STEP).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-options-te-obs-fold", "RFC 9112 §5.2", b"OPTIONS / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\nhello", CLOSE_AFTER).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-chunk-invalid-size-desync", "RFC 9112 §7.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n+0\r\n\r\nX", CLOSE_AFTER).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    case("smug-pipeline-safe", "RFC 9112 §9.3", b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n", TWO_ANSWERS).then(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
];
