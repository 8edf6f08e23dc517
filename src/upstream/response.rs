//! What is still to come of an answer? Its body, piece by piece, and then its connection goes back.

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{ExchangeError, connection::Connection, pool::Pool};
use crate::wire::Rest;

/// The rest of an answer. Read to its end, it gives its connection back; dropped earlier, it closes it.
pub struct ResponseBody {
    rest: Rest,
    /// `None` once all has come.
    connection: Option<Box<Connection>>,
    /// Whether the connection may be used again.
    stays: bool,
    pool: Arc<Pool>,
    idle_timeout: Duration,
    /// Since when nothing has come.
    silent_since: Option<Instant>,
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("rest", &self.rest).finish_non_exhaustive()
    }
}

impl ResponseBody {
    pub(super) fn new(rest: Rest, stays: bool, connection: Box<Connection>, pool: Arc<Pool>, idle_timeout: Duration) -> Self {
        let mut inflow = Self { rest, connection: Some(connection), stays, pool, idle_timeout, silent_since: None };
        inflow.release_at_end();
        inflow
    }

    /// Bytes still to come, where the upstream said so.
    pub fn exact_size(&self) -> Option<u64> {
        self.rest.exact_size()
    }

    /// Whether all has come.
    pub fn is_end(&self) -> bool {
        self.rest.is_end()
    }

    /// The next bytes; `None` at the end of a body that came whole.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        match connection.poll_data(&mut self.rest, cx) {
            Poll::Pending => {
                let due = *self.silent_since.get_or_insert_with(Instant::now) + self.idle_timeout;
                connection.alarm.poll(due, cx).map(|()| Some(Err(ExchangeError::Timeout)))
            }
            Poll::Ready(data) => {
                self.silent_since = None;
                self.release_at_end();
                // A chunk that is none is no answer of Groq's either: what stands between us broke it.
                Poll::Ready(data.map(|data| data.map_err(|_broken| ExchangeError::Closed)))
            }
        }
    }

    /// The next bytes, awaited.
    pub async fn data(&mut self) -> Option<Result<Bytes, ExchangeError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    fn release_at_end(&mut self) {
        if self.rest.is_end()
            && let Some(mut connection) = self.connection.take()
            && self.stays
            && connection.is_usable()
        {
            connection.alarm.forget_whom_to_wake();
            self.pool.give(connection);
        }
    }
}
