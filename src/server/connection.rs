//! What becomes of one client connection? Its requests one by one, its clock, its end.

use std::{
    any::Any,
    convert::Infallible,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONNECTION};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

use super::{
    faithful::{Answer, Exchange, Faithful, Phase, State},
    head,
};
use crate::{
    error::Rejection,
    late::poll_late,
    proxy::{self, Shield},
    relay::Signal,
};

/// A connection without a request is kept so long: longer than any client in use keeps its own (OkHttp: 300 s),
/// so that it is the client who closes and no request meets a closing connection.
const LONGEST_IDLE: Duration = Duration::from_secs(330);
/// A client that takes no byte of its answer for so long is gone.
const LONGEST_BLOCKED: Duration = Duration::from_secs(120);
/// While draining, a request that is on its way on an idle connection may still arrive.
const LAST_CALL: Duration = Duration::from_millis(250);
/// After the end of `drain_timeout`, the time for a stream's error frame.
const LAST_FRAME: Duration = Duration::from_millis(500);
/// What a client may go on sending after it was answered, so that the answer is not lost in a reset.
const LINGER: Duration = Duration::from_secs(10);

/// An answer's body that broke.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How serving ended.
enum End {
    /// hyper is done.
    Http(hyper::Result<()>),
    /// A time limit.
    Late,
}

/// Serves one client until it leaves, fails, is idle for too long, or the shield drains.
pub async fn serve<I>(io: I, shield: Arc<Shield>)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let handle = |request, fault| proxy::handle(&shield, request, fault);
    serve_by(io, &shield, handle, |rejection| proxy::refuse(&shield, rejection)).await;
}

/// Serves one client whose requests `handle` answers (its second argument says why servers could disagree about a
/// request), and `refuse` what never becomes a request.
async fn serve_by<I, H, R, B>(io: I, shield: &Shield, handle: H, refuse: impl Fn(Rejection) -> Response<B>)
where
    I: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>, Option<&'static str>) -> R,
    R: Future<Output = Response<B>>,
    B: Body<Data = Bytes, Error: Into<Failure>> + Unpin + 'static,
{
    let exchange = Exchange::new();
    // A token of its own: waiting on the shared one would make every connection contend for its lock.
    let service = service_fn(|request| {
        exchange.begin();
        // On the heap, so that it goes with its request: hyper keeps room for a future of this type as long as the connection.
        answer(Box::pin(handle(request, exchange.fault())), &refuse, exchange.clone())
    });
    let mut http = http1::Builder::new()
        .max_buf_size(head::LARGEST)
        .header_read_timeout(None)
        // Head and body in one buffer: a copy of a few hundred bytes costs the kernel less than a list of buffers.
        .writev(false)
        .serve_connection(TokioIo::new(Faithful::new(io, exchange.clone())), service);

    let ended = tokio::select! {
        biased;
        ended = run(&mut http, &exchange, shield) => ended,
        () = last_call(&shield.stop.draining, &exchange) => {
            Pin::new(&mut http).graceful_shutdown();
            tokio::select! {
                biased;
                ended = run(&mut http, &exchange, shield) => ended,
                () = cut(shield) => return,
            }
        }
    };
    let (io, unread) = http.into_parts().io.into_inner().into_inner();
    let last = match (exchange.state().phase, ended) {
        (Phase::Head, End::Late) => Some(refuse(Rejection::RequestTimeout("head"))),
        (Phase::Head, End::Http(ended)) => Some(refuse(Rejection::Malformed(reason(&ended)))),
        // hyper met an error in its own answer or the client is gone: the cut itself tells.
        (Phase::Answering | Phase::Answered, End::Late | End::Http(Err(_))) => return,
        (Phase::Idle | Phase::Answering | Phase::Answered, _) => None,
    };
    tokio::select! {
        // A client that is gone, or stays for too long, has had its answer.
        // On the heap: a connection's task is as large as the largest of its steps for all its life.
        _ = timeout(LINGER, Box::pin(part(io, last, unread))) => {}
        () = shield.stop.ending.given() => {}
    }
}

/// Serves until hyper is done or a time limit is over.
async fn run<H>(http: &mut H, exchange: &Exchange, shield: &Shield) -> End
where
    H: Future<Output = hyper::Result<()>> + Unpin,
{
    let header_timeout = shield.settings.load().server.header_timeout;
    let limit = |state: State| match state.phase {
        Phase::Idle if state.requests > 0 => Some(LONGEST_IDLE),
        Phase::Idle | Phase::Head => Some(header_timeout),
        // A running request has time limits of its own.
        Phase::Answering | Phase::Answered => (state.blocked_at > 0).then_some(LONGEST_BLOCKED),
    };
    let mut clock = pin!(sleep(header_timeout));
    let mut state = State::default();
    let mut since = Instant::now();
    poll_fn(move |cx| {
        if let Poll::Ready(ended) = Pin::new(&mut *http).poll(cx) {
            return Poll::Ready(End::Http(ended));
        }
        let now = exchange.state();
        let Some(limit) = limit(now) else {
            state = now;
            return Poll::Pending;
        };
        if now != state {
            (state, since) = (now, Instant::now());
        }
        poll_late(clock.as_mut(), since + limit, cx).map(|()| End::Late)
    })
    .await
}

/// Tells the client to go with its next answer, and waits a moment for a request that is on its way.
async fn last_call(draining: &Signal, exchange: &Exchange) {
    draining.given().await;
    exchange.make_last();
    sleep(LAST_CALL).await;
}

/// The end of what did not finish in time.
async fn cut(shield: &Shield) {
    shield.stop.ending.given().await;
    sleep(LAST_FRAME).await;
}

/// One request: whatever happens in it, there is one answer.
async fn answer<B>(
    handled: Pin<Box<impl Future<Output = Response<B>>>>,
    refuse: &impl Fn(Rejection) -> Response<B>,
    exchange: Arc<Exchange>,
) -> Result<Response<Answer<B>>, Infallible> {
    let mut response = unwound(handled).await.unwrap_or_else(|panic| {
        tracing::error!(panic = words(&*panic), "a request's handler panicked");
        refuse(Rejection::Internal)
    });
    if exchange.closes() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Answer::new(body, exchange)))
}

/// The future's output, or its panic.
async fn unwound<F: Future>(mut future: Pin<Box<F>>) -> Result<F::Output, Box<dyn Any + Send>> {
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Says what hyper could not, and closes so that the client can read it.
async fn part<I, B>(mut io: I, last: Option<Response<B>>, unread: bool) -> Result<(), Failure>
where
    I: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error: Into<Failure>>,
{
    if let Some(last) = last {
        io.write_all(&written(last).await?).await?;
    }
    io.shutdown().await?;
    if unread {
        let mut sink = [0; 4096];
        while io.read(&mut sink).await? > 0 {}
    }
    Ok(())
}

/// Why a head could not be read.
fn reason(ended: &hyper::Result<()>) -> &'static str {
    match ended {
        Err(error) if error.is_parse_too_large() => "its head is larger than 64 KiB or has more than 100 headers",
        Err(error) if error.is_parse() => "its request line or a header cannot be read",
        Ok(()) | Err(_) => "it ends within its head",
    }
}

/// An answer as it goes out, without hyper.
async fn written<B>(answer: Response<B>) -> Result<Vec<u8>, Failure>
where
    B: Body<Data = Bytes, Error: Into<Failure>>,
{
    let (head, body) = answer.into_parts();
    let status = head.status;
    let mut bytes = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("")).into_bytes();
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body.collect().await.map_err(Into::into)?.to_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests;
