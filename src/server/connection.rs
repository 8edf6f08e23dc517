//! One client connection: the protocol that it speaks, its time limits, its end.

use std::{
    any::Any,
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
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

/// How long a connection is kept without a request: longer than any client in use keeps its own (OkHttp: 300 s), so that
/// the client closes first and no request meets a closing connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(330);
/// A client that reads no byte of its response for so long is gone.
const LONGEST_BLOCKED: Duration = Duration::from_secs(120);
/// While draining, a request that is on its way on an idle connection may still arrive.
const LAST_CALL: Duration = Duration::from_millis(250);
/// After the end of `drain_timeout`, the time for a stream's error frame.
const LAST_FRAME: Duration = Duration::from_millis(500);
/// How long a client may go on sending after its last response, so that the response is not lost in a reset.
const LINGER: Duration = Duration::from_secs(10);

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the first read of a connection: a usual request, and no more memory than needed while nothing comes.
const FIRST_READ: usize = 2 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request that is being handled.
type Handling<B> = Pin<Box<dyn Future<Output = Response<B>> + Send>>;

/// A step of a shutdown.
type Step<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What answers the requests of a connection.
trait App: Clone + Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;

    /// Answers a request. `ambiguity` says why other servers could read it differently.
    ///
    /// Boxed, so that the future is freed with its request: hyper keeps room for a service's future as long as a connection.
    fn handle(&self, request: Request<Incoming>, ambiguity: Option<&'static str>) -> Handling<Self::Body>;

    /// The response to what never became a request, and to one whose handler panicked.
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

/// Serves one client until it leaves, fails, is idle for too long, or the shield drains. Drops `held` then.
pub async fn serve<I, T>(io: I, shield: Arc<Shield>, held: T)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let app = shield.clone();
    serve_app(io, shield, app).await;
    drop(held);
}

/// Draining has begun, and so long ago that no request is on its way any more. `begun` runs first.
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
    let mut begun = BytesMut::new();
    let header_timeout = shield.settings.load().server.header_timeout;
    let protocol = tokio::select! {
        biased;
        protocol = timeout(header_timeout, sniff(&mut io, &mut begun)) => protocol,
        () = last_call(&shield.shutdown, || ()) => return,
    };
    // Boxed: the task of a connection is as large as its largest step.
    match protocol {
        Ok(Ok(Protocol::Http1)) => Box::pin(http1::serve(io, begun, &shield, app)).await,
        Ok(Ok(Protocol::Http2)) => Box::pin(http2::serve(io, begun, &shield, app)).await,
        Ok(Err(error)) => tracing::debug!(%error, "a client left before its first request"),
        Err(_) if begun.is_empty() => {}
        Err(_) => {
            let last = app.refuse(Rejection::RequestTimeout("head"));
            http1::close(io, Some(last), true, &shield.shutdown).await;
        }
    }
}

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Http1,
    Http2,
}

/// Reads the first bytes of a connection until they are HTTP/2's preface or something else, whatever TLS has negotiated.
async fn sniff(io: &mut (impl AsyncRead + Unpin), begun: &mut BytesMut) -> io::Result<Protocol> {
    loop {
        let read = begun.len().min(PREFACE.len());
        if begun[..read] != PREFACE[..read] {
            return Ok(Protocol::Http1);
        }
        if read == PREFACE.len() {
            return Ok(Protocol::Http2);
        }
        begun.reserve(FIRST_READ);
        if io.read_buf(begun).await? == 0 {
            return Ok(Protocol::Http1);
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
