//! The HTTP/2 connections, and the connection attempts that requests share.

use std::sync::Arc;

use tokio::{sync::oneshot, time::Instant};

use super::{
    error::ExchangeError,
    http2,
    limits::{IDLE_TIMEOUT, MAX_AGE},
};

/// The result of a connection attempt for one waiting request: a stream, or nothing, so that it tries again.
pub(super) type Grant = Result<Option<http2::Stream>, ExchangeError>;

/// How a request proceeds.
pub(super) enum Next {
    /// It has a stream.
    Stream(http2::Stream),
    /// The upstream speaks HTTP/1.1 only: the request needs a connection of its own.
    Http1,
    /// It waits for a connection attempt, and starts that one if it has a number here.
    Wait { grant: oneshot::Receiver<Grant>, start: Option<u64> },
}

/// The connections that requests share.
#[derive(Default)]
pub(super) struct Shared {
    connections: Vec<Member>,
    attempts: Vec<Attempt>,
    /// Identifies an attempt.
    last_attempt: u64,
    /// Whether the last connection negotiated HTTP/1.1.
    http1_only: bool,
    /// Number of streams that the peer allowed last.
    allowed_streams: Option<usize>,
}

struct Member {
    connection: Arc<http2::Connection>,
    /// Since when it has had no stream.
    idle_since: Option<Instant>,
}

/// A connection attempt, shared by no more requests than a connection is expected to carry: a burst makes the connections that it
/// needs at once, and no more.
struct Attempt {
    id: u64,
    waiting: Vec<oneshot::Sender<Grant>>,
}

impl Shared {
    /// A stream on an open connection, or what to do instead. [`Self::finish`] ends a connection attempt that is started.
    pub(super) fn next(&mut self) -> Next {
        self.connections.retain(|member| !member.connection.is_closed());
        for member in &mut self.connections {
            self.allowed_streams = Some(member.connection.max_streams());
            // The first one with room, so that the last ones become idle.
            if let Some(stream) = member.connection.open_stream() {
                member.idle_since = None;
                return Next::Stream(stream);
            }
        }
        if self.http1_only {
            return Next::Http1;
        }
        let capacity = self.assumed_streams();
        let (sender, grant) = oneshot::channel();
        if let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.waiting.len() < capacity) {
            attempt.waiting.push(sender);
            return Next::Wait { grant, start: None };
        }
        self.last_attempt += 1;
        self.attempts.push(Attempt { id: self.last_attempt, waiting: vec![sender] });
        Next::Wait { grant, start: Some(self.last_attempt) }
    }

    /// Ends a connection attempt: with an HTTP/2 connection, or with one of HTTP/1.1, which is not shared.
    pub(super) fn finish(&mut self, attempt: u64, outcome: Result<Option<Arc<http2::Connection>>, ExchangeError>) {
        let Some(at) = self.attempts.iter().position(|one| one.id == attempt) else { return };
        for waiting in self.attempts.swap_remove(at).waiting {
            let stream = outcome.as_ref().map(|connection| connection.as_ref().and_then(http2::Connection::open_stream));
            // A cancelled request leaves its stream to the others.
            let _gone = waiting.send(stream.map_err(Clone::clone));
        }
        match outcome {
            Ok(Some(connection)) => self.add(connection),
            Ok(None) => self.http1_only = true,
            Err(_) => {}
        }
    }

    /// How many streams a new connection is assumed to carry.
    pub(super) fn assumed_streams(&self) -> usize {
        self.allowed_streams.filter(|streams| *streams > 0).unwrap_or(http2::ASSUMED_STREAMS)
    }

    pub(super) fn add(&mut self, connection: Arc<http2::Connection>) {
        self.http1_only = false;
        self.connections.push(Member { connection, idle_since: None });
    }

    /// Drops connections that are closed, too old, or idle for too long; without requests they close.
    pub(super) fn reap(&mut self, now: Instant) {
        self.connections.retain_mut(|Member { connection, idle_since }| {
            if connection.is_idle() {
                idle_since.get_or_insert(now);
            } else {
                *idle_since = None;
            }
            let is_idle_for_long = idle_since.is_some_and(|since| now >= since + IDLE_TIMEOUT);
            !connection.is_closed() && !is_idle_for_long && now < connection.opened_at + MAX_AGE
        });
    }
}
