//! Clients of the shield over HTTP/1.1 and HTTP/2, on connections of the simulated network.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fastrand::Rng;
use groq_shield::{proxy::Shield, server::serve_connection};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::network::{Network, Witness};

/// Maximum time to a response, including the queue, all attempts and timeouts.
const LONGEST: Duration = Duration::from_secs(600);

/// How requests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) good: usize,
    /// 429 and 503 of the shield.
    pub(crate) refused: usize,
    /// Other documented failures.
    pub(crate) failed: usize,
    /// The client disconnected before the end.
    pub(crate) left: usize,
    /// The network between client and shield broke the exchange.
    pub(crate) broken: usize,
    /// Tokens according to the `usage` of the responses.
    pub(crate) tokens: u64,
}

impl Ends {
    pub(crate) fn add(&mut self, other: &Self) {
        self.good += other.good;
        self.refused += other.refused;
        self.failed += other.failed;
        self.left += other.left;
        self.broken += other.broken;
        self.tokens += other.tokens;
    }

    pub(crate) fn sum(&self) -> usize {
        self.good + self.refused + self.failed + self.left + self.broken
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A client's connection.
struct Connection {
    sender: Sender,
    witness: Witness,
}

/// One client.
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) shield: Arc<Shield>,
    pub(crate) network: Network,
    pub(crate) random: Rng,
    pub(crate) leaves: bool,
}

impl Client {
    /// Sends `requests` requests in sequence.
    pub(crate) async fn run(mut self, requests: usize) -> Ends {
        let mut ends = Ends::default();
        let mut kept = None;
        for _ in 0..requests {
            sleep(Duration::from_secs_f64(-(1.0 - self.random.f64()).ln() * 4.0)).await;
            let leaves_after =
                (self.leaves && self.random.u8(..10) == 0).then(|| Duration::from_millis(self.random.u64(1..5000)));
            let connection = match self.usable(kept.take()).await {
                Some(connection) => connection,
                None => {
                    ends.broken += 1;
                    continue;
                }
            };
            let start = Instant::now();
            let witness = connection.witness.clone();
            match timeout(leaves_after.unwrap_or(LONGEST), self.exchange(connection, &mut ends)).await {
                Ok(connection) => kept = connection.filter(|_| !self.number.is_multiple_of(3)),
                Err(_) if leaves_after.is_some() => ends.left += 1,
                // The client cannot detect a half-open connection.
                Err(_) if witness.may_fail() => ends.broken += 1,
                Err(_) => panic!("client {}: no response after {:?}", self.number, start.elapsed()),
            }
        }
        if kept.is_some() {
            // The connection stays open until the shield drains.
            sleep(Duration::from_secs(100)).await;
        }
        ends
    }

    /// The persistent connection if it is usable, or a new one.
    async fn usable(&mut self, kept: Option<Connection>) -> Option<Connection> {
        if let Some(mut connection) = kept {
            let is_ready = match &mut connection.sender {
                Sender::Http1(sender) => sender.ready().await.is_ok(),
                Sender::Http2(sender) => sender.ready().await.is_ok(),
            };
            if is_ready {
                return Some(connection);
            }
        }
        // Only the shield's end of a connection is counted.
        let (theirs, ours) = self.network.connect().await.ok()?;
        let witness = ours.witness();
        tokio::spawn(serve_connection(theirs, self.shield.clone(), self.shield.connections.token()));
        let (number, watched) = (self.number, witness.clone());
        let ended = move |ended: hyper::Result<()>| {
            assert!(ended.is_ok() || watched.may_fail(), "client {number}: {ended:?}");
        };
        let sender = if number % 3 == 1 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(ours)).await.ok()?;
            tokio::spawn(async move { ended(connection.await) });
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(TokioIo::new(ours)).await.ok()?;
            tokio::spawn(async move { ended(connection.await) });
            Sender::Http1(sender)
        };
        Some(Connection { sender, witness })
    }

    /// Sends one request and reads the response. Returns the connection if it can be reused.
    async fn exchange(&mut self, mut connection: Connection, ends: &mut Ends) -> Option<Connection> {
        let completion = self.random.u64(10..120);
        let stream = self.random.bool();
        let request = self.request(completion, stream);
        // With HTTP/1.1 a request can cross the close of an idle connection; the client has to retry then (RFC 9112 §9.3.1).
        let crosses = connection.witness.is_closed_by_first_host();
        let answered = match &mut connection.sender {
            Sender::Http1(sender) => sender.send_request(request).await,
            Sender::Http2(sender) => sender.send_request(request).await,
        };
        let whole = match answered {
            Err(error) => Err(error),
            Ok(response) => {
                let (head, body) = response.into_parts();
                body.collect().await.map(|body| (head.status, head.headers, body.to_bytes()))
            }
        };
        match whole {
            Ok((status, headers, body)) => judge(status, &headers, &body, (completion, stream), ends),
            Err(error) => {
                assert!(
                    crosses || connection.witness.may_fail(),
                    "client {}: {error:?} on a connection without faults",
                    self.number
                );
                ends.broken += 1;
                return None;
            }
        }
        Some(connection)
    }

    fn request(&mut self, completion: u64, stream: bool) -> Request<Full<Bytes>> {
        let (latency, words) = (self.random.u64(50..3000), self.random.usize(1..200));
        let content = format!("[[sim completion={completion} head_ms={latency}]] {}", "word ".repeat(words));
        let body = json!({"model": "m", "stream": stream, "max_completion_tokens": completion + self.random.u64(..600),
                          "messages": [{"role": "user", "content": content}]});
        let uri = if self.number % 3 == 1 { "http://shield/openai/v1/chat/completions" } else { "/openai/v1/chat/completions" };
        Request::post(uri)
            .header("host", "shield")
            .header("authorization", "Bearer gsk_test")
            .header("content-type", "application/json")
            .header("x-shield-app", format!("app{}", self.number % 4))
            .body(Full::new(Bytes::from(body.to_string())))
            .expect("a valid request")
    }
}

/// Checks that the response is complete and belongs to this request, or is a documented failure.
fn judge(status: StatusCode, headers: &HeaderMap, body: &Bytes, (completion, stream): (u64, bool), ends: &mut Ends) {
    let text = String::from_utf8_lossy(body);
    if status != StatusCode::OK {
        let error: Value = serde_json::from_slice(body).unwrap_or_else(|error| panic!("{status}: {error}: {text}"));
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string(), "{status}: {text}");
        let ours = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        assert!(status != StatusCode::TOO_MANY_REQUESTS || headers.contains_key("retry-after"), "{headers:?}");
        *(if ours { &mut ends.refused } else { &mut ends.failed }) += 1;
        return;
    }
    let last = if stream {
        let mut frames = text.trim_end().rsplit("\n\n").map(|frame| frame.trim_start_matches("data: "));
        let end = frames.next().unwrap_or_default();
        if end != "[DONE]" {
            let error: Value = serde_json::from_str(end).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(error["error"]["message"].is_string(), "{text}");
            ends.failed += 1;
            return;
        }
        let usage = frames.find_map(|frame| serde_json::from_str::<Value>(frame).ok().map(|mut frame| frame["x_groq"].take()));
        usage.unwrap_or_default()
    } else {
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let usage = &last["usage"];
    assert_eq!(usage["completion_tokens"], completion, "the response to another request: {text}");
    ends.tokens += usage["total_tokens"].as_u64().expect("a number");
    ends.good += 1;
}
