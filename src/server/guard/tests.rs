//! What hyper reads, and what the client receives, however the client's bytes are split.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

fn guard(server: DuplexStream) -> (Guard<DuplexStream>, Arc<Exchange>) {
    let exchange = Exchange::new();
    (Guard::new(server, BytesMut::new(), exchange.clone()), exchange)
}

/// Reads what is available, up to where hyper would wait.
async fn read(guard: &mut Guard<DuplexStream>) -> String {
    let mut all = Vec::new();
    let mut some = [0; 100];
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(std::time::Duration::from_millis(1), guard.read(&mut some)).await {
        all.extend_from_slice(&some[..count]);
    }
    String::from_utf8(all).expect("text")
}

/// Answers the current request, as hyper does.
async fn answer(guard: &mut Guard<DuplexStream>, exchange: &Exchange, response: &str) {
    exchange.begin();
    exchange.close();
    exchange.end();
    guard.write_all(response.as_bytes()).await.expect("it is open");
    guard.flush().await.expect("it is open");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_read_after_the_previous_response() {
    let (mut client, server) = duplex(1 << 16);
    let (mut guard, exchange) = guard(server);
    let (first, second) = ("POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab", "GET /2 HTTP/1.1\r\nhost: x\r\n\r\n");
    client.write_all(format!("{first}{second}").as_bytes()).await.expect("it is open");
    assert_eq!(read(&mut guard).await, first);
    assert_eq!(read(&mut guard).await, "", "it is not answered yet");
    answer(&mut guard, &exchange, "answer").await;
    assert_eq!(read(&mut guard).await, second);
    let mut told = [0; 6];
    client.read_exact(&mut told).await.expect("it is open");
    assert_eq!(&told, b"answer");
}

/// hyper answers a head that it cannot parse itself, before the service is called.
#[tokio::test(start_paused = true)]
async fn hypers_own_response_is_discarded() {
    let (mut client, server) = duplex(1 << 16);
    let (mut guard, exchange) = guard(server);
    client.write_all(b"garbage\r\n\r\n").await.expect("it is open");
    read(&mut guard).await;
    guard.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("it is taken");
    guard.flush().await.expect("it is open");
    assert_eq!(exchange.phase(), Phase::Head);
    let (io, unread) = guard.into_inner();
    drop(io);
    assert!(unread);
    let mut told = String::new();
    client.read_to_string(&mut told).await.expect("a clean close");
    assert_eq!(told, "");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_after_a_request_that_is_the_last() {
    for head in [
        "transfer-encoding: chunked\r\n\r\n5\r\nhel",
        "transfer-encoding: chunked\r\n\r\n5;\r\nhello\r\n0\r\n\r\n",
        "content-length: 0\r\ncontent-length: 5\r\n\r\n",
        "content-length: 9\r\n\r\nab",
    ] {
        let (mut client, server) = duplex(1 << 16);
        let (mut guard, exchange) = guard(server);
        client.write_all(format!("POST / HTTP/1.1\r\nhost: x\r\n{head}").as_bytes()).await.expect("it is open");
        read(&mut guard).await;
        exchange.begin();
        assert!(exchange.close(), "{head}");
        answer(&mut guard, &exchange, "answer").await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is open");
        read(&mut guard).await;
        assert_ne!(exchange.phase(), Phase::Head, "{head}: no next request begins");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_noticed_while_its_request_runs() {
    for ahead in ["", "GET /next HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let (mut client, server) = duplex(1 << 16);
        let (mut guard, exchange) = guard(server);
        client.write_all(format!("GET / HTTP/1.1\r\nhost: x\r\n\r\n{ahead}").as_bytes()).await.expect("it is open");
        read(&mut guard).await;
        exchange.begin();
        guard.flush().await.expect("it is there");
        drop(client);
        assert_eq!(guard.flush().await.expect_err("it has left").kind(), io::ErrorKind::UnexpectedEof);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// hyper reads the requests as they were sent, one by one, wherever the bytes are split.
    #[test]
    fn requests_do_not_depend_on_how_bytes_are_split(
        bodies in prop::collection::vec(0..300_usize, 1..8),
        pieces in prop::collection::vec(1..200_usize, 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let (mut client, server) = duplex(1 << 20);
            let (mut guard, exchange) = guard(server);
            let body = |length| "GET / HTTP/1.1\r\nhost: x\r\n\r\n".chars().cycle().take(length).collect::<String>();
            let request = |length: &usize| format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{}", body(*length));
            let requests: Vec<String> = bodies.iter().map(request).collect();
            let all = requests.concat();
            let (mut left, mut sizes, mut whole, mut current) = (all.as_bytes(), pieces.iter().cycle(), 0, String::new());
            while !left.is_empty() {
                let (piece, rest) = left.split_at(left.len().min(*sizes.next().expect("a cycle")));
                client.write_all(piece).await.expect("it is open");
                left = rest;
                loop {
                    let came = read(&mut guard).await;
                    current += &came;
                    if whole < requests.len() && current == requests[whole] {
                        answer(&mut guard, &exchange, "answer").await;
                        (whole, current) = (whole + 1, String::new());
                    } else if came.is_empty() {
                        break;
                    }
                }
            }
            assert_eq!((whole, current.as_str()), (requests.len(), ""));
        });
    }
}
