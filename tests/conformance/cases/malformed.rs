//! Bytes that are not HTTP, and oversized heads.

use crate::{
    case::{Case, case},
    rule::{HUGE, LENIENT, MANY_RANGES, ODD_TARGET, PREFACE, REJECT, REJECT_OR_WAIT, TOO_LARGE},
};

pub(crate) const CASES: &[Case] = &[
    case(
        "mal-binary-garbage",
        "RFC 9112 §3",
        b"\x9c\x01\xfe\x7f\x80\xd3\x00\x13\x37\xff\xee\x0a\xba\xad\xf0\x0d\x00\x00\x10\x0a\x0d\x0a\x0d\x0a",
        REJECT_OR_WAIT,
    ),
    case("mal-long-url", "RFC 9112 §3", b"GET /{A*100000} HTTP/1.1\r\nHost: {host}\r\n\r\n", TOO_LARGE),
    case("mal-long-header-value", "RFC 9110 §5.4", b"GET / HTTP/1.1\r\nHost: {host}\r\nX-Big: {B*100000}\r\n\r\n", TOO_LARGE),
    case("mal-many-headers", "RFC 9110 §5.4", b"GET / HTTP/1.1\r\nHost: {host}\r\n{X-H: value~*10000}\r\n", TOO_LARGE),
    case("mal-nul-in-url", "RFC 9112 §3.2", b"GET /\x00test HTTP/1.1\r\nHost: {host}\r\n\r\n", REJECT),
    case(
        "mal-control-chars-header",
        "RFC 9110 §5.5",
        b"GET / HTTP/1.1\r\nHost: {host}\r\nX-Test: abc\x07\x08\x0bdef\r\n\r\n",
        REJECT,
    ),
    case("mal-incomplete-request", "RFC 9112 §8", b"GET / HTTP/1.1\r\nHost: {host}\r\nX-Test: value", REJECT_OR_WAIT),
    case("mal-empty-request", "RFC 9112 §9.5", b"", REJECT_OR_WAIT),
    case("mal-long-header-name", "RFC 9110 §5.4", b"GET / HTTP/1.1\r\nHost: {host}\r\n{A*100000}: val\r\n\r\n", TOO_LARGE),
    case("mal-long-method", "RFC 9112 §3", b"{A*100000} / HTTP/1.1\r\nHost: {host}\r\n\r\n", REJECT),
    case("mal-non-ascii-header-name", "RFC 9110 §5.1", b"GET / HTTP/1.1\r\nHost: {host}\r\nX-T\xc3\xabst: value\r\n\r\n", REJECT),
    case("mal-non-ascii-url", "RFC 9112 §3.2", b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: {host}\r\n\r\n", REJECT),
    case(
        "mal-cl-overflow",
        "RFC 9112 §6.3",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999999999999\r\n\r\n",
        REJECT,
    ),
    case("mal-whitespace-only-line", "RFC 9112 §3", b"   \r\n\r\n", REJECT_OR_WAIT),
    case("mal-nul-in-header-value", "RFC 9110 §5.5", b"GET / HTTP/1.1\r\nHost: {host}\r\nX-Test: val\x00ue\r\n\r\n", REJECT),
    case(
        "mal-chunk-size-overflow",
        "RFC 9112 §7.1",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF0\r\nhello\r\n0\r\n\r\n",
        REJECT,
    ),
    case("mal-h2-preface", "RFC 9113 §3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", PREFACE),
    case("mal-cl-empty", "RFC 9110 §8.6", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: \r\n\r\n", REJECT),
    case(
        "mal-cl-tab-before-value",
        "RFC 9110 §5.5",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length:\t5\r\n\r\nhello",
        LENIENT,
    ),
    case("mal-url-backslash", "RFC 9112 §3.2", b"GET /path\\file HTTP/1.1\r\nHost: {host}\r\n\r\n", ODD_TARGET),
    case("mal-url-overlong-utf8", "RFC 9112 §3.2", b"GET /\xc0\xaf HTTP/1.1\r\nHost: {host}\r\n\r\n", REJECT),
    case("mal-url-percent-null", "RFC 3986 §2.1", b"GET /path%00.html HTTP/1.1\r\nHost: {host}\r\n\r\n", ODD_TARGET),
    case(
        "mal-url-percent-crlf",
        "RFC 3986 §2.1",
        b"GET /path%0d%0aX-Injected:%20true HTTP/1.1\r\nHost: {host}\r\n\r\n",
        ODD_TARGET,
    ),
    case(
        "mal-chunk-ext-64k",
        "RFC 9112 §7.1.1",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5;ext={a*65536}\r\nhello\r\n0\r\n\r\n",
        LENIENT,
    ),
    case(
        "mal-range-overlapping",
        "RFC 9110 §14.2",
        b"GET / HTTP/1.1\r\nHost: {host}\r\nRange: bytes={0-,*999}0-\r\n\r\n",
        MANY_RANGES,
    ),
    case(
        "mal-post-cl-huge-no-body",
        "RFC 9112 §6.3",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 999999999\r\n\r\n",
        HUGE,
    ),
];
