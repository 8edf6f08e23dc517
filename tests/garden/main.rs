//! A garden of real servers behind the shield, after narfindustries/http-garden: whatever a client sends, no upstream sees
//! another number of requests, another path or another body than the client got answers for. And no odd answer of an
//! upstream reaches another client.

mod misdelivered;
mod servers;

use std::{fmt::Write as _, io, net::SocketAddr, time::Duration};

use groq_shield::{
    config::{Plan, Settings},
    proxy::Shield,
    server::{self, Listeners, Running},
};
use servers::Server;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

/// Names and escaped bytes: the payloads in the trophies of narfindustries/http-garden (ffb9164, December 2025) and those of
/// smugglex 0.4.0 (CL.TE, TE.CL, TE.TE, edges of Content-Length).
const PAYLOADS: &str = include_str!("payloads.txt");
/// After the last byte, for more answers or the close.
const QUIET: Duration = Duration::from_millis(250);

pub(crate) fn shield(upstream: SocketAddr) -> io::Result<Running> {
    let mut settings = Settings::default();
    settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    settings.admin.listen = settings.server.listen;
    settings.server.threads = Some(1);
    settings.upstream.base_url = format!("http://{upstream}").parse().expect("a URL");
    // Any variable that cargo sets: payloads need no key then.
    settings.upstream.api_key_env = Some("CARGO_PKG_NAME".into());
    settings.limits.plan = Plan::None;
    settings.retry.attempts = 1;
    settings.breaker.failures = u32::MAX;
    let listeners = Listeners::open(&settings).expect("free ports");
    server::start(Shield::new(settings).expect("nothing to fail on"), listeners)
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

/// Valid requests with a byte changed, inserted, left out or repeated here and there, as http-garden's fuzzer has them.
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

/// Sends these bytes; everything that comes back until the close or until it is quiet.
async fn send(to: SocketAddr, bytes: &[u8]) -> io::Result<String> {
    let mut socket = TcpStream::connect(to).await?;
    let mut all = Vec::new();
    // It may answer and close before it has read all.
    let _ = socket.write_all(bytes).await;
    let mut some = [0; 16 << 10];
    while let Ok(Ok(count @ 1..)) = timeout(QUIET, socket.read(&mut some)).await {
        all.extend_from_slice(&some[..count]);
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// The lines that the upstream logged and those that it answered with, for each payload; what differs.
async fn through(server: &Server, mutated: u64) -> io::Result<(usize, usize, String)> {
    let shield = shield(server.address)?;
    let mut wrong = String::new();
    let (mut sent, mut parsed) = (0, 0);
    let mut logged = server.log().len();
    let listed = PAYLOADS.lines().map(|line| {
        let (name, escaped) = line.split_once('\t').expect("a name, a tab, bytes");
        (name.to_owned(), unescape(escaped))
    });
    for (name, bytes) in listed.chain(mutations(mutated)) {
        let answers = send(shield.app, &bytes).await?;
        let fresh = server.log().split_off(logged);
        logged += fresh.len();
        let told: Vec<&str> = answers.matches_json().collect();
        if told != fresh {
            let _ = writeln!(wrong, "{}: {name}: the upstream parsed {fresh:?}, the client was told of {told:?}", server.name);
        }
        sent += 1;
        parsed += fresh.len();
    }
    // The upstream's connections are as good as before.
    for n in 0..20 {
        let request = format!("POST /after/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        let answers = send(shield.app, request.as_bytes()).await?;
        if !answers.contains(&format!("/after/{n}\"")) || !answers.contains("\"6f6b\"") {
            let _ = writeln!(wrong, "{}: /after/{n}: {answers}", server.name);
        }
    }
    Ok((sent, parsed, wrong))
}

/// The echoed lines in a client's bytes.
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
        let (sent, parsed, differs) = through(server, mutated).await.expect("it goes on");
        let differ = differs.lines().count();
        println!("{}: {sent} payloads, {parsed} requests parsed, {differ} differ, {:?}", server.name, started.elapsed());
        // Some of the payloads are valid.
        assert!(parsed > 10, "{}: {parsed} requests parsed", server.name);
        wrong += &differs;
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_parses_what_the_shield_counted() {
    walk(vec![servers::node().await.expect("Node starts")], 40).await;
}

/// All servers. Installs those of PyPI into `target/garden`; needs nginx, HAProxy, Apache and Node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "installs servers, takes minutes"]
async fn garden() {
    walk(servers::all().await.expect("they start"), 300).await;
}
