//! Connections without a request: `server.header_timeout` bounds the time to the first request but not the time between requests.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::kit::{one, request, rest, settings, start, upstream};

/// Regression: the documentation said that it also closes idle connections.
#[tokio::test]
async fn header_timeout_bounds_a_first_request_and_not_the_pause_between_requests() {
    let (address, _) = upstream().await;
    let mut settings = settings(address);
    settings.server.header_timeout = Duration::from_millis(300);
    let shield = start(settings);

    let mut kept = TcpStream::connect(shield.app).await.expect("the listener accepts");
    for _ in 0..2 {
        kept.write_all(request("a").as_bytes()).await.expect("the request is written");
        assert!(one(&mut kept).await.expect("a response").starts_with("HTTP/1.1 200 OK"));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    let began = tokio::time::Instant::now();
    for first in ["", "GET /openai/v1/models HTTP/1.1\r\nho"] {
        let mut slow = TcpStream::connect(shield.app).await.expect("the listener accepts");
        slow.write_all(first.as_bytes()).await.expect("the request is written");
        let answer = rest(&mut slow).await;
        assert!(answer.is_empty() || answer.contains("request_timeout"), "{answer}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    shield.end();
}
