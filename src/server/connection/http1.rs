//! HTTP/1.1 connections.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, ext::ReasonPhrase, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    app::{App, BoxError, respond},
    drain::{Step, cutoff, last_call},
    incoming_body::IncomingBody,
    limits::{LINGER, QUIET},
};
use crate::{
    proxy::{Shield, error::Rejection},
    server::{
        deadline::Deadline,
        guard::{Exchange, Guard, MAX_HEAD, Phase},
    },
    shutdown::Shutdown,
};

/// How serving ended.
enum End {
    /// hyper is done.
    Closed(hyper::Result<()>),
    /// A time limit expired.
    TimedOut,
    /// The shield shuts down and can wait no longer.
    Cut,
}

/// Serves a client; `begun` contains the bytes that have been read already. Returns the client if it becomes idle.
pub(super) async fn serve<I, A>(io: I, begun: BytesMut, shield: &Shield, app: A) -> Option<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
    A: App,
{
    let exchange = Exchange::new();
    let service = service_fn(|request: Request<Incoming>| {
        let (app, exchange) = (&app, &exchange);
        exchange.begin();
        if request.method() == Method::CONNECT {
            // What follows is not for this server.
            exchange.make_last();
        }
        let is_head = request.method() == Method::HEAD;
        let is_http10 = request.version() == Version::HTTP_10;
        if is_http10 && !keep_alive(request.headers()) {
            exchange.make_last();
        }
        let handling = app.handle(request.map(IncomingBody::http1), exchange.ambiguity());
        async move {
            let mut response = respond(app, handling).await;
            prepare(&mut response, is_head);
            if is_http10 && response.body().size_hint().exact().is_none() {
                // Without chunked encoding, the end of the connection ends the body.
                exchange.make_last();
            }
            if exchange.close() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Tracked { body, exchange: exchange.clone() }))
        }
    });
    let mut http = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .header_read_timeout(None)
        // The guard notices a client that leaves.
        .half_close(true)
        .serve_connection(TokioIo::new(Guard::new(io, begun, exchange.clone())), service);
    let header_timeout = shield.settings.load().server.header_timeout;
    let limit = |state: (Phase, u64)| match state {
        (Phase::Idle, 1..) => Some(QUIET),
        (Phase::Idle | Phase::Head, _) => Some(header_timeout),
        // A running request has timeouts of its own.
        (Phase::Handling | Phase::Answered, _) => None,
    };
    let mut deadline = Deadline::new((Phase::Idle, 0), header_timeout);
    // The phases of a shutdown in order.
    let mut step: Step<'_> = Box::pin(last_call(&shield.shutdown, || exchange.make_last()));
    let (mut is_registered, mut drained) = (false, false);
    let end = poll_fn(|cx| {
        loop {
            if let Poll::Ready(closed) = Pin::new(&mut http).poll(cx) {
                return Poll::Ready(End::Closed(closed));
            }
            // Registered once, it takes no lock at each poll.
            let is_waiting = is_registered && !shield.shutdown.draining.is_cancelled();
            is_registered = true;
            if is_waiting || step.as_mut().poll(cx).is_pending() {
                let state = (exchange.phase(), exchange.requests());
                return deadline.poll(state, limit(state), cx).map(|()| End::TimedOut);
            }
            if drained {
                return Poll::Ready(End::Cut);
            }
            drained = true;
            step = Box::pin(cutoff(&shield.shutdown));
            // A request in progress is served first, and its response closes the connection.
            if exchange.phase() != Phase::Head {
                Pin::new(&mut http).graceful_shutdown();
            }
        }
    });
    let end = end.await;

    let (io, unread) = http.into_parts().io.into_inner().into_inner();
    let last = match (exchange.phase(), end) {
        (Phase::Idle, End::TimedOut) if exchange.requests() > 0 => return Some(io),
        (Phase::Head, End::TimedOut) => Some(app.refuse(Rejection::RequestTimeout("head"))),
        (Phase::Head, End::Closed(closed)) => {
            Some(app.refuse(Rejection::Malformed(exchange.ambiguity().unwrap_or_else(|| reason(&closed)))))
        }
        // The response failed or the client has disconnected: only closing is left.
        (Phase::Handling | Phase::Answered, End::TimedOut | End::Closed(Err(_))) | (_, End::Cut) => return None,
        (Phase::Idle | Phase::Handling | Phase::Answered, _) => None,
    };
    // Boxed: the task of a connection is as large as its largest phase.
    Box::pin(close(io, last, unread, &shield.shutdown)).await;
    None
}

/// Whether an HTTP/1.0 client wants to keep its connection.
fn keep_alive(headers: &HeaderMap) -> bool {
    let mut tokens = headers.get_all(header::CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"keep-alive"))
}

/// Why hyper could not read a head.
fn reason(closed: &hyper::Result<()>) -> &'static str {
    match closed {
        Err(error) if error.is_parse_too_large() => "its head is larger than 64 KiB or has more than 100 headers",
        Err(error) if error.is_parse() => "its request line or a header cannot be read",
        Ok(()) | Err(_) => "it ends within its head",
    }
}

/// Leaves framing to hyper, and keeps the upstream's reason phrase where the status has no standard one.
fn prepare<B>(response: &mut Response<B>, is_head: bool) {
    let status = response.status();
    // The version is this server's, not that of the upstream's message (RFC 9112 §2.3).
    *response.version_mut() = Version::HTTP_11;
    if !is_head && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if status.canonical_reason().is_none() {
        // hyper would write `<none>`.
        response.extensions_mut().get_or_insert_with(|| ReasonPhrase::from_static(b""));
    }
}

/// Sends the last response, if any, and closes so that the client can read it even if it goes on sending.
pub(super) async fn close<I, B>(mut io: I, last: Option<Response<B>>, unread: bool, shutdown: &Shutdown)
where
    I: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let close = async {
        if let Some(last) = last {
            io.write_all(&serialize(last).await?).await?;
        }
        io.shutdown().await?;
        if unread {
            let mut sink = [0; 4096];
            while io.read(&mut sink).await? > 0 {}
        }
        Ok::<_, BoxError>(())
    };
    tokio::select! {
        closed = timeout(LINGER, close) => match closed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a client disconnected before its connection was closed"),
            Err(_) => tracing::debug!("a client kept sending after its last response"),
        },
        () = shutdown.cutoff.cancelled() => {}
    }
}

/// Serializes a response that hyper can no longer send.
async fn serialize<B>(response: Response<B>) -> Result<Vec<u8>, BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(Into::into)?.to_bytes();
    let reason = head.status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).into_bytes();
    let is_framing = |name: &HeaderName| matches!(*name, header::CONTENT_LENGTH | header::CONNECTION);
    for (name, value) in head.headers.iter().filter(|(name, _)| !is_framing(name)) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    let date = httpdate::fmt_http_date(SystemTime::now());
    bytes.extend_from_slice(format!("date: {date}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// A response's body. It is dropped once hyper has taken all of it.
#[derive(Debug)]
struct Tracked<B> {
    body: B,
    exchange: Arc<Exchange>,
}

impl<B> Drop for Tracked<B> {
    fn drop(&mut self) {
        self.exchange.end();
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Tracked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
