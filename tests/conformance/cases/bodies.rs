//! Bodies that every server has to read.

use crate::{
    case::{Case, case},
    rule::{ACCEPT, EXTENSION, LENIENT, REJECT_OR_WAIT, echo},
};

pub(crate) const CASES: &[Case] = &[
    case(
        "comp-post-cl-body",
        "RFC 9112 §6.2",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello",
        echo("hello"),
    ),
    case("comp-post-cl-zero", "RFC 9112 §6.2", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n", ACCEPT),
    case("comp-post-no-cl-no-te", "RFC 9112 §6.3", b"POST / HTTP/1.1\r\nHost: {host}\r\n\r\n", ACCEPT),
    case(
        "comp-post-cl-undersend",
        "RFC 9112 §6.2",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n\r\nhello",
        REJECT_OR_WAIT,
    ),
    case(
        "comp-chunked-body",
        "RFC 9112 §7.1",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        echo("hello"),
    ),
    case(
        "comp-chunked-multi",
        "RFC 9112 §7.1",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        echo("hello world"),
    ),
    case(
        "comp-chunked-empty",
        "RFC 9112 §7.1",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ACCEPT,
    ),
    case(
        "comp-chunked-no-final",
        "RFC 9112 §7.1",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        REJECT_OR_WAIT,
    ),
    case(
        "comp-get-with-cl-body",
        "RFC 9110 §9.3.1",
        b"GET / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello",
        LENIENT,
    ),
    case(
        "comp-chunked-extension",
        "RFC 9112 §7.1.1",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=value\r\nhello\r\n0\r\n\r\n",
        EXTENSION,
    ),
    case(
        "comp-chunked-trailer-valid",
        "RFC 9112 §7.1.2",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Checksum: abc\r\n\r\n",
        echo("hello"),
    ),
    case(
        "comp-chunked-hex-uppercase",
        "RFC 9112 §7.1",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nA\r\nhelloworld\r\n0\r\n\r\n",
        echo("helloworld"),
    ),
];
