//! HTTP/2 clients that flood a connection, send too slowly, or open too many streams.

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt as _, time::Instant};

use super::client::{
    Client,
    Outcome::{Answer, Reset},
    fields, seen, with,
};
use crate::{
    frames::{
        CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, PING, REFUSED_STREAM, RST_STREAM, SETTINGS, WINDOW_UPDATE,
        block, frame, headers,
    },
    kit::{LONGEST_WAIT, settings, start, upstream},
};

/// Floods a connection, and returns the code of the GOAWAY that ends it.
async fn flood(app: SocketAddr, first: &[u8], again: impl Fn(u32) -> Vec<u8>, count: u32) -> Option<u32> {
    let mut client = Client::connect(app).await;
    client.send(first).await;
    let mut sent = 0;
    while sent < count {
        let batch: Vec<u8> = (sent..(sent + 100).min(count)).flat_map(&again).collect();
        sent += 100;
        if client.socket.get_mut().write_all(&batch).await.is_err() {
            break;
        }
    }
    while client.read().await {}
    client.goaway
}

#[tokio::test]
async fn floods_are_ended_while_other_clients_are_served() {
    let (address, log) = upstream().await;
    let shield = start(settings(address));
    let slow = headers(1, END_STREAM, &fields("/openai/v1/models/slow"));
    let reset = |n: u32| {
        let id = 3 + 2 * n;
        [headers(id, END_STREAM, &fields("/openai/v1/models/reset")), frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat()
    };
    let app = shield.app;
    let serving = async {
        // One after the other on a connection of its own, during the floods.
        let mut slowest = Duration::ZERO;
        let mut client = Client::connect(app).await;
        for n in 0..50 {
            let begun = Instant::now();
            client.send(&headers(1 + 2 * n, END_STREAM, &fields("/openai/v1/models/good"))).await;
            let outcome = client.outcome(1 + 2 * n).await;
            assert!(outcome.is(&Answer("\"list\"".into())), "{outcome:?}");
            slowest = slowest.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    };
    let floods = async {
        let began = Instant::now();
        // Frames without effect: after a thousand the connection is closed.
        flood(app, &slow, |_| frame(PING, 0, 0, &[7; 8]), 1_000_000).await;
        flood(app, &slow, |_| frame(SETTINGS, 0, 0, &[]), 1_000_000).await;
        flood(app, &slow, |n| frame(2, 0, 3 + 2 * (n % 1000), &[0, 0, 0, 0, 1]), 1_000_000).await;
        flood(app, &slow, |_| frame(200, 0, 0, &[0; 100]), 1_000_000).await;
        flood(app, &slow, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 1_000_000).await;
        // Rapid reset, empty frames, and header blocks without an end.
        let codes = [
            flood(app, &slow, reset, 100_000).await,
            flood(app, &headers(1, 0, &with(":method", "POST")), |_| frame(DATA, 0, 1, &[]), 100_000).await,
            flood(app, &frame(HEADERS, 0, 1, &block(&fields("/a"))), |_| frame(CONTINUATION, 0, 1, &[]), 100_000).await,
            // Requests that the server has to reset.
            flood(app, &[], |n| headers(1 + 2 * n, END_STREAM, &with("connection", "close")), 100_000).await,
        ];
        assert_eq!(codes, [Some(ENHANCE_YOUR_CALM); 4]);
        assert!(began.elapsed() < LONGEST_WAIT / 2, "{:?}", began.elapsed());
    };
    tokio::join!(serving, floods);
    let resets = seen(&log).iter().filter(|line| line.contains("/models/reset")).count();
    assert!(resets < 1000, "{resets} requests that were reset at once reached the upstream");
}

/// The answer ends the stream even if its client keeps sending, and affects no other stream.
#[tokio::test]
async fn slow_and_oversized_bodies_are_answered_early() {
    let (address, log) = upstream().await;
    let mut settings = settings(address);
    settings.server.body_timeout = Duration::from_millis(300);
    settings.server.max_body = 1000;
    let shield = start(settings);
    let mut client = Client::connect(shield.app).await;
    let post = with(":method", "POST");
    for (id, length, code) in [(1, "500", "request_timeout"), (3, "1000000", "request_too_large")] {
        client.send(&headers(id, 0, &[&post[..], &[("content-length", length)]].concat())).await;
        client.send(&frame(DATA, 0, id, &[b'x'; 100])).await;
        let outcome = client.outcome(id).await;
        assert!(outcome.is(&Answer(format!("\"{code}\""))), "{outcome:?}");
        client.send(&frame(DATA, 0, id, &[b'x'; 100])).await;
    }
    client.send(&headers(5, END_STREAM, &fields("/openai/v1/models/good"))).await;
    let outcome = client.outcome(5).await;
    assert!(outcome.is(&Answer("\"list\"".into())), "{outcome:?}");
    assert_eq!(seen(&log), ["GET /openai/v1/models/good HTTP/1.1"]);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    const LIMIT: u32 = 256;
    let (address, _) = upstream().await;
    let shield = start(settings(address));
    let mut client = Client::connect(shield.app).await;
    let slow = fields("/openai/v1/models/slow");
    let all: Vec<u8> = (0..LIMIT + 10).flat_map(|n| headers(1 + 2 * n, END_STREAM, &slow)).collect();
    client.send(&all).await;
    for n in 0..LIMIT + 10 {
        let outcome = client.outcome(1 + 2 * n).await;
        let expected = if n < LIMIT { Answer("\"list\"".into()) } else { Reset(REFUSED_STREAM) };
        assert!(outcome.is(&expected), "{n}: {outcome:?}");
    }
}
