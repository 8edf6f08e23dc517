//! One client connection: its protocol, its timeouts, its end.

use std::{
    any::Any,
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{sleep, timeout},
};

use super::write_timeout::WriteTimeout;
use crate::{
    proxy::{self, Shield, error::Rejection, relay},
    shutdown::Shutdown,
};

mod frames;
mod http1;
mod http2;

/// How long a connection is kept without a request: longer than any common client keeps its own (OkHttp: 300 s), so that the
/// client closes first and no request meets a closing connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(330);
/// How long hyper keeps a connection without a request.
const QUIET: Duration = Duration::from_secs(1);
/// Longest time in which a client may read nothing of its response.
const LONGEST_BLOCKED: Duration = Duration::from_secs(120);
/// While draining, a request may already be on its way on an idle connection.
const LAST_CALL: Duration = Duration::from_millis(250);
/// After `drain_timeout`, the time for a stream's error frame.
const LAST_FRAME: Duration = Duration::from_millis(500);
/// How long a client may go on sending after its last response, so that the response is not lost in a reset.
const LINGER: Duration = Duration::from_secs(10);

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the first read of a connection: a typical request.
const FIRST_READ: usize = 2 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request that is being handled.
type Handling<B> = Pin<Box<dyn Future<Output = Response<B>> + Send>>;

/// A step of a shutdown.
type Step<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What answers the requests of a connection.
trait App: Clone + Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;

    /// Answers a request. `ambiguity`: why other servers could parse it differently.
    ///
    /// Boxed, so that its memory is freed with the request: hyper would keep the space as long as the connection.
    fn handle(&self, request: Request<Incoming>, ambiguity: Option<&'static str>) -> Handling<Self::Body>;

    /// The response to input that never became a request, and to a request whose handler panicked.
    fn refuse(&self, rejection: Rejection) -> Response<Self::Body>;
}

impl App for Arc<Shield> {
    type Body = relay::Body;

    fn handle(&self, request: Request<Incoming>, ambiguity: Option<&'static str>) -> Handling<relay::Body> {
        Box::pin(proxy::handle(self, request, ambiguity))
    }

    fn refuse(&self, rejection: Rejection) -> Response<relay::Body> {
        proxy::refuse(self, rejection)
    }
}

/// Serves one client until it disconnects, fails, is idle for too long, or the shield drains. Then drops `held`.
pub async fn serve<I, T>(io: I, shield: Arc<Shield>, held: T)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let app = shield.clone();
    serve_app(io, shield, app).await;
    drop(held);
}

/// Draining began long enough ago that no request is on its way any more. `begun` runs first.
async fn last_call(shutdown: &Shutdown, begun: impl FnOnce()) {
    // A child of the token: waiting on the shared one would make every connection contend for its lock.
    shutdown.draining.child_token().cancelled().await;
    begun();
    sleep(LAST_CALL).await;
}

/// The end of what did not finish in time.
async fn cutoff(shutdown: &Shutdown) {
    shutdown.cutoff.cancelled().await;
    sleep(LAST_FRAME).await;
}

async fn serve_app<I, A>(io: I, shield: Arc<Shield>, app: A)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let mut io = WriteTimeout::new(io, LONGEST_BLOCKED);
    let header_timeout = shield.settings.load().server.header_timeout;
    let (mut limit, mut used) = (header_timeout, false);
    loop {
        let mut begun = BytesMut::new();
        let protocol = tokio::select! {
            biased;
            protocol = timeout(limit, sniff(&mut io, &mut begun, used)) => protocol,
            () = last_call(&shield.shutdown, || ()) => return,
        };
        // Boxed: the task of a connection is as large as its largest phase.
        match protocol {
            Ok(Ok(Protocol::Http1)) => match Box::pin(http1::serve(io, begun, &shield, app.clone())).await {
                // Between requests hyper's buffers are freed: 7.5 KB instead of 18 per idle connection (3000 of them, debug
                // build).
                Some(quiet) => (io, limit, used) = (quiet, IDLE_TIMEOUT - QUIET, true),
                None => return,
            },
            Ok(Ok(Protocol::Http2)) => return Box::pin(http2::serve(io, begun, &shield, app)).await,
            Ok(Err(error)) => return tracing::debug!(%error, "a client left between requests"),
            Err(_) if begun.is_empty() => return,
            Err(_) => {
                let last = app.refuse(Rejection::RequestTimeout("head"));
                return http1::close(io, Some(last), true, &shield.shutdown).await;
            }
        }
    }
}

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Http1,
    Http2,
}

/// Reads the first bytes until they are the HTTP/2 preface or something else, whatever TLS has negotiated. A connection that has
/// been `used` for HTTP/1.1 stays with it.
async fn sniff(io: &mut (impl AsyncRead + Unpin), begun: &mut BytesMut, used: bool) -> io::Result<Protocol> {
    loop {
        // No buffer is allocated until something arrives.
        let read = poll_fn(|cx| {
            let mut buffer = [0; FIRST_READ];
            let mut buffer = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
            begun.extend_from_slice(buffer.filled());
            Poll::Ready(io::Result::Ok(buffer.filled().len()))
        });
        if read.await? == 0 || used {
            return Ok(Protocol::Http1);
        }
        let read = begun.len().min(PREFACE.len());
        if begun[..read] != PREFACE[..read] {
            return Ok(Protocol::Http1);
        }
        if read == PREFACE.len() {
            return Ok(Protocol::Http2);
        }
    }
}

/// The future's output, or its panic.
async fn catch_panic<F: Future + Unpin>(mut future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut future).poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// The response to one request, whatever happens in its handler.
async fn respond<A: App>(app: &A, handling: Handling<A::Body>) -> Response<A::Body> {
    catch_panic(handling).await.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(panic = message.unwrap_or("no message"), "a request handler panicked");
        app.refuse(Rejection::Internal)
    })
}

#[cfg(test)]
mod tests;
