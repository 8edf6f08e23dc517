//! Header names that servers rewrite, and cookies.

use crate::{
    case::{Case, case},
    rule::{EITHER, NO_CONTROLS, NOT_NORMALIZED, TWO_COOKIES, echo},
};

pub(crate) const CASES: &[Case] = &[
    case(
        "norm-underscore-cl",
        "RFC 9110 §5.1",
        b"POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 11\r\nContent_Length: 99\r\n\r\nhello world",
        NOT_NORMALIZED,
    ),
    case(
        "norm-sp-before-colon-cl",
        "RFC 9112 §5",
        b"POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 11\r\nContent-Length : 5\r\n\r\nhello world",
        NOT_NORMALIZED,
    ),
    case(
        "norm-tab-in-name",
        "RFC 9110 §5.1",
        b"POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 11\r\nContent\tLength: 99\r\n\r\nhello world",
        NOT_NORMALIZED,
    ),
    case(
        "norm-case-te",
        "RFC 9110 §5.1",
        b"POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 11\r\nTRANSFER-ENCODING: chunked\r\n\r\nhello world",
        NOT_NORMALIZED,
    ),
    case(
        "norm-underscore-te",
        "RFC 9110 §5.1",
        b"POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 11\r\nTransfer_Encoding: chunked\r\n\r\nhello world",
        NOT_NORMALIZED,
    ),
    case("cook-echo", "RFC 6265 §4.2", b"GET /echo HTTP/1.1\r\nHost: {host}\r\nCookie: foo=bar\r\n\r\n", echo("cookie: foo=bar")),
    case("cook-oversized", "RFC 6265 §4.2", b"GET /echo HTTP/1.1\r\nHost: {host}\r\nCookie: big={A*65536}\r\n\r\n", EITHER),
    case("cook-empty", "RFC 6265 §4.2", b"GET /echo HTTP/1.1\r\nHost: {host}\r\nCookie: \r\n\r\n", EITHER),
    case("cook-nul", "RFC 6265 §4.2", b"GET /echo HTTP/1.1\r\nHost: {host}\r\nCookie: foo=\x00bar\r\n\r\n", NO_CONTROLS),
    case(
        "cook-control-chars",
        "RFC 6265 §4.2",
        b"GET /echo HTTP/1.1\r\nHost: {host}\r\nCookie: foo=\x01\x02\x03\r\n\r\n",
        NO_CONTROLS,
    ),
    case("cook-many-pairs", "RFC 6265 §4.2", b"GET /echo HTTP/1.1\r\nHost: {host}\r\nCookie: {k=v; *1000}z=1\r\n\r\n", EITHER),
    case("cook-malformed", "RFC 6265 §4.2", b"GET /echo HTTP/1.1\r\nHost: {host}\r\nCookie: ===;;;\r\n\r\n", EITHER),
    case(
        "cook-multi-header",
        "RFC 6265 §4.2",
        b"GET /echo HTTP/1.1\r\nHost: {host}\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
        TWO_COOKIES,
    ),
    case(
        "cook-parsed-basic",
        "RFC 6265 §4.2",
        b"GET /cookie HTTP/1.1\r\nHost: {host}\r\nCookie: foo=bar\r\n\r\n",
        echo("foo=bar"),
    ),
    case(
        "cook-parsed-multi",
        "RFC 6265 §4.2",
        b"GET /cookie HTTP/1.1\r\nHost: {host}\r\nCookie: a=1; b=2; c=3\r\n\r\n",
        echo("a=1; b=2; c=3"),
    ),
    case("cook-parsed-empty-val", "RFC 6265 §4.2", b"GET /cookie HTTP/1.1\r\nHost: {host}\r\nCookie: foo=\r\n\r\n", EITHER),
    case(
        "cook-parsed-special",
        "RFC 6265 §4.2",
        b"GET /cookie HTTP/1.1\r\nHost: {host}\r\nCookie: a=hello world; b=x=y\r\n\r\n",
        EITHER,
    ),
];
