//! When is a connection cut that did not finish in time? Draining has begun, `drain_timeout` is over, and so is the time for last words.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::sleep;

use crate::shutdown::Shutdown;

/// After the end of `drain_timeout`, the time for a stream's error frame.
pub(super) const LAST_FRAME: Duration = Duration::from_millis(500);

/// When a connection is cut that did not finish in time.
pub(super) struct End {
    shutdown: Arc<Shutdown>,
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Whether it would be told.
    listens: bool,
}

impl End {
    pub(super) fn new(shutdown: &Arc<Shutdown>) -> Self {
        Self { shutdown: shutdown.clone(), over: Box::pin(over(shutdown.clone())), listens: false }
    }

    /// What has come, or nothing when it is over.
    pub(super) fn cuts<T>(&mut self, came: Poll<T>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Poll::Ready(came) = came {
            return Poll::Ready(Some(came));
        }
        // Every poll comes by here: until draining begins, what comes then is not even looked at.
        if self.listens && !self.shutdown.draining.is_cancelled() {
            return Poll::Pending;
        }
        self.listens = true;
        self.over.as_mut().poll(cx).map(|()| None)
    }
}

/// The end of what did not finish in time.
async fn over(shutdown: Arc<Shutdown>) {
    shutdown.draining.cancelled().await;
    // It may have begun after those within have looked.
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        Poll::Ready(())
    })
    .await;
    shutdown.cutoff.cancelled().await;
    sleep(LAST_FRAME).await;
}
