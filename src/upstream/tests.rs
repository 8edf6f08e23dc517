//! The upstream in virtual time, over connections in memory: the pool, timeouts, kinds of failure.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Method, uri::PathAndQuery};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::{Instant, sleep},
};

use super::*;
use http::HeaderMap;

mod answers;
mod http2;
mod sending;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An upstream whose connections run `serve`, and the number of connections.
fn upstream<F>(serve: impl Fn(usize, DuplexStream) -> F + Send + Sync + 'static) -> (Upstream, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let settings = config::Upstream {
        response_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(5),
        ..Default::default()
    };
    let upstream = Upstream::over(&settings, move || {
        let (ours, theirs) = duplex(1 << 16);
        tokio::spawn(serve(counted.fetch_add(1, Ordering::Relaxed), theirs));
        Ok(Io::Memory(ours))
    });
    (upstream, count)
}

/// An upstream that writes these bytes once and waits for the connection's end, and the number of connections that have ended.
fn upstream_left(bytes: &'static [u8]) -> (Upstream, Arc<AtomicUsize>) {
    let gone = Arc::new(AtomicUsize::new(0));
    let counted = gone.clone();
    let (upstream, _) = upstream(move |_, mut io| {
        let counted = counted.clone();
        async move {
            read_request(&mut io).await;
            io.write_all(bytes).await.expect("the client reads");
            assert!(read_request(&mut io).await.is_empty());
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (upstream, gone)
}

/// Reads one request, which arrives in one write.
async fn read_request(io: &mut DuplexStream) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let read = io.read(&mut buffer).await.expect("a request");
    buffer.truncate(read);
    buffer
}

async fn send(upstream: &Upstream) -> Result<Response<ResponseBody>, Failure> {
    let path = PathAndQuery::from_static("/openai/v1/x?y=z");
    let mut request = UpstreamRequest::new(Method::POST, path, HeaderMap::new(), Bytes::from_static(b"{}"));
    upstream.send(&mut request, Instant::now).await
}

async fn body(response: Response<ResponseBody>) -> Result<Vec<u8>, ExchangeError> {
    let mut body = response.into_body();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        all.extend_from_slice(&data?);
    }
    Ok(all)
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_used_again() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let (upstream, connections) = upstream(move |_, mut io| {
        let log = log.clone();
        async move {
            loop {
                let request = read_request(&mut io).await;
                if request.is_empty() {
                    return;
                }
                log.lock().expect("unpoisoned").push(request);
                io.write_all(OK).await.expect("the client reads");
            }
        }
    });
    for _ in 0..3 {
        let answer = send(&upstream).await.expect("an answer");
        assert_eq!(body(answer).await.expect("whole"), b"ok");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let seen = seen.lock().expect("unpoisoned");
    let first = String::from_utf8_lossy(&seen[0]);
    assert!(first.starts_with("POST /openai/v1/x?y=z HTTP/1.1\r\n"), "{first}");
    assert!(first.contains("host: api.groq.com\r\n") && first.ends_with("\r\n\r\n{}"), "{first}");
}

/// A connection keeps its timer, which may be set for an earlier request: each request still has its full time.
#[tokio::test(start_paused = true)]
async fn every_request_on_a_connection_has_its_own_time() {
    let (upstream, connections) = upstream(|_, mut io| async move {
        for answered_after in [1, 8, 8, 9] {
            read_request(&mut io).await;
            sleep(Duration::from_secs(answered_after)).await;
            io.write_all(OK).await.expect("the client reads");
        }
        read_request(&mut io).await;
        sleep(Duration::from_secs(60)).await;
    });
    for _ in 0..4 {
        let answer = send(&upstream).await.expect("in time");
        assert_eq!(body(answer).await.expect("whole"), b"ok");
    }
    let sent = Instant::now();
    let failure = send(&upstream).await.expect_err("no answer");
    assert_eq!((failure, sent.elapsed().as_secs()), (Failure::after_sending(ExchangeError::Timeout), 10));
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

/// An idle connection that Groq's edge has closed must not cost a request.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_closed_costs_nothing() {
    let (upstream, connections) = upstream(|_, mut io| async move {
        read_request(&mut io).await;
        io.write_all(OK).await.expect("the client reads");
    });
    for _ in 0..3 {
        let answer = send(&upstream).await.expect("an answer");
        assert_eq!(body(answer).await.expect("whole"), b"ok");
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed() {
    let (upstream, gone) = upstream_left(OK);
    body(send(&upstream).await.expect("an answer")).await.expect("whole");
    tokio::select! {
        () = upstream.reap_idle() => {}
        () = sleep(Duration::from_secs(40)) => assert_eq!(gone.load(Ordering::Relaxed), 0),
    }
    tokio::select! {
        () = upstream.reap_idle() => {}
        () = sleep(Duration::from_secs(40)) => assert_eq!(gone.load(Ordering::Relaxed), 1),
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_head_is_a_timeout() {
    let (upstream, _) = upstream(|_, io| async move {
        sleep(Duration::from_secs(3600)).await;
        drop(io);
    });
    let start = Instant::now();
    assert_eq!(send(&upstream).await.expect_err("no head"), Failure::after_sending(ExchangeError::Timeout));
    assert_eq!(start.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_silent_body_is_a_timeout_and_a_slow_one_is_not() {
    let (upstream, _) = upstream(|connection, mut io| async move {
        read_request(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").await.expect("the client reads");
        for _ in 0..4 - connection {
            sleep(Duration::from_secs(4)).await;
            io.write_all(b"x").await.expect("the client reads");
        }
        sleep(Duration::from_secs(3600)).await;
    });
    let start = Instant::now();
    assert_eq!(body(send(&upstream).await.expect("a head")).await.expect("whole"), b"xxxx");
    assert_eq!(start.elapsed(), Duration::from_secs(16));
    let first = send(&upstream).await.expect_err("the first connection is taken again and says nothing");
    assert_eq!(first.error, ExchangeError::Timeout);
    assert_eq!(body(send(&upstream).await.expect("a head")).await, Err(ExchangeError::Timeout));
}

#[tokio::test(start_paused = true)]
async fn truncated_and_invalid_responses_are_distinguished() {
    for (bytes, expected) in [
        (&b""[..], ExchangeError::Closed),
        (b"HTTP/1.1 200 OK\r\nconte", ExchangeError::Closed),
        (b"\x16\x03\x01\x02\x00 hello", ExchangeError::Invalid("it is not HTTP")),
        (b"220 smtp ready\r\n", ExchangeError::Invalid("it is not HTTP")),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            ExchangeError::Invalid("it is not HTTP"),
        ),
        // Regression, found by zzuf: a status beyond 599 was passed on as a success.
        (b"HTTP/1.1 600 OK\r\ncontent-length: 0\r\n\r\n", ExchangeError::Invalid("it is not HTTP")),
        (b"HTTP/1.1 999 OK\r\ncontent-length: 0\r\n\r\n", ExchangeError::Invalid("it is not HTTP")),
    ] {
        let (upstream, _) = upstream(move |_, mut io| async move {
            read_request(&mut io).await;
            io.write_all(bytes).await.expect("the client reads");
        });
        assert_eq!(send(&upstream).await.expect_err("no answer"), Failure::after_sending(expected));
    }
    let (upstream, _) = upstream(|_, mut io| async move {
        read_request(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await.expect("the client reads");
    });
    assert_eq!(body(send(&upstream).await.expect("a head")).await, Err(ExchangeError::Closed));
}

#[tokio::test(start_paused = true)]
async fn dropping_a_response_ends_its_upstream_request() {
    let (upstream, gone) = upstream_left(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n");
    drop(send(&upstream).await.expect("a head"));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(gone.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_refused_connection_sends_nothing() {
    let base_url = "http://127.0.0.1:1".parse().expect("a URL");
    let upstream = Upstream::new(&config::Upstream { base_url, ..Default::default() }).expect("no files");
    let failure = send(&upstream).await.expect_err("nobody listens");
    assert_eq!(failure, Failure { error: ExchangeError::Unreachable("connection refused".into()), sent: false });
}
