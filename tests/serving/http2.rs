//! HTTP/2 frame by frame: invalid input gets a documented error response, or a clean error of its stream or connection.

mod abuse;
mod client;

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet, time::timeout};

use crate::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, HEADERS, PING,
        PREFACE, PROTOCOL_ERROR, SETTINGS, WINDOW_UPDATE, block, frame, headers,
    },
    kit::{LONGEST_WAIT, exchange, request, rest, settings, start, upstream},
};
use client::{
    Client,
    Outcome::{self, Answer, Closed, Reset},
    fields, seen, with,
};

/// Invalid requests do not reach the upstream. Other requests on the connection continue unless it is closed.
#[tokio::test]
async fn bad_requests_get_a_response_or_a_clean_error() {
    let (address, log) = upstream().await;
    let shield = start(settings(address));
    let malformed = || Answer("\"malformed_request\"".into());
    let large = |length| "x".repeat(length);
    let (refused, too_large, way_too_large) = (large(70_000), large(140_000), large(600_000));
    let many: Vec<_> = fields("/openai/v1/models/bad").into_iter().chain(std::iter::repeat_n(("x", "y"), 100)).collect();
    let only = |fields: &[(&str, &str)]| headers(3, END_STREAM, fields);
    let body = |announced: &str, sent: &[u8]| {
        let fields = [&with(":method", "POST")[..], &[("content-length", announced)]].concat();
        [headers(3, 0, &fields), frame(DATA, END_STREAM, 3, sent)].concat()
    };
    let two_hosts = [with("host", "shield"), vec![("host", "elsewhere.example")]].concat();
    let twice = [&with(":method", "POST")[..], &[("content-length", "2"), ("content-length", "3")]].concat();
    let table = [
        // Connection-specific fields of HTTP/1.1.
        ("connection", only(&with("connection", "close")), Reset(PROTOCOL_ERROR)),
        ("keep-alive", only(&with("keep-alive", "timeout=5")), Reset(PROTOCOL_ERROR)),
        ("proxy-connection", only(&with("proxy-connection", "keep-alive")), Reset(PROTOCOL_ERROR)),
        ("upgrade", only(&with("upgrade", "h2c")), Reset(PROTOCOL_ERROR)),
        ("transfer-encoding", only(&with("transfer-encoding", "chunked")), Reset(PROTOCOL_ERROR)),
        ("te", only(&with("te", "gzip")), Reset(PROTOCOL_ERROR)),
        // Pseudo-headers.
        ("no method", only(&with(":method", "")), Reset(PROTOCOL_ERROR)),
        ("no scheme", only(&with(":scheme", "")), Reset(PROTOCOL_ERROR)),
        ("no path", only(&with(":path", "")), Reset(PROTOCOL_ERROR)),
        (
            "no path and no authority",
            only(&[(":method", "GET"), (":scheme", "http"), ("authorization", "Bearer k")]),
            malformed(),
        ),
        ("an unknown one", only(&with(":unknown", "x")), Closed(PROTOCOL_ERROR)),
        ("a response's", only(&with(":status", "200")), Reset(PROTOCOL_ERROR)),
        ("two paths", only(&[&fields("/a")[..], &[(":path", "/b")]].concat()), Reset(PROTOCOL_ERROR)),
        (
            "one after a field",
            only(&[&with(":path", "")[..], &[(":path", "/openai/v1/models/bad")]].concat()),
            Reset(PROTOCOL_ERROR),
        ),
        ("a bad authority", only(&with(":authority", "a b")), Reset(PROTOCOL_ERROR)),
        ("a bad path", only(&with(":path", "/\x7f")), Reset(PROTOCOL_ERROR)),
        ("a Host that differs", only(&with("host", "elsewhere.example")), malformed()),
        ("a second Host", only(&two_hosts), malformed()),
        (
            "CONNECT",
            only(&[(":method", "CONNECT"), (":authority", "elsewhere.example:443")]),
            Answer("\"destination_not_allowed\"".into()),
        ),
        // hyper closes the connection.
        (
            "CONNECT with a body",
            [
                headers(3, 0, &[(":method", "CONNECT"), (":authority", "elsewhere.example:443"), ("content-length", "5")]),
                frame(DATA, END_STREAM, 3, b"12345"),
            ]
            .concat(),
            Closed(0),
        ),
        (
            "extended CONNECT",
            only(
                &[&with(":method", "CONNECT")[..], &[]]
                    .concat()
                    .into_iter()
                    .chain([(":protocol", "websocket")])
                    .collect::<Vec<_>>(),
            ),
            Reset(PROTOCOL_ERROR),
        ),
        (
            "an extended CONNECT in order",
            only(&[&[(":protocol", "websocket")], &with(":method", "CONNECT")[..]].concat()),
            Reset(PROTOCOL_ERROR),
        ),
        // Names and values.
        ("an upper-case name", only(&with("X-Upper", "x")), Closed(PROTOCOL_ERROR)),
        ("a name that is none", only(&with("a b", "x")), Closed(PROTOCOL_ERROR)),
        ("an empty name", only(&with("", "x")), Closed(PROTOCOL_ERROR)),
        ("a method that is none", only(&with(":method", "G T")), Closed(PROTOCOL_ERROR)),
        ("a NUL", only(&with("x", "a\0b")), Closed(PROTOCOL_ERROR)),
        // h2 passes these.
        ("a space before a value", only(&with("x", " a")), malformed()),
        ("a tab after a value", only(&with("authorization", "Bearer k\t")), malformed()),
        // Lengths.
        ("more than announced", body("1", b"{}"), Reset(PROTOCOL_ERROR)),
        ("less than announced", body("3", b"{}"), Reset(PROTOCOL_ERROR)),
        ("no number", body("x", b"{}"), Reset(PROTOCOL_ERROR)),
        ("two lengths", [headers(3, 0, &twice), frame(DATA, END_STREAM, 3, b"{}")].concat(), Reset(PROTOCOL_ERROR)),
        // Sizes.
        ("a header list too large", only(&with("x", &refused)), malformed()),
        ("too many fields", only(&many), malformed()),
        // h2 responds with an empty 431.
        ("one too large to decode", only(&with("x", &too_large)), Answer(String::new())),
        ("one that is an attack", only(&with("x", &way_too_large)), Closed(ENHANCE_YOUR_CALM)),
        // Frames out of order.
        (
            "DATA after END_STREAM",
            [headers(3, END_STREAM, &with(":path", "/slow")), frame(DATA, 0, 3, b"x")].concat(),
            Closed(PROTOCOL_ERROR),
        ),
        (
            "HEADERS after END_STREAM",
            [headers(3, END_STREAM, &with(":path", "/slow")), headers(3, END_STREAM, &[("x", "y")])].concat(),
            Closed(PROTOCOL_ERROR),
        ),
        ("DATA before HEADERS", frame(DATA, 0, 3, b"x"), Closed(PROTOCOL_ERROR)),
        ("DATA on the connection", frame(DATA, 0, 0, b"x"), Closed(PROTOCOL_ERROR)),
        ("a stream of the server's", headers(4, END_STREAM, &fields("/openai/v1/models/bad")), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION alone", frame(CONTINUATION, END_HEADERS, 3, &block(&fields("/a"))), Closed(PROTOCOL_ERROR)),
        (
            "HEADERS cut by a PING",
            [frame(HEADERS, END_STREAM, 3, &block(&fields("/a"))), frame(PING, 0, 0, &[0; 8])].concat(),
            Closed(PROTOCOL_ERROR),
        ),
        ("a header block that is none", frame(HEADERS, END_STREAM | END_HEADERS, 3, &[0xff; 20]), Closed(PROTOCOL_ERROR)),
        ("a frame too large", frame(DATA, 0, 3, &vec![0; 20_000]), Closed(FRAME_SIZE_ERROR)),
        (
            "a window too wide",
            [headers(3, 0, &with(":path", "/slow")), frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            Closed(FLOW_CONTROL_ERROR),
        ),
        ("a PING too short", frame(PING, 0, 0, &[0; 7]), Closed(PROTOCOL_ERROR)),
        ("SETTINGS that are none", frame(SETTINGS, 0, 0, &[0; 5]), Closed(PROTOCOL_ERROR)),
    ];
    let mut cases = JoinSet::new();
    for (name, bytes, expected) in table {
        cases.spawn(case(shield.app, name, bytes, expected));
    }
    let mut faults = cases.join_all().await.concat();
    let bad = seen(&log).into_iter().filter(|line| !line.contains("/slow") && !line.contains("/good"));
    faults.extend(bad.map(|line| format!("the upstream saw {line}")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    timeout(LONGEST_WAIT, shield.drained()).await.expect("a complete drain");
}

/// Sends frames on a connection on which another request is in flight, and a request after them. Returns the unexpected outcomes.
async fn case(app: SocketAddr, name: &'static str, bytes: Vec<u8>, expected: Outcome) -> Vec<String> {
    let mut faults = Vec::new();
    let mut client = Client::connect(app).await;
    client.send(&headers(1, END_STREAM, &fields("/openai/v1/models/slow"))).await;
    client.send(&bytes).await;
    let outcome = client.outcome(3).await;
    if !outcome.is(&expected) {
        faults.push(format!("{name}: {outcome:?}, not {expected:?}"));
    }
    if !matches!(outcome, Closed(_)) {
        client.send(&headers(5, END_STREAM, &fields("/openai/v1/models/good"))).await;
        for id in [1, 5] {
            let other = client.outcome(id).await;
            if !other.is(&Answer("\"list\"".into())) {
                faults.push(format!("{name}: another request on its connection: {other:?}"));
            }
        }
    }
    faults
}

/// Like any Host over HTTP/1.1, because clients have different names for the shield.
#[tokio::test]
async fn any_authority_is_accepted() {
    let (address, log) = upstream().await;
    let shield = start(settings(address));
    let mut client = Client::connect(shield.app).await;
    for (id, fields) in [(1, with(":authority", "elsewhere.example")), (3, with(":authority", "")), (5, with(":scheme", "https"))]
    {
        client.send(&headers(id, END_STREAM, &fields)).await;
        let outcome = client.outcome(id).await;
        assert!(outcome.is(&Answer("\"list\"".into())), "{outcome:?}");
    }
    assert_eq!(seen(&log), ["GET /openai/v1/models/bad HTTP/1.1"; 3]);
}

/// h2 discards pseudo-headers in trailers where RFC 9113, 8.1, calls them malformed, before the shield drops the trailers.
#[tokio::test]
async fn trailers_are_dropped_whatever_they_are() {
    let (address, log) = upstream().await;
    let shield = start(settings(address));
    let mut client = Client::connect(shield.app).await;
    for (id, trailer) in [(1, ("x", "y")), (3, (":path", "/openai/v1/models/other")), (5, ("content-length", "9"))] {
        let request = [headers(id, 0, &fields("/openai/v1/models/good")), headers(id, END_STREAM, &[trailer])].concat();
        client.send(&request).await;
        let outcome = client.outcome(id).await;
        assert!(outcome.is(&Answer("\"list\"".into())), "{trailer:?}: {outcome:?}");
    }
    assert_eq!(seen(&log), ["GET /openai/v1/models/good HTTP/1.1"; 3]);
}

#[tokio::test]
async fn a_truncated_preface_gets_the_error_object() {
    let (address, _) = upstream().await;
    let mut settings = settings(address);
    settings.server.header_timeout = Duration::from_millis(300);
    let shield = start(settings);
    for cut in [1, 10, PREFACE.len() - 1] {
        // First a client that closes its side, then one that does not.
        let mut leaves = TcpStream::connect(shield.app).await.expect("the listener accepts");
        leaves.write_all(&PREFACE[..cut]).await.expect("the request is written");
        leaves.shutdown().await.expect("an open connection");
        let answer = rest(&mut leaves).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"malformed_request\""), "{cut}: {answer}");
        let answer = exchange(shield.app, &PREFACE[..cut]).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"request_timeout\""), "{cut}: {answer}");
    }
    // An HTTP/1.1 request on an HTTP/2 connection.
    let mut client = Client::connect(shield.app).await;
    client.send(request("bad").as_bytes()).await;
    assert_eq!(client.outcome(1).await, Closed(FRAME_SIZE_ERROR));
}

/// Upgrades are optional, so the response is HTTP/1.1.
#[tokio::test]
async fn an_upgrade_to_http2_is_ignored() {
    let (address, log) = upstream().await;
    let shield = start(settings(address));
    let upgrade =
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\nconnection: close\r\n\r\n";
    let answer = exchange(shield.app, request("upgrade").replace("\r\n\r\n", &format!("\r\n{upgrade}")).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && !answer.contains("101"), "{answer}");
    assert_eq!(seen(&log).len(), 1);
}
