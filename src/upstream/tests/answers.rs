//! Responses over HTTP/1.1: heads in any pieces, where bodies end, and whether the connection is reused.

use hyper::ext::ReasonPhrase;
use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use http::{Method, StatusCode, uri::PathAndQuery};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, sleep},
};

use super::{
    Duration, ExchangeError, Failure, HeaderMap, Response, ResponseBody, Upstream, UpstreamRequest, body, read_request, send,
    upstream,
};

/// An upstream that sends these responses on each connection, piece by piece, and then closes it.
fn answering(answers: &[&[&[u8]]]) -> (Upstream, Arc<std::sync::atomic::AtomicUsize>) {
    let answers: Vec<Vec<Vec<u8>>> = answers.iter().map(|pieces| pieces.iter().map(|piece| piece.to_vec()).collect()).collect();
    upstream(move |_, mut io| {
        let answers = answers.clone();
        async move {
            for pieces in answers {
                if read_request(&mut io).await.is_empty() {
                    return;
                }
                for piece in pieces {
                    sleep(Duration::from_millis(1)).await;
                    if io.write_all(&piece).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
}

async fn asked(upstream: &Upstream, method: Method) -> Response<ResponseBody> {
    let mut request = UpstreamRequest::new(method, PathAndQuery::from_static("/x"), HeaderMap::new(), Bytes::new());
    upstream.send(&mut request, Instant::now).await.expect("an answer")
}

/// The body, and how many connections two such requests take.
async fn twice(answer: &[&[u8]]) -> (Result<Vec<u8>, ExchangeError>, usize) {
    let (upstream, connections) = answering(&[answer, answer, answer]);
    let first = body(asked(&upstream, Method::GET).await).await;
    sleep(Duration::from_millis(10)).await;
    assert_eq!(body(asked(&upstream, Method::GET).await).await, first);
    (first, connections.load(Ordering::Relaxed))
}

/// So many bytes at a time.
fn dripped(bytes: &[u8], at_once: usize) -> Vec<&[u8]> {
    bytes.chunks(at_once).collect()
}

#[tokio::test(start_paused = true)]
async fn an_answer_ends_where_its_head_says() {
    for (answer, expected) in [
        (&b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\nx: y\r\n\r\n"[..], 1),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: x, Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", 1),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\ncontent-length: 3\r\n\r\nabc", 1),
        (b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\ncontent-length: 3\r\n\r\nabc", 1),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc", 1),
        // Lines without CR, and empty lines before the head.
        (b"\r\n\r\n\nHTTP/1.1 200 OK\ncontent-length: 3\n\nabc", 1),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", 1),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc", 2),
        (b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nconnection: x, Close\r\ncontent-length: 3\r\n\r\nabc", 2),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc", 2),
        // An intermediary may see another end.
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 2),
        // Bytes after the end of the response.
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd", 2),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n", 2),
    ] {
        for at_once in [answer.len(), 7, 1] {
            let got = twice(&dripped(answer, at_once)).await;
            // Late bytes are noticed before the next request.
            assert_eq!(got, (Ok(b"abc".to_vec()), expected), "{at_once}: {}", answer.escape_ascii());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_end_with_its_connection() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\n\r\nabc"[..],
        b"HTTP/1.0 200 OK\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\ncontent-length: 1\r\n\r\nabc",
    ] {
        let (upstream, connections) = answering(&[&dripped(answer, 5)]);
        for _ in 0..2 {
            let answer = asked(&upstream, Method::GET).await;
            assert_eq!((answer.body().exact_size(), answer.body().is_end()), (None, false));
            assert_eq!(body(answer).await, Ok(b"abc".to_vec()));
        }
        assert_eq!(connections.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn some_answers_never_have_a_body() {
    let (head, empty, unchanged) = (
        &b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"[..],
        &b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n"[..],
        &b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"[..],
    );
    let (upstream, connections) = answering(&[&[head], &[empty], &[unchanged], &[head]]);
    for (method, status) in [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304), (Method::HEAD, 200)] {
        let answer = asked(&upstream, method).await;
        assert_eq!((answer.status().as_u16(), answer.body().exact_size()), (status, Some(0)));
        assert!(answer.body().is_end());
        assert_eq!(body(answer).await, Ok(Vec::new()));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_bad_chunk_cuts_the_answer() {
    let (upstream, _) = answering(&[&[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n"]]);
    let mut answer = asked(&upstream, Method::GET).await;
    assert_eq!(answer.body_mut().data().await, Some(Ok(Bytes::from_static(b"ab"))));
    assert_eq!(answer.body_mut().data().await, Some(Err(ExchangeError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn an_ambiguous_head_is_invalid() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\ncontent-length: 3, 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ncontent-length: 3x\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nabc",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 099 Odd\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
    ] {
        for at_once in [head.len(), 1 << 10] {
            let (upstream, _) = answering(&[&dripped(head.as_bytes(), at_once)]);
            let failure = send(&upstream).await.expect_err("nothing of HTTP");
            assert_eq!(failure, Failure::after_sending(ExchangeError::NOT_HTTP), "{head:.60}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_may_have_a_hundred_headers_and_128_kib() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
    let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(140 << 10));
    for head in [many, long] {
        for at_once in [head.len(), 1 << 10] {
            let (upstream, _) = answering(&[&dripped(head.as_bytes(), at_once)]);
            let failure = send(&upstream).await.expect_err("it is too large");
            assert_eq!(failure, Failure::after_sending(ExchangeError::HEAD_TOO_LARGE), "{head:.60}");
        }
    }
    let hundred = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "a: b\r\n".repeat(99));
    for at_once in [hundred.len(), 100, 1] {
        let (upstream, _) = answering(&[&dripped(hundred.as_bytes(), at_once)]);
        assert_eq!(send(&upstream).await.expect("it is one").headers().len(), 100);
    }
}

#[tokio::test(start_paused = true)]
async fn the_head_is_the_upstreams() {
    let (upstream, _) = answering(&[
        &[b"HTTP/1.0 498 Flex Tier Capacity Exceeded\r\nX-Request-ID: a\r\nset-cookie: a=1\r\nSet-Cookie: b=2\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"],
        &[b"HTTP/1.1 200 Fine\r\ncontent-length: 0\r\n\r\n"],
        &[b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"],
        &[b"HTTP/1.1 404\r\ncontent-length: 0\r\n\r\n"],
    ]);
    let reason =
        |answer: &Response<ResponseBody>| answer.extensions().get::<ReasonPhrase>().map(|reason| reason.as_bytes().to_vec());
    let first = send(&upstream).await.expect("an answer");
    assert_eq!(first.status().as_u16(), 498);
    assert_eq!(reason(&first).as_deref(), Some(&b"Flex Tier Capacity Exceeded"[..]));
    assert_eq!(first.headers()["x-request-id"], "a");
    assert_eq!(first.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    let second = send(&upstream).await.expect("an answer");
    assert_eq!(second.status(), StatusCode::OK);
    assert_eq!(reason(&second).as_deref(), Some(&b"Fine"[..]));
    for reason_phrase in [None, Some(Vec::new())] {
        let usual = send(&upstream).await.expect("a response");
        assert_eq!((usual.status().as_u16(), reason(&usual)), (404, reason_phrase));
    }
}

/// Parsing it again for each byte would be eight billion steps.
#[tokio::test(start_paused = true)]
async fn a_large_head_may_come_byte_by_byte() {
    let head = format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", format!("a: {}\r\n", "b".repeat(1500)).repeat(80));
    let (upstream, _) = upstream(move |_, mut io| {
        let head = head.clone();
        async move {
            read_request(&mut io).await;
            for byte in head.as_bytes() {
                io.write_all(&[*byte]).await.expect("the client reads");
                tokio::task::yield_now().await;
            }
        }
    });
    assert_eq!(body(send(&upstream).await.expect("an answer")).await, Ok(b"ok".to_vec()));
}
