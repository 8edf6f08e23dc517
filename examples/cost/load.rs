//! Closed-loop load over kept connections: each request is sent after the previous answer. Runs on one thread.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet, time::Instant};

use super::wire::Wire;

/// The default key.
pub(crate) const KEY: &str = "gsk_test0123456789abcdef0123456789abcdef0123456789abcd";
/// The default model.
pub(crate) const MODEL: &str = "llama-3.3-70b-versatile";
/// The target path.
pub(crate) const PATH: &str = "/openai/v1/chat/completions";

/// A chat call of `size` bytes.
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

/// The HTTP request around a call.
pub(crate) fn request(key: &str, call: &str) -> Bytes {
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: shield\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\naccept: application/json\r\nuser-agent: Groq/Python 1.7.0\r\ncontent-length: {}\r\n\r\n{call}",
        call.len()
    )
    .into()
}

/// Makes the n-th request.
pub(crate) type Make = Rc<dyn Fn(usize) -> Bytes>;

/// The same request every time.
pub(crate) fn always(request: Bytes) -> Make {
    Rc::new(move |_| request.clone())
}

/// Results of a load.
#[derive(Default)]
pub(crate) struct Tally {
    /// Answers.
    pub(crate) requests: usize,
    /// Answers other than 200.
    pub(crate) failed: usize,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
    /// Latencies, sorted, µs.
    latencies: Vec<u32>,
}

impl Tally {
    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }

    /// A quantile of the latencies, ms.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let at = ((self.latencies.len() as f64 * q) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |&micros| f64::from(micros) / 1e3)
    }
}

/// Opens `count` connections.
pub(crate) async fn connect(to: SocketAddr, count: usize) -> io::Result<Vec<Wire>> {
    let mut wires = Vec::with_capacity(count);
    for _ in 0..count {
        wires.push(Wire::new(TcpStream::connect(to).await?)?);
    }
    Ok(wires)
}

/// Sends one request and reads its answer.
pub(crate) async fn ask<'a>(wire: &'a mut Wire, request: &[u8]) -> io::Result<&'a [u8]> {
    wire.stream.write_all(request).await?;
    wire.next().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Keeps every connection busy for `time`, and returns the connections.
pub(crate) async fn closed(wires: Vec<Wire>, time: Duration, make: &Make) -> io::Result<(Tally, Vec<Wire>)> {
    let at_once = wires.len();
    in_turn(wires, at_once, time, make).await
}

/// Keeps `at_once` of the connections busy for `time`, all of them in turn, and returns them.
pub(crate) async fn in_turn(wires: Vec<Wire>, at_once: usize, time: Duration, make: &Make) -> io::Result<(Tally, Vec<Wire>)> {
    let begun = Instant::now();
    run(wires, at_once, make, move |_| begun.elapsed() < time).await
}

/// Sends `count` requests on each connection.
pub(crate) async fn rounds(wires: Vec<Wire>, count: usize, make: &Make) -> io::Result<(Tally, Vec<Wire>)> {
    let at_once = wires.len();
    run(wires, at_once, make, move |done| done < count).await
}

/// One request on every connection, `at_once` at a time.
pub(crate) async fn once_each(wires: Vec<Wire>, at_once: usize, make: &Make) -> io::Result<Vec<Wire>> {
    let each = wires.len() / at_once;
    Ok(run(wires, at_once, make, move |done| done < each).await?.1)
}

async fn run(
    wires: Vec<Wire>,
    at_once: usize,
    make: &Make,
    goes_on: impl Fn(usize) -> bool + Copy + 'static,
) -> io::Result<(Tally, Vec<Wire>)> {
    let begun = Instant::now();
    let mut hands: Vec<Vec<Wire>> = Vec::new();
    hands.resize_with(at_once, Vec::new);
    for (n, wire) in wires.into_iter().enumerate() {
        hands[n % at_once].push(wire);
    }
    let mut tasks = JoinSet::new();
    for (n, mut wires) in hands.into_iter().enumerate() {
        let make = make.clone();
        tasks.spawn_local(async move {
            let (mut latencies, mut failed) = (Vec::new(), 0);
            while goes_on(latencies.len()) {
                let request = make(n + latencies.len() * at_once);
                let turn = latencies.len() % wires.len();
                let sent = Instant::now();
                let answer = ask(&mut wires[turn], &request).await?;
                failed += usize::from(!answer.starts_with(b"HTTP/1.1 200"));
                latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            io::Result::Ok((wires, latencies, failed))
        });
    }
    let (mut tally, mut wires) = (Tally::default(), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (theirs, latencies, failed) = ended.map_err(io::Error::other)??;
        tally.latencies.extend(latencies);
        tally.failed += failed;
        wires.extend(theirs);
    }
    tally.took = begun.elapsed();
    tally.requests = tally.latencies.len();
    tally.latencies.sort_unstable();
    Ok((tally, wires))
}
