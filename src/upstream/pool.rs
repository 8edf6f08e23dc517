//! The open connections to the upstream.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;

use super::{
    connection::Connection,
    connector::{Connector, Io},
    error::ExchangeError,
    http1, http2,
    limits::{IDLE_TIMEOUT, MAX_AGE},
    shared::{Next, Shared},
};

/// Maximum number of idle HTTP/1.1 connections of a thread.
const MAX_IDLE: usize = 1024;
/// Beyond this number, threads share stacks.
const STACKS: usize = 16;
/// How often a request waits for a shared connection, whose slots others may take first.
const MAX_ROUNDS: usize = 8;

/// Makes connections, and keeps the idle and the shared ones.
pub(super) struct Pool {
    connector: Connector,
    /// Idle HTTP/1.1 connections, the most recently used one last, by the thread that used them. Every worker thread has a
    /// reactor of its own: a connection used on another thread than the one that made it would wake both for every read.
    idle: [Mutex<Vec<Idle>>; STACKS],
    /// HTTP/2 connections.
    shared: Mutex<Shared>,
}

/// A connection without a request.
struct Idle {
    connection: Box<http1::Connection>,
    since: Instant,
}

/// A connection attempt whose task may panic or be dropped with its runtime: waiting requests must not hang then.
struct Unfinished {
    pool: Arc<Pool>,
    attempt: u64,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Does nothing if it has ended.
        self.pool.shared().finish(self.attempt, Err(aborted()));
    }
}

fn aborted() -> ExchangeError {
    ExchangeError::Unreachable("the connection attempt was aborted".into())
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, idle: Default::default(), shared: Mutex::default() }
    }

    /// A connection for one request.
    pub(super) async fn acquire(self: &Arc<Self>) -> Result<Connection, ExchangeError> {
        if !self.connector.offers_http2() {
            return self.acquire_http1().await;
        }
        for _ in 0..MAX_ROUNDS {
            let next = self.shared().next();
            let grant = match next {
                Next::Stream(stream) => return Ok(Connection::Http2(stream)),
                Next::Http1 => return self.acquire_http1().await,
                Next::Wait { grant, start } => {
                    if let Some(attempt) = start {
                        self.spawn_connect(attempt);
                    }
                    grant
                }
            };
            match grant.await {
                Ok(Ok(Some(stream))) => return Ok(Connection::Http2(stream)),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(aborted()),
            }
        }
        Err(ExchangeError::Unreachable("other requests used up every new connection".into()))
    }

    /// An idle connection, or a new one that the request makes itself, so that it ends with the request.
    async fn acquire_http1(self: &Arc<Self>) -> Result<Connection, ExchangeError> {
        while let Some(mut connection) = self.pop_idle() {
            if connection.is_usable() {
                connection.was_idle = true;
                return Ok(Connection::Http1(connection));
            }
        }
        // Boxed: rarely needed, and every request would reserve space for it.
        Box::pin(self.connect()).await
    }

    /// A new connection.
    async fn connect(self: &Arc<Self>) -> Result<Connection, ExchangeError> {
        let io = self.connector.connect().await?;
        if io.is_http2() {
            let connection = self.http2(io).await?;
            self.shared().add(connection.clone());
            return connection.open_stream().map(Connection::Http2).ok_or(ExchangeError::Closed);
        }
        Ok(Connection::Http1(http1::Connection::new(io).await?))
    }

    /// Makes a connection that several requests wait for, in a task: a cancelled request must not cancel it.
    fn spawn_connect(self: &Arc<Self>, attempt: u64) {
        let unfinished = Unfinished { pool: self.clone(), attempt };
        tokio::spawn(async move {
            let outcome = unfinished.pool.connect_shared().await;
            unfinished.pool.shared().finish(attempt, outcome);
        });
    }

    /// An HTTP/2 connection, or an idle one of HTTP/1.1.
    async fn connect_shared(&self) -> Result<Option<Arc<http2::Connection>>, ExchangeError> {
        let io = self.connector.connect().await?;
        if io.is_http2() {
            return self.http2(io).await.map(Some);
        }
        let connection = http1::Connection::new(io).await?;
        self.push_idle(connection, Instant::now());
        Ok(None)
    }

    async fn http2(&self, io: Io) -> Result<Arc<http2::Connection>, ExchangeError> {
        let assumed_streams = self.shared().assumed_streams();
        http2::Connection::new(io, assumed_streams).await
    }

    /// Takes back a connection whose response has been read.
    pub(super) fn release(&self, connection: Connection) {
        let Connection::Http1(mut connection) = connection else { return };
        let now = Instant::now();
        // A ready connection is not polled here: the next request or `reap` does so.
        if (connection.is_ready() || connection.is_usable()) && now < connection.opened_at + MAX_AGE {
            self.push_idle(connection, now);
        }
    }

    /// Closes connections that have been idle for too long, or that the peer has closed.
    pub(super) fn reap(&self) {
        let now = Instant::now();
        for idle in &self.idle {
            lock(idle).retain_mut(|idle| now < idle.since + IDLE_TIMEOUT && idle.connection.is_usable());
        }
        self.shared().reap(now);
    }

    fn push_idle(&self, connection: Box<http1::Connection>, since: Instant) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { connection, since });
        }
    }

    fn pop_idle(&self) -> Option<Box<http1::Connection>> {
        self.idle().pop().map(|idle| idle.connection)
    }

    /// The calling thread's stack.
    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static STACK: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STACKS);
        lock(&self.idle[STACK.with(|stack| *stack)])
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while the lock is held")
}
