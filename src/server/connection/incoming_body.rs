//! The body of a request, of which the client may go on sending the rest after an early response.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{runtime::Handle, time::timeout};

use super::limits::LINGER;

/// A request body. Over HTTP/2, what is unread when it is dropped is discarded for [`LINGER`] before the stream is reset.
///
/// A server may reset a stream with NO_ERROR after a complete response (RFC 9113, 8.1), which h2 does as soon as the body is
/// dropped. curl 7.88 then fails with error 92 and shows no response, if it has not sent all of its body. Over HTTP/1.1, the
/// connection is closed in the same way.
pub(super) struct IncomingBody {
    incoming: Option<Incoming>,
    lingers: bool,
}

impl IncomingBody {
    /// The body of an HTTP/1.1 request.
    pub(super) fn http1(incoming: Incoming) -> Self {
        Self { incoming: Some(incoming), lingers: false }
    }

    /// The body of an HTTP/2 stream.
    pub(super) fn http2(incoming: Incoming) -> Self {
        Self { incoming: Some(incoming), lingers: true }
    }
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.incoming.as_mut().map_or(Poll::Ready(None), |incoming| Pin::new(incoming).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        if !self.lingers || self.is_end_stream() {
            return;
        }
        let Some((mut incoming, runtime)) = self.incoming.take().zip(Handle::try_current().ok()) else { return };
        runtime.spawn(timeout(LINGER, async move { while let Some(Ok(_discarded)) = incoming.frame().await {} }));
    }
}
