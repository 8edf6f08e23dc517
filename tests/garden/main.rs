//! Real servers behind the shield, like narfindustries/http-garden. Whatever a client sends over HTTP/1.1 or HTTP/2, the upstream
//! receives the same number of requests, paths and bodies for which the client gets responses, and a malformed response of an
//! upstream never reaches another client.

mod downgrade;
#[path = "../conformance/http2/frames.rs"]
#[expect(dead_code, reason = "the tables of conformance need more")]
mod frames;
mod misdelivered;
mod servers;

use std::{fmt::Write as _, io, net::SocketAddr, path::Path, time::Duration};

use groq_shield::{
    config::{Plan, Settings},
    proxy::Shield,
    server::{self, Listeners, Running},
};
use servers::Server;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// Payloads by name, as escaped bytes: those in the trophies of narfindustries/http-garden (ffb9164, December 2025) and those of
/// smugglex 0.4.0 (CL.TE, TE.CL, TE.TE, edges of Content-Length).
const PAYLOADS: &str = include_str!("payloads.txt");
/// Time without data after which no more responses are expected.
const QUIET: Duration = Duration::from_millis(250);
/// The same for a repetition because a response was missing.
const LONG_QUIET: Duration = Duration::from_secs(3);

/// Starts a shield in front of an upstream; with a certificate it uses TLS and HTTP/2.
pub(crate) fn shield(upstream: SocketAddr, certificate: Option<&Path>) -> io::Result<Running> {
    let mut settings = Settings::default();
    settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    settings.admin.listen = settings.server.listen;
    settings.server.threads = Some(1);
    let scheme = if certificate.is_some() { "https" } else { "http" };
    settings.upstream.base_url = format!("{scheme}://{upstream}").parse().expect("a URL");
    settings.upstream.ca_file = certificate.map(Path::to_owned);
    // Cargo always sets this variable. With it as the upstream's key, payloads need no key.
    settings.upstream.api_key_env = Some("CARGO_PKG_NAME".into());
    settings.limits.plan = Plan::None;
    settings.retry.attempts = 1;
    settings.breaker.failures = u32::MAX;
    let listeners = Listeners::open(&settings).expect("free ports");
    server::start(Shield::new(settings).expect("valid settings"), listeners)
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let escaped = if byte == b'\\' { rest.next() } else { None };
        bytes.push(match escaped {
            None => byte,
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'x') => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).expect("two hex digits")
            }
            Some(other) => other,
        });
    }
    bytes
}

/// Valid requests with bytes changed, inserted, removed or repeated, like those of http-garden's fuzzer.
fn mutations(count: u64) -> impl Iterator<Item = (String, Vec<u8>)> {
    const SEEDS: [&[u8]; 3] = [
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a?b=c HTTP/1.1\r\nHost: a:80\r\nX: y\r\nX: z\r\nConnection: keep-alive, x\r\n\r\n",
    ];
    const INTERESTING: &[u8] = b"\0\t\n\x0b\r \"#*+,-0:;=_\x7f\x85\xa0\xff";
    (0..count).map(|seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = SEEDS[random.usize(..SEEDS.len())].to_vec();
        for _ in 0..random.usize(1..3) {
            let at = random.usize(..bytes.len());
            let byte = INTERESTING[random.usize(..INTERESTING.len())];
            match random.u8(..4) {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, bytes[at]),
            }
        }
        (format!("mutation {seed}"), bytes)
    })
}

/// Sends bytes and returns the responses until the connection is closed, or until nothing has arrived for the time `quiet`.
async fn send(to: SocketAddr, bytes: &[u8], quiet: Duration) -> io::Result<String> {
    let mut socket = TcpStream::connect(to).await?;
    let mut all = Vec::new();
    // The server may respond and close the connection before it has read all bytes.
    let _ = socket.write_all(bytes).await;
    let mut some = [0; 16 << 10];
    while let Ok(Ok(count @ 1..)) = timeout(quiet, socket.read(&mut some)).await {
        all.extend_from_slice(&some[..count]);
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// The HTTP/1.1 payloads.
fn listed() -> impl Iterator<Item = (String, Vec<u8>)> {
    PAYLOADS.lines().map(|line| {
        let (name, escaped) = line.split_once('\t').expect("a name, a tab, bytes");
        (name.to_owned(), unescape(escaped))
    })
}

/// A run of all payloads against one server.
#[derive(Default)]
struct Walk {
    sent: usize,
    parsed: usize,
    wrong: String,
    /// Number of log lines that have been read.
    logged: usize,
}

impl Walk {
    /// Compares the upstream's new log lines with the responses to the client.
    fn compare(&mut self, server: &Server, name: &str, responses: &[&str]) {
        let fresh = server.log().split_off(self.logged);
        self.logged += fresh.len();
        self.sent += 1;
        self.parsed += fresh.len();
        let other = |line: &&String| {
            server.certificate.is_some() && !line.contains(r#""http":"2.0""#) && !line.contains(r#""http": "2""#)
        };
        if let Some(line) = fresh.iter().find(other) {
            let _ = writeln!(self.wrong, "{}: {name}: not over HTTP/2: {line}", server.name);
        }
        if responses != fresh {
            let _ = writeln!(
                self.wrong,
                "{}: {name}: the upstream parsed {fresh:?}, the client was responses of {responses:?}",
                server.name
            );
        }
    }
}

/// Sends every payload to a server through a shield.
async fn through(server: &Server, mutated: u64) -> io::Result<Walk> {
    let shield = shield(server.address, server.certificate.as_deref())?;
    let mut walk = Walk { logged: server.log().len(), ..Walk::default() };
    for (name, bytes) in listed().chain(mutations(mutated)) {
        for quiet in [QUIET, LONG_QUIET] {
            let answers = send(shield.app, &bytes, quiet).await?;
            let responses: Vec<&str> = answers.matches_json().collect();
            let before = walk.wrong.len();
            walk.compare(server, &name, &responses);
            if walk.wrong.len() == before || quiet == LONG_QUIET {
                break;
            }
            // On a busy machine a response may have been late, so try again with more time.
            sleep(LONG_QUIET).await;
            walk.wrong.truncate(before);
            walk.sent -= 1;
            walk.logged = server.log().len();
        }
    }
    for payload in downgrade::payloads(mutated) {
        let bodies = downgrade::exchange(shield.app, &payload).await?;
        let responses: Vec<&str> = bodies.values().flat_map(MatchesJson::matches_json).collect();
        walk.compare(server, &payload.name, &responses);
        // The upstream received the body that was sent.
        let first = bodies.get(&1).and_then(|body| body.matches_json().next());
        let path = String::from_utf8_lossy(payload.field(":path"));
        let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'/');
        let body: String = payload.body.iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(line) = first
            && (!line.contains(&format!("\"{body}\"")) || plain && !line.contains(&format!("\"{path}\"")))
        {
            let _ = writeln!(walk.wrong, "{}: {}: served as {line}", server.name, payload.name);
        }
    }
    // The connections to the upstream are still usable.
    for n in 0..20 {
        let request = format!("POST /after/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        let answers = send(shield.app, request.as_bytes(), LONG_QUIET).await?;
        if !answers.contains(&format!("/after/{n}\"")) || !answers.contains("\"6f6b\"") {
            let _ = writeln!(walk.wrong, "{}: /after/{n}: {answers}", server.name);
        }
    }
    Ok(walk)
}

/// The echoed JSON lines in the bytes that a client has received.
trait MatchesJson {
    fn matches_json(&self) -> impl Iterator<Item = &str>;
}

impl MatchesJson for String {
    fn matches_json(&self) -> impl Iterator<Item = &str> {
        self.match_indices("{\"method\"")
            .filter_map(|(at, _)| self[at..].split_once('}').map(|(line, _)| &self[at..at + line.len() + 1]))
    }
}

async fn walk(servers: Vec<Server>, mutated: u64) {
    let started = Instant::now();
    let mut wrong = String::new();
    for server in &servers {
        let Walk { sent, parsed, wrong: differs, .. } = through(server, mutated).await.expect("no I/O error");
        let differ = differs.lines().count();
        println!("{}: {sent} payloads, {parsed} requests parsed, {differ} differ, {:?}", server.name, started.elapsed());
        // Some payloads are valid, and most of the requests after an HTTP/2 payload succeed.
        assert!(parsed > 400, "{}: {parsed} requests parsed", server.name);
        wrong += &differs;
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_sees_the_requests_that_the_shield_forwarded() {
    let (http1, http2) = tokio::join!(servers::node(), servers::node_http2());
    tokio::join!(walk(vec![http1.expect("Node starts")], 40), walk(vec![http2.expect("Node starts")], 40));
}

/// Runs all servers. Installs those from PyPI into `target/garden`. Needs nginx, HAProxy, Apache and Node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "installs servers, takes minutes"]
async fn garden() {
    walk(servers::all().await.expect("the servers start"), 300).await;
}
