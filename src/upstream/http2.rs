//! One HTTP/2 connection to the upstream, shared by the requests that have a stream on it.

use std::{
    error::Error as _,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Instant, timeout_at};

use super::{
    connector::Io,
    error::{ExchangeError, Unanswered},
    limits::MAX_HEAD,
    request::RequestBody,
    timer::LazyTimer,
};

/// Maximum number of streams on a connection, whatever the peer allows: with [`STREAM_WINDOW`] it bounds the unread data of a
/// peer.
const MAX_STREAMS: usize = 256;
/// Streams that a peer is assumed to allow until its settings have arrived: RFC 9113's recommended minimum. If it allows fewer,
/// the rest of a first burst waits in hyper's queue, or is refused and moves to another connection.
pub(super) const ASSUMED_STREAMS: usize = 100;
/// Unread bytes of a response that the peer may send. More would be faster over long distances (128 KiB is 2.5 MB/s at 50 ms),
/// but is memory that an app can occupy by not reading.
const STREAM_WINDOW: u32 = 128 << 10;
/// As large as the windows of all streams: apps that do not read must not block others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;
/// Time without data before a ping. With [`PING_TIMEOUT`] a dead peer is noticed well within a client's usual timeout of a
/// minute, at the cost of at most four pings a minute.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Time for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

type Driver = http2::Connection<TokioIo<Io>, RequestBody, TokioExecutor>;

/// hyper's connection, polled by a separate task. Only hyper knows how many streams the peer allows.
enum State {
    Open(Driver),
    /// It accepts no more requests.
    Ended(ExchangeError),
}

/// An open connection.
pub(super) struct Connection {
    sender: SendRequest<RequestBody>,
    driver: Arc<Mutex<State>>,
    /// Requests that have a stream.
    streams: AtomicUsize,
    /// A request on it has timed out: it takes no more of them, because what holds that one may hold all.
    is_stuck: AtomicBool,
    pub(super) opened_at: Instant,
}

/// A slot for one request on a connection, until its response has been read.
pub(super) struct Stream {
    connection: Arc<Connection>,
    pub(super) timer: LazyTimer,
}

impl Connection {
    /// `assumed_streams` is how many streams the peer is assumed to allow until it sends its settings.
    pub(super) async fn new(io: Io, assumed_streams: usize) -> Result<Arc<Self>, ExchangeError> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_max_send_streams(assumed_streams)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD as u32)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            // So that a dead connection is noticed before a request is sent on it.
            .keep_alive_while_idle(true);
        let (sender, driver) = builder.handshake(TokioIo::new(io)).await.map_err(|_| ExchangeError::Closed)?;
        let driver = Arc::new(Mutex::new(State::Open(driver)));
        tokio::spawn(drive(driver.clone()));
        Ok(Arc::new(Self {
            sender,
            driver,
            streams: AtomicUsize::new(0),
            is_stuck: AtomicBool::new(false),
            opened_at: Instant::now(),
        }))
    }

    /// A slot for one more request, if the peer allows it: hyper would queue more without reporting whether they were sent.
    pub(super) fn open_stream(self: &Arc<Self>) -> Option<Stream> {
        let max = self.max_streams();
        let taken = self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < max).then_some(open + 1));
        taken.is_ok().then(|| Stream { connection: self.clone(), timer: LazyTimer::default() })
    }

    /// How many requests the connection can carry at once. A peer that allows none now will allow some soon.
    pub(super) fn max_streams(&self) -> usize {
        match &*lock(&self.driver) {
            State::Open(driver) => driver.current_max_send_streams().clamp(1, MAX_STREAMS),
            State::Ended(_) => 0,
        }
    }

    /// Why it accepts no more requests.
    fn error(&self) -> ExchangeError {
        match &*lock(&self.driver) {
            State::Open(_) => ExchangeError::Closed,
            State::Ended(error) => error.clone(),
        }
    }

    /// Whether it is closed, or stuck.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.is_stuck.load(Ordering::Relaxed)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.streams.load(Ordering::Relaxed) == 0
    }
}

impl Stream {
    /// Sends `request` and waits for the head of the response until `deadline`.
    pub(super) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Unanswered> {
        let response = self.connection.sender.clone().try_send_request(request);
        match timeout_at(deadline, response).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.message().is_some() => Err(Unanswered::Unsent(self.connection.error())),
            Ok(Err(error)) => Err(classify(&error.into_error())),
            Err(_elapsed) => {
                self.connection.is_stuck.store(true, Ordering::Relaxed);
                Err(Unanswered::Failed(ExchangeError::Timeout))
            }
        }
    }

    /// The next frame of the response's body.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        Poll::Ready(match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(frame) => Some(frame.map_err(|_| ExchangeError::Closed)),
            // hyper takes a reset with NO_ERROR for the end of the stream, even within a body. A body of the stated length is whole.
            None if !body.is_end_stream() && body.size_hint().exact() != Some(0) => Some(Err(ExchangeError::Closed)),
            None => None,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Polls a connection until it accepts no more requests. hyper's own tasks continue the open streams.
async fn drive(driver: Arc<Mutex<State>>) {
    poll_fn(|cx| {
        let mut state = lock(&driver);
        let State::Open(connection) = &mut *state else { return Poll::Ready(()) };
        let ended = ready!(Pin::new(connection).poll(cx));
        // Dropping the connection returns the requests that it has not sent.
        *state = State::Ended(ended.map_or_else(|error| failure(&error), |()| ExchangeError::Closed));
        Poll::Ready(())
    })
    .await;
}

fn lock(driver: &Mutex<State>) -> MutexGuard<'_, State> {
    driver.lock().expect("no panic while the lock is held")
}

/// What an error before the response head means for the request.
fn classify(error: &hyper::Error) -> Unanswered {
    let is_unprocessed = cause(error).is_some_and(|cause| {
        let refused = cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
        // A GOAWAY fails the streams above its last id only.
        cause.is_remote() && (refused || cause.is_go_away())
    });
    if is_unprocessed { Unanswered::Unsent(ExchangeError::Closed) } else { Unanswered::Failed(failure(error)) }
}

fn failure(error: &hyper::Error) -> ExchangeError {
    if error.is_timeout() {
        // A ping was not answered.
        ExchangeError::Timeout
    } else if cause(error).is_some_and(h2::Error::is_library) {
        ExchangeError::NOT_HTTP
    } else {
        ExchangeError::Closed
    }
}

fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}
