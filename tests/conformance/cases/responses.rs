//! Malformed answers of an upstream, and what an intermediary may do with them.
//!
//! The response rules of cispa/http-conformance that bind who forwards a response, and the clauses of RFC 9112 for proxies.
//! `{path}` asks the upstream for the answer of the row.

use crate::{
    case::{Case, response},
    response_rule::{
        BAD_GATEWAY, BODYLESS, CUT, DECHUNKED, EARLY_HINTS, LENGTH_OF_GET, NO_CONTENT, NO_FOLD, NO_HOP, NO_SPACE, NOT_407_ALONE,
        NOT_SWITCHED, ONE_FRAMING, ONE_LENGTH, OWN_VERSION, READ_OR_REFUSED, REFUSED_OR_CLEAN, RESET_CONTENT, WHOLE, keeps,
        whole,
    },
};

const GET: &[u8] = b"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n";
const GET10: &[u8] = b"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n";
const HEAD: &[u8] = b"HEAD {path} HTTP/1.1\r\nHost: {host}\r\n\r\n";
const UPGRADE: &[u8] = b"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

pub(crate) const FRAMING: &[Case] = &[
    response("resp-length", "RFC 9112 §6.2", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", WHOLE),
    response("resp-chunked", "RFC 9112 §7.1", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", WHOLE),
    response("resp-until-close", "RFC 9112 §6.3", GET, b"HTTP/1.1 200 OK\r\n\r\nhello", WHOLE),
    response("resp-trailers", "RFC 9112 §7.1.2", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", WHOLE),
    response("resp-length-and-chunked", "RFC 9112 §6.3", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", ONE_FRAMING),
    response("resp-two-lengths", "RFC 9112 §6.3", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello", BAD_GATEWAY),
    response("resp-length-twice", "RFC 9110 §8.6", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", ONE_LENGTH),
    response("resp-length-list", "RFC 9110 §8.6", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", ONE_LENGTH),
    response("resp-length-plus", "RFC 9112 §6.3", GET, b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", BAD_GATEWAY),
    response("resp-length-text", "RFC 9112 §6.3", GET, b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello", BAD_GATEWAY),
    response("resp-length-overflow", "RFC 9112 §6.3", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello", BAD_GATEWAY),
    response("resp-cut-length", "RFC 9112 §8", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", CUT),
    response("resp-cut-chunked", "RFC 9112 §8", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", CUT),
    response("resp-chunk-text", "RFC 9112 §7.1", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", CUT),
    response("resp-chunk-overflow", "RFC 9112 §7.1", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff0\r\nhello\r\n0\r\n\r\n", CUT),
    response("resp-chunk-spill", "RFC 9112 §7.1", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", CUT),
    response("resp-bytes-after-length", "RFC 9112 §6.3", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", WHOLE),
    response("resp-bytes-after-chunks", "RFC 9112 §6.3", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", WHOLE),
    response("resp-204-length", "RFC 9110 §8.6", GET, b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", NO_CONTENT),
    response("resp-204-chunked", "RFC 9112 §6.1", GET, b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", NO_CONTENT),
    response("resp-204-body", "RFC 9110 §15.3.5", GET, b"HTTP/1.1 204 No Content\r\n\r\nhello", NO_CONTENT),
    response("resp-304-body", "RFC 9110 §15.4.5", GET, b"HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\n\r\nhello", BODYLESS),
    response("resp-head-body", "RFC 9110 §9.3.2", HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", BODYLESS),
    response("resp-head-length", "RFC 9110 §8.6", HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", LENGTH_OF_GET),
    response("resp-chunked-to-http10", "RFC 9112 §6.1", GET10, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", DECHUNKED),
];

pub(crate) const HEADS: &[Case] = &[
    response(
        "resp-obs-fold",
        "RFC 9112 §5.2",
        GET,
        b"HTTP/1.1 200 OK\r\nX-Fold: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
        NO_FOLD,
    ),
    response(
        "resp-space-before-colon",
        "RFC 9112 §5.1",
        GET,
        b"HTTP/1.1 200 OK\r\nX-Space : a\r\nContent-Length: 5\r\n\r\nhello",
        NO_SPACE,
    ),
    response(
        "resp-bare-cr",
        "RFC 9112 §2.2",
        GET,
        b"HTTP/1.1 200 OK\r\nX-Odd: a\rb\r\nContent-Length: 5\r\n\r\nhello",
        REFUSED_OR_CLEAN,
    ),
    response(
        "resp-nul",
        "RFC 9110 §5.5",
        GET,
        b"HTTP/1.1 200 OK\r\nX-Odd: a\x00b\r\nContent-Length: 5\r\n\r\nhello",
        REFUSED_OR_CLEAN,
    ),
    response("resp-bare-lf", "RFC 9112 §2.2", GET, b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", READ_OR_REFUSED),
    response("resp-empty-name", "RFC 9112 §5", GET, b"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 5\r\n\r\nhello", READ_OR_REFUSED),
    response(
        "resp-odd-name",
        "RFC 9110 §5.1",
        GET,
        b"HTTP/1.1 200 OK\r\nbad[name: a\r\nContent-Length: 5\r\n\r\nhello",
        READ_OR_REFUSED,
    ),
    response(
        "resp-no-colon",
        "RFC 9112 §5",
        GET,
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 5\r\n\r\nhello",
        READ_OR_REFUSED,
    ),
    response("resp-http10", "RFC 9112 §2.3", GET, b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", OWN_VERSION),
    response("resp-http2-version", "RFC 9112 §2.3", GET, b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", BAD_GATEWAY),
    response("resp-http09", "RFC 9112 §2.3", GET, b"hello, here is your page", BAD_GATEWAY),
    response("resp-status-text", "RFC 9112 §4", GET, b"HTTP/1.1 abc OK\r\nContent-Length: 5\r\n\r\nhello", BAD_GATEWAY),
    response("resp-status-two-digits", "RFC 9112 §4", GET, b"HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello", BAD_GATEWAY),
    response("resp-status-four-digits", "RFC 9112 §4", GET, b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello", BAD_GATEWAY),
    response("resp-status-600", "RFC 9110 §15", GET, b"HTTP/1.1 600 Odd\r\nContent-Length: 5\r\n\r\nhello", BAD_GATEWAY),
    response("resp-no-reason", "RFC 9112 §4", GET, b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", WHOLE),
    response("resp-empty", "RFC 9110 §15.6.3", GET, b"", BAD_GATEWAY),
    response("resp-cut-head", "RFC 9112 §8", GET, b"HTTP/1.1 200 OK\r\nContent-Le", BAD_GATEWAY),
    response(
        "resp-blanks-around-value",
        "RFC 9110 §5.5",
        GET,
        b"HTTP/1.1 200 OK\r\nX-Odd: \t a \t\r\nContent-Length: 5\r\n\r\nhello",
        whole("x-odd: a"),
    ),
    response("resp-date-missing", "RFC 9110 §6.6.1", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", keeps("date")),
    response(
        "resp-hop-by-hop",
        "RFC 9110 §7.6.1",
        GET,
        b"HTTP/1.1 200 OK\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 5\r\n\r\nhello",
        NO_HOP,
    ),
    response(
        "resp-two-cookies",
        "RFC 9110 §5.3",
        GET,
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 5\r\n\r\nhello",
        whole("set-cookie: b=2"),
    ),
];

pub(crate) const STATUSES: &[Case] = &[
    response("resp-100-flood", "RFC 9110 §15.2", GET, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", WHOLE),
    response("resp-103", "RFC 9110 §15.2", GET, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", EARLY_HINTS),
    response("resp-103-to-http10", "RFC 9110 §15.2", GET10, b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", DECHUNKED),
    response("resp-101-unasked", "RFC 9110 §7.8", GET, b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello", NOT_SWITCHED),
    response("resp-101-without-upgrade", "RFC 9110 §15.2.2", UPGRADE, b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello", NOT_SWITCHED),
    response("resp-101-other-protocol", "RFC 9110 §7.8", UPGRADE, b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\nhello", NOT_SWITCHED),
    response("resp-205-body", "RFC 9110 §15.3.6", GET, b"HTTP/1.1 205 Reset Content\r\nContent-Length: 5\r\n\r\nhello", RESET_CONTENT),
    response("resp-206", "RFC 9110 §15.3.7.1", GET, b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/9\r\nContent-Length: 5\r\n\r\nhello", whole("content-range: bytes 0-4/9")),
    response("resp-206-multipart", "RFC 9110 §15.3.7.2", GET, b"HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=x\r\nContent-Length: 5\r\n\r\nhello", whole("content-type: multipart/byteranges; boundary=x")),
    response("resp-301", "RFC 9110 §15.4.2", GET, b"HTTP/1.1 301 Moved Permanently\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", keeps("location")),
    response("resp-300", "RFC 9110 §15.4.1", GET, b"HTTP/1.1 300 Multiple Choices\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", keeps("location")),
    response("resp-302", "RFC 9110 §15.4.3", GET, b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", keeps("location")),
    response("resp-303", "RFC 9110 §15.4.4", GET, b"HTTP/1.1 303 See Other\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", keeps("location")),
    response("resp-307", "RFC 9110 §15.4.8", GET, b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", keeps("location")),
    response("resp-308", "RFC 9110 §15.4.9", GET, b"HTTP/1.1 308 Permanent Redirect\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", keeps("location")),
    response("resp-304-headers", "RFC 9110 §15.4.5", GET, b"HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\nCache-Control: max-age=5\r\n\r\n", keeps("etag")),
    response("resp-401", "RFC 9110 §15.5.2", GET, b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 5\r\n\r\nhello", keeps("www-authenticate")),
    response("resp-405", "RFC 9110 §15.5.6", GET, b"HTTP/1.1 405 Method Not Allowed\r\nAllow: POST\r\nContent-Length: 5\r\n\r\nhello", keeps("allow")),
    response("resp-407", "RFC 9110 §15.5.8", GET, b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 5\r\n\r\nhello", NOT_407_ALONE),
    response("resp-413", "RFC 9110 §15.5.14", GET, b"HTTP/1.1 413 Content Too Large\r\nRetry-After: 5\r\nContent-Length: 5\r\n\r\nhello", keeps("retry-after")),
    response("resp-415", "RFC 9110 §15.5.16", GET, b"HTTP/1.1 415 Unsupported Media Type\r\nAccept: application/json\r\nContent-Length: 5\r\n\r\nhello", keeps("accept")),
    response("resp-416", "RFC 9110 §15.5.17", GET, b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */9\r\nContent-Length: 5\r\n\r\nhello", keeps("content-range")),
    response("resp-426", "RFC 9110 §15.5.22", GET, b"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: HTTP/3.0\r\nContent-Length: 5\r\n\r\nhello", keeps("upgrade")),
    response("resp-unknown-status", "RFC 9110 §15", GET, b"HTTP/1.1 299 Odd\r\nContent-Length: 5\r\n\r\nhello", WHOLE),
];
