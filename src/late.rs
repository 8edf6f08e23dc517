//! Is it too late? A clock that is set when it rings, not for each request: the timer wheel costs more than a look at it, and most of
//! what is waited for comes first.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep};

/// Ready when `due` is over. The clock is set back where that comes before it rings, and forward when it has rung for something else.
pub(crate) fn poll_late(mut clock: Pin<&mut Sleep>, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
    if due < clock.deadline() {
        clock.as_mut().reset(due);
    }
    while clock.as_mut().poll(cx).is_ready() {
        if due <= clock.deadline() {
            return Poll::Ready(());
        }
        clock.as_mut().reset(due);
    }
    Poll::Pending
}
