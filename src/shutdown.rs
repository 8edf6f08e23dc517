//! When must running answers stop? SIGTERM drains; when `drain_timeout` is over, what still runs is ended properly.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio_util::sync::CancellationToken;

/// The two steps of a stop.
#[derive(Debug, Default)]
pub struct Stop {
    /// No new connections; idle ones close.
    pub draining: Signal,
    /// `drain_timeout` is over.
    pub ending: Signal,
}

/// Given once. To look whether it was given takes no lock, unlike a token's: every poll of every connection looks.
#[derive(Clone, Debug, Default)]
pub struct Signal {
    given: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Signal {
    /// Gives it, and wakes who waits.
    pub fn give(&self) {
        self.given.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Whether it was given.
    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// Ends when it is given. To be awaited in one task: what wakes it is registered once.
    pub async fn given(&self) {
        // A token of its own: waiting on the shared one would make every connection contend for its lock.
        let token = self.token.child_token();
        let mut cancelled = pin!(token.cancelled());
        let mut registered = false;
        poll_fn(|cx| {
            if registered && !self.is_given() {
                return Poll::Pending;
            }
            registered = true;
            cancelled.as_mut().poll(cx)
        })
        .await;
    }
}

/// One request's view of a stop. Costs nothing until draining begins: then every connection is polled, and with it
/// whoever asks here.
pub struct Ending {
    stop: Arc<Stop>,
    over: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Ending {
    /// A view of `stop`.
    pub fn new(stop: &Arc<Stop>) -> Self {
        Self { stop: stop.clone(), over: None }
    }

    /// Whether the time is over; if not, the task is woken when it is.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.stop.draining.is_given() {
            return false;
        }
        let over = self.over.get_or_insert_with(|| {
            let stop = self.stop.clone();
            Box::pin(async move { stop.ending.given().await })
        });
        over.as_mut().poll(cx) == Poll::Ready(())
    }
}
