//! HTTP/2 connections.

use std::{
    cell::Cell,
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire},
        },
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header, uri};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    app::{App, respond},
    drain::{Step, cutoff, last_call},
    frames::{Frames, Progress},
    incoming_body::IncomingBody,
    limits::{IDLE_TIMEOUT, LINGER, MAX_BLOCKED},
};
use crate::{
    proxy::Shield,
    server::{deadline::Deadline, guard::MAX_HEAD},
};

/// Concurrent streams of a client.
const MAX_STREAMS: u32 = 256;
/// Bytes that a client may send of one unread request body.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes that a client may send of all unread request bodies together.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of a response that are buffered beyond the client's window.
const SEND_BUFFER: usize = 64 << 10;
/// Maximum header list that h2 decodes. Lists over [`MAX_HEAD`] that are smaller than this get the error object;
/// h2 answers larger ones with an empty 431, and closes the connection on those four times as large.
const MAX_HEADER_LIST: u32 = 2 * MAX_HEAD as u32;
/// Maximum number of headers of a request, as over HTTP/1.1.
const MAX_HEADERS: usize = 100;
/// Streams that a client may reset before they are accepted (rapid reset), then the connection is closed.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that a client may make us reset by protocol errors, then the connection is closed.
const MAX_ERROR_RESETS: usize = 256;
/// Time without data after which a ping checks whether the client is still there.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// Responses are given to hyper in pieces of this size, so that it takes more only once the client's window has room. A smaller
/// size would leave the last byte of a default window of 65,535 bytes to a frame of its own.
const PIECE: usize = 64 << 10;

/// Serves a client; `begun` contains the bytes that have been read already.
pub(super) async fn serve<I, A>(io: I, begun: BytesMut, shield: &Shield, app: A)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let streams = Arc::new(Streams::default());
    let header_timeout = shield.settings.load().server.header_timeout;
    let io = Frames::new(io, begun, streams.progress.clone(), header_timeout, LINGER);
    let service = {
        let streams = streams.clone();
        service_fn(move |mut request: Request<Incoming>| {
            streams.requests.fetch_add(1, AcqRel);
            streams.progress.add();
            let fault = normalize(&mut request);
            let handling = app.handle(request.map(IncomingBody::http2), fault);
            let (app, progress) = (app.clone(), streams.progress.clone());
            async move {
                let response = watched(pin!(respond(&app, handling))).await;
                Ok::<_, Infallible>(response.map(|body| Pieces { body, rest: Bytes::new(), progress }))
            }
        })
    };
    let mut http = http2::Builder::new(Spawn(streams.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(MAX_BLOCKED)
        .serve_connection(TokioIo::new(io), service);

    let mut deadline = Deadline::new((0, 0, false), header_timeout);
    // The tasks of streams are not woken by the start of a drain.
    let mut step: Step<'_> = Box::pin(last_call(&shield.shutdown, || streams.draining.cancel()));
    let (mut is_registered, mut drained, mut closing) = (false, false, false);
    let closed = poll_fn(|cx| {
        loop {
            if let Poll::Ready(closed) = Pin::new(&mut http).poll(cx) {
                return Poll::Ready(closed);
            }
            // Registered once, it takes no lock at each poll.
            let is_waiting = is_registered && !shield.shutdown.draining.is_cancelled();
            is_registered = true;
            if !is_waiting && step.as_mut().poll(cx).is_ready() {
                if drained {
                    return Poll::Ready(Ok(()));
                }
                drained = true;
                step = Box::pin(cutoff(&shield.shutdown));
            } else {
                let (open, requests) = (streams.open.load(Acquire), streams.requests.load(Acquire));
                let limit = match (open, requests) {
                    (1.., _) => None,
                    // Time for the client to acknowledge the end of the connection.
                    (0, _) if closing => Some(LINGER),
                    (0, 0) => Some(header_timeout),
                    (0, 1..) => Some(IDLE_TIMEOUT),
                };
                if deadline.poll((open, requests, closing), limit, cx).is_pending() {
                    return Poll::Pending;
                }
                if closing {
                    return Poll::Ready(Ok(()));
                }
            }
            closing = true;
            Pin::new(&mut http).graceful_shutdown();
        }
    });
    if let Err(error) = closed.await {
        tracing::debug!(%error, "an HTTP/2 connection failed");
    }
}

/// Converts a request to its HTTP/1.1 form. Returns why it is refused, if it is.
fn normalize<B>(request: &mut Request<B>) -> Option<&'static str> {
    let headers = request.headers();
    // Counted as in RFC 9113, 6.5.2.
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    let size = size + request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if size > MAX_HEAD || headers.len() > MAX_HEADERS {
        return Some("its head is larger than 64 KiB or has more than 100 headers");
    }
    if headers.values().any(is_padded) {
        return Some("a header's value begins or ends with white space");
    }
    join_cookies(request.headers_mut());
    if request.method() == Method::CONNECT {
        return None;
    }
    let uri::Parts { authority, path_and_query, .. } = std::mem::take(request.uri_mut()).into_parts();
    let Some(path) = path_and_query else { return Some("it has no path") };
    // `:authority` is HTTP/2's Host header, and not the absolute form of HTTP/1.1.
    *request.uri_mut() = Uri::from(path);
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Some("it has more than one Host");
    }
    let differs =
        |host: &HeaderValue, authority: &uri::Authority| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
    host.zip(authority.as_ref())
        .is_some_and(|(host, authority)| differs(host, authority))
        .then_some("its Host is not its :authority")
}

/// Whether a value begins or ends with white space, which is malformed in HTTP/2 (RFC 9113, 8.2.1) but is not checked by h2.
fn is_padded(value: &HeaderValue) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last())
}

/// HTTP/2 may split a cookie header into several, which HTTP/1.1 must not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// The streams of one connection. hyper runs each in a task on this executor.
#[derive(Debug, Default)]
struct Streams {
    open: AtomicU32,
    requests: AtomicU64,
    progress: Progress,
    draining: CancellationToken,
}

/// Gives each stream a task.
#[derive(Clone)]
struct Spawn(Arc<Streams>);

impl<F> Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let open = Open::new(self.0.clone());
        tokio::spawn(async move {
            let mut stream = pin!(stream);
            let mut draining = pin!(open.0.draining.cancelled());
            let mut is_registered = false;
            let mut stalled = Stalled::default();
            poll_fn(|cx| {
                // A drain polls the stream once more, as on HTTP/1.1, where the request shares the connection's task.
                if !std::mem::replace(&mut is_registered, true) {
                    let _unless_it_has_begun = draining.as_mut().poll(cx);
                }
                stalled.poll(stream.as_mut(), cx)
            })
            .await;
        });
    }
}

/// An open stream.
struct Open(Arc<Streams>);

impl Open {
    fn new(streams: Arc<Streams>) -> Self {
        streams.open.fetch_add(1, AcqRel);
        Self(streams)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, AcqRel);
    }
}

/// What polling a stream did with its service or response body.
#[derive(Clone, Copy, PartialEq)]
enum Polled {
    /// hyper did not poll them.
    Not,
    Pending,
    Ready,
}

thread_local! {
    /// The stream that this thread is polling.
    static POLLED: Cell<Polled> = const { Cell::new(Polled::Not) };
}

/// Records the result of polling a future of a stream.
async fn watched<F: Future + Unpin>(mut future: F) -> F::Output {
    poll_fn(|cx| watch(Pin::new(&mut future).poll(cx))).await
}

fn watch<T>(polled: Poll<T>) -> Poll<T> {
    POLLED.set(if polled.is_pending() { Polled::Pending } else { Polled::Ready });
    polled
}

/// Resets a stream whose client does not open its window for the response.
///
/// hyper does not report what a stream waits for. If it is neither the service nor the response body, it is the client's
/// flow-control window.
#[derive(Default)]
struct Stalled {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stalled {
    /// Ready when the stream has ended, or has waited for the client for too long; dropping it then resets it.
    fn poll<F: Future<Output = ()>>(&mut self, stream: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<()> {
        POLLED.set(Polled::Not);
        if stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let new = || Box::pin(sleep(MAX_BLOCKED));
        let timer = match POLLED.get() {
            Polled::Pending => {
                self.timer = None;
                return Poll::Pending;
            }
            // There was room for this piece, and there is none for the next one.
            Polled::Ready => self.timer.insert(new()),
            Polled::Not => self.timer.get_or_insert_with(new),
        };
        timer.as_mut().poll(cx)
    }
}

/// A response's body in pieces.
struct Pieces<B> {
    body: B,
    /// The rest of the frame that was polled last.
    rest: Bytes,
    progress: Progress,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Pieces<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            let frame = watch(Pin::new(&mut this.body).poll_frame(cx));
            match frame {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return other,
            }
        }
        POLLED.set(Polled::Ready);
        this.progress.add();
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // hyper calls this before it polls.
        self.body.size_hint()
    }
}
