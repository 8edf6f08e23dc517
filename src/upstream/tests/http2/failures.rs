//! What resets, GOAWAY, time limits and protocol errors of the peer mean for requests.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refused_stream_is_sent_again_a_few_times() {
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

/// In raw frames: h2 never sends a last id below a stream that it has seen.
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

/// What was in flight may have been processed; later requests use another connection.
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

/// Nothing arrives and nothing is closed, as after a cut cable.
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

/// It used to be sent again, and charged twice, although all of it had arrived.
#[tokio::test(start_paused = true)]
async fn a_body_of_the_stated_length_is_whole_whatever_ends_its_stream() {
    for (length, expected) in [("5", Ok(b"whole".to_vec())), ("6", Err(ExchangeError::Closed))] {
        let (upstream, connections) = handled_by(100, move |_, _, _, mut respond| async move {
            let head = Response::builder().header("content-length", length).body(()).expect("a head");
            let mut data = respond.send_response(head, false).expect("an open stream");
            data.send_data(Bytes::from_static(b"whole"), false).expect("an open stream");
            sleep(Duration::from_secs(1)).await;
            data.send_reset(Reason::NO_ERROR);
        });
        let response = send(&upstream).await.expect("a head");
        assert_eq!(body(response).await, expected);
        assert_eq!(connections.load(Ordering::Relaxed), 1);
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

/// The peer never opens the window for the rest of the body. Other streams are not affected, and later requests take another
/// connection: retries on the same one would fail as well if it is what is stuck.
#[tokio::test(start_paused = true)]
async fn a_closed_window_is_a_timeout_of_its_request_only() {
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
            let mut request = UpstreamRequest::new(Method::POST, path, headers, vec![b'x'; 1 << 20].into());
            upstream.send(&mut request, Instant::now).await.map(|response| response.status())
        }
    });
    for _ in 0..5 {
        assert_eq!(burst(&upstream, 20).await, 20);
        sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(stuck.await.expect("no panic"), Err(Failure::after_sending(ExchangeError::Timeout)));
    assert_eq!(start.elapsed().as_secs(), 300);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    assert_eq!(burst(&upstream, 20).await, 20);
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}
