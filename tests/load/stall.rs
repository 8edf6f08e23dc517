//! How long this process was kept off the processors: a load that is starved says nothing about the shield.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const TICK: Duration = Duration::from_millis(5);

/// Measures from its start until it is dropped.
pub(crate) struct StallMeter {
    longest_us: Arc<AtomicU64>,
}

impl StallMeter {
    /// Starts a thread that sleeps for 5 ms at a time and notes by how much it woke too late.
    #[expect(clippy::disallowed_methods, reason = "a thread that measures real time")]
    pub(crate) fn start() -> Self {
        let longest_us = Arc::new(AtomicU64::new(0));
        let seen = Arc::downgrade(&longest_us);
        thread::spawn(move || {
            while let Some(longest_us) = seen.upgrade() {
                let before = Instant::now();
                thread::sleep(TICK);
                let late = before.elapsed().saturating_sub(TICK);
                longest_us.fetch_max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { longest_us }
    }

    /// The longest delay so far.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }
}
