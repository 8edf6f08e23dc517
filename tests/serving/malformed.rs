//! Malformed requests. Each reaches the upstream at most once, according to the upstream's log.

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::kit::{LONGEST_WAIT, exchange, one, request, rest, settings, start, upstream};

#[tokio::test]
async fn a_malformed_request_reaches_the_upstream_at_most_once() {
    let (address, log) = upstream().await;
    let shield = start(settings(address));
    let smuggled = request("smuggled");
    let start_of = |method: &str, headers: &str| {
        format!("{method} /openai/v1/models/first HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n{headers}\r\n")
    };
    let table = [
        ("length and chunks", start_of("POST", "content-length: 5\r\ntransfer-encoding: chunked\r\n") + "0\r\n\r\n"),
        ("chunks and length", start_of("POST", "transfer-encoding: chunked\r\ncontent-length: 5\r\n") + "0\r\n\r\n"),
        ("two lengths", start_of("POST", "content-length: 0\r\ncontent-length: 60\r\n")),
        ("one length twice", start_of("POST", "content-length: 0\r\ncontent-length: 0\r\n")),
        ("a list of lengths", start_of("POST", "content-length: 0, 0\r\n")),
        ("TE.TE", start_of("POST", "transfer-encoding: chunked\r\ntransfer-encoding: x\r\n") + "0\r\n\r\n"),
        ("TE of another kind", start_of("POST", "transfer-encoding: gzip, chunked\r\n") + "0\r\n\r\n"),
        ("TE with a tab", start_of("POST", "transfer-encoding:\tchunked\r\ncontent-length: 5\r\n") + "0\r\n\r\n"),
        ("bare LF", start_of("GET", "x: y\n")),
        ("folded line", start_of("GET", "x: y\r\n content-length: 60\r\n")),
        ("NUL", start_of("GET", "x: a\0b\r\n")),
        ("space before a colon", start_of("POST", "content-length : 60\r\n")),
        ("two hosts", start_of("GET", "host: y\r\n")),
        ("chunk size of another kind", start_of("POST", "transfer-encoding: chunked\r\n") + "0x0\r\n\r\n"),
        ("chunk extension overflow", start_of("POST", "transfer-encoding: chunked\r\n") + "1;" + &"x".repeat(20_000) + "\r\n"),
    ];
    for (name, bytes) in table {
        let answer = exchange(shield.app, (bytes + &smuggled).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{name}: {answer}");
        assert!(answer.contains("connection: close") && answer.contains("\"malformed_request\""), "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer}");
        assert!(log.lock().expect("no panic").is_empty(), "{name}: {log:?}");
    }
    // After an upgrade that is not accepted, the following bytes are neither another protocol nor another request.
    let early = start_of("GET", "connection: upgrade\r\nupgrade: h2c\r\n") + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let answer = exchange(shield.app, early.as_bytes()).await;
    assert_eq!(log.lock().expect("no panic").len(), 1, "{answer}");
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("malformed_request"), "{answer}");
    tokio::time::timeout(LONGEST_WAIT, shield.drained()).await.expect("a complete drain");
}

#[tokio::test]
async fn an_early_response_is_not_lost_in_a_reset() {
    let (address, log) = upstream().await;
    let mut settings = settings(address);
    settings.server.max_body = 1000;
    let shield = start(settings);
    let head =
        "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: 8000000\r\n\r\n";
    let mut socket = TcpStream::connect(shield.app).await.expect("the listener accepts");
    socket.write_all(head.as_bytes()).await.expect("the request is written");
    for _ in 0..80 {
        socket.write_all(&[b'x'; 100_000]).await.expect("the body is discarded");
    }
    let answer = rest(&mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"request_too_large\""), "{answer}");
    assert!(log.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn slow_clients_do_not_keep_others_waiting() {
    slow_clients(500).await;
}

/// The connection writes these responses itself, and used to add a second `connection: close` to that of the error's row.
#[tokio::test]
async fn the_answer_to_what_is_not_http_has_each_header_once() {
    let (address, _) = upstream().await;
    let shield = start(settings(address));
    for bytes in ["PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "no HTTP\r\n\r\n", "GET / HTTP/1.1\r\nhost: x\r\na b: c\r\n\r\n"] {
        let answer = exchange(shield.app, bytes.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        for name in ["connection: close", "content-length:", "content-type:", "date:"] {
            assert_eq!(answer.matches(name).count(), 1, "{name} in {answer}");
        }
    }
}

/// `cargo test --test serving -- --ignored ten_thousand --nocapture`; needs 20,000 file descriptors (`ulimit -n`).
#[tokio::test]
#[ignore = "takes 20 000 descriptors"]
async fn ten_thousand_slow_clients_take_bounded_memory() {
    slow_clients(10_000).await;
}

/// `count` clients stop after the beginning of a body of 1 MB. A fast client is still served, and memory is bounded.
async fn slow_clients(count: usize) {
    let (address, _) = upstream().await;
    let mut settings = settings(address);
    settings.server.max_connections = count + 1;
    let cap = settings.queue.max_bytes;
    let shield = start(settings);
    let before = resident();
    let mut slow = Vec::new();
    let begun =
        [&b"POST / HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: 1000000\r\n\r\n"[..], &[b'x'; 30_000]]
            .concat();
    for _ in 0..count {
        let mut socket = TcpStream::connect(shield.app).await.expect("the listener accepts");
        socket.write_all(&begun).await.expect("the request is written");
        slow.push(socket);
    }
    let grown = resident().saturating_sub(before);
    println!("{count} slow clients: {} MiB more, {} KiB each", grown >> 20, (grown >> 10) / count as u64);
    assert!(grown < cap + (count as u64) * (64 << 10), "{} MiB", grown >> 20);
    // The bodies have used the body budget. Requests without a body are served.
    let mut quick = TcpStream::connect(shield.app).await.expect("the listener accepts");
    quick.write_all(request("quick").as_bytes()).await.expect("the request is written");
    let answer = one(&mut quick).await.expect("a response");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn beyond_max_connections_clients_wait_for_a_place() {
    let (address, _) = upstream().await;
    let mut settings = settings(address);
    settings.server.max_connections = 1;
    let shield = start(settings);
    let mut first = TcpStream::connect(shield.app).await.expect("the listener accepts");
    first.write_all(request("first").as_bytes()).await.expect("the request is written");
    one(&mut first).await.expect("a response");
    let mut second = TcpStream::connect(shield.app).await.expect("the backlog accepts");
    second.write_all(request("second").as_bytes()).await.expect("the backlog accepts");
    drop(first);
    let answer = one(&mut second).await.expect("a response once a connection is closed");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

/// Resident memory of this process in bytes, including the clients.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this runs on Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
