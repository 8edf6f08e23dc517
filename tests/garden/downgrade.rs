//! HTTP/2 payloads: fields and bodies of a client must not become additional header lines, bodies or requests for an HTTP/1.1
//! upstream.

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    frames::{ACK, DATA, END_STREAM, Frame, GOAWAY, NO_ERROR, PREFACE, SETTINGS, frame, headers},
    listed,
};

const LONG: Duration = Duration::from_secs(20);

type Field = (Vec<u8>, Vec<u8>);
/// Name, fields and body of a payload.
type Added = (&'static str, &'static [(&'static str, &'static str)], &'static str);

/// A request, possibly an invalid one.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    pub(crate) name: String,
    fields: Vec<Field>,
    pub(crate) body: Vec<u8>,
    trailers: Vec<Field>,
}

impl Payload {
    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> &[u8] {
        self.fields.iter().find(|(this, _)| this == name.as_bytes()).map_or(b"", |(_, value)| value)
    }

    fn bytes(&self) -> Vec<u8> {
        let end = |last: bool| if last { END_STREAM } else { 0 };
        let (bodyless, trailerless) = (self.body.is_empty(), self.trailers.is_empty());
        let mut bytes = headers(1, end(bodyless && trailerless), &self.fields);
        for (n, piece) in self.body.chunks(16 << 10).enumerate() {
            let last = (n + 1) * (16 << 10) >= self.body.len();
            bytes.extend(frame(DATA, end(last && trailerless), 1, piece));
        }
        if !trailerless {
            bytes.extend(headers(1, END_STREAM, &self.trailers));
        }
        bytes
    }
}

fn fields(pairs: &[(&str, &str)]) -> Vec<Field> {
    pairs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
const CHUNKED: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Fields and bodies that are added to a POST, with the techniques of smugglex 0.4.0 (H2.CL, H2.TE, pseudo-headers, line breaks in
/// fields) and of portswigger.net/research/http2, as HTTP/2 fields.
const ADDED: &[Added] = &[
    ("two methods", &[(":method", "GET")], ""),
    ("two paths", &[(":path", "/admin")], ""),
    ("two authorities", &[(":authority", "malicious.com")], ""),
    ("two schemes", &[(":scheme", "http")], ""),
    ("another pseudo-header", &[(":custom-header", "value")], ""),
    ("a colon within a name", &[("x-custom:header", "value")], ""),
    ("length 0, and a request", &[("content-length", "0")], SMUGGLED),
    ("lengths 0 and 34, and a request", &[("content-length", "0"), ("content-length", "34")], SMUGGLED),
    ("length 50, and nothing", &[("content-length", "50")], ""),
    ("length 5, and a chunk's end", &[("content-length", "5")], CHUNKED),
    ("lengths in a list", &[("content-length", "37, 37")], SMUGGLED),
    ("a length with a sign", &[("content-length", "+34")], SMUGGLED),
    ("a length with a comma", &[("content-length", "34,")], SMUGGLED),
    ("a length of 2^64 and 34", &[("content-length", "18446744073709551650")], SMUGGLED),
    ("a line feed in a value", &[("x-custom", "value1\nx-injected: injected")], ""),
    ("a line end in a value", &[("x-custom", "value1\r\nx-injected: injected")], ""),
    ("a carriage return in a value", &[("x-custom", "value1\rx-injected: injected")], ""),
    ("a NUL in a value", &[("x-custom", "value1\0x-injected: injected")], ""),
    ("chunks", &[("transfer-encoding", "chunked")], CHUNKED),
    ("chunks, and nothing", &[("transfer-encoding", "chunked")], ""),
    ("chunks and length 6", &[("transfer-encoding", "chunked"), ("content-length", "6")], "0\r\n\r\nG"),
    ("chunks in a value", &[("foo", "b\r\ntransfer-encoding: chunked")], CHUNKED),
    ("chunks in a name", &[("foo: b\r\ntransfer-encoding", "chunked")], CHUNKED),
    ("chunks in a name of one line", &[("transfer-encoding: chunked\r\nfoo", "b")], CHUNKED),
    ("chunks after a blank", &[("transfer-encoding ", "chunked")], CHUNKED),
    ("chunks after a tab", &[("transfer-encoding\t", "chunked")], CHUNKED),
    ("chunks before a blank", &[(" transfer-encoding", "chunked")], CHUNKED),
    ("chunks in capitals", &[("Transfer-Encoding", "chunked")], CHUNKED),
    ("chunks with an underscore", &[("transfer_encoding", "chunked")], CHUNKED),
    ("chunks by another name", &[("te", "chunked")], CHUNKED),
    ("chunks at the connection", &[("connection", "transfer-encoding"), ("transfer-encoding", "chunked")], CHUNKED),
    ("the length at the connection", &[("connection", "content-length"), ("content-length", "34")], SMUGGLED),
    ("close", &[("connection", "close")], ""),
    ("keep-alive", &[("keep-alive", "timeout=5")], ""),
    ("proxy-connection", &[("proxy-connection", "keep-alive")], ""),
    ("an upgrade", &[("upgrade", "h2c"), ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")], SMUGGLED),
    ("the method in capitals", &[(":Method", "POST")], ""),
    ("the path in capitals", &[(":PATH", "/admin")], ""),
    ("an underscore in a name", &[("x_custom_header", "value")], "body"),
    ("length 0, and a body", &[("content-length", "0")], "unexpected body content"),
    (
        "settings of an upgrade and chunks",
        &[("http2-settings", "AAMAAABk"), ("content-length", "0"), ("transfer-encoding", "chunked")],
        CHUNKED,
    ),
    ("a request in a value", &[("x-custom", "value\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 0")], ""),
    ("all pseudo-headers again", &[(":method", "GET"), (":path", "/admin"), (":authority", "malicious.com")], ""),
    (
        "a method, chunks and a length",
        &[(":method", "POST"), ("transfer-encoding", "chunked"), ("content-length", "6")],
        "0\r\n\r\nG",
    ),
    ("an authority and two lengths", &[(":authority", "a"), ("content-length", "8"), ("content-length", "0")], "smuggled"),
    ("two hosts", &[("host", "a"), ("host", "b")], SMUGGLED),
    ("a host that differs", &[("host", "malicious.com")], SMUGGLED),
    ("an empty name", &[("", "x")], ""),
    ("a name of a colon", &[(":", "x")], ""),
    ("a request as a name", &[("GET /smuggled HTTP/1.1", "x")], ""),
    ("expect", &[("expect", "100-continue")], "body"),
    ("trailers announced", &[("trailer", "content-length"), ("te", "trailers")], "body"),
    ("blanks around a value", &[("content-length", " 34 ")], SMUGGLED),
    ("two cookies", &[("cookie", "a=1"), ("cookie", "b=2\r\nx: y")], ""),
    ("a body alone", &[], SMUGGLED),
    ("a body of chunks", &[], CHUNKED),
    ("a body that closes chunks", &[], "0\r\n\r\n"),
];

/// Pseudo-headers with invalid content.
const PSEUDO: &[(&str, &str, &str)] = &[
    ("a request line in the method", ":method", "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: x"),
    ("a path in the method", ":method", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nGET"),
    ("a blank in the method", ":method", "GET /smuggled"),
    ("an empty method", ":method", ""),
    ("a version in the path", ":path", "/ HTTP/1.1"),
    ("lines in the path", ":path", "/ HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: x"),
    ("a request in the path", ":path", "/ HTTP/1.1\r\nHost: a\r\n\r\nGET /smuggled HTTP/1.1\r\nx: y"),
    ("a line feed in the path", ":path", "/a\nb"),
    ("a tab in the path", ":path", "/a\tb"),
    ("a NUL in the path", ":path", "/a\0b"),
    ("no slash in the path", ":path", "smuggled"),
    ("an absolute path", ":path", "http://malicious.com/"),
    ("an authority in the path", ":path", "//malicious.com/"),
    ("a fragment in the path", ":path", "/a#b"),
    ("an asterisk", ":path", "*"),
    ("an at sign before the path", ":path", "@malicious.com/"),
    ("bytes over 127 in the path", ":path", "/\u{e9}"),
    ("lines in the authority", ":authority", "a\r\ntransfer-encoding: chunked"),
    ("a request in the authority", ":authority", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a"),
    ("a path in the authority", ":authority", "a/smuggled"),
    ("userinfo in the authority", ":authority", "a@malicious.com"),
    ("a blank in the authority", ":authority", "a b"),
    ("an empty authority", ":authority", ""),
    ("a URL in the scheme", ":scheme", "http://malicious.com/?"),
    ("lines in the scheme", ":scheme", "http\r\nx: y"),
];

/// Translates an HTTP/1.1 request to HTTP/2, with pseudo-headers and lower-case names, and without lines that are not fields.
/// `framed` keeps Content-Length and Transfer-Encoding.
fn translated(name: &str, bytes: &[u8], framed: bool) -> Option<Payload> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let mut fields = fields(&[(":method", method), (":scheme", "http"), (":path", path), (":authority", "a")]);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let (name, value) = (name.to_ascii_lowercase(), value.strip_prefix(' ').unwrap_or(value));
        let frames = ["content-length", "transfer-encoding", "connection"].iter().any(|this| name.contains(this));
        if name != "host" && (framed || !frames) {
            fields.push((name.into_bytes(), value.into()));
        }
    }
    let body = bytes[end + 4..].to_vec();
    let name = format!("HTTP/2: {name}{}", if framed { "" } else { ", without its framing" });
    Some(Payload { name, fields, body, trailers: Vec::new() })
}

/// All payloads, and the first `mutated` mutations.
pub(crate) fn payloads(mutated: u64) -> Vec<Payload> {
    let post = || fields(&[(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "a")]);
    let payload = |name: &str, fields: Vec<Field>, body: &str, trailers: &[(&str, &str)]| Payload {
        name: format!("HTTP/2: {name}"),
        fields,
        body: body.as_bytes().to_vec(),
        trailers: self::fields(trailers),
    };
    let mut all = vec![
        payload("a body", post(), "hello", &[]),
        payload("trailers", post(), "hello", &[("x-sum", "1")]),
        payload("a pseudo-header as a trailer", post(), "hello", &[(":path", "/injected")]),
        payload("lengths as trailers", post(), "hello", &[("content-length", "0"), ("transfer-encoding", "chunked")]),
        payload("lines in a trailer", post(), "hello", &[("x", "y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a")]),
        payload("a field before the pseudo-headers", [fields(&[("x", "y")]), post()].concat(), "hello", &[]),
        payload("no host at all", post()[..3].to_vec(), "hello", &[]),
    ];
    for (name, added, body) in ADDED {
        all.push(payload(name, [post(), fields(added)].concat(), body, &[]));
    }
    for (name, pseudo, value) in PSEUDO {
        for body in ["", CHUNKED] {
            let mut fields = post();
            let field = fields.iter_mut().find(|(this, _)| this == pseudo.as_bytes()).expect("a pseudo-header");
            field.1 = value.as_bytes().to_vec();
            all.push(payload(name, fields, body, &[]));
        }
    }
    for (name, bytes) in listed() {
        all.extend([true, false].into_iter().filter_map(|framed| translated(&name, &bytes, framed)));
    }
    all.extend((0..mutated).map(mutation));
    all
}

/// A valid request with bytes of its fields changed, inserted, removed or duplicated.
fn mutation(seed: u64) -> Payload {
    const INTERESTING: &[u8] = b"\0\t\n\x0b\r \"#*+,-0:;=_\x7f\x85\xa0\xff";
    let mut random = fastrand::Rng::with_seed(seed);
    let mut fields = fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a?b=c"),
        (":authority", "a:80"),
        ("content-length", "34"),
        ("x-one", "y"),
        ("x-two", "z"),
    ]);
    for _ in 0..random.usize(1..3) {
        let at = random.usize(..fields.len());
        let field = &mut fields[at];
        let text = if random.bool() { &mut field.0 } else { &mut field.1 };
        let byte = INTERESTING[random.usize(..INTERESTING.len())];
        let at = random.usize(..text.len().max(1));
        match random.u8(..4) {
            _ if at >= text.len() => text.push(byte),
            0 => text[at] = byte,
            1 => text.insert(at, byte),
            2 => drop(text.remove(at)),
            _ => text.insert(at, text[at]),
        }
    }
    Payload { name: format!("HTTP/2: mutation {seed}"), fields, body: SMUGGLED.into(), trailers: Vec::new() }
}

/// Sends a payload on stream 1 and, if the connection stays open, `GET /next` on stream 3. Returns the responses by stream.
pub(crate) async fn exchange(to: SocketAddr, payload: &Payload) -> io::Result<BTreeMap<u32, String>> {
    let mut socket = TcpStream::connect(to).await?;
    let mut bodies: BTreeMap<u32, String> = BTreeMap::new();
    // A server that refused the payload may have closed the connection.
    let _ = socket.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &payload.bytes()].concat()).await;
    let mut read = Vec::new();
    let (mut refused, mut followed) = (false, false);
    loop {
        while let Some(this) = Frame::take(&mut read) {
            match this.kind {
                SETTINGS if this.flags & ACK == 0 => drop(socket.write_all(&frame(SETTINGS, ACK, 0, &[])).await),
                GOAWAY => refused |= this.code(4) != Some(NO_ERROR),
                DATA => bodies.entry(this.stream).or_default().push_str(&String::from_utf8_lossy(&this.payload)),
                _ => {}
            }
            if !this.ends_stream() || refused {
                continue;
            }
            match this.stream {
                1 if !followed => {
                    let next = fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/next"), (":authority", "a")]);
                    let _ = socket.write_all(&headers(3, END_STREAM, &next)).await;
                    followed = true;
                }
                3 => return Ok(bodies),
                _ => {}
            }
        }
        match timeout(LONG, socket.read_buf(&mut read)).await {
            Ok(Ok(0) | Err(_)) => return Ok(bodies),
            Ok(Ok(_)) => {}
            Err(_) => return Err(io::Error::other(format!("{}: neither answered nor closed", payload.name))),
        }
    }
}
