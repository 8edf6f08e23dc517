//! Requests over HTTP/1.1: what is sent, and what happens when the upstream does not read it.

use std::sync::{Arc, Mutex, atomic::Ordering};

use http::{HeaderName, HeaderValue, Method, uri::PathAndQuery};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep},
};

use super::{
    Duration, ExchangeError, Failure, HeaderMap, Io, OK, Upstream, UpstreamRequest, body, config, duplex, send, upstream,
};

fn post(size: usize) -> UpstreamRequest {
    let headers = HeaderMap::from_iter([(HeaderName::from_static("x-own"), HeaderValue::from_static("1"))]);
    UpstreamRequest::new(Method::POST, PathAndQuery::from_static("/openai/v1/x"), headers, vec![b'x'; size].into())
}

fn wanted(size: usize) -> Vec<u8> {
    let head = format!("POST /openai/v1/x HTTP/1.1\r\nx-own: 1\r\nhost: api.groq.com\r\ncontent-length: {size}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; size]].concat()
}

#[tokio::test(start_paused = true)]
async fn a_body_of_any_size_goes_out_whole_in_every_attempt() {
    for size in [0, 1, 4096, 4097, 10_000, 3_000_000] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let (upstream, connections) = upstream(move |_, mut io| {
            let log = log.clone();
            async move {
                for _ in 0..3 {
                    let mut request = vec![0; wanted(size).len()];
                    io.read_exact(&mut request).await.expect("a request");
                    log.lock().expect("unpoisoned").push(request);
                    io.write_all(OK).await.expect("the client reads");
                }
            }
        });
        let mut request = post(size);
        for attempt in 0..3 {
            if attempt == 1 {
                request.compact();
            }
            let answer = upstream.send(&mut request, Instant::now).await.expect("an answer");
            assert_eq!(body(answer).await, Ok(b"ok".to_vec()));
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        assert!(seen.lock().expect("unpoisoned").iter().all(|request| *request == wanted(size)), "{size}");
    }
}

/// An upstream may refuse a request after its head.
#[tokio::test(start_paused = true)]
async fn an_answer_may_come_before_the_request_is_out() {
    const TOO_LARGE: &[u8] = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
    let (upstream, connections) = upstream(|_, mut io| async move {
        io.read_exact(&mut [0; 1000]).await.expect("a request's beginning");
        io.write_all(TOO_LARGE).await.expect("the client reads");
        sleep(Duration::from_secs(3600)).await;
    });
    for attempt in 1..=2 {
        let answer = upstream.send(&mut post(3_000_000), Instant::now).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 413);
        assert_eq!(body(answer).await, Ok(b"no".to_vec()));
        assert_eq!(connections.load(Ordering::Relaxed), attempt);
    }
}

/// The end of the response may depend on the end of the request.
#[tokio::test(start_paused = true)]
async fn a_request_body_is_sent_while_its_answer_arrives() {
    let (upstream, connections) = upstream(|_, mut io| async move {
        for _ in 0..2 {
            io.read_exact(&mut [0; 1000]).await.expect("a request's beginning");
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.expect("the client reads");
            io.read_exact(&mut vec![0; wanted(3_000_000).len() - 1000]).await.expect("the rest of it");
            io.write_all(b"ok").await.expect("the client reads");
        }
    });
    for _ in 0..2 {
        let answer = upstream.send(&mut post(3_000_000), Instant::now).await.expect("an answer");
        assert_eq!(body(answer).await, Ok(b"ok".to_vec()));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

/// A response that has arrived counts, even though the rest of the request could not be sent.
#[tokio::test(start_paused = true)]
async fn an_answer_before_a_close_is_read() {
    let (upstream, _) = upstream(|_, mut io| async move {
        io.read_exact(&mut [0; 1000]).await.expect("a request's beginning");
        io.write_all(b"HTTP/1.1 413 Too Large\r\nconnection: close\r\n\r\nno").await.expect("the client reads");
    });
    let answer = upstream.send(&mut post(3_000_000), Instant::now).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), body(answer).await), (413, Ok(b"no".to_vec())));
}

#[tokio::test(start_paused = true)]
async fn a_request_counts_as_sent_once_bytes_were_written() {
    // Closed before a byte could be written.
    let gone = Upstream::over(&config::Upstream::default(), || Ok(Io::Memory(duplex(1 << 10).0)));
    assert_eq!(send(&gone).await.expect_err("nobody is there"), Failure { error: ExchangeError::Closed, sent: false });
    let (cut, _) = upstream(|_, mut io| async move {
        io.read_exact(&mut [0; 1000]).await.expect("a request's beginning");
    });
    let failure = cut.send(&mut post(3_000_000), Instant::now).await.expect_err("it is cut off");
    assert_eq!(failure, Failure::after_sending(ExchangeError::Closed));
}

/// `response_timeout` includes the time that it takes to send the request.
#[tokio::test(start_paused = true)]
async fn an_unread_request_is_a_timeout() {
    let (upstream, _) = upstream(|_, io| async move {
        sleep(Duration::from_secs(3600)).await;
        drop(io);
    });
    let start = Instant::now();
    let failure = upstream.send(&mut post(3_000_000), Instant::now).await.expect_err("it is not taken");
    assert_eq!((failure, start.elapsed()), (Failure::after_sending(ExchangeError::Timeout), Duration::from_secs(10)));
}

/// A plain upstream behind an HTTP proxy is requested in absolute form.
#[tokio::test]
async fn a_forward_proxy_gets_the_absolute_form() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = format!("http://user:word@{}", listener.local_addr().expect("bound"));
    let settings = config::Upstream {
        base_url: "http://groq.example:81/pre/".parse().expect("a URL"),
        proxy: Some(proxy.parse().expect("a URL")),
        ..Default::default()
    };
    let upstream = Upstream::new(&settings).expect("no files");
    let served = tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.expect("a connection");
        let mut request = vec![0; 4096];
        let read = io.read(&mut request).await.expect("a request");
        io.write_all(OK).await.expect("the client reads");
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    let answer = upstream.send(&mut post(2), Instant::now).await.expect("an answer");
    assert_eq!(body(answer).await, Ok(b"ok".to_vec()));
    assert_eq!(
        served.await.expect("served"),
        "POST http://groq.example:81/pre/openai/v1/x HTTP/1.1\r\nx-own: 1\r\nhost: groq.example:81\r\n\
         proxy-authorization: Basic dXNlcjp3b3Jk\r\ncontent-length: 2\r\n\r\nxx"
    );
}
