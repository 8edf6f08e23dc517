//! One connection in virtual time: for any bytes, at most one answer to each request.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Channel, Full, combinators::UnsyncBoxBody};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::{Instant, sleep},
};

use super::{
    app::Handling,
    drain::{LAST_CALL, LAST_FRAME},
    incoming_body::IncomingBody,
    limits::LINGER,
    *,
};
use crate::config::Settings;

mod drain;
mod framing;
mod http2;

/// A response body that fails.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A scripted response body.
struct Made(UnsyncBoxBody<Bytes, Failure>);

impl Made {
    fn channel() -> (http_body_util::channel::Sender<Bytes, Failure>, Self) {
        let (send, body) = Channel::new(1);
        (send, Self(body.boxed_unsync()))
    }
}

impl From<Bytes> for Made {
    fn from(bytes: Bytes) -> Self {
        Self(Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
    }
}

impl Body for Made {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Failure>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

fn ok(body: Made) -> Response<Made> {
    Response::new(body)
}

fn shield() -> Arc<Shield> {
    Shield::new(Settings::default()).expect("the defaults can be used")
}

/// The test's handler: answers `METHOD PATH BODY`, panics at `/panic`, refuses faults.
async fn echo(request: Request<IncomingBody>, fault: Option<&'static str>) -> Response<Made> {
    if let Some(why) = fault {
        return Rejection::Malformed(why).into_response().map(Made::from);
    }
    assert_ne!(request.uri().path(), "/panic", "asked for");
    let line = format!("{} {} ", request.method(), request.uri().path());
    match request.into_body().collect().await {
        Ok(body) => ok(Made::from(Bytes::from([line.as_bytes(), &body.to_bytes()].concat()))),
        Err(_) => Rejection::Malformed("its body cannot be read").into_response().map(Made::from),
    }
}

/// A client of a connection with the handler `echo`.
fn client(shield: &Arc<Shield>) -> DuplexStream {
    served(shield, echo)
}

/// An app with a function as its handler.
#[derive(Clone)]
struct Answers<F>(F);

impl<F, R> App for Answers<F>
where
    F: Fn(Request<IncomingBody>, Option<&'static str>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Made>> + Send + 'static,
{
    type Body = Made;

    fn handle(&self, request: Request<IncomingBody>, ambiguity: Option<&'static str>) -> Handling<Made> {
        Box::pin((self.0)(request, ambiguity))
    }

    fn refuse(&self, rejection: Rejection) -> Response<Made> {
        rejection.into_response().map(Made::from)
    }
}

fn served<F, R>(shield: &Arc<Shield>, answer: F) -> DuplexStream
where
    F: Fn(Request<IncomingBody>, Option<&'static str>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Made>> + Send + 'static,
{
    let (client, server) = duplex(1 << 16);
    tokio::spawn(serve_app(server, shield.clone(), Answers(answer)));
    client
}

/// Everything until the connection closes.
async fn rest(client: &mut DuplexStream) -> String {
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.expect("it closes cleanly");
    String::from_utf8(all).expect("answers are text here")
}

/// The next bytes, until no more arrive.
async fn next(client: &mut DuplexStream) -> String {
    let mut some = vec![0; 1 << 16];
    let count = client.read(&mut some).await.expect("it is open");
    String::from_utf8_lossy(&some[..count]).into_owned()
}

/// Sends these bytes; returns everything until the connection closes.
async fn exchange(bytes: &[u8]) -> String {
    let mut client = client(&shield());
    client.write_all(bytes).await.expect("they fit");
    rest(&mut client).await
}

fn assert_object(answer: &str, code: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
    assert!(head.contains("connection: close") && head.contains("content-type: application/json"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
    assert!(body["error"]["message"].is_string() && body["error"]["type"] == "invalid_request_error", "{body}");
    assert_eq!(body["error"]["code"], code, "{body}");
}

const GOOD: &str = "GET /good HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn bytes_that_are_not_http_get_the_object() {
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: a\r\n".repeat(101));
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(66_000));
    let table: &[&[u8]] = &[
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"garbage\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"G\0T / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx y: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: a\rb\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        large.as_bytes(),
        many.as_bytes(),
        long.as_bytes(),
    ];
    for bytes in table {
        assert_object(&exchange(bytes).await, "malformed_request");
    }
}

#[tokio::test(start_paused = true)]
async fn ambiguous_requests_are_refused_and_nothing_after_them_is_read() {
    let table = [
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nhost: x\n\n",
        "GET / HTTP/1.1\r\nhost: x\r\nx: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length : 2\r\n\r\nab",
    ];
    for bytes in table {
        assert_object(&exchange(format!("{bytes}{GOOD}").as_bytes()).await, "malformed_request");
    }
}

#[tokio::test(start_paused = true)]
async fn bad_chunks_get_the_object() {
    for body in ["zz\r\nab\r\n0\r\n\r\n", "5\r\nabcdeX", "ffffffffffffffffff\r\n", "2\nab\r\n0\r\n\r\n"] {
        let bytes = format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{body}{GOOD}");
        assert_object(&exchange(bytes.as_bytes()).await, "malformed_request");
    }
    let extension =
        format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;{}\r\na\r\n0\r\n\r\n", "x".repeat(20_000));
    assert_object(&exchange(extension.as_bytes()).await, "malformed_request");
}

#[tokio::test(start_paused = true)]
async fn garbage_after_a_valid_request_does_not_affect_its_answer() {
    for garbage in ["garbage\r\n\r\n", "GET / HTTP/1.1\nhost: x\n\n", "\0\0\0\0\r\n"] {
        let answers = exchange(format!("{GOOD}{garbage}").as_bytes()).await;
        let (first, second) = answers.split_once("GET /good ").expect("the first answer is there");
        assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
        assert_object(second, "malformed_request");
    }
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_one_by_one() {
    let shield = shield();
    let mut client = client(&shield);
    let mut sent = String::new();
    for i in 0..50 {
        sent +=
            &format!("POST /{i} HTTP/1.1\r\nhost: x\r\ncontent-length: 42\r\n\r\nTransfer-Encoding: chunked\r\n\r\nGET / HTTP/1");
    }
    sent += "GET /end HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    client.write_all(sent.as_bytes()).await.expect("it fits");
    let answers = rest(&mut client).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 51, "{answers}");
    for i in 0..50 {
        assert!(answers.contains(&format!("POST /{i} Transfer-Encoding: chunked")), "{i}");
    }
    assert!(answers.ends_with("GET /end "), "{answers}");
}

#[tokio::test(start_paused = true)]
async fn a_request_may_follow_a_chunked_one() {
    let answer = exchange(
        format!("POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{GOOD}").as_bytes(),
    )
    .await;
    assert!(answer.contains("POST /c abc") && answer.ends_with("GET /good "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn slow_heads_are_timed_out() {
    for head in ["G", "GET / HTTP/1.1\r\nhost:"] {
        let started = Instant::now();
        assert_object(&exchange(head.as_bytes()).await, "request_timeout");
        assert!((29..32).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    }
    // Sending byte by byte does not extend the time.
    let mut client = client(&shield());
    let started = Instant::now();
    for byte in "GET / HTTP/1.1\r\n".bytes().chain(std::iter::repeat(b'a')) {
        if started.elapsed() > Duration::from_secs(31) {
            break;
        }
        client.write_all(&[byte]).await.expect("the answer comes before the close");
        sleep(Duration::from_secs(1)).await;
    }
    assert_object(&next(&mut client).await, "request_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_disconnected_without_an_answer() {
    let started = Instant::now();
    assert_eq!(exchange(b"").await, "");
    assert!((29..32).contains(&started.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_longer_than_clients_keep_it() {
    let shield = shield();
    let mut client = client(&shield);
    for _ in 0..2 {
        client.write_all(GOOD.as_bytes()).await.expect("it is open");
        assert!(next(&mut client).await.ends_with("GET /good "));
        sleep(Duration::from_secs(310)).await;
    }
    let started = Instant::now();
    assert_eq!(rest(&mut client).await, "");
    assert!(started.elapsed() <= Duration::from_secs(21), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_request() {
    let shield = shield();
    let mut client = client(&shield);
    client.write_all(b"GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is open");
    let answer = next(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("\"shield_internal\""), "{answer}");
    client.write_all(GOOD.as_bytes()).await.expect("it is open still");
    assert!(next(&mut client).await.ends_with("GET /good "));
}

#[tokio::test(start_paused = true)]
async fn a_stream_passes_untouched() {
    let frames = ["data: a\n\n", "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", "data: [DONE]\n\n"];
    let mut client = served(&shield(), move |_, _| async move {
        let (mut send, body) = Made::channel();
        tokio::spawn(async move {
            for frame in frames {
                sleep(Duration::from_secs(200)).await;
                send.send_data(Bytes::from_static(frame.as_bytes())).await.expect("it is read");
            }
        });
        ok(body)
    });
    client.write_all(GOOD.as_bytes()).await.expect("it is open");
    assert!(next(&mut client).await.starts_with("HTTP/1.1 200 OK"));
    for frame in frames {
        let end = if frame == frames[2] { "0\r\n\r\n" } else { "" };
        assert_eq!(next(&mut client).await, format!("{:X}\r\n{frame}\r\n{end}", frame.len()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_its_request() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = dropped.clone();
    // Also one that sent another request ahead.
    for ahead in ["", GOOD] {
        let count = count.clone();
        let mut client = served(&shield(), move |_, _| {
            let guard = Dropped(count.clone());
            async move {
                sleep(Duration::from_secs(3600)).await;
                drop(guard);
                ok(Made::from(Bytes::new()))
            }
        });
        client.write_all(format!("{GOOD}{ahead}").as_bytes()).await.expect("it is open");
        sleep(Duration::from_secs(1)).await;
        drop(client);
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(dropped.load(Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_disconnected_and_a_slow_one_is_not() {
    let large = || ok(Made::from(Bytes::from(vec![b'x'; 1 << 20])));
    let mut slow = served(&shield(), move |_, _| async move { large() });
    slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("it is open");
    let mut got = 0;
    let mut some = vec![0; 1 << 14];
    loop {
        sleep(Duration::from_secs(60)).await;
        match slow.read(&mut some).await.expect("it is not cut") {
            0 => break,
            count => got += count,
        }
    }
    assert!(got > 1 << 20, "{got}");

    let mut stuck = served(&shield(), move |_, _| async move { large() });
    stuck.write_all(GOOD.as_bytes()).await.expect("it is open");
    sleep(Duration::from_secs(125)).await;
    assert!(stuck.write_all(b"x").await.is_err(), "the connection is gone");
}

/// After a while without requests hyper's state is dropped, and recreated for the next one.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_served_again() {
    let shield = shield();
    let mut client = client(&shield);
    for bytes in [GOOD, "GET /good HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n", GOOD] {
        // In two parts: the first one is read without hyper.
        let (first, rest) = bytes.split_at(5);
        client.write_all(first.as_bytes()).await.expect("it is open");
        sleep(Duration::from_secs(20)).await;
        client.write_all(rest.as_bytes()).await.expect("it is open");
        let answer = next(&mut client).await;
        assert!(answer.ends_with("GET /good "), "{answer}");
        sleep(QUIET * 10).await;
    }
    client.write_all(PREFACE).await.expect("it is open");
    assert_object(&rest(&mut client).await, "malformed_request");
}
