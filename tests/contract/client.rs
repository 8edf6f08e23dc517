//! A client that reads the raw status line, headers and body, and the contract's rules for every failure.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longest time that any exchange here may take, on a slow machine.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest body of a failure, bytes.
const LONGEST: usize = 16 << 10;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// A request with `connection: close`.
pub(crate) fn request(method: &str, target: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nhost: shield\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// The key, which no failure may contain.
pub(crate) const KEY: &str = "authorization: Bearer gsk_canary0123456789\r\n";

/// A chat call with additional headers and body members.
pub(crate) fn chat_with(headers: &str, more: &str) -> String {
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"canary prompt"}}]{more}}}"#);
    request("POST", "/openai/v1/chat/completions", &format!("{KEY}content-type: application/json\r\n{headers}"), &body)
}

/// A chat call.
pub(crate) fn chat() -> String {
    chat_with("", "")
}

/// A chat call for a stream.
pub(crate) fn chat_stream() -> String {
    chat_with("", r#","stream":true"#)
}

/// The protocol that the client speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// Sends a request, written in HTTP/1.1, in this protocol.
pub(crate) async fn ask_in(protocol: Protocol, address: SocketAddr, request: &str) -> Answer {
    match protocol {
        Protocol::Http1 => ask(address, request.as_bytes()).await,
        Protocol::Http2 => timeout(LONGEST_WAIT, ask_http2(address, request)).await.expect("it is answered").expect("an answer"),
    }
}

async fn ask_http2(address: SocketAddr, request: &str) -> Result<Answer, BoxError> {
    let socket = TcpStream::connect(address).await?;
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
    let connection = tokio::spawn(connection);
    let answer = Answer::of(client.send_request(in_http2(address, request)?).await?).await?;
    connection.abort();
    Ok(answer)
}

/// The same request for HTTP/2: without hop-by-hop headers.
pub(crate) fn in_http2(address: SocketAddr, request: &str) -> Result<Request<Full<Bytes>>, BoxError> {
    let (head, body) = request.split_once("\r\n\r\n").ok_or("a head")?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next().ok_or("a request line")?.split(' ');
    let (method, target) = (first.next().ok_or("a method")?, first.next().ok_or("a target")?);
    let uri: Uri = if method == "CONNECT" { target.parse()? } else { format!("http://{address}{target}").parse()? };
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if !["host", "connection", "content-length"].contains(&name) {
            request = request.header(name, value);
        }
    }
    Ok(request.body(Full::new(Bytes::from(body.to_owned())))?)
}

/// Sends these bytes and returns the first answer.
pub(crate) async fn ask(address: SocketAddr, bytes: &[u8]) -> Answer {
    let asked = timeout(LONGEST_WAIT, try_ask(address, bytes)).await.expect("it is answered and closed");
    asked.expect("a whole answer and a clean close")
}

/// Like `ask`, but the exchange may fail.
pub(crate) async fn try_ask(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Answer> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(bytes).await?;
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await?;
    Answer::read(&all).ok_or_else(|| std::io::Error::other(format!("no answer: {:?}", String::from_utf8_lossy(&all))))
}

impl Answer {
    /// A response of hyper's client, read to its end.
    pub(crate) async fn of(response: Response<Incoming>) -> Result<Self, BoxError> {
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let headers = head.headers.iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()));
        Ok(Self {
            status: head.status.as_u16(),
            reason: "not known".into(),
            headers: headers.collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.splitn(3, ' ');
        let (_version, status, reason) = (first.next()?, first.next()?.parse().ok()?, first.next().unwrap_or("").to_owned());
        let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = if chunked { unchunked(body) } else { body.to_owned() };
        Some(Self { status, reason, headers, body })
    }

    /// A header's value, empty where it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// The body's `error` member.
    pub(crate) fn error(&self) -> Value {
        serde_json::from_str::<Value>(&self.body).map(|mut body| body["error"].take()).unwrap_or_default()
    }

    /// The contract's rules that this failure breaks.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must = |holds: bool, what: &str| {
            if !holds {
                faults.push(what.to_owned());
            }
        };
        let error = self.error();
        let is_text = |member: &str| error[member].as_str().is_some_and(|text| !text.is_empty());
        must((400..600).contains(&self.status), "a failure's status");
        must(!self.reason.is_empty() && !self.reason.contains('<'), "a reason phrase");
        must(self.header("content-type") == "application/json", "content-type");
        must(self.header("content-length") == self.body.len().to_string(), "content-length");
        let private = ["transfer-encoding", "keep-alive", "x-hop"].iter().find(|name| !self.header(name).is_empty());
        must(private.is_none(), "no header of the upstream's own connection");
        must(is_text("message"), "message is a string");
        must(is_text("type"), "type is a string");
        must(error["code"].is_string() || error["code"].is_null(), "code is a string or absent");
        must(self.body.len() <= LONGEST, "bounded length");
        let shown = format!("{} {:?} {}", self.reason, self.headers, self.body);
        must(!shown.to_lowercase().contains("<html"), "no page");
        must(
            !["org_0", "gsk_canary", "gsk_leak", "canary prompt"].iter().any(|leak| shown.contains(leak)),
            "no id, key or prompt",
        );
        must(matches!(self.header("x-should-retry"), "true" | "false"), "x-should-retry");
        let (seconds, ms) = (self.header("retry-after"), self.header("retry-after-ms"));
        let pair = (seconds.parse::<u64>(), ms.parse::<u64>());
        match &pair {
            (Ok(seconds), Ok(ms)) => must(*seconds == ms.div_ceil(1000) && *ms > 0, "the same time in both retry-after headers"),
            _ => must(seconds.is_empty() && ms.is_empty(), "retry-after and retry-after-ms are integers"),
        }
        // The shield has waited already: this `retry-after` is for people and for clients that retry all the same.
        let outage = error["code"] == "upstream_unavailable";
        let curable = !outage && matches!(pair, (Ok(_), Ok(ms)) if ms <= 60_000);
        must(
            (self.header("x-should-retry") == "true") == curable,
            "x-should-retry: true where a stated wait may cure it, and only there",
        );
        let ours = self.header("x-shield-error");
        must(ours.is_empty() || error["code"] == ours, "x-shield-error is the code");
        must(self.header("x-shield-wait-ms").parse::<u64>().is_ok(), "x-shield-wait-ms");
        must(self.header("x-shield-attempts").parse::<u64>().is_ok(), "x-shield-attempts");
        must(!self.header("x-request-id").is_empty(), "x-request-id");
        faults
    }
}

/// A chunked body's content.
fn unchunked(mut body: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || rest.len() < size + 2 {
            break;
        }
        all.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    all
}
