//! HTTP/2 frame by frame: invalid input gets a documented answer, or a clean error of its stream or connection.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GOAWAY, HEADERS,
        PING, PREFACE, PROTOCOL_ERROR, REFUSED_STREAM, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, headers,
    },
    kit::{LONGEST_WAIT, Log, request, rest, settings, start, told, upstream},
};

/// The fields of a valid request; `path` identifies it in the upstream's log.
fn fields(path: &str) -> Vec<(&str, &str)> {
    vec![(":method", "GET"), (":scheme", "http"), (":authority", "shield"), (":path", path), ("authorization", "Bearer gsk_test")]
}

/// The same with one field replaced, or removed by an empty value.
fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut fields = fields("/openai/v1/models/bad");
    fields.retain(|(other, _)| *other != name);
    if !value.is_empty() {
        let at = if name.starts_with(':') { 0 } else { fields.len() };
        fields.insert(at, (name, value));
    }
    fields
}

/// A client that sends raw frames.
struct Client {
    socket: BufReader<TcpStream>,
    /// What has arrived for each stream.
    streams: BTreeMap<u32, Stream>,
    goaway: Option<u32>,
    pongs: usize,
}

/// One stream as the client sees it.
#[derive(Debug, Default)]
struct Stream {
    body: String,
    headers: bool,
    ended: bool,
    reset: Option<u32>,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("it listens");
        socket.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("it is taken");
        Self { socket: BufReader::new(socket), streams: BTreeMap::new(), goaway: None, pongs: 0 }
    }

    async fn send(&mut self, bytes: &[u8]) {
        // Fails once the server has closed.
        let _ = self.socket.get_mut().write_all(bytes).await;
    }

    /// Reads one frame; false at the end of the connection.
    async fn read(&mut self) -> bool {
        let mut head = [0; 9];
        if !matches!(timeout(LONGEST_WAIT, self.socket.read_exact(&mut head)).await.expect("in time"), Ok(9)) {
            return false;
        }
        let [high, mid, low, kind, flags, stream @ ..] = head;
        let (length, stream) = (u32::from_be_bytes([0, high, mid, low]), u32::from_be_bytes(stream));
        let mut payload = vec![0; length as usize];
        self.socket.read_exact(&mut payload).await.expect("frames are whole");
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
        match kind {
            SETTINGS if flags & 1 == 0 => self.send(&frame(SETTINGS, 1, 0, &[])).await,
            PING if flags & 1 == 0 => self.send(&frame(PING, 1, 0, &payload)).await,
            PING => self.pongs += 1,
            GOAWAY => self.goaway = Some(code(4)),
            RST_STREAM => self.stream(stream).reset = Some(code(0)),
            HEADERS => self.stream(stream).headers = true,
            DATA => self.stream(stream).body.push_str(&String::from_utf8_lossy(&payload)),
            _ => {}
        }
        if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            self.stream(stream).ended = true;
        }
        true
    }

    fn stream(&mut self, id: u32) -> &mut Stream {
        self.streams.entry(id).or_default()
    }

    /// Reads until the stream or the connection ends.
    async fn outcome(&mut self, id: u32) -> Outcome {
        loop {
            let stream = self.stream(id);
            if let Some(code) = stream.reset {
                return Outcome::Reset(code);
            }
            if stream.ended {
                return Outcome::Answer(stream.body.clone());
            }
            if let Some(code) = self.goaway.filter(|code| *code > 0) {
                while self.read().await {}
                return Outcome::Closed(code);
            }
            if !self.read().await {
                return Outcome::Closed(self.goaway.unwrap_or(0));
            }
        }
    }
}

/// How a request ends.
#[derive(Debug, PartialEq)]
enum Outcome {
    Answer(String),
    /// The stream is reset with this code.
    Reset(u32),
    /// The connection is closed with this code.
    Closed(u32),
}

use Outcome::{Answer, Closed, Reset};

impl Outcome {
    /// Equality, except that an expected answer is a part of the body.
    fn is(&self, expected: &Self) -> bool {
        match (self, expected) {
            (Answer(body), Answer(part)) => body.contains(part),
            (this, expected) => this == expected,
        }
    }
}

fn seen(log: &Log) -> Vec<String> {
    log.lock().expect("no panic with it").clone()
}

/// Invalid requests do not reach the upstream, and others on the connection continue unless it is closed.
#[tokio::test]
async fn bad_requests_get_an_answer_or_a_clean_error() {
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
        ("a NUL", only(&with("x", "a\0b")), Closed(PROTOCOL_ERROR)),
        // Lengths.
        ("more than announced", body("1", b"{}"), Reset(PROTOCOL_ERROR)),
        ("less than announced", body("3", b"{}"), Reset(PROTOCOL_ERROR)),
        ("no number", body("x", b"{}"), Reset(PROTOCOL_ERROR)),
        ("two lengths", [headers(3, 0, &twice), frame(DATA, END_STREAM, 3, b"{}")].concat(), Reset(PROTOCOL_ERROR)),
        // Sizes.
        ("a header list too large", only(&with("x", &refused)), malformed()),
        ("too many fields", only(&many), malformed()),
        // h2 answers with an empty 431.
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
    timeout(LONGEST_WAIT, shield.drained()).await.expect("nothing is left behind");
}

/// Sends these frames on a connection where another request is running, and a request after them. Returns the differences.
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

/// As over HTTP/1.1, where clients put their own name for the shield in Host.
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

#[tokio::test]
async fn a_truncated_preface_gets_the_error_object() {
    let (address, _) = upstream().await;
    let mut settings = settings(address);
    settings.server.header_timeout = Duration::from_millis(300);
    let shield = start(settings);
    for cut in [1, 10, PREFACE.len() - 1] {
        // A client that leaves, then one that stays.
        let mut leaves = TcpStream::connect(shield.app).await.expect("it listens");
        leaves.write_all(&PREFACE[..cut]).await.expect("it is taken");
        leaves.shutdown().await.expect("it is open");
        let answer = rest(&mut leaves).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"malformed_request\""), "{cut}: {answer}");
        let answer = told(shield.app, &PREFACE[..cut]).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"request_timeout\""), "{cut}: {answer}");
    }
    // A request of HTTP/1.1 on an HTTP/2 connection.
    let mut client = Client::connect(shield.app).await;
    client.send(request("bad").as_bytes()).await;
    assert_eq!(client.outcome(1).await, Closed(FRAME_SIZE_ERROR));
}

/// Upgrades are optional: the request is answered in HTTP/1.1.
#[tokio::test]
async fn an_upgrade_to_http2_is_ignored() {
    let (address, log) = upstream().await;
    let shield = start(settings(address));
    let upgrade =
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\nconnection: close\r\n\r\n";
    let answer = told(shield.app, request("upgrade").replace("\r\n\r\n", &format!("\r\n{upgrade}")).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && !answer.contains("101"), "{answer}");
    assert_eq!(seen(&log).len(), 1);
}

/// Floods a connection, and returns the code of the GOAWAY that ends it.
async fn flood(app: SocketAddr, first: &[u8], again: impl Fn(u32) -> Vec<u8>, count: u32) -> Option<u32> {
    let mut client = Client::connect(app).await;
    client.send(first).await;
    let mut sent = 0;
    while sent < count {
        let batch: Vec<u8> = (sent..(sent + 100).min(count)).flat_map(&again).collect();
        sent += 100;
        if client.socket.get_mut().write_all(&batch).await.is_err() {
            break;
        }
    }
    while client.read().await {}
    client.goaway
}

#[tokio::test]
async fn floods_are_ended_while_other_clients_are_served() {
    let (address, log) = upstream().await;
    let shield = start(settings(address));
    let slow = headers(1, END_STREAM, &fields("/openai/v1/models/slow"));
    let reset = |n: u32| {
        let id = 3 + 2 * n;
        [headers(id, END_STREAM, &fields("/openai/v1/models/reset")), frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat()
    };
    let app = shield.app;
    let serving = async {
        // One after the other on a connection of its own, during the floods.
        let mut slowest = Duration::ZERO;
        let mut client = Client::connect(app).await;
        for n in 0..50 {
            let begun = Instant::now();
            client.send(&headers(1 + 2 * n, END_STREAM, &fields("/openai/v1/models/good"))).await;
            let outcome = client.outcome(1 + 2 * n).await;
            assert!(outcome.is(&Answer("\"list\"".into())), "{outcome:?}");
            slowest = slowest.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    };
    let floods = async {
        let began = Instant::now();
        // Frames without effect: after a thousand the connection is closed.
        flood(app, &slow, |_| frame(PING, 0, 0, &[7; 8]), 1_000_000).await;
        flood(app, &slow, |_| frame(SETTINGS, 0, 0, &[]), 1_000_000).await;
        flood(app, &slow, |n| frame(2, 0, 3 + 2 * (n % 1000), &[0, 0, 0, 0, 1]), 1_000_000).await;
        flood(app, &slow, |_| frame(200, 0, 0, &[0; 100]), 1_000_000).await;
        flood(app, &slow, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 1_000_000).await;
        // Rapid reset, empty frames, and header blocks without an end.
        let codes = [
            flood(app, &slow, reset, 100_000).await,
            flood(app, &headers(1, 0, &with(":method", "POST")), |_| frame(DATA, 0, 1, &[]), 100_000).await,
            flood(app, &frame(HEADERS, 0, 1, &block(&fields("/a"))), |_| frame(CONTINUATION, 0, 1, &[]), 100_000).await,
            // Requests that the server has to reset.
            flood(app, &[], |n| headers(1 + 2 * n, END_STREAM, &with("connection", "close")), 100_000).await,
        ];
        assert_eq!(codes, [Some(ENHANCE_YOUR_CALM); 4]);
        assert!(began.elapsed() < LONGEST_WAIT / 2, "{:?}", began.elapsed());
    };
    tokio::join!(serving, floods);
    let resets = seen(&log).iter().filter(|line| line.contains("/models/reset")).count();
    assert!(resets < 1000, "{resets} requests that were reset at once reached the upstream");
}

/// The answer ends the stream even if its client keeps sending, and affects no other stream.
#[tokio::test]
async fn slow_and_oversized_bodies_are_answered_early() {
    let (address, log) = upstream().await;
    let mut settings = settings(address);
    settings.server.body_timeout = Duration::from_millis(300);
    settings.server.max_body = 1000;
    let shield = start(settings);
    let mut client = Client::connect(shield.app).await;
    let post = with(":method", "POST");
    for (id, length, code) in [(1, "500", "request_timeout"), (3, "1000000", "request_too_large")] {
        client.send(&headers(id, 0, &[&post[..], &[("content-length", length)]].concat())).await;
        client.send(&frame(DATA, 0, id, &[b'x'; 100])).await;
        let outcome = client.outcome(id).await;
        assert!(outcome.is(&Answer(format!("\"{code}\""))), "{outcome:?}");
        client.send(&frame(DATA, 0, id, &[b'x'; 100])).await;
    }
    client.send(&headers(5, END_STREAM, &fields("/openai/v1/models/good"))).await;
    let outcome = client.outcome(5).await;
    assert!(outcome.is(&Answer("\"list\"".into())), "{outcome:?}");
    assert_eq!(seen(&log), ["GET /openai/v1/models/good HTTP/1.1"]);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    const LIMIT: u32 = 256;
    let (address, _) = upstream().await;
    let shield = start(settings(address));
    let mut client = Client::connect(shield.app).await;
    let slow = fields("/openai/v1/models/slow");
    let all: Vec<u8> = (0..LIMIT + 10).flat_map(|n| headers(1 + 2 * n, END_STREAM, &slow)).collect();
    client.send(&all).await;
    for n in 0..LIMIT + 10 {
        let outcome = client.outcome(1 + 2 * n).await;
        let expected = if n < LIMIT { Answer("\"list\"".into()) } else { Reset(REFUSED_STREAM) };
        assert!(outcome.is(&expected), "{n}: {outcome:?}");
    }
}
