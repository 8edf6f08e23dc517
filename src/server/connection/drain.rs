//! The steps by which a connection ends while the shield drains.

use std::{pin::Pin, time::Duration};

use tokio::time::sleep;

use crate::shutdown::Shutdown;

/// How long idle connections stay open while draining, for requests that are already on their way.
pub(super) const LAST_CALL: Duration = Duration::from_millis(250);
/// Time for the error frame of a stream after `drain_timeout`.
pub(super) const LAST_FRAME: Duration = Duration::from_millis(500);

/// A step of a shutdown.
pub(super) type Step<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Waits until draining has begun and [`LAST_CALL`] has passed. `begun` runs when draining begins.
pub(super) async fn last_call(shutdown: &Shutdown, begun: impl FnOnce()) {
    // A child of the token: waiting on the shared one would make every connection contend for its lock.
    shutdown.draining.child_token().cancelled().await;
    begun();
    sleep(LAST_CALL).await;
}

/// Waits until everything that did not finish in time has to end.
pub(super) async fn cutoff(shutdown: &Shutdown) {
    shutdown.cutoff.cancelled().await;
    sleep(LAST_FRAME).await;
}
