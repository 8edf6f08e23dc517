//! Methods, versions, upgrades, and the headers of an answer.

use crate::{
    case::{Case, case},
    rule::{
        ABSOLUTE_FORM, ACCEPT, ACCEPT_OR_406, ACCEPT_OR_415, ALLOW, ALLOW_ON_405, AND_CLOSE, CONTENT_TYPE, DATE, DATE_FORMAT,
        EXPECTATION, HTTP10_NO_HOST, MINOR_VERSION, NO_BODY, NO_INTERIM, NO_LENGTH_ON_204, NO_METHOD, NO_RANGE, NOT_101,
        ODD_METHOD, RANGE_IGNORED, SHOULD_CLOSE, TRACE, TRACE_SECRETS, UPGRADE_VERSION,
    },
};

pub(crate) const CASES: &[Case] = &[
    case("comp-baseline", "RFC 9110 §9.3.1", b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n", ACCEPT),
    case("comp-options-star", "RFC 9112 §3.2.4", b"OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n", ACCEPT),
    case("comp-absolute-form", "RFC 9112 §3.2.2", b"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n", ABSOLUTE_FORM),
    case("comp-method-case", "RFC 9110 §9.1", b"get / HTTP/1.1\r\nHost: {host}\r\n\r\n", ODD_METHOD),
    case("comp-upgrade-post", "RFC 6455 §4.1", b"POST / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", NOT_101),
    case("comp-upgrade-missing-conn", "RFC 9110 §7.8", b"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", NOT_101),
    case("comp-upgrade-unknown", "RFC 9110 §7.8", b"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: totally-made-up/1.0\r\n\r\n", NOT_101),
    case("comp-method-connect", "RFC 9110 §9.3.6", b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", NO_METHOD),
    case("comp-expect-unknown", "RFC 9110 §10.1.1", b"GET / HTTP/1.1\r\nHost: {host}\r\nExpect: 200-ok\r\n\r\n", EXPECTATION),
    case("comp-upgrade-invalid-ver", "RFC 6455 §4.4", b"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 99\r\n\r\n", UPGRADE_VERSION),
    case("comp-method-trace", "RFC 9110 §9.3.8", b"TRACE / HTTP/1.1\r\nHost: {host}\r\n\r\n", TRACE),
    case("comp-connection-close", "RFC 9112 §9.3", b"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", AND_CLOSE),
    case("comp-http10-default-close", "RFC 9112 §9.3", b"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n", SHOULD_CLOSE),
    case("comp-http10-no-host", "RFC 9112 §3.2", b"GET / HTTP/1.0\r\n\r\n", HTTP10_NO_HOST),
    case("comp-http12-version", "RFC 9112 §2.3", b"GET / HTTP/1.2\r\nHost: {host}\r\n\r\n", MINOR_VERSION),
    case("comp-trace-with-body", "RFC 9110 §9.3.8", b"TRACE / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello", TRACE),
    case("comp-range-post", "RFC 9110 §14.2", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nRange: bytes=0-10\r\n\r\nhello", NO_RANGE),
    case("comp-upgrade-http10", "RFC 9110 §7.8", b"GET / HTTP/1.0\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", NOT_101),
    case("comp-head-no-body", "RFC 9110 §9.3.2", b"HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n", NO_BODY),
    case("comp-unknown-method", "RFC 9110 §9.1", b"FOOBAR / HTTP/1.1\r\nHost: {host}\r\n\r\n", TRACE),
    case("comp-405-allow", "RFC 9110 §15.5.6", b"DELETE / HTTP/1.1\r\nHost: {host}\r\n\r\n", ALLOW_ON_405),
    case("comp-date-header", "RFC 9110 §6.6.1", b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n", DATE),
    case("comp-date-format", "RFC 9110 §5.6.7", b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n", DATE_FORMAT),
    case("comp-no-1xx-http10", "RFC 9110 §15.2", b"POST / HTTP/1.0\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", NO_INTERIM),
    case("comp-no-cl-in-204", "RFC 9110 §8.6", b"OPTIONS / HTTP/1.1\r\nHost: {host}\r\n\r\n", NO_LENGTH_ON_204),
    case("comp-options-allow", "RFC 9110 §9.3.7", b"OPTIONS / HTTP/1.1\r\nHost: {host}\r\n\r\n", ALLOW),
    case("comp-content-type", "RFC 9110 §8.3", b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n", CONTENT_TYPE),
    case("comp-trace-sensitive", "RFC 9110 §9.3.8", b"TRACE / HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer secret-token-123\r\n\r\n", TRACE_SECRETS),
    case("comp-range-invalid", "RFC 9110 §14.2", b"GET / HTTP/1.1\r\nHost: {host}\r\nRange: bytes=abc-xyz\r\n\r\n", RANGE_IGNORED),
    case("comp-accept-nonsense", "RFC 9110 §12.5.1", b"GET / HTTP/1.1\r\nHost: {host}\r\nAccept: application/x-nonsense\r\n\r\n", ACCEPT_OR_406),
    case("comp-post-unsupported-ct", "RFC 9110 §15.5.16", b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nContent-Type: application/x-nonsense\r\n\r\nhello", ACCEPT_OR_415),
];
