//! The steps of a connection's end while the shield drains.

use std::{pin::Pin, time::Duration};

use tokio::time::sleep;

use crate::shutdown::Shutdown;

/// While draining, a request may already be on its way on an idle connection.
pub(super) const LAST_CALL: Duration = Duration::from_millis(250);
/// After `drain_timeout`, the time for a stream's error frame.
pub(super) const LAST_FRAME: Duration = Duration::from_millis(500);

/// A step of a shutdown.
pub(super) type Step<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Draining began long enough ago that no request is on its way any more. `begun` runs first.
pub(super) async fn last_call(shutdown: &Shutdown, begun: impl FnOnce()) {
    // A child of the token: waiting on the shared one would make every connection contend for its lock.
    shutdown.draining.child_token().cancelled().await;
    begun();
    sleep(LAST_CALL).await;
}

/// The end of what did not finish in time.
pub(super) async fn cutoff(shutdown: &Shutdown) {
    shutdown.cutoff.cancelled().await;
    sleep(LAST_FRAME).await;
}
