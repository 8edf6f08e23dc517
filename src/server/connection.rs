//! One client connection: its protocol, its timeouts, its end.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};

use super::write_timeout::WriteTimeout;
use crate::proxy::{Shield, error::Rejection};

mod app;
mod drain;
mod frames;
mod http1;
mod http2;
mod incoming_body;
mod limits;

use app::App;
use drain::last_call;
use frames::PREFACE;
use limits::{IDLE_TIMEOUT, MAX_BLOCKED, QUIET};

/// Bytes of the first read of a connection: a typical request.
const FIRST_READ: usize = 2 << 10;

/// Serves one client until it disconnects, fails, is idle for too long, or the shield drains. Then drops `held`.
pub async fn serve<I, T>(io: I, shield: Arc<Shield>, held: T)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let app = shield.clone();
    serve_app(io, shield, app).await;
    drop(held);
}

async fn serve_app<I, A>(io: I, shield: Arc<Shield>, app: A)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let mut io = WriteTimeout::new(io, MAX_BLOCKED);
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
            Ok(Err(error)) => return tracing::debug!(%error, "a client disconnected between requests"),
            Err(_) if begun.is_empty() => return,
            Err(_) => {
                let last = app.refuse(Rejection::RequestTimeout("head"));
                return Box::pin(http1::close(io, Some(last), true, &shield.shutdown)).await;
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

#[cfg(test)]
mod tests;
