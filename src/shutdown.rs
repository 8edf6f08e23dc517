//! The two steps of a shutdown: draining, and the cutoff of what has not finished in time.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture, WaitForCancellationFutureOwned};

/// Signals a shutdown to connections and requests.
#[derive(Debug, Default)]
pub struct Shutdown {
    /// No new connections are accepted; idle ones close.
    pub draining: Signal,
    /// `server.drain_timeout` is over: everything that is still running ends.
    pub cutoff: CancellationToken,
}

/// A cancellation token with a lock-free check: it is checked at every poll of every connection, and the token itself takes a
/// lock.
#[derive(Debug, Default)]
pub struct Signal {
    sent: AtomicBool,
    token: CancellationToken,
}

impl Signal {
    /// Sends the signal.
    pub fn cancel(&self) {
        self.sent.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Whether it has been sent.
    pub fn is_cancelled(&self) -> bool {
        self.sent.load(Ordering::Acquire)
    }

    /// Waits for it.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// A token of the caller's own that is cancelled with it.
    pub fn child_token(&self) -> CancellationToken {
        self.token.child_token()
    }
}

/// The cutoff for one request. Before draining begins nothing is registered and no shared lock is taken; when it begins, every
/// connection and every user of this is polled once.
pub struct Cutoff {
    shutdown: Arc<Shutdown>,
    reached: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Cutoff {
    /// The cutoff of this shutdown.
    pub fn new(shutdown: &Arc<Shutdown>) -> Self {
        Self { shutdown: shutdown.clone(), reached: None }
    }

    /// Whether the cutoff is reached. If not, the task is woken when it is.
    pub fn poll_reached(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.shutdown.draining.is_cancelled() {
            return false;
        }
        let reached = self.reached.get_or_insert_with(|| Box::pin(self.shutdown.cutoff.clone().cancelled_owned()));
        reached.as_mut().poll(cx) == Poll::Ready(())
    }
}
