//! Time limits on staying in one state.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// Expires when a state has not changed for too long.
///
/// Lazily re-armed: most deadlines never expire, so the timer is reset when it fires too early and when a deadline is
/// earlier than the timer's, not at each change of state.
#[derive(Debug)]
pub(super) struct Deadline<S> {
    timer: Pin<Box<Sleep>>,
    state: S,
    /// When the limit of the current state began; `None` if it has none.
    since: Option<Instant>,
}

impl<S: PartialEq> Deadline<S> {
    /// A deadline for `state` with this limit.
    pub(super) fn new(state: S, limit: Duration) -> Self {
        Self { timer: Box::pin(sleep(limit)), state, since: Some(Instant::now()) }
    }

    /// Ready when `state` has been passed here, with a limit, for longer than `limit`.
    pub(super) fn poll(&mut self, state: S, limit: Option<Duration>, cx: &mut Context<'_>) -> Poll<()> {
        if state != self.state {
            self.state = state;
            self.since = None;
        }
        let Some(limit) = limit else {
            self.since = None;
            return Poll::Pending;
        };
        let due = *self.since.get_or_insert_with(Instant::now) + limit;
        if due < self.timer.deadline() {
            self.timer.as_mut().reset(due);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if due <= self.timer.deadline() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn expires_when_the_state_has_not_changed() {
        let begun = Instant::now();
        let mut deadline = Deadline::new(0, seconds(10));
        poll_fn(|cx| deadline.poll(0, Some(seconds(10)), cx)).await;
        assert_eq!(begun.elapsed(), seconds(10));
    }

    /// The timer is set for the first state and fires during the second one, which is not due then.
    #[tokio::test(start_paused = true)]
    async fn a_change_of_state_starts_it_anew_in_either_direction() {
        for limit in [30, 5] {
            let begun = Instant::now();
            let mut deadline = Deadline::new(0, seconds(10));
            assert!(poll_fn(|cx| Poll::Ready(deadline.poll(0, Some(seconds(10)), cx))).await.is_pending());
            sleep(seconds(4)).await;
            poll_fn(|cx| deadline.poll(1, Some(seconds(limit)), cx)).await;
            assert_eq!(begun.elapsed(), seconds(4 + limit));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_without_a_limit_does_not_count() {
        let begun = Instant::now();
        let mut deadline = Deadline::new(0, seconds(10));
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll(0, None, cx))).await.is_pending());
        sleep(seconds(60)).await;
        poll_fn(|cx| deadline.poll(0, Some(seconds(10)), cx)).await;
        assert_eq!(begun.elapsed(), seconds(70));
    }
}
