//! How requests share connections: stream limits, GOAWAY, idle and old connections.

use super::*;

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

/// More would wait in hyper's queue, without a report whether they were sent.
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

/// Streams in flight finish, later ones use another connection.
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

/// When an app disconnects, the upstream must stop generating.
#[tokio::test(start_paused = true)]
async fn dropping_a_response_resets_its_stream_and_keeps_the_connection() {
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
async fn idle_connections_are_closed_and_old_ones_retired() {
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

/// No request waits for another one's connection attempt, except the one that shares it.
#[tokio::test(start_paused = true)]
async fn an_http1_only_upstream_is_detected_once() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let upstream = Arc::new(over_http2(&config::Upstream::default(), move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let (ours, mut theirs) = duplex(1 << 16);
        tokio::spawn(async move {
            let mut request = [0; 1024];
            while theirs.read(&mut request).await.is_ok_and(|read| read > 0) {
                sleep(Duration::from_secs(1)).await;
                theirs.write_all(super::super::OK).await.expect("the client reads");
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
