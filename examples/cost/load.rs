//! Closed-loop load over persistent connections: each request is sent after the response to the previous one. Runs on one thread.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet, time::Instant};

use super::connection::Connection;

/// The API key that requests use unless they need another.
pub(crate) const KEY: &str = "gsk_test0123456789abcdef0123456789abcdef0123456789abcd";
/// The model that requests name unless they need another.
pub(crate) const MODEL: &str = "llama-3.3-70b-versatile";
/// The path of all requests.
pub(crate) const PATH: &str = "/openai/v1/chat/completions";

/// The JSON body of a chat completion, `size` bytes long.
pub(crate) fn call(model: &str, size: usize, stream: bool) -> String {
    let text =
        "The quarterly report says that latency matters more than throughput when models chain calls. ".repeat(size / 90 + 1);
    let with = |text: &str| {
        format!(
            r#"{{"model":"{model}","messages":[{{"role":"system","content":"You are a careful assistant. Answer briefly and cite the line you used."}},{{"role":"user","content":"{text}"}}],"temperature":0.2,"max_completion_tokens":256,"stream":{stream},"user":"bench"}}"#
        )
    };
    with(&text[..size.saturating_sub(with("").len())])
}

/// The HTTP/1.1 request with body `call`.
pub(crate) fn request(key: &str, call: &str) -> Bytes {
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: shield\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\naccept: application/json\r\nuser-agent: Groq/Python 1.7.0\r\ncontent-length: {}\r\n\r\n{call}",
        call.len()
    )
    .into()
}

/// Makes the request with a given sequence number.
pub(crate) type MakeRequest = Rc<dyn Fn(usize) -> Bytes>;

/// Always makes `request`.
pub(crate) fn always(request: Bytes) -> MakeRequest {
    Rc::new(move |_| request.clone())
}

/// The result of a load.
#[derive(Default)]
pub(crate) struct Tally {
    /// Number of responses.
    pub(crate) requests: usize,
    /// Responses with a status other than 200.
    pub(crate) failed: usize,
    /// From the first request to the last response.
    pub(crate) elapsed: Duration,
    /// Latencies in µs, sorted.
    latencies: Vec<u32>,
}

impl Tally {
    /// Requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency in ms at quantile `q`, which is between 0 and 1.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let at = ((self.latencies.len() as f64 * q) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |&micros| f64::from(micros) / 1e3)
    }
}

/// Opens `count` connections.
pub(crate) async fn connect(to: SocketAddr, count: usize) -> io::Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(Connection::new(TcpStream::connect(to).await?)?);
    }
    Ok(connections)
}

/// Sends one request and reads the response.
pub(crate) async fn exchange<'a>(connection: &'a mut Connection, request: &[u8]) -> io::Result<&'a [u8]> {
    connection.stream.write_all(request).await?;
    connection.next().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Keeps every connection busy for `time`. Returns the connections for reuse.
pub(crate) async fn closed_loop(
    connections: Vec<Connection>,
    time: Duration,
    make_request: &MakeRequest,
) -> io::Result<(Tally, Vec<Connection>)> {
    let concurrency = connections.len();
    round_robin(connections, concurrency, time, make_request).await
}

/// Keeps `concurrency` requests in flight for `time`, spread over all connections in rotation. Returns the connections for reuse.
pub(crate) async fn round_robin(
    connections: Vec<Connection>,
    concurrency: usize,
    time: Duration,
    make_request: &MakeRequest,
) -> io::Result<(Tally, Vec<Connection>)> {
    let start = Instant::now();
    run(connections, concurrency, make_request, move |_| start.elapsed() < time).await
}

/// Sends `count` requests in sequence on each connection. Returns the connections for reuse.
pub(crate) async fn rounds(
    connections: Vec<Connection>,
    count: usize,
    make_request: &MakeRequest,
) -> io::Result<(Tally, Vec<Connection>)> {
    let concurrency = connections.len();
    run(connections, concurrency, make_request, move |done| done < count).await
}

/// Sends one request on every connection, with `concurrency` of them in flight. Returns the connections for reuse.
pub(crate) async fn once_each(
    connections: Vec<Connection>,
    concurrency: usize,
    make_request: &MakeRequest,
) -> io::Result<Vec<Connection>> {
    let each = connections.len() / concurrency;
    Ok(run(connections, concurrency, make_request, move |done| done < each).await?.1)
}

async fn run(
    connections: Vec<Connection>,
    concurrency: usize,
    make_request: &MakeRequest,
    should_continue: impl Fn(usize) -> bool + Copy + 'static,
) -> io::Result<(Tally, Vec<Connection>)> {
    let start = Instant::now();
    let mut groups: Vec<Vec<Connection>> = Vec::new();
    groups.resize_with(concurrency, Vec::new);
    for (n, connection) in connections.into_iter().enumerate() {
        groups[n % concurrency].push(connection);
    }
    let mut tasks = JoinSet::new();
    for (n, mut connections) in groups.into_iter().enumerate() {
        let make_request = make_request.clone();
        tasks.spawn_local(async move {
            let (mut latencies, mut failed) = (Vec::new(), 0);
            while should_continue(latencies.len()) {
                let request = make_request(n + latencies.len() * concurrency);
                let turn = latencies.len() % connections.len();
                let sent = Instant::now();
                let response = exchange(&mut connections[turn], &request).await?;
                failed += usize::from(!response.starts_with(b"HTTP/1.1 200"));
                latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            io::Result::Ok((connections, latencies, failed))
        });
    }
    let (mut tally, mut connections) = (Tally::default(), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (used, latencies, failed) = ended.map_err(io::Error::other)??;
        tally.latencies.extend(latencies);
        tally.failed += failed;
        connections.extend(used);
    }
    tally.elapsed = start.elapsed();
    tally.requests = tally.latencies.len();
    tally.latencies.sort_unstable();
    Ok((tally, connections))
}
