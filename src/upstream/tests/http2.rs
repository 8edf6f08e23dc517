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

const CLOSED: Failure = Failure { error: ExchangeError::Closed, sent: true };
const UNSENT: Failure = Failure { error: ExchangeError::Closed, sent: false };
const NOT_HTTP: Failure = Failure { error: ExchangeError::Invalid("it is not HTTP"), sent: true };

type Peer = Connection<DuplexStream, Bytes>;
type Respond = SendResponse<Bytes>;

/// An upstream whose connections may speak HTTP/2.
fn over_http2(settings: &config::Upstream, connect: impl Fn() -> std::io::Result<Io> + Send + Sync + 'static) -> Upstream {
    Upstream::connected_by(settings, true, move || std::future::ready(connect()))
}

/// An upstream whose n-th connection is served by `serve`, and how many there were.
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

/// An upstream that has each stream handled by `handle`, which gets its number on its connection.
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

/// Sends so many requests at once, and counts those that get a whole response.
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

#[tokio::test(start_paused = true)]
async fn requests_share_a_connection_from_the_first_burst_on() {
    let (upstream, connections) = handled_by(100, |_, _, request, respond| async move {
        assert_eq!(request.uri(), "https://api.groq.com/openai/v1/x?y=z");
        assert!(!request.headers().contains_key("host"));
        sleep(Duration::from_secs(1)).await;
        ok(respond);
    });
    let start = Instant::now();
    assert_eq!(burst(&upstream, 64).await, 64);
    assert_eq!((start.elapsed().as_secs(), connections.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(burst(&upstream, 64).await, 64);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

/// More would wait in hyper's queue, where nobody knows whether they were sent.
#[tokio::test(start_paused = true)]
async fn streams_beyond_the_limit_go_to_further_connections() {
    let most = Arc::new(AtomicUsize::new(0));
    let open: Arc<[AtomicUsize; 64]> = Arc::new(std::array::from_fn(|_| AtomicUsize::new(0)));
    let seen = most.clone();
    let (upstream, connections) = handled_by(10, move |connection, _, _, respond| {
        let (open, seen) = (open.clone(), seen.clone());
        async move {
            seen.fetch_max(open[connection].fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(Duration::from_secs(1)).await;
            open[connection].fetch_sub(1, Ordering::Relaxed);
            ok(respond);
        }
    });
    // The limit is known once the first response is there.
    assert_eq!(burst(&upstream, 1).await, 1);
    assert_eq!(burst(&upstream, 95).await, 95);
    assert_eq!((most.load(Ordering::Relaxed), connections.load(Ordering::Relaxed)), (10, 10));
}

/// Until its settings have arrived, more streams are opened than the peer allows: they wait, or are refused.
#[tokio::test(start_paused = true)]
async fn a_first_burst_on_a_peer_with_a_low_limit_is_served() {
    let (upstream, _) = handled_by(5, |_, _, _, respond| async move {
        sleep(Duration::from_secs(1)).await;
        ok(respond);
    });
    let start = Instant::now();
    assert_eq!(burst(&upstream, 60).await, 60);
    assert!(start.elapsed() <= Duration::from_secs(12), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_goes_again_but_not_for_ever() {
    for (refused, expected) in [(1, Ok(StatusCode::OK)), (3, Ok(StatusCode::OK)), (usize::MAX, Err(UNSENT))] {
        let (upstream, connections) = handled_by(100, move |_, stream, _, mut respond| async move {
            if stream < refused {
                respond.send_reset(Reason::REFUSED_STREAM);
            } else {
                ok(respond);
            }
        });
        assert_eq!(send(&upstream).await.map(|response| response.status()), expected);
        assert_eq!(connections.load(Ordering::Relaxed), 1);
    }
}

/// Other resets may come after the request was processed.
#[tokio::test(start_paused = true)]
async fn any_other_reset_is_a_failure_of_the_sent_request() {
    for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::ENHANCE_YOUR_CALM, Reason::NO_ERROR] {
        let (upstream, _) = handled_by(100, move |_, _, _, mut respond| async move { respond.send_reset(reason) });
        assert_eq!(send(&upstream).await.expect_err("a reset"), CLOSED, "{reason:?}");
    }
}

/// What is in flight goes on, what comes later has another connection.
#[tokio::test(start_paused = true)]
async fn a_goaway_ends_a_connection_for_new_requests_only() {
    let (upstream, connections) = upstream(|_, io| async move {
        let mut peer: Peer = server::handshake(io).await.expect("a client");
        let (_, first) = peer.accept().await.expect("a stream").expect("a stream");
        peer.graceful_shutdown();
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            ok(first);
        });
        while let Some(Ok((_, respond))) = peer.accept().await {
            ok(respond);
        }
    });
    let slow = tokio::spawn({
        let upstream = upstream.clone();
        async move { burst(&upstream, 1).await }
    });
    sleep(Duration::from_millis(100)).await;
    assert_eq!(burst(&upstream, 5).await, 5);
    assert_eq!((slow.await.expect("no panic"), connections.load(Ordering::Relaxed)), (1, 2));
}

/// As raw frames, for h2 never sends a last id below a stream that it has seen.
#[tokio::test(start_paused = true)]
async fn streams_above_the_last_id_of_a_goaway_were_not_sent() {
    let (upstream, connections) = upstream(|connection, mut io| async move {
        if connection > 0 {
            let mut peer: Peer = server::handshake(io).await.expect("a client");
            while let Some(Ok((_, respond))) = peer.accept().await {
                ok(respond);
            }
            return;
        }
        const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
        const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
        io.write_all(SETTINGS).await.expect("the client reads");
        sleep(Duration::from_secs(1)).await;
        io.write_all(GOAWAY).await.expect("the client reads");
        let _end = io.read_to_end(&mut Vec::new()).await;
    });
    assert_eq!(burst(&upstream, 5).await, 5);
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

/// What was in flight may have been processed; what follows has another connection.
#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_fails_what_was_in_flight() {
    let (upstream, connections) = upstream(|connection, io| async move {
        let mut peer: Peer = server::handshake(io).await.expect("a client");
        while let Some(Ok((_, respond))) = peer.accept().await {
            if connection == 0 {
                sleep(Duration::from_secs(1)).await;
                return;
            }
            ok(respond);
        }
    });
    assert_eq!(send(&upstream).await.expect_err("it breaks"), CLOSED);
    assert_eq!(burst(&upstream, 5).await, 5);
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

/// Nothing arrives and nothing says so: a cable that was cut, a NAT that forgot.
#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_noticed_by_pings() {
    let (upstream, connections) = upstream(|connection, io| async move {
        let mut peer: Peer = server::handshake(io).await.expect("a client");
        let mut dead = connection == 0;
        while let Some(Ok((_, respond))) = peer.accept().await {
            ok(respond);
            if std::mem::take(&mut dead) {
                let _response_is_out = tokio::time::timeout(Duration::from_millis(10), peer.accept()).await;
                sleep(Duration::from_secs(3600)).await;
            }
        }
    });
    assert_eq!(burst(&upstream, 1).await, 1);
    let start = Instant::now();
    assert_eq!(send(&upstream).await.expect_err("no response"), Failure::after_sending(ExchangeError::Timeout));
    assert!(start.elapsed() <= Duration::from_secs(26), "{:?}", start.elapsed());
    assert_eq!(burst(&upstream, 5).await, 5);
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_dies_costs_no_request() {
    let (upstream, connections) = upstream(|connection, io| async move {
        let mut peer: Peer = server::handshake(io).await.expect("a client");
        while let Some(Ok((_, respond))) = peer.accept().await {
            ok(respond);
            if connection == 0 {
                let _response_is_out = tokio::time::timeout(Duration::from_millis(10), peer.accept()).await;
                sleep(Duration::from_secs(3600)).await;
            }
        }
    });
    assert_eq!(burst(&upstream, 1).await, 1);
    sleep(Duration::from_secs(26)).await;
    assert_eq!(burst(&upstream, 1).await, 1);
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_breaks_within_its_body_is_cut() {
    for reason in [Reason::INTERNAL_ERROR, Reason::REFUSED_STREAM, Reason::NO_ERROR] {
        let (upstream, _) = handled_by(100, move |_, _, _, mut respond| async move {
            let mut data = respond.send_response(Response::new(()), false).expect("an open stream");
            data.send_data(Bytes::from_static(b"begun"), false).expect("an open stream");
            sleep(Duration::from_secs(1)).await;
            data.send_reset(reason);
        });
        let mut response = send(&upstream).await.expect("a head");
        assert_eq!(response.body_mut().data().await, Some(Ok(Bytes::from_static(b"begun"))));
        assert_eq!(response.body_mut().data().await, Some(Err(ExchangeError::Closed)), "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_another_length_than_stated_is_cut() {
    for (length, data) in [("3", "ab"), ("1", "ab")] {
        let (upstream, _) = handled_by(100, move |_, _, _, mut respond| async move {
            let head = Response::builder().header("content-length", length).body(()).expect("a head");
            let mut stream = respond.send_response(head, false).expect("an open stream");
            sleep(Duration::from_secs(1)).await;
            stream.send_data(Bytes::from_static(data.as_bytes()), true).expect("an open stream");
        });
        let response = send(&upstream).await.expect("a head");
        assert_eq!(body(response).await, Err(ExchangeError::Closed), "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_body_is_a_timeout() {
    let (upstream, _) = handled_by(100, |_, _, _, mut respond| async move {
        let mut data = respond.send_response(Response::new(()), false).expect("an open stream");
        for _ in 0..3 {
            sleep(Duration::from_secs(80)).await;
            data.send_data(Bytes::from_static(b"x"), false).expect("an open stream");
        }
        sleep(Duration::from_secs(3600)).await;
    });
    let start = Instant::now();
    let mut response = send(&upstream).await.expect("a head");
    for _ in 0..3 {
        assert_eq!(response.body_mut().data().await, Some(Ok(Bytes::from_static(b"x"))));
    }
    assert_eq!(response.body_mut().data().await, Some(Err(ExchangeError::Timeout)));
    assert_eq!(start.elapsed().as_secs(), 3 * 80 + 90);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_large_is_not_http() {
    for (size, expected) in [(100 << 10, Ok(StatusCode::OK)), (140 << 10, Err(NOT_HTTP))] {
        let (upstream, _) = handled_by(100, move |_, _, _, mut respond| async move {
            let mut head = Response::new(());
            for _ in 0..size >> 10 {
                head.headers_mut().append("x-large", "b".repeat((1 << 10) - 40).parse().expect("a value"));
            }
            respond.send_response(head, true).expect("an open stream");
        });
        assert_eq!(send(&upstream).await.map(|response| response.status()), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_negotiates_http2_and_speaks_something_else_is_not_http() {
    for bytes in ["HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n", "220 mail.example ESMTP ready\r\n"] {
        let (upstream, _) = upstream(move |_, mut io| async move {
            io.write_all(bytes.as_bytes()).await.expect("the client reads");
            let _end = io.read_to_end(&mut Vec::new()).await;
        });
        let failure = send(&upstream).await.expect_err("no HTTP/2");
        assert_eq!(failure.error, NOT_HTTP.error, "{bytes}");
    }
}

/// The peer never lets the rest of the body through. The others on the connection do not notice.
#[tokio::test(start_paused = true)]
async fn a_window_that_stays_shut_is_a_timeout_of_its_request_alone() {
    let (upstream, connections) = handled_by(100, |_, _, request, respond| async move {
        if request.headers().contains_key("x-large") {
            sleep(Duration::from_secs(3600)).await;
        }
        ok(respond);
    });
    let start = Instant::now();
    let stuck = tokio::spawn({
        let upstream = upstream.clone();
        async move {
            let headers = HeaderMap::from_iter([("x-large".parse().expect("a name"), "1".parse().expect("a value"))]);
            let path = PathAndQuery::from_static("/openai/v1/x?y=z");
            let request = UpstreamRequest::new(Method::POST, path, headers, vec![b'x'; 1 << 20].into());
            upstream.send(&request, Instant::now).await.map(|response| response.status())
        }
    });
    for _ in 0..5 {
        assert_eq!(burst(&upstream, 20).await, 20);
        sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(stuck.await.expect("no panic"), Err(Failure::after_sending(ExchangeError::Timeout)));
    assert_eq!(start.elapsed().as_secs(), 300);
    assert_eq!(burst(&upstream, 20).await, 20);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

/// An app that leaves must not keep the upstream generating.
#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_reset_and_the_connection_stays() {
    let resets = Arc::new(AtomicUsize::new(0));
    let counted = resets.clone();
    let (upstream, connections) = handled_by(100, move |_, stream, _, mut respond| {
        let counted = counted.clone();
        async move {
            match stream {
                // Dropped while it waits for its head, and within its body.
                0 => assert_eq!(std::future::poll_fn(|cx| respond.poll_reset(cx)).await.expect("a reset"), Reason::CANCEL),
                1 => {
                    let mut data = respond.send_response(Response::new(()), false).expect("an open stream");
                    assert_eq!(std::future::poll_fn(|cx| data.poll_reset(cx)).await.expect("a reset"), Reason::CANCEL);
                }
                _ => return ok(respond),
            }
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(tokio::time::timeout(Duration::from_secs(1), send(&upstream)).await.is_err());
    drop(send(&upstream).await.expect("a head"));
    assert_eq!(burst(&upstream, 1).await, 1);
    sleep(Duration::from_millis(1)).await;
    assert_eq!((resets.load(Ordering::Relaxed), connections.load(Ordering::Relaxed)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn connections_are_closed_when_idle_and_left_when_old() {
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = closed.clone();
    let (upstream, connections) = upstream(move |_, io| {
        let counted = counted.clone();
        async move {
            let mut peer: Peer = server::handshake(io).await.expect("a client");
            while let Some(Ok((_, respond))) = peer.accept().await {
                ok(respond);
            }
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let reaper = upstream.clone();
    tokio::spawn(async move { reaper.reap_idle().await });
    let state = || (connections.load(Ordering::Relaxed), closed.load(Ordering::Relaxed));
    assert_eq!(burst(&upstream, 5).await, 5);
    sleep(Duration::from_secs(44)).await;
    assert_eq!(state(), (1, 0));
    sleep(Duration::from_secs(32)).await;
    assert_eq!(state(), (1, 1));
    // Never idle for long.
    for _ in 0..65 {
        assert_eq!(burst(&upstream, 1).await, 1);
        sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(state(), (3, 2));
}

/// No request waits for another's: all but the one that shares its connection make their own at once.
#[tokio::test(start_paused = true)]
async fn an_upstream_of_http1_only_is_found_out_once() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let upstream = Arc::new(over_http2(&config::Upstream::default(), move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let (ours, mut theirs) = duplex(1 << 16);
        tokio::spawn(async move {
            let mut request = [0; 1024];
            while theirs.read(&mut request).await.is_ok_and(|read| read > 0) {
                sleep(Duration::from_secs(1)).await;
                theirs.write_all(super::OK).await.expect("the client reads");
            }
        });
        Ok(Io::Memory(ours))
    }));
    let start = Instant::now();
    for _ in 0..2 {
        assert_eq!(burst(&upstream, 64).await, 64);
    }
    assert_eq!((start.elapsed().as_secs(), connections.load(Ordering::Relaxed)), (2, 64));
}

/// Every request that waits for a connection fails when there is none.
#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_made_fails_all_that_wait_for_it() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = attempts.clone();
    let upstream = Arc::new(over_http2(&config::Upstream::default(), move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }));
    let refused = Failure { error: ExchangeError::Unreachable("connection refused".into()), sent: false };
    let failures = std::array::from_fn::<_, 5, _>(|_| {
        let upstream = upstream.clone();
        tokio::spawn(async move { send(&upstream).await.map(|_| ()) })
    });
    for failure in failures {
        assert_eq!(failure.await.expect("no panic"), Err(refused.clone()));
    }
    assert_eq!(attempts.load(Ordering::Relaxed), 1);
}
