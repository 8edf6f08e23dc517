//! The open connections to the upstream.

use std::{
    fmt,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use super::{ExchangeError, connector::Connector, http1};

/// How long a connection is kept without a request. Groq's edge closes idle connections after some minutes; well before that a
/// new one costs less than a lost request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a connection is used. Under steady load one would never be idle, and never follow a change of the name's address.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Idle connections at most.
const MAX_IDLE: usize = 4096;

/// Makes connections and keeps the idle ones.
pub(super) struct Pool {
    connector: Connector,
    /// HTTP/1.1 connections without a request, the last one used at the end.
    idle: Mutex<Vec<Idle>>,
}

/// A connection without a request.
struct Idle {
    connection: Box<http1::Connection>,
    since: Instant,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, idle: Mutex::default() }
    }

    /// A connection, and whether it was used before.
    pub(super) async fn acquire(&self) -> Result<(Box<http1::Connection>, bool), ExchangeError> {
        while let Some(mut connection) = self.pop_idle() {
            if connection.is_usable() {
                return Ok((connection, true));
            }
        }
        // Boxed: rarely needed, and every request would have room for it.
        let io = Box::pin(self.connector.connect()).await?;
        Ok((http1::Connection::new(io).await?, false))
    }

    /// Takes back a connection whose response has been read.
    pub(super) fn release(&self, mut connection: Box<http1::Connection>) {
        let now = Instant::now();
        if !connection.is_usable() || now > connection.opened_at + MAX_AGE {
            return;
        }
        connection.timer.forget_waker();
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { connection, since: now });
        }
    }

    /// Closes connections that have been idle for too long, or were closed by the other side.
    pub(super) fn reap(&self) {
        let now = Instant::now();
        self.idle().retain_mut(|idle| now < idle.since + IDLE_TIMEOUT && idle.connection.is_usable());
    }

    fn pop_idle(&self) -> Option<Box<http1::Connection>> {
        self.idle().pop().map(|idle| idle.connection)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().expect("no panic while the lock is held")
    }
}
