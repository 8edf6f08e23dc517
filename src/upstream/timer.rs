//! A timer that is cheap to set.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Re-armed lazily: most deadlines never expire, so the timer is reset only when it fires too early, or when a deadline is
/// earlier than the timer's.
#[derive(Debug, Default)]
pub(super) struct LazyTimer(Option<Pin<Box<Sleep>>>);

impl LazyTimer {
    /// Ready once `deadline` has passed.
    pub(super) fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if deadline <= timer.deadline() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Drops the waker of the last poll, which would keep its task's memory: the timer may outlive the task by minutes.
    pub(super) fn forget_waker(&mut self) {
        if let Some(timer) = &mut self.0 {
            let _expired = timer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_deadline_is_kept_whatever_the_timer_was_set_to() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut timer = LazyTimer::default();
        for (abandoned, deadline) in [(10, 20), (60, 30), (30, 40)] {
            assert!(poll_fn(|cx| Poll::Ready(timer.poll(after(abandoned), cx))).await.is_pending() || abandoned == 30);
            poll_fn(|cx| timer.poll(after(deadline), cx)).await;
            assert_eq!(start.elapsed().as_secs(), deadline);
        }
        poll_fn(|cx| timer.poll(after(5), cx)).await;
        assert_eq!(start.elapsed().as_secs(), 40, "it had passed already");
    }
}
