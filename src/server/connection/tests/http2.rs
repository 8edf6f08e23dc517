//! HTTP/2 connections in virtual time.

use h2::{Reason, client::SendRequest};
use tokio::task::JoinHandle;

use super::*;

/// An HTTP/2 client, and its connection.
async fn connect<F, R>(shield: &Arc<Shield>, answer: F) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>)
where
    F: Fn(Request<IncomingBody>, Option<&'static str>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Made>> + Send + 'static,
{
    connect_with(shield, answer, &mut h2::client::Builder::new()).await
}

async fn connect_with<F, R>(
    shield: &Arc<Shield>,
    answer: F,
    builder: &mut h2::client::Builder,
) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>)
where
    F: Fn(Request<IncomingBody>, Option<&'static str>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Made>> + Send + 'static,
{
    let (client, connection) = builder.handshake(served(shield, answer)).await.expect("a handshake");
    (client.ready().await.expect("it is open"), tokio::spawn(connection))
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://shield{path}")).body(()).expect("a request")
}

/// A request without a body, and the body of its response.
async fn ask(client: &mut SendRequest<Bytes>, path: &str) -> Result<(http::response::Parts, String), h2::Error> {
    let (response, _) = client.send_request(get(path), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok((head, String::from_utf8(all).expect("text")))
}

/// A handler that never answers, and counts how often it was dropped.
#[derive(Clone, Default)]
struct Hangs(Arc<AtomicUsize>);

impl Hangs {
    fn handler(&self) -> impl Fn(Request<IncomingBody>, Option<&'static str>) -> Handling<Made> + Clone + Send + Sync + use<> {
        struct Dropped(Arc<AtomicUsize>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        let count = self.0.clone();
        move |_, _| {
            let guard = Dropped(count.clone());
            Box::pin(async move {
                std::future::pending::<()>().await;
                drop(guard);
                unreachable!("it hangs")
            })
        }
    }

    fn dropped(&self) -> usize {
        self.0.load(Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn requests_share_a_connection() {
    let (mut client, _connection) = connect(&shield(), echo).await;
    for path in ["/a", "/b"] {
        let (head, body) = ask(&mut client, path).await.expect("an answer");
        assert_eq!((head.status.as_u16(), body), (200, format!("GET {path} ")));
        assert!(head.headers.contains_key("date") && !head.headers.contains_key("connection"), "{head:?}");
    }
}

/// curl 7.88 shows no response if its stream is reset before it has sent the whole body, even by NO_ERROR.
#[tokio::test(start_paused = true)]
async fn after_an_early_response_the_rest_of_the_body_is_discarded() {
    let early = |_request: Request<IncomingBody>, _| async { ok(Made::from(Bytes::from_static(b"early"))) };
    let (mut client, _connection) = connect(&shield(), early).await;
    for ends in [true, false] {
        let (response, mut upload) = client.send_request(get("/"), false).expect("it is open");
        let mut body = response.await.expect("a head").into_body();
        assert_eq!(body.data().await.expect("a body").expect("no reset"), "early");
        assert!(body.data().await.is_none() && body.is_end_stream());
        // More than the windows of the stream and of the connection hold.
        for _ in 0..64 {
            upload.reserve_capacity(64 << 10);
            while upload.capacity() < 64 << 10 {
                poll_fn(|cx| upload.poll_capacity(cx)).await.expect("it is open").expect("no reset");
            }
            upload.send_data(Bytes::from(vec![b'x'; 64 << 10]), false).expect("no reset");
        }
        upload.send_data(Bytes::new(), ends).expect("no reset");
        let sent = Instant::now();
        let reset = timeout(3 * LINGER, poll_fn(|cx| upload.poll_reset(cx))).await;
        match reset {
            Ok(Ok(reason)) if !ends => assert_eq!((reason, sent.elapsed().as_secs()), (Reason::NO_ERROR, LINGER.as_secs())),
            other => assert!(ends && !matches!(other, Ok(Ok(_))), "{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_stream() {
    let (mut client, _connection) = connect(&shield(), echo).await;
    let mut other = client.clone();
    let (panicked, answered) = tokio::join!(ask(&mut client, "/panic"), ask(&mut other, "/good"));
    let (head, body) = panicked.expect("an answer");
    assert!(head.status == 500 && body.contains("\"shield_internal\""), "{head:?} {body}");
    assert_eq!(answered.expect("an answer").1, "GET /good ");
}

/// The upstream request ends with its handler.
#[tokio::test(start_paused = true)]
async fn a_reset_ends_one_request_and_a_disconnect_all() {
    let hangs = Hangs::default();
    let (mut client, connection) = connect(&shield(), hangs.handler()).await;
    let (first, mut to_reset) = client.send_request(get("/1"), true).expect("it is open");
    let (second, _stream) = client.send_request(get("/2"), true).expect("it is open");
    sleep(Duration::from_secs(1)).await;
    to_reset.send_reset(Reason::CANCEL);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(hangs.dropped(), 1);
    connection.abort();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(hangs.dropped(), 2);
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn a_closed_window_ends_only_its_stream() {
    let hangs = Hangs::default();
    for (window, length) in [(0, 10), (65_535, 1 << 20), (1, 2 * (64 << 10))] {
        let hanging = hangs.handler();
        let answer = move |request: Request<IncomingBody>, fault| -> Handling<Made> {
            match request.uri().path() {
                "/large" => Box::pin(async move { ok(Made::from(Bytes::from(vec![b'x'; length]))) }),
                "/hang" => hanging(request, fault),
                _ => Box::pin(echo(request, fault)),
            }
        };
        let mut builder = h2::client::Builder::new();
        let (mut client, connection) = connect_with(&shield(), answer, builder.initial_window_size(window)).await;
        let (waiting, _stream) = client.send_request(get("/hang"), true).expect("it is open");
        let (response, _stream) = client.send_request(get("/large"), true).expect("it is open");
        let mut body = response.await.expect("a head").into_body();
        let begun = Instant::now();
        let error = loop {
            match body.data().await.expect("it does not end well") {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some(Reason::CANCEL), "{window}");
        assert_eq!(begun.elapsed().as_secs(), MAX_BLOCKED.as_secs(), "{window}");
        // A request that waits for its answer is not the client's fault.
        assert_eq!(hangs.dropped(), 0);
        assert!(!connection.is_finished());
        drop(waiting);
        connection.abort();
        sleep(Duration::from_secs(1)).await;
        hangs.0.store(0, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_is_not_cut() {
    let answer = |_, _| async { ok(Made::from(Bytes::from(vec![b'x'; 1 << 20]))) };
    let (mut client, _connection) = connect(&shield(), answer).await;
    let (response, _) = client.send_request(get("/"), true).expect("it is open");
    let mut body = response.await.expect("a head").into_body();
    let mut all = 0;
    while let Some(data) = body.data().await {
        let length = data.unwrap_or_else(|error| panic!("after {all} bytes: {error}")).len();
        all += length;
        // 1 KiB a second.
        sleep(Duration::from_micros(length as u64 * 1_000_000 / 1024)).await;
        body.flow_control().release_capacity(length).expect("it is open");
    }
    assert_eq!(all, 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_long_gaps_is_not_cut() {
    let answer = |_, _| async {
        let (mut send, body) = Made::channel();
        tokio::spawn(async move {
            for _ in 0..3 {
                sleep(2 * MAX_BLOCKED).await;
                send.send_data(Bytes::from_static(b"data: a\n\n")).await.expect("it is read");
            }
        });
        ok(body)
    };
    let (mut client, _connection) = connect(&shield(), answer).await;
    let (_, body) = ask(&mut client, "/").await.expect("an answer");
    assert_eq!(body, "data: a\n\n".repeat(3));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_used_is_closed() {
    // Before the first request the client has the time for a head, as over HTTP/1.1.
    let (_client, connection) = connect(&shield(), echo).await;
    let begun = Instant::now();
    connection.await.expect("no panic").expect("a clean end");
    assert_eq!(begun.elapsed().as_secs(), 30);

    let (mut client, connection) = connect(&shield(), echo).await;
    ask(&mut client, "/").await.expect("an answer");
    let begun = Instant::now();
    connection.await.expect("no panic").expect("a clean end");
    assert_eq!(begun.elapsed().as_secs(), IDLE_TIMEOUT.as_secs());
    ask(&mut client, "/").await.expect_err("the connection is draining");
}

/// Sends bytes, and measures when the server gives up.
async fn time_until_closed(bytes: &[u8]) -> Duration {
    let mut client = served(&shield(), echo);
    client.write_all(bytes).await.expect("it is open");
    let begun = Instant::now();
    client.read_to_end(&mut Vec::new()).await.expect("a clean close");
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn slow_prefaces_and_frames_are_timed_out() {
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    for (name, bytes, seconds) in [
        ("half a preface", &PREFACE[..10], 30),
        ("no settings", PREFACE, 30),
        ("half a frame", &[PREFACE, settings, b"\0\0\x08\x06"].concat(), 30),
        ("half a header block", &[PREFACE, settings, b"\0\0\x01\x01\0\0\0\0\x01\x82"].concat(), 30),
    ] {
        let took = time_until_closed(bytes).await.as_secs();
        // After GOAWAY a connection has a while to close.
        assert!((seconds..=seconds + LINGER.as_secs()).contains(&took), "{name}: {took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_client_is_noticed() {
    let hangs = Hangs::default();
    let mut client = served(&shield(), hangs.handler());
    // After its request the client is silent: no answer to a ping.
    let request = b"\0\0\x09\x01\x05\0\0\0\x01\x82\x86\x84\x41\x04host";
    client.write_all(&[PREFACE, b"\0\0\0\x04\0\0\0\0\0", request].concat()).await.expect("it is open");
    let begun = Instant::now();
    while hangs.dropped() == 0 {
        sleep(Duration::from_secs(1)).await;
        assert!(begun.elapsed() < Duration::from_secs(200), "nobody notices");
    }
    assert!(begun.elapsed() >= Duration::from_secs(180), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn draining_lets_streams_finish_and_closes() {
    let shield = shield();
    let (_idle, idle) = connect(&shield, echo).await;
    let (mut client, running) = connect(&shield, |_, _| async {
        sleep(Duration::from_secs(10)).await;
        ok(Made::from(Bytes::from_static(b"finished")))
    })
    .await;
    let (response, _) = client.send_request(get("/"), true).expect("it is open");
    sleep(Duration::from_secs(1)).await;
    shield.shutdown.draining.cancel();
    let begun = Instant::now();
    idle.await.expect("no panic").expect("a clean end");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    ask(&mut client, "/").await.expect_err("the connection is draining");
    let body = response.await.expect("an answer").into_body().data().await.expect("a body").expect("whole");
    assert_eq!(body, "finished");
    drop(client);
    running.await.expect("no panic").expect("a clean end");
}

/// A stream whose body waits for the cutoff is woken by it, though its task is not the connection's.
#[tokio::test(start_paused = true)]
async fn streams_that_do_not_finish_get_an_error_frame_and_are_aborted() {
    let shield = shield();
    let shutdown = shield.shutdown.clone();
    let answer = move |_, _| {
        let shutdown = shutdown.clone();
        async move {
            let mut cutoff = crate::shutdown::Cutoff::new(&shutdown);
            poll_fn(|cx| if cutoff.poll_reached(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
            ok(Made::from(Bytes::from_static(b"last word")))
        }
    };
    let (mut client, _connection) = connect(&shield, answer).await;
    let (mut stuck, stuck_connection) = connect(&shield, Hangs::default().handler()).await;
    let asked = tokio::spawn(async move { ask(&mut client, "/").await });
    let hanging = stuck.send_request(get("/"), true).expect("it is open");
    sleep(Duration::from_secs(1)).await;
    shield.shutdown.draining.cancel();
    sleep(Duration::from_secs(1)).await;
    shield.shutdown.cutoff.cancel();
    let begun = Instant::now();
    assert_eq!(asked.await.expect("no panic").expect("an answer").1, "last word");
    hanging.0.await.expect_err("it is cut");
    assert!(begun.elapsed() <= LAST_FRAME + Duration::from_millis(10), "{:?}", begun.elapsed());
    drop((hanging.1, stuck_connection));
}
