//! A connection to the upstream, independent of its protocol.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    error::{ExchangeError, Unanswered},
    http1, http2,
    request::{Origin, UpstreamRequest},
    timer::LazyTimer,
};

/// The transport of one request and its response.
pub(super) enum Connection {
    /// An exclusive connection.
    Http1(Box<http1::Connection>),
    /// A stream on a shared connection.
    Http2(http2::Stream),
}

impl Connection {
    /// Sends `request` and waits for the head of the response until `deadline`.
    pub(super) async fn exchange(
        &mut self,
        request: &mut UpstreamRequest,
        origin: &Origin,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Unanswered> {
        let response = match self {
            Self::Http1(connection) => connection.exchange(request.http1_request(origin), deadline).await?,
            Self::Http2(stream) => stream.exchange(request.http2_request(origin), deadline).await?,
        };
        // 101 was not requested. Status classes end at 599 (RFC 9110 §15), but hyper accepts numbers up to 999.
        match response.status().as_u16() {
            200..600 => Ok(response),
            _ => Err(Unanswered::Failed(ExchangeError::NOT_HTTP)),
        }
    }

    /// The next frame of the response's body.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match self {
            Self::Http1(connection) => connection.poll_frame(body, cx),
            Self::Http2(stream) => stream.poll_frame(body, cx),
        }
    }

    /// Whether it was open before this request, so that the peer may have closed it.
    pub(super) fn was_open(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.was_idle,
            Self::Http2(_) => true,
        }
    }

    pub(super) fn timer(&mut self) -> &mut LazyTimer {
        match self {
            Self::Http1(connection) => &mut connection.timer,
            Self::Http2(stream) => &mut stream.timer,
        }
    }
}
