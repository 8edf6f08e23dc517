//! The handler of a connection's requests, and the response if it panics.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use super::incoming_body::IncomingBody;
use crate::proxy::{self, Shield, error::Rejection, relay};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request that is being handled.
pub(super) type Handling<B> = Pin<Box<dyn Future<Output = Response<B>> + Send>>;

/// The handler of a connection's requests.
pub(super) trait App: Clone + Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;

    /// Handles a request. `ambiguity` is set if other servers could parse it differently.
    ///
    /// Boxed, so that its memory is freed with the request: hyper would keep the space as long as the connection.
    fn handle(&self, request: Request<IncomingBody>, ambiguity: Option<&'static str>) -> Handling<Self::Body>;

    /// The response to input that never became a request, and to a request whose handler panicked.
    fn refuse(&self, rejection: Rejection) -> Response<Self::Body>;
}

impl App for Arc<Shield> {
    type Body = relay::Body;

    fn handle(&self, request: Request<IncomingBody>, ambiguity: Option<&'static str>) -> Handling<relay::Body> {
        Box::pin(proxy::handle(self, request, ambiguity))
    }

    fn refuse(&self, rejection: Rejection) -> Response<relay::Body> {
        proxy::refuse(self, rejection)
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

/// The response to one request, also if its handler panics.
pub(super) async fn respond<A: App>(app: &A, handling: Handling<A::Body>) -> Response<A::Body> {
    catch_panic(handling).await.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(panic = message.unwrap_or("no message"), "a request handler panicked");
        app.refuse(Rejection::Internal)
    })
}
