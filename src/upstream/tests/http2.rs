//! HTTP/2 in virtual time: how requests share connections, and what a peer's frames mean for them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{self, Connection, SendResponse},
};
use http::{Method, Request, Response, StatusCode, uri::PathAndQuery};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Duration, ExchangeError, Failure, HeaderMap, Io, Upstream, UpstreamRequest, body, config, send};

mod connections;
mod failures;

const CLOSED: Failure = Failure { error: ExchangeError::Closed, sent: true };
const UNSENT: Failure = Failure { error: ExchangeError::Closed, sent: false };
const NOT_HTTP: Failure = Failure { error: ExchangeError::Invalid("it is not HTTP"), sent: true };

type Peer = Connection<DuplexStream, Bytes>;
type Respond = SendResponse<Bytes>;

/// An upstream whose connections may speak HTTP/2.
fn over_http2(settings: &config::Upstream, connect: impl Fn() -> std::io::Result<Io> + Send + Sync + 'static) -> Upstream {
    Upstream::connected_by(settings, true, move || std::future::ready(connect()))
}

/// An upstream whose n-th connection is served by `serve`, and the number of connections.
fn upstream<F>(serve: impl Fn(usize, DuplexStream) -> F + Send + Sync + 'static) -> (Arc<Upstream>, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let settings = config::Upstream { idle_timeout: Duration::from_secs(90), ..Default::default() };
    let upstream = over_http2(&settings, move || {
        let (ours, theirs) = duplex(1 << 16);
        tokio::spawn(serve(counted.fetch_add(1, Ordering::Relaxed), theirs));
        Ok(Io::Simulated { stream: Box::new(ours), http2: true })
    });
    (Arc::new(upstream), count)
}

/// An upstream that has each stream handled by `handle`, which gets the numbers of connection and stream.
fn handled_by<F>(
    streams: u32,
    handle: impl Fn(usize, usize, Request<RecvStream>, Respond) -> F + Clone + Send + Sync + 'static,
) -> (Arc<Upstream>, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    upstream(move |connection, io| {
        let handle = handle.clone();
        async move {
            let mut peer: Peer = server::Builder::new().max_concurrent_streams(streams).handshake(io).await.expect("a client");
            let mut stream = 0;
            while let Some(Ok((request, respond))) = peer.accept().await {
                tokio::spawn(handle(connection, stream, request, respond));
                stream += 1;
            }
        }
    })
}

fn ok(mut respond: Respond) {
    let mut data = respond.send_response(Response::new(()), false).expect("an open stream");
    data.send_data(Bytes::from_static(b"ok"), true).expect("an open stream");
}

/// Sends `requests` at once, and counts complete responses.
async fn burst(upstream: &Arc<Upstream>, requests: usize) -> usize {
    let mut tasks = JoinSet::new();
    for _ in 0..requests {
        let upstream = upstream.clone();
        tasks.spawn(async move {
            let response = send(&upstream).await.expect("a response");
            assert_eq!(body(response).await.expect("a whole body"), b"ok");
        });
    }
    tasks.join_all().await.len()
}
