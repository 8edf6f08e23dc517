//! The body of a response.

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{connection::Connection, error::ExchangeError, pool::Pool};

/// The body of a response. Read to its end, it returns its connection to the pool; dropped earlier, it closes the connection, or
/// resets its stream over HTTP/2.
pub struct ResponseBody {
    incoming: Incoming,
    /// `None` once all of the body has arrived.
    connection: Option<Connection>,
    pool: Arc<Pool>,
    idle_timeout: Duration,
    /// When the last data arrived.
    idle_since: Option<Instant>,
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

impl ResponseBody {
    pub(super) fn new(incoming: Incoming, connection: Connection, pool: Arc<Pool>, idle_timeout: Duration) -> Self {
        let mut body = Self { incoming, connection: Some(connection), pool, idle_timeout, idle_since: None };
        body.release_at_end();
        body
    }

    /// The remaining bytes, if the upstream stated the length.
    pub fn exact_size(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Whether all of it has arrived.
    pub fn is_end(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// The next bytes; `None` at the end of a complete body.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        loop {
            let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
            match connection.poll_frame(&mut self.incoming, cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.idle_since = None;
                    // Trailers are not passed on: no client of Groq reads them.
                    if let Ok(data) = frame.into_data() {
                        self.release_at_end();
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => {
                    self.release();
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    let deadline = *self.idle_since.get_or_insert_with(Instant::now) + self.idle_timeout;
                    return connection.timer().poll(deadline, cx).map(|()| Some(Err(ExchangeError::Timeout)));
                }
            }
        }
    }

    /// The next bytes, awaited.
    pub async fn data(&mut self) -> Option<Result<Bytes, ExchangeError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    fn release_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.release(connection);
        }
    }
}
