//! A shield in this process in front of an HTTP/2 server of another project, which is a process of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use groq_shield::{
    config::{Plan, Settings},
    proxy::Shield,
    server::{self, Listeners, Running},
};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::tools;

/// Longest time that any exchange here may take, on a slow machine.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/http2");

/// A running upstream, and what a shield needs to reach it.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    certificate: PathBuf,
    _process: Child,
    _folder: tempfile::TempDir,
}

/// A response that has been read to its end.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Whole {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The number of attempts, from `x-shield-attempts`.
    pub(crate) fn attempts(&self) -> &str {
        self.headers["x-shield-attempts"].to_str().expect("a number")
    }
}

/// A certificate for 127.0.0.1 and its key, as files.
fn certificate() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    let files = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
    std::fs::write(&files.0, certificate.pem()).expect("it is written");
    std::fs::write(&files.1, key.serialize_pem()).expect("it is written");
    (folder, files.0, files.1)
}

impl Upstream {
    /// Node's `http2`; `mode` selects its misbehaviour.
    pub(crate) async fn node(mode: &str) -> Self {
        // Installs Node if it is missing.
        tokio::task::spawn_blocking(tools::node).await.expect("Node can be installed");
        let (folder, certificate, key) = certificate();
        let mut command = Command::new("node");
        command.arg(Path::new(SOURCES).join("upstream.mjs")).args([&certificate, &key]).arg(mode);
        let mut process = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("Node starts");
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let port = timeout(LONGEST_WAIT, lines.next_line()).await.expect("in time").expect("a line").expect("a line");
        let address = format!("127.0.0.1:{port}").parse().expect("a port");
        Self { address, certificate, _process: process, _folder: folder }
    }

    /// hypercorn; `mode` is `h2` or `http1`.
    pub(crate) async fn hypercorn(mode: &str) -> Self {
        let list = Path::new(SOURCES).join("requirements.txt");
        let python = tokio::task::spawn_blocking(move || tools::venv("hypercorn", &list)).await.expect("it can be installed");
        let (folder, certificate, key) = certificate();
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it is bound");
        let mut command = Command::new(python);
        command.arg(Path::new(SOURCES).join("upstream.py")).args([&certificate, &key]).arg(free.port().to_string()).arg(mode);
        let process = command.kill_on_drop(true).spawn().expect("Python starts");
        let begun = Instant::now();
        while TcpStream::connect(free).await.is_err() {
            assert!(begun.elapsed() < LONGEST_WAIT, "hypercorn does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        Self { address: free, certificate, _process: process, _folder: folder }
    }

    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        settings.admin.listen = settings.server.listen;
        settings.server.drain_timeout = Duration::from_millis(300);
        settings.upstream.base_url = format!("https://{}", self.address).parse().expect("a URL");
        settings.upstream.ca_file = Some(self.certificate.clone());
        settings.limits.plan = Plan::None;
        settings.queue.max_waiting = 10_000;
        settings.retry.base_delay = Duration::from_millis(2);
        settings.retry.max_delay = Duration::from_millis(4);
        settings.breaker.failures = 1000;
        settings
    }

    /// A shield in front of it.
    pub(crate) fn shield(&self) -> Running {
        start(self.settings())
    }
}

pub(crate) fn start(settings: Settings) -> Running {
    let listeners = Listeners::open(&settings).expect("free ports");
    server::start(Shield::new(settings).expect("nothing to fail on"), listeners).expect("it starts")
}

pub(crate) fn chat(stream: bool) -> Value {
    json!({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
}

fn request(address: SocketAddr, body: &Value) -> http::request::Builder {
    let method = if body.is_null() { "GET" } else { "POST" };
    let builder = Request::builder().method(method).header("host", address.to_string());
    builder.header("authorization", "Bearer gsk_test").header("content-type", "application/json")
}

fn payload(body: &Value) -> Full<Bytes> {
    if body.is_null() { Full::default() } else { Full::from(body.to_string()) }
}

/// One request over a connection of its own.
pub(crate) async fn send(address: SocketAddr, path: &str, body: &Value) -> Whole {
    let socket = TcpStream::connect(address).await.expect("a shield listens");
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.expect("a connection");
    let driver = tokio::spawn(connection);
    let request = request(address, body).uri(path).body(payload(body)).expect("a request");
    let (head, body) =
        timeout(LONGEST_WAIT, sender.send_request(request)).await.expect("in time").expect("a response").into_parts();
    let body = timeout(LONGEST_WAIT, body.collect()).await.expect("in time").expect("a whole body").to_bytes();
    driver.abort();
    Whole { status: head.status, headers: head.headers, body }
}

/// Sends `count` chat calls at once.
pub(crate) async fn chats(address: SocketAddr, count: usize) -> Vec<Whole> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(async move { send(address, "/openai/v1/chat/completions", &chat(false)).await });
    }
    tasks.join_all().await
}

/// Sends `count` chat calls at once, a hundred on each HTTP/2 connection to the shield.
pub(crate) async fn many_chats(address: SocketAddr, count: usize) -> Vec<StatusCode> {
    let mut tasks = JoinSet::new();
    for _ in 0..count / 100 {
        let socket = TcpStream::connect(address).await.expect("a shield listens");
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.expect("a connection");
        tokio::spawn(connection);
        for _ in 0..100 {
            let (mut sender, body) = (sender.clone(), chat(false));
            tasks.spawn(async move {
                let uri = format!("http://{address}/openai/v1/chat/completions");
                let request = request(address, &body).uri(uri).body(payload(&body)).expect("a request");
                let response = timeout(LONGEST_WAIT, sender.send_request(request)).await.expect("in time").expect("a response");
                let status = response.status();
                timeout(LONGEST_WAIT, response.into_body().collect()).await.expect("in time").expect("a whole body");
                status
            });
        }
    }
    tasks.join_all().await
}

/// The upstream's counters.
pub(crate) async fn counts(address: SocketAddr) -> Value {
    send(address, "/counts", &Value::Null).await.json()
}
