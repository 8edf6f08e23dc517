//! A simple HTTP/1.1 client with one connection per request that checks every failure against the contract.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

/// Maximum time to a response.
const LONGEST_WAIT: Duration = Duration::from_secs(90);
/// Maximum size of a failure's body in bytes.
const LONGEST_FAILURE: usize = 16 << 10;

/// A client for one address.
#[derive(Clone, Copy)]
pub(crate) struct Client {
    address: SocketAddr,
}

/// A complete response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A response whose body is still arriving. Closes the connection on drop.
pub(crate) struct Streaming {
    pub(crate) response: Response<Incoming>,
    connection: JoinHandle<()>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// A request for `path` with an API key.
    pub(crate) fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("authorization", "Bearer gsk_test")
    }

    /// POSTs JSON and checks the response.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        self.send(request.body(Full::from(body.to_string())).expect("a valid request")).await
    }

    /// GETs a path and checks the response.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(Full::default()).expect("a valid request")).await
    }

    /// GETs a path, or POSTs if there is a body, without checking the response. For servers other than the shield.
    pub(crate) async fn plain(&self, path: &str, body: Option<&Value>) -> Answer {
        let (method, body) = body.map_or((Method::GET, String::new()), |body| (Method::POST, body.to_string()));
        self.open(self.request(method, path).body(Full::from(body)).expect("a valid request")).await.whole().await
    }

    /// Sends a request, reads the complete response and checks it.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let answer = self.open(request).await.whole().await;
        answer.check();
        answer
    }

    /// Sends a request, and returns when the head of the response has arrived.
    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> Streaming {
        let socket = TcpStream::connect(self.address).await.expect("the listener accepts");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.expect("a connection");
        // Errors of the connection also fail the request.
        let connection = tokio::spawn(async { drop(connection.await) });
        let what = format!("{} {}", request.method(), request.uri());
        let response = tokio::time::timeout(LONGEST_WAIT, sender.send_request(request)).await;
        let response = response.unwrap_or_else(|_| panic!("{what}: no head in {LONGEST_WAIT:?}"));
        Streaming { response: response.unwrap_or_else(|e| panic!("{what}: {e:?}")), connection }
    }

    /// Writes raw bytes and reads until the connection is closed.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut socket = TcpStream::connect(self.address).await.expect("the listener accepts");
        // The server may respond and close the connection before it has read all bytes.
        let _ = socket.write_all(bytes).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        // A reset after the response does not discard the response.
        let read = tokio::time::timeout(LONGEST_WAIT, socket.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the connection is still open after {LONGEST_WAIT:?}");
        answer
    }
}

impl Streaming {
    /// The next part of the body; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Option<Bytes> {
        loop {
            let frame = tokio::time::timeout(LONGEST_WAIT, self.response.body_mut().frame()).await.expect("a frame in time")?;
            if let Ok(data) = frame.expect("a body without an error").into_data() {
                return Some(data);
            }
        }
    }

    /// Reads the body to its end.
    pub(crate) async fn whole(mut self) -> Answer {
        let (status, headers) = (self.response.status(), self.response.headers().clone());
        let mut body = BytesMut::new();
        while let Some(piece) = self.piece().await {
            body.extend_from_slice(&piece);
        }
        Answer { status, headers, body: body.freeze() }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }

    /// The value of a header; empty if it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a printable header"))
    }

    /// `error.code`; empty if there is none.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Checks the contract's rules for every response, and those for failures.
    pub(crate) fn check(&self) {
        let told = || format!("{} {:?}\n{}", self.status, self.headers, self.text().chars().take(2000).collect::<String>());
        for name in ["x-shield-wait-ms", "x-shield-attempts"] {
            assert!(self.header(name).parse::<u64>().is_ok(), "{name} is an integer: {}", told());
        }
        assert!(!self.header("x-request-id").is_empty(), "x-request-id: {}", told());
        if self.status.as_u16() < 400 {
            return;
        }
        assert!(self.header("content-type").starts_with("application/json"), "JSON: {}", told());
        assert!(self.body.len() <= LONGEST_FAILURE, "bounded: {}", told());
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "message is a string: {}", told());
        assert!(error["type"].as_str().is_some_and(|t| !t.is_empty()), "type is a string: {}", told());
        let text = self.text();
        for leak in ["<html", "<HTML", "org_0", "gsk_"] {
            assert!(!text.contains(leak), "{leak} in an error: {}", told());
        }
        assert!(matches!(self.header("x-should-retry"), "true" | "false"), "x-should-retry: {}", told());
        let (seconds, ms) = (self.header("retry-after"), self.header("retry-after-ms"));
        assert_eq!(seconds.is_empty(), ms.is_empty(), "both or neither: {}", told());
        if !seconds.is_empty() {
            let (seconds, ms): (u64, u64) = (seconds.parse().expect("an integer"), ms.parse().expect("an integer"));
            assert_eq!(seconds, ms.div_ceil(1000), "the same time twice: {}", told());
        }
        if self.status == StatusCode::TOO_MANY_REQUESTS
            || self.status == StatusCode::SERVICE_UNAVAILABLE && !self.header("x-shield-error").is_empty()
        {
            assert!(!seconds.is_empty(), "retry-after: {}", told());
        }
        if !self.header("x-shield-error").is_empty() {
            assert_eq!(self.header("x-shield-error"), self.code(), "x-shield-error is the code: {}", told());
        }
    }
}
