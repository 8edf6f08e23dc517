//! When must running answers stop? SIGTERM drains; when `drain_timeout` is over, what still runs is ended properly.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The two steps of a stop.
#[derive(Debug, Default)]
pub struct Stop {
    /// No new connections; idle ones close.
    pub draining: CancellationToken,
    /// `drain_timeout` is over.
    pub ending: CancellationToken,
}

/// One request's view of a stop. Costs nothing until draining begins: then every connection is polled, and with it
/// whoever asks here.
pub struct Ending {
    stop: Arc<Stop>,
    over: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Ending {
    /// A view of `stop`.
    pub fn new(stop: &Arc<Stop>) -> Self {
        Self { stop: stop.clone(), over: None }
    }

    /// Whether the time is over; if not, the task is woken when it is.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.stop.draining.is_cancelled() {
            return false;
        }
        let over = self.over.get_or_insert_with(|| Box::pin(self.stop.ending.clone().cancelled_owned()));
        over.as_mut().poll(cx) == Poll::Ready(())
    }
}
