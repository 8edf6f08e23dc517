//! Is it too late? A clock that is set when it rings, not for each request: the timer wheel costs more than a look at it, and most of
//! what is waited for comes first.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

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

/// The clock of one task, that no other ever waits for.
#[derive(Debug)]
pub(crate) struct Clock {
    sleep: Pin<Box<Sleep>>,
    /// When it rings, once it knows whom to wake.
    rings: Option<Instant>,
}

impl Clock {
    pub(crate) fn new(due: Instant) -> Self {
        Self { sleep: Box::pin(sleep_until(due)), rings: None }
    }

    /// Ready when `due` is over. `now`, where it is known: then a clock that is still to ring, and not after `due`, is not touched.
    /// It was last touched a request ago, which is long where there are ten thousand connections.
    pub(crate) fn poll(&mut self, due: Instant, now: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        if let (Some(rings), Some(now)) = (self.rings, now)
            && now < rings
            && rings <= due
        {
            return Poll::Pending;
        }
        let late = poll_late(self.sleep.as_mut(), due, cx);
        self.rings = Some(self.sleep.deadline());
        late
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    /// Set for one time and not touched for another, it still rings at the first, and is late for none.
    #[tokio::test(start_paused = true)]
    async fn who_is_not_touched_rings_all_the_same() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut clock = Clock::new(after(10));
        assert!(poll_fn(|cx| Poll::Ready(clock.poll(after(10), Some(begun), cx))).await.is_pending());
        for due in [20, 30] {
            // What it was asked first comes first: then it is asked for something else.
            assert!(poll_fn(|cx| Poll::Ready(clock.poll(after(due), Some(Instant::now()), cx))).await.is_pending());
            poll_fn(|cx| clock.poll(after(due), None, cx)).await;
            assert_eq!(Instant::now().duration_since(begun).as_secs(), due);
        }
        poll_fn(|cx| clock.poll(after(5), Some(Instant::now()), cx)).await;
        assert_eq!(Instant::now().duration_since(begun).as_secs(), 30, "it was over");
    }
}
